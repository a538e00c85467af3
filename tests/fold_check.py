"""How laws of the fold are held against what a reader did; the laws themselves are in fold_laws*.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fold_reasons import Record, Seen

from streamserve.control.fold import Outcome, State

Step = Callable[..., tuple[State, Outcome]]
OF_STEPS: list[Callable[[Seen], bool]] = []
OF_LOGS: list[Callable[[Log], bool]] = []


@dataclass(frozen=True)
class Log:
    """A whole log, as a reader with every secret took it, and how to read it again: at once, or as a lesser reader."""

    records: Sequence[Record]
    steps: Sequence[Seen]
    secrets: Mapping[str, bytes]
    read: Callable[[Sequence[Record], Mapping[str, bytes], int], list[tuple[State, Outcome]]]
    ability: int  # the highest schema_version that the reader can do


class Broken(AssertionError):  # noqa: N818  (a finding, as `assert` would raise it)
    def __init__(self, laws: Sequence[Callable[..., bool]], where: object) -> None:
        self.laws = {law.__name__ for law in laws}
        super().__init__("\n".join([*(f"{law.__name__}: {law.__doc__}" for law in laws), str(where)]))


def of_step(law):
    OF_STEPS.append(law)
    return law


def of_log(law):
    OF_LOGS.append(law)
    return law


def check(seen: Seen) -> None:
    if broken := [law for law in OF_STEPS if not _holds(law, seen)]:
        raise Broken(broken, seen)


def check_log(log: Log) -> None:
    if broken := [law for law in OF_LOGS if not _holds(law, log)]:
        raise Broken(broken, "\n".join(f"{seen.record} -> {seen.outcome}" for seen in log.steps))


def _holds(law: Callable[..., bool], what: Seen | Log) -> bool:
    try:
        return bool(law(what))
    except Exception:  # noqa: BLE001  (a state that a law can't even look at)
        return False

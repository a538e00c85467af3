"""Random control logs, mostly plausible, held against the laws of docs/control.md.

    python tests/fold_sequences.py 100000            # so many logs; the seed of the first is 1
    python tests/fold_sequences.py 1000 --seed 77

A log is written by somebody who reads along: commands that could be meant, by people who err in one case of five, and
between them what nobody meant: noise, forgeries, replays, other topologies, later releases.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import fold_laws_rollout  # noqa: F401  (its laws count as well)
from control_desk import able
from fold_check import Broken, Log, Step, check, check_log
from fold_laws import total
from fold_reasons import Record, Seen

from streamserve.control import commands, fold
from streamserve.control.fold import State
from streamserve.control.outcome import Outcome
from streamserve.control.signature import HEADER, Key, sign
from streamserve.control.state import Phase

TOPOLOGY = "t"
SECRETS = {"k1": b"first-secret", "k2": b"second-secret", "k3": b"third-secret"}
VERSIONS = ("v1", "v2", "v3", "v4")
FIELDS = ("country", "plan.tier", "age")
ERRS = 0.2
NOISE = (
    None, b"", b"null", b"[]", b"{}", b"\xff\xfe{", b'{"topology": "t"', b'{"topology": 1}', b'{"a":' * 5000,
    b'{"topology": "t", "topology": "t"}', b'{"topology": "t", "a": NaN}',
    b'{"topology": "t", "a": ' + b"9" * 5000 + b"}",
)  # fmt: skip
ODD_HEADERS = (
    (), ((HEADER, None),), ((HEADER, b""),), ((HEADER, b":"),), ((HEADER, b"k1:"),), ((HEADER, b"\xff:\xff"),),
    ((HEADER, b"k1:00"), (HEADER, b"k1:00")), (("other", b"k1:00"),), ((HEADER, b"nobody:00"),),
)  # fmt: skip


class Writer:
    """Writes the next record, with the state in sight."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._sent: list[Record] = []
        self._ids = 0

    def write(self, state: State, offset: int) -> Record:
        draw = self.random.random()
        if draw < 0.03:
            record = Record(offset, self._noise(), self._pick(ODD_HEADERS), readable=False, formed=False)
        elif draw < 0.08 and self._sent:
            again = self._pick(self._sent)
            record = Record(offset, again.value, again.headers, again.readable, again.formed)
        else:
            record = self._command(state, offset)
        self._sent.append(record)
        return record

    def _pick(self, choices):
        return choices[int(self.random.random() * len(choices))]

    def _errs(self, share: float = ERRS) -> bool:
        return self.random.random() < share

    def _noise(self) -> bytes | None:
        return self._pick(NOISE) if self._errs(0.7) else self.random.randbytes(self.random.randrange(40))

    def _command(self, state: State, offset: int) -> Record:
        self._ids += 1
        kind = self._kind(state)
        body = {"kind": kind, "command_id": f"c{self._ids}", "topology": TOPOLOGY, "actor": "ann"}
        if kind != "kill" or self._errs():
            body["expected_generation"] = state.generation
        body |= getattr(self, f"_{kind}", lambda _: {})(state)
        if kind in ("shadow", "shift", "promote", "rollback", "pause", "resume", "approve"):
            body["rollout_id"] = state.rollout.id if state.rollout else "r1"
        formed = self._spoil(state, body) if self._errs() else True
        value = json.dumps(body).encode()
        return Record(offset, value, self._headers(state, value), formed=formed)

    def _kind(self, state: State) -> str:
        if not state.initialised:
            return "init" if not self._errs() else self._pick(commands.KINDS)
        if self._errs():
            return self._pick(commands.KINDS)
        if state.rollout is None:
            return self._pick(("prepare",) * 6 + ("kill", "revive", "keys", "upgrade"))
        if state.rollout.phase is Phase.PAUSED:
            return self._pick((*("resume",) * 3, "rollback", "kill", "shadow", "approve", "revive", "shift", "promote"))
        if state.rollout.phase is Phase.KILLED:
            return self._pick(("rollback", "revive", "shadow", "shift", "promote", "resume", "pause", "approve"))
        moving = ("shift",) * 6 + ("shadow",) * 2 + ("promote",) * 2
        return self._pick((*moving, "rollback", "pause", "approve", "kill", "revive", "keys"))

    # ---- what each kind says

    def _init(self, _: State):
        more = {"manifest": self._manifest("v1")} if self._errs(0.7) else {}
        more |= {"segments": list(FIELDS[:2])} if self._errs(0.7) else {}
        more |= {"rules": self._rules()} if "segments" in more and self._errs() else {}
        return {"model": "m", "stable": "v1", "salt": "s", "fingerprint": "f", **more}

    def _prepare(self, state: State):
        fresh = [one for one in VERSIONS if one != state.stable and one not in state.killed]
        candidate = self._pick(fresh if fresh and not self._errs() else VERSIONS)
        number = len(state.closed) + (0 if self._errs(0.1) else 1)
        more = {"rules": self._rules()} if state.segments and self._errs(0.5) else {}
        more |= {"salt": "own"} if self._errs() else {}
        sha256 = self._manifest(candidate, odd=self._errs(0.05))
        return {"rollout_id": f"r{number}", "candidate": candidate, "manifest": sha256, **more}

    @staticmethod
    def _manifest(version: str, *, odd: bool = False) -> str:
        return version[1] * 63 + ("f" if odd else "0")

    def _rules(self):
        answers = ("candidate", "stable") if self._errs(0.5) else ("candidate",)
        return [{"name": f"n{i}", "where": self._where(), "answer": one} for i, one in enumerate(answers)]

    def _where(self):
        return {self._pick(FIELDS if self._errs(0.1) else FIELDS[:2]): self._pick((["de"], [1, 2], [True], ["a", 1]))}

    def _shadow(self, state: State):
        more = {"where": self._where()} if state.segments and self._errs(0.5) else {}
        return {"percent_bp": self._pick((0, 500, 500, 10_000)), **more}

    def _shift(self, _: State):
        more = {"ready": ["w1", "w2"]} if self._errs(0.5) else {}
        return {"weight_bp": self._pick((0, 1, 500, 500, 2500, 10_000)), **more}

    def _approve(self, _: State):
        return {"step": self._pick(range(4))}

    def _kill(self, state: State):
        named = [one for one, _ in state.manifests] or ["v1"]
        return {"version": self._pick(VERSIONS if self._errs() else named)}

    def _revive(self, state: State):
        return {"version": self._pick(sorted(state.killed) if state.killed and not self._errs() else VERSIONS)}

    def _keys(self, state: State):
        some = [key for key in SECRETS if self._errs(0.4)]
        gone = [key for key in sorted(state.keys) if self._errs(0.3) and key not in some]
        more = {"remove": gone if not self._errs(0.05) else ["nobody"]}
        return {"mode": self._pick(("off", "required")), "add": some, **more}

    def _upgrade(self, state: State):
        return {"accepts": state.accepts + self._pick((0, 1, 1, 2))}

    # ---- what goes wrong

    def _spoil(self, state: State, body) -> bool:
        """Make a mistake in it; is it of the published form still?"""
        mistake = self._pick(("stale", "topology", "id", "rollout", "kind", "version", "field", "type", "letter"))
        if mistake == "stale":
            body["expected_generation"] = max(0, state.generation + self._pick((-1, 1, 3)))
        elif mistake == "topology":
            body["topology"] = "u"
        elif mistake == "id":
            body["command_id"] = f"c{self.random.randint(1, self._ids)}"
        elif mistake == "rollout" and "rollout_id" in body:
            body["rollout_id"] = self._pick(("r0", "r1", "r2", "r9"))
        elif mistake == "kind":
            body["kind"] = self._pick(("explode", "Init", ""))
        elif mistake == "version":
            body["schema_version"] = self._pick((1, 2, 3, 99))
        elif mistake == "field":
            body["unknown"] = 1
            return False
        elif mistake == "type":
            body[self._pick(("command_id", "schema_version", "actor"))] = self._pick((None, [], 1.5, True, {"a": 1}))
            return False
        elif mistake == "letter":
            body["actor"] = "\ud800"  # JSON can say it, UTF-8 can't
            return False
        return True

    def _headers(self, state: State, value: bytes):
        wanted = state.signing == "required" or (state.keys and self._errs(0.3))
        if not wanted or self._errs(0.1):
            return self._pick(ODD_HEADERS) if self._errs(0.1) else ()
        key = self._pick(sorted(state.keys) if state.keys and not self._errs(0.1) else sorted(SECRETS))
        secret = SECRETS[key] if not self._errs(0.1) else b"forged"
        return ((HEADER, sign(value, Key(key, secret))),)


# ---- reading a log


def take(state: State, record: Record, secrets: Mapping[str, bytes], step: Step) -> tuple[State, Outcome]:
    try:
        return step(state, record.offset, record.value, record.headers, secrets)
    except Exception as error:
        raise Broken([total], f"{record}: {error!r}") from error


def read(
    records: Sequence[Record], secrets: Mapping[str, bytes], ability: int, step: Step
) -> list[tuple[State, Outcome]]:
    state, found = State(TOPOLOGY), []
    with able(ability):
        for record in records:
            state, said = take(state, record, secrets, step)
            found.append((state, said))
    return found


def one_log(seed: int, step: Step = fold.step) -> list[Seen]:
    """Write and read one log, and hold it against every law.

    Raises:
        Broken: with the law, and where.
    """
    writer, state, seen = Writer(seed), State(TOPOLOGY), []
    ability, length, offset = writer.random.choice((1, 3, 3)), writer.random.randint(5, 60), 0
    with able(ability):
        while len(seen) < length:
            offset += writer.random.choice((1, 1, 1, 2))
            record = writer.write(state, offset)
            after, said = take(state, record, SECRETS, step)
            seen.append(Seen(state, record, after, said, SECRETS, ability))
            check(seen[-1])
            state = after
            if state.held and writer.random.random() < 0.5:
                break
    records = [one.record for one in seen]
    check_log(Log(records, seen, SECRETS, lambda *how: read(*how, step), ability))
    return seen


def many(count: int, first: int = 1, step: Step = fold.step) -> Counter[str]:
    """So many logs; how often each answer was given."""
    said: Counter[str] = Counter()
    for seed in range(first, first + count):
        try:
            for seen in one_log(seed, step):
                outcome = seen.outcome
                said[outcome.rejection or (f"accepted {seen.kind}" if outcome.accepted else outcome.detail[:19])] += 1
        except Broken as error:
            error.args = (f"seed {seed}: {error}",)
            raise
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    began = time.process_time()
    said = many(asked.count, asked.seed)
    spent = time.process_time() - began
    for answer, times in sorted(said.items(), key=lambda item: -item[1]):
        sys.stdout.write(f"{times:10,}  {answer}\n")
    sys.stdout.write(
        f"{asked.count:,} logs, {said.total():,} records, no law broken; {spent:.0f} s of CPU, "
        f"{spent / asked.count * 1e6:,.0f} us a log\n"
    )


if __name__ == "__main__":
    main()

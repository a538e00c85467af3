"""The proof of the first law: a long stream, many commands, workers that die, sleep, come and go; then all of it again.

Three workers score it, in bursts, so that each change of version falls among events that wait. What they wrote is then
compared with what one process makes of the topics alone, in batches of another size (`streamserve predictions verify`),
and with the logs' own words (`law.py`), which know nothing of either.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chaos.law import Desk, cutovers
from chaos.lean import Cuts, Law, Lawful, Source, hold, read_source
from chaos.models import FOREST
from chaos.points import points_of
from chaos.reading import read_dead_letters
from chaos.run import Result, Run, Tell
from chaos.schedule import MOST, Kind, schedule
from chaos.world import NAME, PREDICTION_ID, TOPIC, Options, World, world

COMMANDS, EACH = 20, 3  # accepted ones, at least; sent in each burst
BURST, FEWEST_ROUNDS = 33_000, 8
MORE = 30  # bursts without a fault, at most, until there were commands enough
BETWEEN_S = 0.4  # two commands of one burst: both are to take effect
DEAL = {Kind.KILL: 7, Kind.STOP: 3, Kind.JOIN: 1, Kind.LEAVE: 1}  # nothing befalls Redis or the broker
BATCH_ROWS = 1777  # of the second scoring; a worker takes 4,000 at most
SAID = {
    "agrees": "agree", "fell_back": "FALLBACK", "dead_letter": "dead letters", "repeated": "repeated",
    "differs": "differ", "missing": "missing", "changed": "not comparable", "strays": "of no event",
    "changes": "epoch changes inside a batch",
}  # fmt: skip
# A worker that slept must not take its own sleep for a Redis that does not answer, nor for a candidate that is late
SETTINGS = {"STREAMSERVE_STORE_TIMEOUT": "30", "STREAMSERVE_CANDIDATE_DEADLINE": "5"}


@dataclass
class Proven:
    """What a proof found. said: the report of `predictions verify`. cut: cutovers; inside: those at an event that was
    in the topic already. changes: epochs that took effect, and those that did so inside.
    """

    options: Options
    seconds: float = 0.0
    sent: int = 0
    desk: Desk = field(default_factory=lambda: Desk(NAME))
    kinds: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    lawful: Lawful = field(default_factory=Lawful)
    said: dict[str, Any] = field(default_factory=dict)
    verify_s: float = 0.0
    verify_mib: float = 0.0
    cut: int = 0
    inside: int = 0
    changes: int = 0
    changes_inside: int = 0
    troubles: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """All agrees, and enough of it."""
        return not self.troubles


def prove(options: Options, events: int, tell: Tell) -> Proven:
    """Returns what was found. options: of a run; its faults and bursts follow from the number of events."""
    rounds = max(FEWEST_ROUNDS, math.ceil(events / BURST))
    found = Proven(
        Options(
            options.folder, options.delivery, options.seed, rounds, options.rate, math.ceil(events / rounds),
            settings={**SETTINGS, **(options.settings or {})}, kind=FOREST, shadows=False, workers=MOST,
        )
    )  # fmt: skip
    folder = options.folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    points = [point.name for point in points_of(options.delivery)]
    plan = schedule(random.Random(options.seed), rounds, points, DEAL, MOST)
    tell(f"== proof, {options.delivery}, seed {options.seed}, {events:,} events, logs in {folder}")
    started = time.monotonic()
    with world(found.options, tell) as made:
        Proof(made, found, tell).all(plan)
    found.seconds = time.monotonic() - started
    (folder / "proof.json").write_text(json.dumps(as_dict(found), indent=1) + "\n")
    tell(text(found))
    return found


class Proof(Run):
    """A run whose reckoning is the comparison."""

    def __init__(self, made: World, found: Proven, tell: Tell) -> None:
        self._proven, self._lived_through = found, Result(made.options)
        super().__init__(made, self._lived_through, tell)

    def all(self, plan: list) -> None:
        """From the first worker to the verdict."""
        super().all(plan)
        found = self._proven
        found.troubles += [str(one) for one in self._lived_through.verdict.violations]
        for one in self._lived_through.lived:
            kind = one.fault.kind.value
            found.faults[kind] = found.faults.get(kind, 0) + 1

    def _commands(self) -> None:
        for _ in range(EACH):
            self._command()
            time.sleep(BETWEEN_S)

    def _before_the_end(self) -> None:
        """More bursts, where chance gave too few commands, or none of a kind that must be among them."""
        for _ in range(MORE):
            if not _lacks(self._commander.desk, self._commander.sent):
                return
            self._burst()
            self._commands()
            self._settle()

    def _reckon(self, sent: int) -> None:
        found, broker = self._proven, self._broker
        found.sent, found.kinds = sent, dict(self._commander.sent)
        self._tell(f"{sent:,} events were sent; scoring them again")
        self._verify()
        self._tell("holding them against the logs")
        control = _read(broker, "streamserve.control")
        found.desk.read([(offset, value) for offset, value, _ in control])
        progress = _read(broker, "streamserve.progress")
        cuts = cutovers([(offset, value) for offset, value, _ in progress], NAME)
        source = read_source(broker, TOPIC)
        dead = read_dead_letters(broker, f"{NAME}.dead-letters")
        letters = list(zip(dead.partitions.tolist(), dead.offsets.tolist(), strict=True))
        law = Law(source, found.desk.epochs, cuts)
        found.lawful = hold(broker, source, law, f"{NAME}.predictions", letters, PREDICTION_ID)
        _count_cutovers(found, source, cuts, progress)
        found.troubles += _troubles(found)

    def _verify(self) -> None:
        """In one process, of which nothing was running before."""
        out, started = self._world.options.folder / "verify.json", time.monotonic()
        words = ("predictions", "verify", self._world.topology, "--batch-rows", BATCH_ROWS, "--json")
        with out.open("wb") as stream, out.with_suffix(".log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "streamserve", *map(str, words)],
                env=self._world.environ, stdin=subprocess.DEVNULL, stdout=stream, stderr=log,
            )  # fmt: skip
            _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        found = self._proven
        found.verify_s, found.verify_mib = time.monotonic() - started, used.ru_maxrss / 1024
        try:
            found.said = json.loads(out.read_text())
        except ValueError:
            found.said = {"good": False}
            found.troubles.append(f"verify ended with {process.returncode}: {_tail(out.with_suffix('.log'))}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-600:]


def _read(broker: Any, topic: str) -> list[tuple[int, bytes | None, int]]:
    """A log: offsets, values, and when the broker took them."""
    return [(one.offset(), one.value(), one.timestamp()[1]) for messages in broker.read(topic) for one in messages]


def _count_cutovers(
    found: Proven, source: Source, cuts: Cuts, progress: Sequence[tuple[int, bytes | None, int]]
) -> None:
    """Which of them came while the event that they begin with was waiting, right behind one that was not."""
    written: dict[tuple[int, int, int], int] = {}
    for _, value, stamp in progress:
        said = json.loads(value or b"{}")
        if said.get("kind") == "cutover" and said.get("topology") == NAME:
            for partition, start in said["offsets"].items():
                written.setdefault((said["epoch"], int(partition), start), stamp)
    inside = set()
    for partition, of in cuts.items():
        times = source.times.get(partition, ())
        for epoch, start in of:
            found.cut += 1
            if 0 < start < len(times) and times[start] <= written[epoch, partition, start]:
                found.inside += 1
                inside.add(epoch)
    found.changes = len({epoch for of in cuts.values() for epoch, _ in of})
    found.changes_inside = len(inside)


def _lacks(desk: Desk, sent: Mapping[str, int]) -> list[str]:
    lacking = [] if desk.accepted >= COMMANDS else [f"{desk.accepted} commands were accepted, {COMMANDS} are asked for"]
    lacking += [] if desk.rejected else ["no command was rejected"]
    return lacking + ([] if sent.get("kill") else ["no version was killed"])


def _troubles(found: Proven) -> list[str]:
    said, lawful, least = found.said, found.lawful, COMMANDS // 2
    troubles = _lacks(found.desk, found.kinds)
    if not said.get("good") or said.get("changed"):
        troubles.append("verify does not agree: " + json.dumps(said.get("examples", [])[:3]))
    if not lawful.good:
        troubles.append(f"not by the logs: {lawful.wrong:,} wrong, {lawful.missing:,} missing; {lawful.examples}")
    if not lawful.events == said.get("events") == found.sent:
        troubles.append(f"{found.sent:,} sent, {lawful.events:,} in the topic, {said.get('events')} scored again")
    if found.changes_inside < least:
        troubles.append(f"{found.changes_inside} changes fell among waiting events, {least} are asked for")
    return troubles


def text(found: Proven) -> str:
    """For people."""
    said, lawful, desk = found.said, found.lawful, found.desk
    faults = ", ".join(f"{kind} {count}" for kind, count in sorted(found.faults.items()))
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(found.kinds.items()))
    lines = [
        f"\nproof, {found.options.delivery}, seed {found.options.seed}: {found.seconds:.0f} s",
        f"events {found.sent:,}; faults: {faults}",
        f"commands {desk.accepted} accepted, {desk.rejected} rejected: {kinds}",
        f"routing epochs {len(desk.epochs)}, {found.changes} took effect, {found.changes_inside} among waiting events",
        f"cutovers {found.cut}, {found.inside} of them at an event that was waiting",
        f"scored again by one process in {found.verify_s:.0f} s, {found.verify_mib:.0f} MiB, {BATCH_ROWS:,} a batch:",
        "  " + ", ".join(f"{told} {said.get(name, 0):,}" for name, told in SAID.items()),
        "by the logs' own words:",
        "  " + ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in _counts(lawful).items()),
    ]
    lines += [f"VIOLATION  {one}" for one in found.troubles]
    lines.append("the law holds" if found.good else f"logs and results: {found.options.folder}")
    return "\n".join(lines)


def _counts(lawful: Lawful) -> dict[str, int]:
    return {name: count for name, count in asdict(lawful).items() if isinstance(count, int)}


def as_dict(found: Proven) -> dict[str, Any]:
    """For the JSON file."""
    names = ("seconds", "sent", "kinds", "faults", "said", "verify_s", "verify_mib", "cut", "inside", "changes")
    return {
        "good": found.good,
        "delivery": found.options.delivery,
        "seed": found.options.seed,
        **{name: getattr(found, name) for name in (*names, "changes_inside", "troubles")},
        "commands": {"accepted": found.desk.accepted, "rejected": found.desk.rejected},
        "routing_epochs": len(found.desk.epochs),
        "lawful": asdict(found.lawful),
    }

"""One run: faults in bursts, one after the other, each awaited until the world is well again; then the reckoning."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np

from chaos import report
from chaos.checker import Verdict, check
from chaos.columns import Ints, Window
from chaos.commander import Commander
from chaos.faults import Injector, Struck
from chaos.fleet import Ended, Fleet
from chaos.keep import keep
from chaos.law import Desk
from chaos.observer import Observer
from chaos.points import EXACTLY_ONCE, points_of
from chaos.reading import read_dead_letters, read_inputs, read_law, read_log, read_predictions
from chaos.schedule import Fault, schedule
from chaos.world import NAME, PREDICTION_ID, TOPIC, Options, World, world

Tell = Callable[[str], None]
IN_FLIGHT = 1_000  # events that each fault must find uncommitted
BURST_S = 1.0  # what a burst gets to arrive before there is another
WELL_S = 240.0  # what a fault may keep the world from being well again
SEEN_S = 60.0
PAUSE_S = 0.1
FIRST_EPOCH = 0  # the init is the first record of the control log


class UnwellError(Exception):
    """The world did not get well again: nothing was lost yet, and nothing goes on."""


@dataclass
class Lived:
    """A fault as it was. Seconds: at, since the start; recovery, until all it hit was answered; settled, until well."""

    number: int
    fault: Fault
    at: float
    in_flight: int
    struck: Struck
    recovery: float | None
    settled: float
    window: Window
    repeated: int = 0

    @property
    def name(self) -> str:
        """For people, and unique."""
        return f"{self.number} {self.fault}"


@dataclass
class Result:
    """Of a run. leavers: exit codes of the last workers."""

    options: Options
    seconds: float = 0.0
    lived: list[Lived] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    leavers: dict[str, int] = field(default_factory=dict)
    verdict: Verdict = field(default_factory=Verdict)
    malformed: int = 0
    desk: Desk = field(default_factory=lambda: Desk(NAME))

    @property
    def good(self) -> bool:
        """No promise was broken."""
        return not self.verdict.violations


def run(options: Options, tell: Tell) -> Result:
    """Returns what was found; whether that is good, the result says."""
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    plan = schedule(random.Random(options.seed), options.faults, [point.name for point in points_of(options.delivery)])
    tell(f"== {options.delivery}, seed {options.seed}, {options.faults} faults, logs in {options.folder}")
    result, started = Result(options), time.monotonic()
    with world(options, tell) as made:
        Run(made, result, tell).all(plan)
    result.seconds = time.monotonic() - started
    (options.folder / "result.json").write_text(json.dumps(report.as_dict(result), indent=1) + "\n")
    tell(report.text(result))
    return result


class Run:
    """The faults of a plan, in a world."""

    def __init__(self, made: World, result: Result, tell: Tell) -> None:
        options = made.options
        self._world, self._broker, self._result, self._tell = made, made.broker, result, tell
        self._fleet = Fleet(options.folder / "workers", made.topology, options.delivery, made.environ)
        self._injector = Injector(made, self._fleet, self._command)
        self._observer = Observer(made.broker, f"{NAME}.predictions", PREDICTION_ID, options.partitions)
        self._started = time.monotonic()
        self._now = 0  # the fault's number
        self._commander = self._commanding() if options.commands else None

    def _commanding(self) -> Commander:
        options = self._world.options
        dice, bootstrap = random.Random(options.seed + 1), self._world.project.endpoints.bootstrap
        made = Commander(bootstrap, NAME, self._world.manifests, dice, shadows=options.shadows)
        made.read(read_log(self._broker, "streamserve.control"))
        return made

    def all(self, plan: list[Fault]) -> None:
        """From the first worker to the verdict."""
        try:
            self._observer.start()
            for _ in range(self._world.options.workers):
                self._fleet.start()
            try:
                self._settle()
                for number, fault in enumerate(plan, 1):
                    self._now = number
                    self._live_through(number, fault, len(plan))
                self._before_the_end()
                sent = self._world.finish()
                self._settle()
            except UnwellError as error:
                self._result.verdict.broken("the world did not get well again", [error])
                return
            self._result.leavers = self._fleet.retire()
            self._reckon(sent)
        finally:
            self._fleet.kill()
            self._observer.stop()
            self._result.ended = self._fleet.ended

    def _before_the_end(self) -> None:
        """When all faults were lived through, and events may still come."""

    # ---- faults

    def _live_through(self, number: int, fault: Fault, count: int) -> None:
        start, in_flight = self._burst()
        self._commands()
        before = len(self._fleet.ended)
        at = time.monotonic()
        struck = self._injector.strike(fault)
        self._commands()
        if struck.replace:
            self._await_answers(struck)
            self._fleet.start()
        self._settle()
        recovery = self._await_answers(struck)
        settled = time.monotonic() - at
        window = Window(f"{number} {fault}", start, self._broker.ends(), 1 + len(self._fleet.ended) - before)
        lived = Lived(number, fault, at - self._started, in_flight, struck, recovery, settled, window)
        self._result.lived.append(lived)
        self._tell(report.line(lived, count))

    def _commands(self) -> None:
        """While events wait."""
        self._command()

    def _command(self) -> None:
        if self._commander is not None:
            self._commander.act()

    def _burst(self) -> tuple[Ints, int]:
        """Have thousands of events come. When enough of them are uncommitted: from which offsets, and how many."""
        while True:
            self._world.burst()
            limit = time.monotonic() + BURST_S
            while time.monotonic() < limit:
                ends = self._broker.ends()
                start = self._broker.committed()
                in_flight = int(np.maximum(ends - start, 0).sum())
                if in_flight >= IN_FLIGHT:
                    return start, in_flight

    def _await_answers(self, struck: Struck) -> float | None:
        limit = time.monotonic() + SEEN_S
        while (found := self._observer.recovery_s(struck.at_ns, struck.partitions)) is None:
            self._look()
            if time.monotonic() > limit:
                return None
            time.sleep(PAUSE_S)
        return found

    def _settle(self) -> None:
        """Every partition is owned by a worker that runs, and what came until then is committed.

        Raises:
            UnwellError: not within a generous time.
        """
        limit, goal = time.monotonic() + WELL_S, None
        everything = frozenset(range(self._world.options.partitions))
        while True:
            self._look()
            members = self._broker.members()
            owned = frozenset[int]().union(*members.owned.values())
            workers = self._fleet.workers
            whole = members.count == len(workers) and members.owned.keys() == workers.keys()
            if members.stable and whole and owned == everything:
                goal = self._broker.ends() if goal is None else goal
                committed = self._broker.committed()
                if (committed >= goal).all():
                    return
            else:
                goal, committed = None, self._broker.committed()
            if time.monotonic() > limit:
                raise UnwellError(
                    f"after {WELL_S:.0f} s: {members}, workers {sorted(workers)}, "
                    f"committed {committed.tolist()}, ends {self._broker.ends().tolist()}"
                )
            time.sleep(PAUSE_S)

    def _look(self) -> None:
        for one in self._fleet.look_after(self._now):
            self._tell(f"      {one.name} ended by itself with {one.code}; another is started")
        if self._observer.failure is not None:
            raise self._observer.failure
        if self._world.generator.poll():
            raise RuntimeError(f"the generator ended with {self._world.generator.returncode}")

    # ---- the reckoning

    def _reckon(self, sent: int) -> None:
        result, broker = self._result, self._broker
        self._tell(f"{sent:,} events were sent; reading everything")
        inputs, result.desk = read_law(broker, read_inputs(broker, TOPIC, FIRST_EPOCH), NAME)
        predictions = read_predictions(broker, f"{NAME}.predictions", PREDICTION_ID)
        dead = read_dead_letters(broker, f"{NAME}.dead-letters")
        windows = [one.window for one in result.lived]
        exactly_once = self._world.options.delivery == EXACTLY_ONCE
        found = check(inputs, predictions, dead, broker.committed(), broker.ends(), windows, exactly_once=exactly_once)
        missing = np.setdiff1d(np.arange(sent), inputs.ids)
        found.broken("sent, and not in the source topic (the generator's fault or the broker's)", missing)
        result.verdict, result.malformed = found, int(inputs.malformed.sum())
        for one in result.lived:
            one.repeated = found.repeated[one.window.name]
        if found.violations:
            keep(self._world.options.folder, inputs, predictions, dead)
            windows_file = self._world.options.folder / "windows.json"
            told = [{**asdict(w), "start": w.start.tolist(), "stop": w.stop.tolist()} for w in windows]
            windows_file.write_text(json.dumps(told, indent=1))

"""What an operator does while the flights are scored: v2 goes all the way, a broken v3 is found out and taken back.

Each step is a command that a user would type, run as a process of its own, once the step before has shown something.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from streamserve.demo import train
from streamserve.errors import StreamserveError

BETTER, BROKEN = "v2", "v3"
WEIGHTS = ("1%", "5%", "20%", "50%", "100%")
LOOK_S = 0.1
STEP = 4_000  # predictions between two steps: something to see of each
PAIRS = 5_000  # that a shadow compares before it is looked at


@dataclass(frozen=True, slots=True)
class Step:
    """words: of the command. after: predictions that come first. says: what is told before."""

    words: tuple[str, ...]
    after: int = STEP
    says: str = ""


def steps(topology: str, first: int, folder: str) -> Iterator[Step]:
    """first: predictions before anything is done. folder: for the reports."""

    def rollout(*words: str, after: int = STEP, says: str = "") -> Step:
        action, *more = words
        return Step(("rollout", action, topology, *more), after, says)

    def look(version: str) -> Step:
        return Step(("shadow", "report", topology, "--html", str(Path(folder) / f"{version}.html")), PAIRS)

    yield rollout("start", BETTER, after=first, says=f"{BETTER} learned from April, and could be better")
    yield rollout("shadow", "100%", after=0)
    yield look(BETTER)
    for weight in WEIGHTS:
        yield rollout("shift", weight)
    yield rollout("promote")
    yield rollout("start", BROKEN, says=f"{BROKEN} has two of its inputs swapped, and nobody knows")
    yield rollout("shadow", "100%", after=0)
    yield look(BROKEN)
    yield rollout("shift", "5%", says="it is tried all the same")
    yield rollout("rollback", "--reason", "it decides otherwise far too often")


@dataclass
class Story:
    """A thread that takes the steps.

    Args:
        predictions: how many have come.
        now: seconds of the stream.
        tell: a line for the screen.
        ended: the stream has ended: nothing more is waited for.
    """

    topology: str
    first: int
    folder: str
    environ: dict[str, str]
    predictions: Callable[[], int]
    now: Callable[[], float]
    tell: Callable[[str], None]
    ended: threading.Event = field(default_factory=threading.Event)
    notes: list[tuple[float, str]] = field(default_factory=list)  # (second of the stream, what was done)
    failure: BaseException | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._main, name="story", daemon=True)
        self._thread.start()

    def finish(self, seconds: float) -> None:
        """The rest of the steps, without waiting between them.

        Raises:
            StreamserveError: a step failed.
        """
        self.ended.set()
        self._thread.join(seconds)
        if self.failure is not None:
            raise self.failure

    def _main(self) -> None:
        try:
            for step in steps(self.topology, self.first, self.folder):
                self._wait(self.predictions() + step.after)
                if self.ended.is_set() and "shadow" in step.words:
                    self.tell("[dim]the stream has ended: nothing is left to compare[/]")
                else:
                    self._take(step)
        except BaseException as error:  # noqa: BLE001  (raised by the demo's own thread)
            self.failure = error

    def _wait(self, until: int) -> None:
        while self.predictions() < until and not self.ended.wait(LOOK_S):
            pass

    def _take(self, step: Step) -> None:
        if step.says:
            self.tell(f"[dim]{step.says}[/]")
        self.tell(f"[bold]$ streamserve {shlex.join(step.words)}[/]")
        done = subprocess.run(
            [sys.executable, "-m", "streamserve", *step.words],
            env=self.environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise StreamserveError(
                f"`streamserve {shlex.join(step.words)}` ended with {done.returncode}",
                mend="what it said:\n" + done.stderr.strip(),
            )
        self.tell(f"  {done.stdout.strip().splitlines()[-1].strip()}")
        if step.words[0] == "rollout":
            what = [word for word in (step.words[1], *step.words[3:4]) if not word.startswith("--")]
            self.notes.append((self.now(), " ".join(what)))


def write_broken(better: Path, features: Sequence[str], swapped: tuple[str, str]) -> Path:
    """The broken one: the better one's model with two of its features swapped, as a mistake in an export would.

    Raises:
        ConfigError: onnx is not installed.
    """
    try:
        import onnx
        from onnx import helper, numpy_helper
    except ImportError as error:
        raise train.not_installed(error) from error
    model = onnx.load(better)
    graph, given = model.graph, model.graph.input[0]
    order, places = np.arange(len(features)), [features.index(name) for name in swapped]
    order[places] = order[places[::-1]]
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == given.name:
                node.input[place] = "mixed"
    graph.initializer.append(numpy_helper.from_array(order, "order"))
    graph.node.insert(0, helper.make_node("Gather", [given.name, "order"], ["mixed"], axis=1))
    path = better.with_name(f"{BROKEN}.onnx")
    path.write_bytes(model.SerializeToString())
    return path

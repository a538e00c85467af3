"""The worker processes: started through the launcher, looked after as an orchestrator would, and never left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from chaos.points import HIT
from streamserve.dev.place import write_atomically

STOP_S = 120.0
PAUSE_S = 0.02
TAIL = 600  # characters of a log that tell why a worker ended


@dataclass(frozen=True)
class Worker:
    """A worker process. name: its client id. folder: where its points are armed."""

    name: str
    process: subprocess.Popen[bytes]
    folder: Path
    log: Path

    @property
    def runs(self) -> bool:
        """It has not ended; it may be stopped."""
        return self.process.poll() is None

    def arm(self, point: str, word: str) -> None:
        """From now on this point does as the word says."""
        write_atomically(self.folder / point, word)

    def disarm(self, point: str) -> None:
        """It does no more."""
        (self.folder / point).unlink(missing_ok=True)

    def hit(self, point: str) -> int | None:
        """When the point was reached, nanoseconds since 1970; None: not yet."""
        try:
            return int((self.folder / point).with_suffix(HIT).read_text())
        except FileNotFoundError:
            return None

    def forget(self, point: str) -> None:
        """It can be armed anew."""
        (self.folder / point).with_suffix(HIT).unlink(missing_ok=True)


@dataclass(frozen=True)
class Ended:
    """A worker that ended and was not asked to."""

    name: str
    code: int
    fault: int
    said: str


class Fleet:
    """Workers by name; those that should be there."""

    def __init__(self, folder: Path, topology: Path, delivery: str, environ: Mapping[str, str]) -> None:
        self._folder, self._topology, self._delivery, self._environ = folder, topology, delivery, environ
        self._started = 0
        self.workers: dict[str, Worker] = {}
        self.ended: list[Ended] = []

    def start(self) -> Worker:
        """One more."""
        self._started += 1
        name = f"w{self._started}"
        folder, log = self._folder / name, self._folder / f"{name}.log"
        folder.mkdir(parents=True)
        environ = {**self._environ, "STREAMSERVE_KAFKA": self._client(name)}
        command = [
            sys.executable, "-m", "chaos.worker", str(folder), self._delivery, str(os.getpid()),
            str(self._topology), "--web-port", "0",
        ]  # fmt: skip
        with log.open("wb") as stream:
            # A session of its own: Ctrl-C is for the runner, who knows in which order things end
            process = subprocess.Popen(
                command, env=environ, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
            )
        self.workers[name] = Worker(name, process, folder, log)
        return self.workers[name]

    def _client(self, name: str) -> str:
        """Client settings under which the group's coordinator knows this worker by its name."""
        return json.dumps({**json.loads(self._environ.get("STREAMSERVE_KAFKA", "{}")), "client.id": name})

    def pick(self, share: float) -> Worker:
        """The worker at a share of their number, oldest first."""
        names = list(self.workers)
        return self.workers[names[int(share * len(names))]]

    def drop(self, worker: Worker) -> int:
        """It has ended, or is about to, and that was asked of it; returns its exit code."""
        self.workers.pop(worker.name, None)
        return worker.process.wait(STOP_S)

    def look_after(self, fault: int) -> list[Ended]:
        """Replace those that have ended by themselves; returns them. fault: during which one, for the report."""
        found = []
        for one in [one for one in self.workers.values() if not one.runs]:
            code = self.drop(one)
            found.append(Ended(one.name, code, fault, one.log.read_text(errors="replace")[-TAIL:]))
            self.start()
        self.ended += found
        return found

    def retire(self) -> dict[str, int]:
        """SIGTERM to all; exit codes by name. 0 says that everything in flight was committed."""
        leaving = list(self.workers.values())
        for one in leaving:
            one.process.terminate()
        return {one.name: self.drop(one) for one in leaving}

    def kill(self) -> None:
        """Whatever is left, stopped ones included."""
        for one in self.workers.values():
            one.process.kill()
        for one in self.workers.values():
            one.process.wait()
        self.workers.clear()


def await_hit(worker: Worker, point: str, seconds: float) -> int | None:
    """When the point was reached; None: not within so many seconds."""
    limit = time.monotonic() + seconds
    while worker.hit(point) is None and worker.runs and time.monotonic() < limit:
        time.sleep(PAUSE_S)
    return worker.hit(point)

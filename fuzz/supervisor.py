"""Lanes in processes of their own, so that a crash and a hang are findings like all others."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

from fuzz.batches import Batch, make, save
from fuzz.lane import Streams, Task
from fuzz.minimise import minimise
from fuzz.streams import ROOT

Message = dict[str, Any]
TAIL = 3000  # characters of a dead lane's stderr


class Lane:
    """A process, and the batch that it was last heard of."""

    def __init__(self, task: Task, heard: queue.Queue[tuple[Lane, Message | None]]) -> None:
        self.task, self.number, self.rss = task, -1, 0.0
        self._heard = heard
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fuzz.worker", json.dumps(asdict(task))],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=self._stderr,
        )  # fmt: skip
        assert self.process.stdout is not None  # noqa: S101
        self._listener = threading.Thread(target=self._listen, args=(self.process.stdout,), daemon=True)
        self._listener.start()

    def _listen(self, lines: IO[bytes]) -> None:
        with lines:
            for line in lines:
                message = json.loads(line)
                if message["kind"] == "begin":
                    self.number = message["number"]
                self._heard.put((self, message))
        self.process.wait()
        self._heard.put((self, None))

    def last_words(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")[-TAIL:].strip()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self._listener.join()
        self._stderr.close()


def supervise(tasks: Sequence[Task], tries: int) -> Iterator[Message]:
    """All that the lanes tell, until all are over or one has a finding; that of a lane that died is made here.

    tries: processes that may be started to make a batch smaller that ends a process.
    """
    heard: queue.Queue[tuple[Lane, Message | None]] = queue.Queue()
    lanes = [Lane(task, heard) for task in tasks]
    running, over = set(lanes), set[Lane]()
    try:
        while running:
            lane, message = heard.get()
            if message is None:
                running.discard(lane)
                if lane not in over:
                    yield {"kind": "died", "number": lane.number, "lane": lane.task.lane}
                    yield _died(lane, tries)
                    return
            elif message["kind"] == "over":
                over.add(lane)
            else:
                yield {**message, "lane": lane.task.lane}
                if message["kind"] == "finding":
                    return
    finally:
        for lane in lanes:
            lane.stop()


def _died(lane: Lane, tries: int) -> Message:
    """The finding of a lane that ended without a word."""
    words = lane.last_words()
    promise = "hang" if words.startswith("Timeout (") or "\nTimeout (" in words else "crash"
    code, task = lane.process.returncode, lane.task
    what = f"a batch took more than {task.limit:g} s" if promise == "hang" else f"the process ended with {code}"
    about: Message = {"promise": promise, "number": lane.number, "row": -1, "what": f"{what}\n{words}"}
    if lane.number < 0 or task.replay:
        return {"kind": "finding", "stream": "", **about, "file": task.replay}
    opened = Streams(replace(task, planted=""))
    batch = make(opened.get(opened.name(lane.number)), task.seed, lane.number)
    path = Path(task.findings) / f"{batch.stream}-{batch.seed}-{batch.number}.json"
    path.parent.mkdir(parents=True, exist_ok=True)

    def still(fewer: Batch) -> bool:
        save(fewer, path, promise)
        again = Lane(replace(task, replay=str(path)), queue.Queue())
        try:
            again.process.wait()
            return again.process.returncode not in (0, 1) or "Timeout (" in again.last_words()
        finally:
            again.stop()

    small = minimise(batch, -1, still, tries=tries, seconds=300)
    save(small, path, f"{promise}: {what}")
    told = {"stream": batch.stream, "file": str(path), "rows": len(small.inputs), "of": len(batch.inputs)}
    return {"kind": "finding", **about, **told}

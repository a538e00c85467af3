"""Contestants as processes: workers as a user starts them, what their pages say, and scripts beside them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.measure import Cost, Progress, follow
from bench.project import Project
from streamserve.dev.probe import free_ports

DEADLINE_S = 300.0
STOP_S = 30.0


@dataclass(frozen=True)
class Rows:
    """Rows and micro-batches that workers have taken since their start."""

    rows: float
    batches: float

    def mean_since(self, before: Rows) -> float | None:
        """Rows of an average micro-batch since then; None: there was none."""
        batches = self.batches - before.batches
        return (self.rows - before.rows) / batches if batches else None


@dataclass(frozen=True)
class Worker:
    """A process of `streamserve worker`."""

    process: subprocess.Popen[bytes]
    port: int

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over its labels, but for those that are named; 0 while the page does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as reply:
                lines = reply.read().decode().splitlines()
        except OSError:
            return 0.0
        lines = [line for line in lines if line.startswith((name + "{", name + " "))]
        for label, value in labels.items():
            lines = [line for line in lines if f'{label}="{value}"' in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    @property
    def owns(self) -> bool:
        """It has partitions."""
        return self.metric("streamserve_partitions_owned") > 0


def rows_of(found: Sequence[Worker]) -> Rows:
    """What these workers have taken."""
    return Rows(
        sum(one.metric("streamserve_batch_rows_sum") for one in found),
        sum(one.metric("streamserve_batch_rows_count") for one in found),
    )


@contextlib.contextmanager
def process(command: Sequence[str], environ: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process for the length of a block; what it prints is in the log, and at the end of an error."""
    with log.open("wb") as stream:
        started = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
    try:
        yield started
    except RuntimeError as error:
        raise RuntimeError(f"{error}\n{log}:\n{log.read_text()[-2000:]}") from error
    finally:
        started.terminate()
        try:
            started.wait(STOP_S)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


@contextlib.contextmanager
def workers(project: Project, topology: Path, count: int = 1) -> Iterator[list[Worker]]:
    """Worker processes of one group, as a user starts them, for the length of a block."""
    with contextlib.ExitStack() as stack:
        found = []
        for number, port in enumerate(free_ports(count)):
            command = [sys.executable, "-m", "streamserve", "worker", str(topology), "--web-port", str(port)]
            log = project.folder / f"worker-{number}.log"
            started = stack.enter_context(process(command, {**project.environ, **project.extra}, log))
            found.append(Worker(started, port))
        yield found


def drain(project: Project, topology: Path, name: str, events: int, count: int = 1) -> Cost:
    """Workers that find `events` in their source topic: from the first tenth, when all own partitions, to the last."""
    progress = Progress(project.endpoints.bootstrap, f"{name}.predictions")
    with workers(project, topology, count) as found:

        def started() -> bool:
            return count == 1 or all(one.owns for one in found)

        cost = follow([one.process.pid for one in found], progress, events, DEADLINE_S, started)
        rows = rows_of(found).mean_since(Rows(0, 0))
    project.forget(f"streamserve.{name}")
    return replace(cost, rows=rows)


def script(project: Project, module: str, topic: str, events: int, about: Mapping[str, str]) -> Cost:
    """A contestant that is not streamserve, reading a topic from its start. about: more of its environment."""
    group = f"{module.rpartition('.')[2]}-{uuid.uuid4().hex[:8]}"
    output = project.topic(f"bench.out.{group}")
    environ = {
        **project.environ,
        "BENCH_BOOTSTRAP": project.endpoints.bootstrap,
        "BENCH_REDIS": project.endpoints.redis_url,
        "BENCH_TOPIC": topic,
        "BENCH_OUTPUT": output,
        "BENCH_GROUP": group,
        **about,
    }
    progress = Progress(project.endpoints.bootstrap, output)
    with process([sys.executable, "-m", module], environ, project.folder / "contestant.log") as started:
        cost = follow([started.pid], progress, events, DEADLINE_S)
    project.drop(output)
    return cost

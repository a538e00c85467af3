"""What tests share: the real broker and Redis of one session, folders of their own, worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from streamserve.dev import Endpoints, reset, services
from streamserve.dev.probe import free_ports

ROOT = Path(__file__).parent.parent
PAUSE = threading.Event()

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background: whom we start would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_until(
    condition: Callable[[], object], seconds: float = 30.0, what: str = "the condition", every: float = 0.02
) -> object:
    """The first truthy value of `condition`, asked again every so many seconds until the deadline."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        PAUSE.wait(every)  # between two looks, not for something to happen
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that need the services come first: they take long, and the short ones fill the end of a parallel run."""
    items.sort(key=lambda item: item.get_closest_marker("services") is None)


@pytest.fixture(scope="session")
def endpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoints]:
    """The user's own servers where they are named, else a broker and a Redis that end with the session."""
    bootstrap, redis_url = os.environ.get("STREAMSERVE_BOOTSTRAP"), os.environ.get("STREAMSERVE_REDIS_URL")
    if bootstrap and redis_url:
        yield Endpoints(bootstrap, redis_url)
        return
    home = tmp_path_factory.mktemp("services")
    with services(home) as found:
        yield found
    reset(home)


@dataclass
class Worker:
    """A worker process. log: everything that it printed."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=2) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over its labels, but for those that are named."""
        lines = [line for line in self.get("/metrics")[1].splitlines() if line.startswith((name + "{", name + " "))]
        for label, value in labels.items():
            lines = [line for line in lines if f'{label}="{value}"' in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def stop(self, seconds: float = 30.0) -> int:
        self.process.terminate()
        return self.process.wait(seconds)


@dataclass
class Project:
    """A folder of a project's own against the session's services: `streamserve` runs in it."""

    folder: Path
    endpoints: Endpoints

    @property
    def environ(self) -> dict[str, str]:
        return {
            **os.environ,
            "STREAMSERVE_BOOTSTRAP": self.endpoints.bootstrap,
            "STREAMSERVE_REDIS_URL": self.endpoints.redis_url,
            "STREAMSERVE_HOME": str(self.folder / "home"),
            "STREAMSERVE_REGISTRY": str(self.folder / "registry"),
            "STREAMSERVE_SCHEMAS": str(self.folder / "schemas"),
            "NO_COLOR": "1",
        }

    def run(
        self, *words: object, environ: dict[str, str] | None = None, seconds: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """A streamserve command in a process of its own."""
        command = [sys.executable, "-m", "streamserve", *map(str, words)]
        return subprocess.run(
            command, cwd=self.folder, env={**self.environ, **(environ or {})}, capture_output=True, text=True,
            timeout=seconds, check=False,
        )  # fmt: skip

    def ok(self, *words: object) -> str:
        done = self.run(*words)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def worker(self, topology: Path, **environ: str) -> Worker:
        """A worker that is ready."""
        port = free_ports(1)[0]
        log = self.folder / f"worker-{uuid.uuid4().hex[:8]}.log"
        command = [sys.executable, "-m", "streamserve", "worker", str(topology), "--web-port", str(port)]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, cwd=self.folder, env={**self.environ, **environ}, stdout=stream, stderr=stream
            )
        found = Worker(process, f"http://127.0.0.1:{port}", log)

        def ready() -> bool:
            assert process.poll() is None, log.read_text()
            return found.get("/ready")[0] == 200

        wait_until(ready, what="the worker's readiness")
        return found


@pytest.fixture
def project(tmp_path: Path, endpoints: Endpoints) -> Iterator[Project]:
    """A project folder; worker processes that a test leaves behind are killed."""
    made = Project(tmp_path, endpoints)
    (tmp_path / "schemas").mkdir()
    started: list[Worker] = []
    start = made.worker
    made.worker = lambda *a, **k: started.append(start(*a, **k)) or started[-1]  # type: ignore[method-assign]
    yield made
    for worker in started:
        if worker.process.poll() is None:
            worker.process.kill()
            worker.process.wait(10)

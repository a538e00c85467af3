"""Where the local services of one home keep what they have, and who may change it.

Layout: `<home>/dev/` holds `kafka.json` and `redis.json` (who runs, at which port, for whom), `kafka/` and
`redis/` (data), `kafka.port` and `redis.port` (the last ones), `logs/`, and `lock`, which serialises every up,
down and reset of all processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Self

from streamserve.dev.process import Process, alive
from streamserve.errors import DevError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POLL = 0.03  # seconds between two looks at something that can't be waited for


@dataclass(frozen=True)
class State:
    """One running service. `owner`: the process it must not outlive; None means it stays until `down`."""

    name: str
    port: int
    process: Process
    supervisor: Process
    owner: Process | None
    docker: bool = False  # `process` stands for a container

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@dataclass(frozen=True)
class Place:
    """The folder of one home's services, absolute."""

    root: Path

    @classmethod
    def of(cls, home: Path) -> Self:
        return cls(home.expanduser().resolve() / "dev")

    def data(self, name: str) -> Path:
        return self.root / name

    def log(self, name: str) -> Path:
        return self.root / "logs" / f"{name}.log"

    def state_file(self, name: str) -> Path:
        return self.root / f"{name}.json"

    def make(self) -> None:
        """Raises DevError where the home can't be written."""
        try:
            (self.root / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DevError(
                f"the folder of the local services cannot be made: {error.strerror}",
                where=str(self.root),
                mend="set STREAMSERVE_HOME to a folder that you can write",
            ) from None

    def read(self, name: str) -> State | None:
        """The service as it runs; None if it doesn't, or if the file tells of a process that has ended."""
        state = self.read_raw(name)
        return state if state is not None and alive(state.process) else None

    def read_raw(self, name: str) -> State | None:
        """What the state file says, be the process alive or not; None for no file or a broken one."""
        try:
            raw = json.loads(self.state_file(name).read_bytes())
            owner = raw["owner"]
            return State(
                name=raw["name"],
                port=int(raw["port"]),
                process=Process(**raw["process"]),
                supervisor=Process(**raw["supervisor"]),
                owner=None if owner is None else Process(**owner),
                docker=bool(raw.get("docker", False)),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, state: State) -> None:
        write_atomically(self.state_file(state.name), json.dumps(asdict(state)))

    def port_file(self, name: str) -> Path:
        return self.root / f"{name}.port"

    def last_port(self, name: str) -> int | None:
        """Where the service answered last: taken again if it is free, so that clients' settings stay true."""
        try:
            return int(self.port_file(name).read_text("utf-8"))
        except (OSError, ValueError):
            return None

    @contextlib.contextmanager
    def locked(self, seconds: float = 300.0) -> Iterator[None]:
        """Alone among all processes and threads. A first start may download, hence the long wait."""
        self.make()
        with (self.root / "lock").open("w") as file:
            lock_within(file.fileno(), seconds, self.root / "lock")
            yield


def write_atomically(path: Path, text: str) -> None:
    """A reader sees the old content or the new, never a part."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


def lock_within(fd: int, seconds: float, path: Path) -> None:
    """Take the file lock. Raises DevError when another process holds it for longer than `seconds`."""
    deadline = time.monotonic() + seconds
    while not try_lock(fd):
        if time.monotonic() > deadline:
            raise DevError(
                f"another process has held the lock for {seconds:.0f} s",
                where=str(path),
                mend=f"see who holds it with `fuser {path}`, end that, then run the command again",
            )
        time.sleep(POLL)


def try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

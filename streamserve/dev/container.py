"""The process that stands for a container: `python -m streamserve.dev.container <root> <service> <port>`.

To the supervisor it is the service: a child whose output is the log, that lives as long as the container does
and ends on SIGTERM, with the container. It gets that SIGTERM from the kernel too, when the supervisor ends.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from streamserve.dev.docker import UP_SECONDS, Compose
from streamserve.dev.place import Place
from streamserve.dev.process import die_with_parent

_CLIENT_SECONDS = 2.0  # a docker client that is asked to end has nothing to save


def main() -> None:
    place = Place(Path(sys.argv[1]))
    compose = Compose(place, sys.argv[2], int(sys.argv[3]))
    # A signal that arrives between two commands must end the next: the handler's byte stays in the pipe.
    wake, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write)
    signal.signal(signal.SIGTERM, lambda *_: None)
    die_with_parent(os.getppid(), signal.SIGTERM)
    status = _run(compose, wake)
    left, said = compose.remove(volumes=not place.root.exists())  # a deleted home takes its data with it
    sys.stdout.write(said)
    sys.exit(1 if status or left else 0)


def _run(compose: Compose, wake: int) -> int:
    """Bring the container up and follow its log; returns when it has ended, or at SIGTERM."""
    limit = ("--wait", "--wait-timeout", str(UP_SECONDS))
    if status := _call(compose, compose.argv("up", "--detach", *limit, compose.name), wake):
        # Why it did not come up, before it is removed.
        _call(compose, compose.argv("logs", "--no-log-prefix", "--tail", "40", compose.name), wake)
        return status
    status, container = compose.ask("ps", "--quiet", compose.name, seconds=10.0)
    # Not `compose logs`: what that does at the container's end differs between versions.
    return status or _call(compose, ["docker", "logs", "--follow", container.strip()], wake)


def _call(compose: Compose, argv: list[str], wake: int) -> int:
    # Its own group: `docker` starts its plugins as processes, and all of them must have ended before `down`.
    client = subprocess.Popen(argv, stdin=subprocess.DEVNULL, env=compose.environ, start_new_session=True)
    fd = os.pidfd_open(client.pid)
    if fd not in select.select([fd, wake], [], [])[0]:
        os.killpg(client.pid, signal.SIGTERM)
        if not select.select([fd], [], [], _CLIENT_SECONDS)[0]:
            os.killpg(client.pid, signal.SIGKILL)
    os.close(fd)
    return client.wait()


if __name__ == "__main__":
    main()

"""A Redis of a test's own, which may be stopped, killed and started again, and a partner that says what it is told."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import redis
from conftest import wait_until

from streamserve.dev.probe import free_ports
from streamserve.dev.process import die_with_parent
from streamserve.dev.servers import _find_redis
from streamserve.settings import Settings


class Server:
    """A real Redis on a port of its own. What is written survives a kill."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_ports(1)[0]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def settings(self, **more: object) -> Settings:
        return Settings(_env_file=None, redis_url=self.url, **more)

    def start(self, *options: str, wait: bool = True) -> None:
        argv = [str(_find_redis()), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*argv, "--save", "", "--appendonly", "yes", *options], stdout=log, stderr=log,
                preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509  (ends with the tests)
            )  # fmt: skip
        if wait:
            wait_until(self.answers, 15, "Redis")

    def answers(self) -> bool:
        try:
            return self.ask("PING") in (True, b"PONG")
        except redis.RedisError:
            return False

    def ask(self, *words: object) -> object:
        """A command of an administrator's."""
        with contextlib.closing(redis.Redis(port=self.port, socket_timeout=5)) as client:
            return client.execute_command(*words)

    def start_loading(self) -> None:
        """Kill it, and start it with a second or two of loading, in which it answers LOADING."""
        for at in range(200):
            self.ask("SET", f"large:{at}", os.urandom(2048))  # it looks at its clients after so many bytes
        self.ask("SAVE")
        self.kill()
        slow = ("--key-load-delay", "10000", "--loading-process-events-interval-bytes", "1024")
        self.start("--appendonly", "no", *slow, wait=False)

    def hang(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None


class Scripted:
    """A TCP server: `serve(connection, number)` does with each connection what a test wants, in a thread of its own."""

    def __init__(self, serve: Callable[[socket.socket, int], None]) -> None:
        self.connections = 0
        self._serve, self._open = serve, list[socket.socket]()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def settings(self, **more: object) -> Settings:
        return Settings(_env_file=None, redis_url=f"redis://127.0.0.1:{self.port}/0", **more)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                self.connections += 1
                self._open.append(connection)
                threading.Thread(target=self._run, args=(connection, self.connections), daemon=True).start()

    def _run(self, connection: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError), connection:
            self._serve(connection, number)

    def close(self) -> None:
        for one in (self._server, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def asked(connection: socket.socket) -> bytes:
    """The next ask, which here fits a packet; b"" at the end. The client's telling of its name is answered."""
    while b"SETINFO" in (packet := connection.recv(1 << 16)):
        connection.sendall(b"+OK\r\n")
    return packet

"""Kafka and Redis in containers, for machines where they can't run without: `compose.yml` of this folder.

Each service of each home is a compose project of its own: two commands at once on one project race for its
network. The volumes of a project stay until `reset`, as the folders of native services do.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from streamserve.dev.java import MissingError
from streamserve.errors import DevError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamserve.dev.place import Place

CHOICE = "STREAMSERVE_DEV"
NATIVE, DOCKER = "native", "docker"
UP_SECONDS = 120  # a container's start and first answer; its image is there by then
_FILE = Path(__file__).with_name("compose.yml")
_PULL_SECONDS = 900.0  # 200 MB over a slow line
_ASK_SECONDS = 4.0  # an engine that hangs must not take the user's patience, twice this is asked for
_REMOVE_SECONDS = 30.0
_STOP_SECONDS = 10  # what a container gets to end by itself; Kafka takes 1 to 2


def choice() -> str:
    """`native`, `docker`, or an empty string: native where that is possible, else Docker."""
    chosen = os.environ.get(CHOICE, "")
    if chosen not in ("", NATIVE, DOCKER):
        raise DevError(
            f"{CHOICE} is {chosen!r}", where="environment", mend=f"set it to {NATIVE} or {DOCKER}, or unset it"
        )
    return chosen


def check() -> None:
    """Raises MissingError where containers can't be run; says what of Docker is missing. Asks for 8 s at most."""
    if shutil.which("docker") is None:
        raise MissingError("no `docker` was found", where="PATH", mend="install Docker with its Compose plugin")
    status, said = _run(["docker", "compose", "version"], _ASK_SECONDS)
    if status:
        raise MissingError(
            f"`docker` is there, `docker compose` is not{_reason(said)}",
            where="docker compose version",
            mend="install Docker's Compose plugin (docker-compose-plugin or docker-compose-v2)",
        )
    status, said = _run(["docker", "version", "--format", "{{.Server.Version}}"], _ASK_SECONDS)
    if status:
        raise MissingError(
            f"`docker` is there, and its engine does not answer{_reason(said)}",
            where="docker version",
            mend="add yourself to the group docker" if "permission denied" in said.lower() else "start Docker",
        )


@dataclass(frozen=True)
class Compose:
    """One service of one home. `port` is needed to start it, not to stop it."""

    place: Place
    name: str
    port: int = 0

    @property
    def project(self) -> str:
        return f"streamserve-{self._digest.hex()[:12]}-{self.name}"

    @property
    def cluster_id(self) -> str:
        """Kafka's, the same at each start: URL-safe base64 of 16 bytes, not beginning with a dash."""
        return "s" + base64.urlsafe_b64encode(self._digest[:16]).decode().rstrip("=")[1:]

    @property
    def _digest(self) -> bytes:
        return hashlib.sha256(os.fsencode(self.place.root)).digest()

    @property
    def environ(self) -> dict[str, str]:
        """What `compose.yml` asks for."""
        given = {f"STREAMSERVE_DEV_{self.name.upper()}_PORT": str(self.port)} if self.port else {}
        return {**os.environ, **given, "STREAMSERVE_DEV_CLUSTER_ID": self.cluster_id}

    def argv(self, *words: str) -> list[str]:
        return ["docker", "compose", "-p", self.project, "-f", str(_FILE), *words]

    def ask(self, *words: str, seconds: float) -> tuple[int, str]:
        return _run(self.argv(*words), seconds, self.environ)

    def prepare(self) -> None:
        """Fetch the image if it is not there. A new home starts without what a deleted one left in its volumes.

        Raises:
            DevError: Docker could not; with the end of what it said.
        """
        marker = self.place.data(self.name) / "docker"
        if not marker.exists():
            self.delete()
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
        status, said = self.ask("pull", "--quiet", self.name, seconds=_PULL_SECONDS)
        if status:
            raise _failure(f"Docker could not fetch the image of {self.name}", said, "check the network and try again")

    def remove(self, *, volumes: bool = False) -> tuple[int, str]:
        """Stop and remove the container, if there is one; its data too if asked."""
        words = ("down", "--timeout", str(_STOP_SECONDS), *(("--volumes",) if volumes else ()))
        return self.ask(*words, seconds=_REMOVE_SECONDS)

    def delete(self) -> None:
        """Remove container and data, or DevError."""
        status, said = self.remove(volumes=True)
        if status:
            raise _failure(f"Docker could not delete the data of {self.name}", said, "start Docker and try again")

    def used(self) -> bool:
        """This home has run the service in Docker, so there may be data to delete."""
        return (self.place.data(self.name) / "docker").exists()


def _failure(what: str, said: str, mend: str) -> DevError:
    tail = "\n".join(f"    {line[:300]}" for line in said.strip().splitlines()[-8:])
    return DevError(f"{what}\n{tail}".rstrip(), where=str(_FILE.name), mend=mend)


def _reason(said: str) -> str:
    lines = said.strip().splitlines()
    return f" ({lines[0].strip()[:200]})" if lines else ""


def _run(argv: Sequence[str], seconds: float, environ: dict[str, str] | None = None) -> tuple[int, str]:
    """The exit status, and the answer or what went wrong; a status of its own if it was not run or did not end."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env=environ,
        )
    except OSError as error:
        return 127, str(error)
    except subprocess.TimeoutExpired:
        return 124, f"no answer within {seconds:.0f} s"
    return done.returncode, done.stdout + (done.stderr if done.returncode else "")

"""Up, down, status and reset of a home's Kafka and Redis: the orders; who carries them out is the supervisor.

Every change is made under the home's lock, so two processes that call `up` at once share one set of services.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from streamserve.dev import docker, probe, process, servers
from streamserve.dev.java import MissingError
from streamserve.dev.launch import STOP_SECONDS, launch
from streamserve.dev.place import POLL, Place
from streamserve.dev.servers import KAFKA, REDIS
from streamserve.errors import DevError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streamserve.dev.place import State
    from streamserve.dev.process import Process

_NAMES = (KAFKA, REDIS)
_ATTEMPTS = 3  # a port that was free when chosen can be taken when it is bound
_TAKEN = ("address already in use", "port is already allocated")  # Kafka, Redis and Docker; Docker
_SPAWN_SECONDS = 15.0  # a Python interpreter's start on a loaded machine


@dataclass(frozen=True)
class Endpoints:
    """Where the services listen. An empty string: that service does not run here (it was not asked for)."""

    bootstrap: str
    redis_url: str


@dataclass(frozen=True)
class ServiceStatus:
    """`state`: running, stopped, or unhealthy (its process lives and does not answer). `uptime`: seconds.

    `docker`: it runs in a container; `pid` is the process that stands for it here.
    """

    name: str
    state: str
    address: str | None
    pid: int | None
    log: Path
    uptime: float | None
    docker: bool = False


def _silent(_: str) -> None:
    pass


def up(
    home: Path,
    *,
    progress: Callable[[str], None] = _silent,
    owner_pid: int | None = None,
    kafka: bool = True,
    redis: bool = True,
) -> Endpoints:
    """Start what is missing of the home's services, and return when they answer.

    With `owner_pid` what is started ends with that process; services that run already are used as they are,
    no owner is added. Without it they stay until `down`, and an owner that they had is dropped: somebody
    asked for them to stay.

    Raises:
        DevError: neither Java and Maven (or a Redis server) nor Docker; or a service did not start (with the end
            of its log).
    """
    wanted = [name for name, asked in ((KAFKA, kafka), (REDIS, redis)) if asked]
    return _up(home, wanted, progress, owner_pid)[0]


def down(home: Path) -> bool:
    """Stop the services and wait until they have ended. False if none ran."""
    place = Place.of(home)
    if not place.root.exists():
        return False
    with place.locked():
        return _stop(place, _NAMES)


def reset(home: Path) -> None:
    """Stop the services and delete their data and logs. Downloaded jars and images stay."""
    place = Place.of(home)
    if not place.root.exists():
        return
    with place.locked():
        _stop(place, _NAMES)
        for compose in (docker.Compose(place, name) for name in _NAMES):
            if compose.used():
                compose.delete()
            place.port_file(compose.name).unlink(missing_ok=True)
        for folder in (place.data(KAFKA), place.data(REDIS), place.root / "logs"):
            shutil.rmtree(folder, ignore_errors=True)


def running(home: Path) -> Endpoints | None:
    """The endpoints of what runs, by state file, process and open port; None if nothing does. Asks nobody."""
    place = Place.of(home)
    states = {name: state for name in _NAMES if (state := place.read(name)) and probe.port_open(state.port)}
    return _endpoints(states) if states else None


def status(home: Path) -> list[ServiceStatus]:
    """What each service is doing now; each is asked."""
    place = Place.of(home)
    return [_status(place, name) for name in _NAMES]


@contextlib.contextmanager
def services(
    home: Path,
    *,
    progress: Callable[[str], None] = _silent,
    kafka: bool = True,
    redis: bool = True,
) -> Iterator[Endpoints]:
    """Services for the length of a block, or of this process if that is shorter.

    Only what this call started is stopped at the end, and not if an `up` without owner has taken it over.
    """
    wanted = [name for name, asked in ((KAFKA, kafka), (REDIS, redis)) if asked]
    endpoints, started = _up(home, wanted, progress, os.getpid())
    place, me = Place.of(home), process.look(os.getpid())
    try:
        yield endpoints
    finally:
        with place.locked():
            _stop(place, [name for name in started if (state := place.read(name)) and state.owner == me])


def _up(
    home: Path, wanted: list[str], progress: Callable[[str], None], owner_pid: int | None
) -> tuple[Endpoints, list[str]]:
    """The endpoints, and the names of the services that this call started."""
    if not Path("/proc/self/stat").exists():
        raise DevError(
            "local services are started on Linux only",
            mend="`docker compose up -d`, then set STREAMSERVE_BOOTSTRAP and STREAMSERVE_REDIS_URL",
        )
    owner = process.look(owner_pid) if owner_pid is not None else None
    if owner_pid is not None and owner is None:
        raise DevError(f"the owner process {owner_pid} does not run", mend="pass the pid of a running process")
    place = Place.of(home)
    with place.locked():
        _remove_left(place, wanted)
        present = [state for name in wanted if (state := place.read(name))]
        for state in present:
            _await(place, state)
            if owner is None and state.owner is not None:
                place.write(replace(state, owner=None))
        missing = [name for name in wanted if name not in {state.name for state in present}]
        _start(place, missing, owner, progress)
        states = {name: state for name in wanted if (state := place.read(name))}
    return _endpoints(states), missing


def _endpoints(states: dict[str, State]) -> Endpoints:
    return Endpoints(
        bootstrap=states[KAFKA].address if KAFKA in states else "",
        redis_url=f"redis://{states[REDIS].address}/0" if REDIS in states else "",
    )


def _start(place: Place, names: list[str], owner: Process | None, progress: Callable[[str], None]) -> None:
    """Start these; what was started is stopped again if one of them fails, or at Ctrl-C."""
    left = names
    try:
        for attempt in range(_ATTEMPTS):
            plans = {name: _plan(place, name, progress, usual=attempt == 0) for name in left}
            if not plans:
                return
            pid = launch(place, plans.values(), owner)
            # Redis answers in 0.1 s: it is waited for first.
            left = [name for name in sorted(plans, reverse=True) if not _ready(place, plans[name], pid, progress)]
    except BaseException:
        _stop(place, names)
        raise
    if left:
        _stop(place, names)
        raise DevError(
            f"{left[0]} found its port taken {_ATTEMPTS} times",
            where=str(place.log(left[0])),
            mend="look with `ss -ltnp` which program takes ports so fast, then try again",
        )


def _plan(place: Place, name: str, progress: Callable[[str], None], *, usual: bool) -> servers.Plan:
    """Native where that is possible, else in Docker, unless the user has chosen."""
    chosen = docker.choice()
    reason = MissingError(f"{docker.CHOICE}={chosen}", mend=f"unset {docker.CHOICE}")
    if chosen != docker.DOCKER:
        try:
            if name == KAFKA:
                return servers.plan_kafka(place, progress, usual=usual)
            return servers.plan_redis(place, usual=usual)
        except MissingError as error:
            if chosen == docker.NATIVE:
                raise
            reason = error
    try:
        docker.check()
    except MissingError as error:
        where = "; ".join(part for part in (reason.where, error.where) if part)
        raise DevError(f"{reason.what}; {error.what}", where=where, mend=f"{error.mend}, or {reason.mend}") from None
    progress(f"{name}: in Docker ({reason.what}); the first time, its image is fetched")
    return servers.plan_docker(place, name, usual=usual)


def _ready(place: Place, plan: servers.Plan, supervisor_pid: int, progress: Callable[[str], None]) -> bool:
    """Wait until the service answers. False: another program took its port first."""
    begun = time.monotonic()
    state = _appeared(place, plan, supervisor_pid)
    try:
        if state is None:
            raise _failure(place, plan.name, "ended right after its start")
        _await(place, state)
    except DevError:
        said = _read(place.log(plan.name)).lower()
        if not place.read(plan.name) and any(words in said for words in _TAKEN):
            progress(f"{plan.name}: port {plan.port} was taken meanwhile, trying another")
            return False
        raise
    place.port_file(plan.name).write_text(str(state.port), "utf-8")
    progress(f"{plan.name}: answers at {state.address} ({time.monotonic() - begun:.1f} s)")
    return True


def _appeared(place: Place, plan: servers.Plan, supervisor_pid: int) -> State | None:
    """The state that this supervisor writes; None if it, or the service, ended before it was seen."""
    deadline = time.monotonic() + _SPAWN_SECONDS
    while time.monotonic() < deadline:
        state = place.read(plan.name)
        if state is not None and state.supervisor.pid == supervisor_pid:
            return state
        process.reap(supervisor_pid)
        if process.look(supervisor_pid) is None:
            return None
        time.sleep(POLL)
    return None


def _await(place: Place, state: State) -> None:
    """Return when the service answers; DevError when it ends, or when it takes too long."""
    seconds = servers.ready_seconds(state)
    deadline = time.monotonic() + seconds
    while not servers.answers(place, state):
        if not process.alive(state.process):
            raise _failure(place, state.name, "ended before it answered")
        if time.monotonic() > deadline:
            raise _failure(
                place,
                state.name,
                f"runs (pid {state.process.pid}) and does not answer within {seconds:.0f} s",
            )
        time.sleep(POLL)


def _failure(place: Place, name: str, what: str) -> DevError:
    log = place.log(name) if _read(place.log(name)).strip() else place.log("supervisor")
    # Java's stack frames push the reason out of sight.
    lines = [line for line in _read(log).splitlines() if line.strip() and not line.startswith("\tat ")]
    shown = "\n".join(f"    {line[:300]}" for line in lines[-12:])
    return DevError(
        f"{name} {what}; the end of its log:\n{shown}",
        where=str(log),
        mend="run `streamserve dev down` and `up`; if that fails too, `streamserve dev reset` (deletes data)",
    )


def _read(log: Path) -> str:
    try:
        return log.read_text("utf-8", "replace")
    except OSError:
        return ""


def _stop(place: Place, names: tuple[str, ...] | list[str]) -> bool:
    """Stop these, and wait for the supervisors that have nothing left to watch."""
    left = _remove_left(place, names)
    states = [state for name in names if (state := place.read(name))]
    process.stop([state.process for state in states], STOP_SECONDS)
    for above in {state.supervisor for state in states}:
        still = [state for name in _NAMES if (state := place.read(name)) and state.supervisor == above]
        if not still:
            process.stop([above], 5.0)
            process.reap(above.pid)
    for state in states:
        if not place.read(state.name):
            place.state_file(state.name).unlink(missing_ok=True)
    return bool(states) or left


def _remove_left(place: Place, names: tuple[str, ...] | list[str]) -> bool:
    """Remove containers whose process here was killed together with its supervisor, or by a power cut."""
    states = [state for name in names if (state := place.read_raw(name))]
    left = [state.name for state in states if state.docker and not process.alive(state.process)]
    for name in left:
        docker.Compose(place, name).remove()
        place.state_file(name).unlink(missing_ok=True)
    return bool(left)


def _status(place: Place, name: str) -> ServiceStatus:
    state = place.read(name)
    if state is None:
        return ServiceStatus(name, "stopped", None, None, place.log(name), None)
    answered = servers.answers(place, state)
    word = "running" if answered else "unhealthy"
    return ServiceStatus(
        name, word, state.address, state.process.pid, place.log(name), state.process.uptime, state.docker
    )

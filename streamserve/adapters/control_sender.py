"""Sending commands, and seeing what becomes of them: accepted or why not, who is ready, where they are in force."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from streamserve.adapters.control_log import CONTROL, LogReader, LogRecord, append
from streamserve.adapters.heartbeats import STATUS
from streamserve.adapters.kafka import Clients
from streamserve.adapters.progress_log import ProgressLog
from streamserve.adapters.reading import Start, TopicReader
from streamserve.control import fold
from streamserve.control.commands import AnyCommand
from streamserve.control.outcome import Outcome, Rejection
from streamserve.control.sending import encode
from streamserve.control.signature import HEADER, Key, sign
from streamserve.control.state import State
from streamserve.delivery.cutovers import in_force
from streamserve.errors import ControlError
from streamserve.headers import Header
from streamserve.rollouts.heartbeat import SILENT_MS, Heartbeat, living, read

POLL_S = 0.1
ASK_S = 0.5  # between two looks at the heartbeats, which come once a second
MENDS = {
    Rejection.ALREADY_INITIALISED: "a topology is initialised once: `streamserve rollout start` brings another version",
    Rejection.STALE: "another command came first: see `streamserve rollout status`, and send it again if it fits",
    Rejection.BUSY: "end the open rollout first: `streamserve rollout promote` or `rollback`",
    Rejection.PAUSED: "`streamserve rollout resume` first",
    Rejection.NO_ROLLOUT: "open one: `streamserve rollout start`",
    Rejection.UNSIGNED: "set STREAMSERVE_CONTROL_KEYS and STREAMSERVE_SIGN_WITH: commands must be signed",
}


class ControlDesk:
    """One topology's control log, as a sender of commands sees it. Not for several threads.

    Raises:
        TopicError: (from the constructor) the log is not there, or not whole.
        BrokerError: (from every method) no broker answers.
    """

    def __init__(self, clients: Clients, topology: str, key: Key | None = None, *, read: bool = True) -> None:
        self._clients, self._key = clients, key
        self._secrets = clients.settings.control_secrets
        self._log = LogReader(clients)
        self.state = State(topology)
        if read:
            self._catch_up()

    @classmethod
    def unread(cls, clients: Clients, topology: str) -> Self:
        """One that stands at the log's beginning, for whoever wants to see it all."""
        return cls(clients, topology, read=False)

    @property
    def end(self) -> int:
        """The offset after the last record that was read."""
        return self._log.position

    def close(self) -> None:
        self._log.close()

    def _catch_up(self) -> dict[int, Outcome]:
        return {record.offset: outcome for record, outcome in self.judged()}

    def judged(self) -> Iterator[tuple[LogRecord, Outcome]]:
        """What has come since the last look, and what became of it."""
        for record in self._log.to_end():
            yield record, self._take(record)

    def follow(self) -> Iterator[tuple[LogRecord, Outcome]]:
        """What comes, for ever."""
        while True:
            for record in self._log.poll(POLL_S):
                yield record, self._take(record)

    def _take(self, record: LogRecord) -> Outcome:
        self.state, outcome = fold.step(self.state, record.offset, record.value, record.headers, self._secrets)
        return outcome

    def send(self, command: AnyCommand) -> Outcome:
        """Write a command, and read on until it was judged.

        Raises:
            ControlError: it was rejected; nothing has changed.
        """
        return self._send(*encode(command, self._key), command.kind)

    def foresee(self, value: bytes) -> tuple[State, Outcome]:
        """The state after a command that somebody has written, if it were the next one, and what would become of it."""
        return fold.step(self.state, self.end, value, self.headers_for(value), self._secrets)

    def send_bytes(self, value: bytes) -> Outcome:
        """The same, for a command that somebody has written: its bytes are not touched.

        Raises:
            ControlError: it was rejected; nothing has changed.
        """
        return self._send(value, self.headers_for(value), "the command")

    def headers_for(self, value: bytes) -> list[Header]:
        """The signature, where there is a key."""
        return [] if self._key is None else [(HEADER, sign(value, self._key))]

    def _send(self, value: bytes, headers: list[Header], name: str) -> Outcome:
        offset = append(self._clients, value, key=self.state.topology, headers=headers)
        found: Outcome | None = None
        while found is None:
            found = self._catch_up().get(offset)
        if found.rejection is not None:
            raise ControlError(
                f"{name} was rejected: {found.rejection.value}, {found.detail}",
                where=f"topic {CONTROL} offset {offset}",
                mend=MENDS.get(found.rejection, "nothing has changed: see `streamserve rollout status`"),
            )
        if not found.accepted:
            raise ControlError(
                f"whether {name} was accepted can't be told here: {self.state.held or found.detail}",
                where=f"topic {CONTROL} offset {offset}",
                mend="give this machine the secrets of the listed keys (STREAMSERVE_CONTROL_KEYS), or a newer release",
            )
        return found


@dataclass(frozen=True, slots=True)
class Effect:
    """A routing epoch, partition by partition. behind: those that do not obey it yet."""

    epoch: int
    partitions: int
    behind: tuple[int, ...]

    @property
    def whole(self) -> bool:
        return not self.behind

    def __str__(self) -> str:
        return f"in effect on {self.partitions - len(self.behind)} of {self.partitions} partitions"


class Effects:
    """The progress log, as a sender of commands sees it: where commands are in force, and who owns what."""

    def __init__(self, clients: Clients, topology: str, topic: str) -> None:
        self._topic = topic
        self._log = ProgressLog(clients, topology)
        self._count = clients.partitions(clients.admin(), topic)

    def close(self) -> None:
        self._log.close()

    def look(self, state: State, wait: float = 0.0) -> Effect:
        """After what has arrived, waiting so long for the first record."""
        self._log.read(wait=wait)
        epoch = state.epochs[-1].number
        reached = self.epochs(state)
        return Effect(epoch, self._count, tuple(p for p, at in reached.items() if at < epoch))

    def epochs(self, state: State) -> dict[int, int]:
        """The control epoch at the end of each partition."""
        _, cutovers = self._log.cutovers()
        return {p: in_force(state.epochs, cutovers, (self._topic, p)) for p in range(self._count)}

    def wait(self, state: State, seconds: float, tell: Callable[[Effect], None]) -> Effect:
        """Until the last epoch is in force everywhere; the last look, if that takes longer. tell: at each change."""
        limit, last = time.monotonic() + seconds, None
        while True:
            found = self.look(state, POLL_S)
            if found != last:
                tell(found)
                last = found
            if found.whole or time.monotonic() > limit:
                return found


def workers(clients: Clients, topology: str) -> tuple[Heartbeat, ...]:
    """Those that live, by name: heard within the last seconds.

    Raises:
        BrokerError: the topic can't be read.
        TopicError: there is none.
    """
    now = time.time_ns() // 1_000_000
    with TopicReader(clients, STATUS) as reader:
        heard = (read(record.value, topology) for record in reader.backlog(Start("time", now - 2 * SILENT_MS)))
        return living([one for one in heard if one is not None], now)


@dataclass(frozen=True, slots=True)
class Readiness:
    """Of a version. missing: by worker, why it is not ready there."""

    ready: tuple[str, ...]
    missing: Mapping[str, str]

    @classmethod
    def of(cls, version: str, living: tuple[Heartbeat, ...]) -> Readiness:
        return cls(
            tuple(one.worker for one in living if version in one.versions),
            {one.worker: one.failed.get(version, "it is loading it") for one in living if version not in one.versions},
        )

    @classmethod
    def to_shadow(cls, rollout: str, share_bp: int, living: tuple[Heartbeat, ...]) -> Readiness:
        """Of a rollout's candidate, to score so much of the stream beside stable."""

        def lacks(one: Heartbeat) -> str:
            found = one.shadow
            if found is None or found.rollout != rollout or found.share != share_bp:
                return "it has not begun"
            return "" if found.running else found.why or "its process is not there"

        why = {one.worker: lacks(one) for one in living}
        return cls(
            tuple(worker for worker, lack in why.items() if not lack),
            {worker: lack for worker, lack in why.items() if lack},
        )

    @property
    def whole(self) -> bool:
        """Every worker that lives is ready, and there is one: nobody is no good news."""
        return bool(self.ready) and not self.missing


def wait_until_ready(
    clients: Clients,
    topology: str,
    judge: Callable[[tuple[Heartbeat, ...]], Readiness],
    seconds: float,
    tell: Callable[[Readiness], None],
) -> Readiness:
    """Until every worker that lives is ready; the last look, if that takes longer."""
    limit, last = time.monotonic() + seconds, None
    while True:
        found = judge(workers(clients, topology))
        if found != last:
            tell(found)
            last = found
        if found.whole or time.monotonic() > limit:
            return found
        time.sleep(ASK_S)

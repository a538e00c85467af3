"""Kafka clients: every one that streamserve opens is configured here, its errors told in our words.

TLS, SASL and any other librdkafka setting come from the settings and reach every client. librdkafka's own log goes
to `logging`, not to stderr.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from streamserve.adapters.native import Handle, make_client
from streamserve.adapters.quiet import Repeats
from streamserve.errors import BrokerError
from streamserve.settings import Settings

__all__ = [
    "Clients",
    "Consumer",
    "KafkaError",
    "KafkaException",
    "Producer",
    "TopicPartition",
    "broker_error",
    "missing_right",
    "needless",
]

_Client = TypeVar("_Client")
LOG = logging.getLogger("streamserve.kafka")
LOG.addFilter(Repeats())  # an idle worker without a broker wrote 80 lines a second
# The fetcher stops at queued.min.messages and then sleeps this long: at the default of 1,000 ms small messages
# are capped at 178 k/s
FETCH_BACKOFF_MS = 10
# Messages of a partition that are fetched ahead, each half a kilobyte beside its bytes: at the default of 100,000 a
# worker in arrears holds 45 MiB more and is no faster
FETCHED_AHEAD = 20_000
POLL_S = 0.05
FIRST_ASK_S = 0.5  # how long the first question waits; a connection that is being made goes on meanwhile
SESSION_TIMEOUT_MS = 6000  # a killed worker's partitions move within 4 s; the default of 45 s is a long outage
# A broker that hangs answers nothing and closes nothing: what was sent to it waits for this, and partitions with it. A
# dead one's partitions have other leaders after 9 s; the default of 60 s was how long they stood still.
SOCKET_MS = 15_000
# Who writes now and then asks a hung leader once more, and waits for SOCKET_MS, unless it hears of the next one before
METADATA_MS = 5_000
HEARTBEAT_MS = 500  # members hear of a rebalance by the next one, twice in a cooperative one
UNCONFIRMED = (
    "see that every broker runs and has room on its disk, and that as many replicas of each output partition are in "
    "sync as the topic's min.insync.replicas asks for; the worker starts again from what is committed"
)
ADVICE = {
    KafkaError.UNKNOWN: UNCONFIRMED,  # what a broker says of a record that its full disk does not take
    KafkaError._AUTHENTICATION: "check sasl.username and sasl.password in STREAMSERVE_KAFKA_CONFIG",  # noqa: SLF001
    KafkaError._SSL: "check ssl.ca.location and the broker's certificate",  # noqa: SLF001
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "grant the rights that docs/operations.md lists",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "grant READ on the consumer group",
    KafkaError.MSG_SIZE_TOO_LARGE: "the topic's max.message.bytes was lowered: raise it, or start the worker again",
    KafkaError.INVALID_TIMESTAMP: "compare this machine's clock with the broker's",
    **dict.fromkeys(
        (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION),  # noqa: SLF001
        "create the topics: `streamserve topics apply <topology file>`",
    ),
}
# A client tries again for ever after these, and a person has to mend them
HOPELESS = (KafkaError._AUTHENTICATION, KafkaError._SSL)  # noqa: SLF001
UNREACHABLE = "start one with `streamserve dev up`, or set STREAMSERVE_BOOTSTRAP to a broker that runs"


def broker_error(error: KafkaError, where: str, mend: str = UNREACHABLE) -> BrokerError:
    """A client error as ours, with what to do about it. mend: where the error itself does not tell."""
    return BrokerError(f"Kafka: {error.str()}", where=where, mend=ADVICE.get(error.code(), mend))


def missing_right(right: str, kind: str, name: str, bootstrap: str) -> BrokerError:
    """The broker refuses a right that docs/operations.md lists."""
    return BrokerError(
        f"Kafka does not grant this user {right} on {kind} {name}",
        where=f"{bootstrap} {kind} {name}",
        mend=f"grant it, e.g. `kafka-acls --add --allow-principal User:... --operation {_spelled(right)} "
        f"--{kind} {name}`; docs/operations.md lists every right",
    )


def _spelled(right: str) -> str:
    """As Kafka's own tool takes it: DescribeConfigs."""
    return right.title().replace("_", "")


def needless(error: KafkaError) -> bool:
    """Does this matter to a reader outside any group? The library looks up a coordinator for it all the same."""
    return bool(error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED)


class Clients:
    """Opens Kafka clients for one process.

    Raises:
        BrokerError: (from every method) no bootstrap servers are known, or a setting is refused.
    """

    def __init__(self, settings: Settings) -> None:
        if not settings.bootstrap:
            raise BrokerError("no Kafka broker is named, and no local one runs", mend=UNREACHABLE)
        self.settings = settings
        self.bootstrap = settings.bootstrap
        self._last_error: KafkaError | None = None

    def config(self, **more: object) -> dict[str, Any]:
        return {
            "bootstrap.servers": self.bootstrap,
            "client.id": "streamserve",
            "socket.timeout.ms": SOCKET_MS,
            **{name if name == "on_delivery" else name.replace("_", "."): value for name, value in more.items()},
            **self.settings.kafka_properties,
            "error_cb": self._on_error,
        }

    def _on_error(self, error: KafkaError) -> None:
        self._last_error = error
        LOG.warning("%s", error.str())

    def _heard(self) -> KafkaError | None:
        return self._last_error

    def consumer(self, group: str, **more: object) -> Consumer:
        """A consumer that never commits by itself and never picks a starting position by itself."""
        return self._open(lambda: Consumer(self._reading(group, **more), logger=LOG))

    def _reading(self, group: str, **more: object) -> dict[str, Any]:
        return _fit_protocol(
            self.config(
                group_id=group,
                enable_auto_commit=False,
                auto_offset_reset="error",
                fetch_queue_backoff_ms=FETCH_BACKOFF_MS,
                queued_min_messages=FETCHED_AHEAD,
                **more,
            )
        )

    def member(self, group: str, *, ends: bool = False) -> tuple[Consumer, Handle | None]:
        """A member of a worker group, classic cooperative or KIP-848 (group.protocol=consumer).

        ends: it tells of each end of a partition that it reaches.

        Returns:
            the consumer, and its handle for the compiled path; None: events come as messages.
        """
        config = self._reading(
            group,
            partition_assignment_strategy="cooperative-sticky",
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
            enable_partition_eof=ends,
        )
        return self._open_with_handle(lambda config: Consumer(config, logger=LOG), config)

    def producer(self, **more: object) -> Producer:
        """An idempotent producer that partitions as the Java client does."""
        return self._open(lambda: Producer(self._writing(**more), logger=LOG))

    def _writing(self, **more: object) -> dict[str, Any]:
        ours = {
            "enable_idempotence": True,
            "partitioner": "murmur2_random",
            "linger_ms": 5,
            "topic_metadata_refresh_interval_ms": METADATA_MS,
        }
        return _without_group(self.config(**{**ours, **more}))

    def batch_producer(self, **more: object) -> tuple[Producer, Handle | None]:
        """The same, with its handle for the compiled path; None: records go as messages."""
        return self._open_with_handle(lambda config: Producer(config, logger=LOG), self._writing(**more))

    def _open_with_handle(
        self, make: Callable[[dict[str, Any]], _Client], config: dict[str, Any]
    ) -> tuple[_Client, Handle | None]:
        if not self.settings.native:
            return self._open(lambda: make(config)), None
        return self._open(lambda: make_client(make, config))

    def admin(self) -> AdminClient:
        return self._open(lambda: AdminClient(_without_group(self.config()), logger=LOG))

    def _open(self, make: Callable[[], _Client]) -> _Client:
        try:
            return make()
        except KafkaException as error:
            raise BrokerError(
                f"a Kafka client can't be opened: {error.args[0].str()}",
                where=self.bootstrap,
                mend="check STREAMSERVE_KAFKA and STREAMSERVE_KAFKA_CONFIG",
            ) from None

    def partitions(self, client: Consumer | Producer | AdminClient, topic: str) -> int:
        """How many partitions a topic has; 0 if there is no such topic.

        Raises:
            BrokerError: no broker answers within the start timeout, or it refuses us.
        """
        found = self.metadata(client, topic)
        if found.error is not None:
            if found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return 0
            raise broker_error(found.error, f"{self.bootstrap} topic {topic}")
        return len(found.partitions)

    def metadata(self, client: Consumer | Producer | AdminClient, topic: str) -> Any:
        """What the broker tells of a topic; that it refuses to stands in `error` there.

        Asked in growing slices: why a connection is refused, the client tells between them.

        Raises:
            BrokerError: no broker answers within the start timeout, or it refuses the connection.
        """
        self._last_error = None  # one of an hour ago is no answer
        deadline = time.monotonic() + self.settings.start_timeout * 0.75
        patience = FIRST_ASK_S
        while True:
            left = max(deadline - time.monotonic(), 0.1)
            try:
                return client.list_topics(topic, timeout=min(patience, left)).topics[topic]
            except KafkaException as error:
                client.poll(POLL_S)
                known = self._heard()
                if known is not None and known.code() in HOPELESS:
                    raise broker_error(known, self.bootstrap) from None
                if time.monotonic() >= deadline:
                    raise broker_error(known or error.args[0], self.bootstrap) from None
            patience *= 2


def _without_group(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that every client gets, less those of group members: others warn of them in the log."""
    return {name: value for name, value in config.items() if not name.startswith("group.")}


def _fit_protocol(config: dict[str, Any]) -> dict[str, Any]:
    """Under KIP-848 the broker decides these; librdkafka refuses a client that sets them."""
    if config.get("group.protocol") == "consumer":
        for name in ("partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms"):
            config.pop(name, None)
    return config

"""The topics of a topology: what they must be like, what they are like, and how to get from one to the other."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from streamserve.adapters.control_log import CONTROL, PROGRESS
from streamserve.adapters.kafka import Clients, broker_error, missing_right
from streamserve.errors import BrokerError, TopicError
from streamserve.pipeline.emit import TimestampLimits
from streamserve.topology import Drift, Topology

DAY_MS = 86_400_000
MIB = 1 << 20
LOG = {
    "cleanup.policy": "delete",
    "retention.ms": "-1",
    "retention.bytes": "-1",
    "message.timestamp.type": "LogAppendTime",
}
STREAM = {"cleanup.policy": "delete", "message.timestamp.type": "CreateTime"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A topic as it should be. `must` is refused when it differs, `initial` is only given at creation."""

    name: str
    partitions: int
    role: str
    must: Mapping[str, str] = field(default_factory=dict)
    initial: Mapping[str, str] = field(default_factory=dict)
    exact_partitions: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a plan. A `refuse` can't be mended by `apply`: a person decides."""

    action: Literal["keep", "create", "grow", "set", "refuse"]
    topic: Wanted
    detail: str = ""
    configs: Mapping[str, str] = field(default_factory=dict)


def panes_kept_ms(drift: Drift | None) -> int:
    """A week, and twice as long as an event may belong to an open window: whoever takes over reads them all again."""
    open_for = 0 if drift is None else (drift.window + drift.lateness) // dt.timedelta(milliseconds=1)
    return max(7 * DAY_MS, 2 * open_for)


def wanted_topics(topology: Topology) -> list[Wanted]:
    """Every topic of a topology, the shared logs included."""
    source = topology.source
    count = source.partitions

    def output(suffix: str, role: str, partitions: int = count, **initial: str) -> Wanted:
        config = {name.replace("_", "."): value for name, value in initial.items()}
        return Wanted(topology.topic(suffix), partitions, role, STREAM, config)

    # A dead letter carries its event untouched and headers beside it: it must fit where the event did
    roomy = str(2 * MIB)
    return [
        Wanted(
            source.topic,
            count,
            "events",
            {"cleanup.policy": "delete"},
            {"message.timestamp.type": "CreateTime"},
        ),
        output("predictions", "predictions", retention_ms=str(7 * DAY_MS)),
        output("shadow-decisions", "shadow pairs", retention_ms=str(7 * DAY_MS)),
        output("dead-letters", "events that failed", retention_ms=str(30 * DAY_MS), max_message_bytes=roomy),
        Wanted(
            topology.topic("panes"),
            1,
            "drift counts",
            {"cleanup.policy": "delete"},
            # The broker's time: how long a partition is silent must not depend on the clocks of workers
            {"message.timestamp.type": "LogAppendTime", "retention.ms": str(panes_kept_ms(topology.drift))},
        ),
        output("drift", "drift windows", 1, retention_ms=str(90 * DAY_MS)),
        output("drift-alerts", "drift alerts", 1, retention_ms=str(90 * DAY_MS)),
        output("outcomes", "labels", retention_ms=str(30 * DAY_MS)),
        output("quality", "live quality", 1, retention_ms=str(90 * DAY_MS)),
        Wanted(CONTROL, 1, "commands", LOG, exact_partitions=True),
        Wanted(PROGRESS, 1, "what workers did", LOG, exact_partitions=True),
        Wanted(
            "streamserve.status",
            1,
            "heartbeats",
            {},
            {"retention.ms": str(DAY_MS), "cleanup.policy": "delete"},
        ),
        Wanted("streamserve.rollouts", 1, "audit", {}, {"retention.ms": "-1", "cleanup.policy": "delete"}),
    ]


class Topics:
    """Plans, creates and checks topics.

    Raises:
        BrokerError: (from every method) the broker does not answer or refuses us.
    """

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._admin: AdminClient = clients.admin()
        self._timeout = clients.settings.start_timeout

    def plan(self, topology: Topology) -> list[Step]:
        """What `apply` would do, topic by topic."""
        wanted = wanted_topics(topology)
        there = self._counts([w.name for w in wanted])
        found = self.configs([w.name for w in wanted if w.name in there])
        return [_step(w, there.get(w.name), found.get(w.name, {})) for w in wanted]

    def apply(self, steps: list[Step], replication: int) -> None:
        """Carry a plan out.

        Raises:
            TopicError: the plan has refusals; nothing is changed then.
        """
        refuse(steps)
        new = [
            NewTopic(
                step.topic.name,
                step.topic.partitions,
                replication,
                config={**step.topic.must, **step.topic.initial},
            )
            for step in steps
            if step.action == "create"
        ]
        if new:
            self._wait(
                self._admin.create_topics(new, operation_timeout=self._timeout),
                KafkaError.TOPIC_ALREADY_EXISTS,
            )
        for step in steps:
            if step.action == "grow":
                self._wait(self._admin.create_partitions([NewPartitions(step.topic.name, step.topic.partitions)]))
            if step.configs:
                self._set(step)

    def _set(self, step: Step) -> None:
        entries = [
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
            for name, value in step.configs.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, step.topic.name, incremental_configs=entries)
        self._wait(self._admin.incremental_alter_configs([resource]))

    def limits(self, topic: str) -> TimestampLimits:
        """How far a record's timestamp may lie from the present in this topic."""
        config = self.configs([topic])[topic]
        return TimestampLimits(
            before_ms=int(config.get("message.timestamp.before.max.ms", 2**62)),
            after_ms=int(config.get("message.timestamp.after.max.ms", 3_600_000)),
        )

    def max_bytes(self, topics: list[str]) -> dict[str, int]:
        """How large a record, or a batch of them, may be in each topic."""
        return {name: int(config["max.message.bytes"]) for name, config in self.configs(topics).items()}

    def configs(self, topics: list[str]) -> dict[str, dict[str, str]]:
        if not topics:
            return {}
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in topics]
        found = {}
        for resource, future in self._admin.describe_configs(resources, request_timeout=self._timeout).items():
            try:
                entries = future.result(self._timeout)
            except KafkaException as error:
                raise self._refused(error.args[0], resource.name, "DESCRIBE_CONFIGS") from None
            found[resource.name] = {name: entry.value for name, entry in entries.items()}
        return found

    def _counts(self, names: list[str]) -> dict[str, int]:
        """The partitions of those that exist. Asked by name: in a list of all, what we may not see looks missing."""
        self._clients.metadata(self._admin, CONTROL)  # says what is wrong where nobody answers
        asked = self._admin.describe_topics(TopicCollection(names), request_timeout=self._timeout)
        found = {}
        for name, future in asked.items():
            try:
                found[name] = len(future.result(self._timeout).partitions)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise self._refused(error.args[0], name, "DESCRIBE") from None
        return found

    def _refused(self, error: KafkaError, topic: str, right: str) -> BrokerError:
        where = f"{self._clients.bootstrap} topic {topic}"
        if error.code() != KafkaError.TOPIC_AUTHORIZATION_FAILED:
            return broker_error(error, where)
        return missing_right(right, "topic", topic, self._clients.bootstrap)

    def _wait(self, futures: Mapping[Any, Future[Any]], accepted: int | None = None) -> None:
        for name, future in futures.items():
            try:
                future.result(self._timeout)
            except KafkaException as error:
                if error.args[0].code() != accepted:
                    raise broker_error(error.args[0], f"{self._clients.bootstrap} topic {name}") from None


def _step(wanted: Wanted, partitions: int | None, config: Mapping[str, str]) -> Step:
    if partitions is None:
        return Step("create", wanted, f"{wanted.partitions} partitions")
    if wanted.exact_partitions and partitions != wanted.partitions:
        return Step("refuse", wanted, f"has {partitions} partitions, must have {wanted.partitions}")
    wrong = {name: value for name, value in wanted.must.items() if config.get(name) != value}
    if wrong:
        changes = ", ".join(f"{name} {config.get(name)} -> {value}" for name, value in wrong.items())
        if "cleanup.policy" in wrong and "compact" in config.get("cleanup.policy", ""):
            return Step("refuse", wanted, f"is compacted, records may be gone already: {changes}")
        return Step("set", wanted, changes, wrong)
    if partitions < wanted.partitions:
        return Step("grow", wanted, f"{partitions} -> {wanted.partitions} partitions; keys move to other partitions")
    return Step("keep", wanted, f"{partitions} partitions")


def refuse(steps: list[Step], *, unapplied: bool = False) -> None:
    """Raise for what can't be mended here, or (unapplied) for anything that is not as it should be.

    Raises:
        TopicError: lists every such topic.
    """
    bad = [s for s in steps if s.action == "refuse" or (unapplied and s.action in ("create", "set"))]
    if not bad:
        return
    lines = "\n    ".join(f"{s.topic.name}: {'is missing' if s.action == 'create' else s.detail}" for s in bad)
    only_apply = all(s.action in ("create", "set") for s in bad)
    raise TopicError(
        f"{len(bad)} topic(s) are not as they must be:\n    {lines}",
        mend="run `streamserve topics apply <topology file>`"
        if only_apply
        else "a compacted or split log can't be mended in place: move it aside and create it anew",
    )

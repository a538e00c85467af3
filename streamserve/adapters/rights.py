"""What a worker may do, asked of the broker before it joins its group.

Without this a right that is missing shows when the first batch can't be read or sent: after a deployment is taken
for done. Only a clear "no" counts here: a broker without access control grants everything, one that does not tell
what it grants is taken at its word when it refuses.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AclOperation, AdminClient

from streamserve.adapters.control_log import CONTROL, PROGRESS
from streamserve.adapters.heartbeats import STATUS
from streamserve.adapters.kafka import Clients, missing_right
from streamserve.topology import Topology

LOG = logging.getLogger("streamserve.rights")
READ, WRITE = AclOperation.READ, AclOperation.WRITE


def topic_rights(topology: Topology) -> dict[str, tuple[AclOperation, ...]]:
    """What is read and what is written, by topic."""
    return {
        topology.source.topic: (READ,),
        CONTROL: (READ,),
        PROGRESS: (READ, WRITE),
        STATUS: (WRITE,),
        topology.topic("predictions"): (WRITE,),
        topology.topic("dead-letters"): (WRITE,),
    }


def check_replay_rights(clients: Clients, topology: Topology) -> None:
    """Refuse to replay dead letters without the right to write into their source.

    Raises:
        BrokerError: it is missing.
    """
    admin, topic = clients.admin(), topology.source.topic
    clients.metadata(admin, topic)
    options = {"include_authorized_operations": True, "request_timeout": clients.settings.start_timeout}
    _check(clients, admin.describe_topics(TopicCollection([topic]), **options)[topic], (WRITE,), "topic", topic)


def check_rights(clients: Clients, topology: Topology, group: str) -> None:
    """Refuse to start without them.

    Raises:
        BrokerError: names the first right that is missing.
    """
    admin: AdminClient = clients.admin()
    clients.metadata(admin, CONTROL)  # says what is wrong where nobody answers
    timeout = clients.settings.start_timeout
    rights = topic_rights(topology)
    options = {"include_authorized_operations": True, "request_timeout": timeout}
    topics = admin.describe_topics(TopicCollection(list(rights)), **options)
    groups = admin.describe_consumer_groups([group], **options)
    for name, future in topics.items():
        _check(clients, future, rights[name], "topic", name)
    _check(clients, groups[group], (READ,), "group", group)


def _check(clients: Clients, future: Future[Any], rights: tuple[AclOperation, ...], kind: str, name: str) -> None:
    try:
        granted = future.result(clients.settings.start_timeout).authorized_operations
    except KafkaException as error:
        if error.args[0].code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED):
            raise missing_right(rights[0].name, kind, name, clients.bootstrap) from None
        LOG.debug("rights on %s %s are not told: %s", kind, name, error.args[0].str())  # no topic, no coordinator yet
        return
    for right in rights:
        if granted and right not in granted:
            raise missing_right(right.name, kind, name, clients.bootstrap)

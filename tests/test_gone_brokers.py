"""Promise: a commit does not wait for ever for a broker that is gone, and where it gives up it says what to see to."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException
from conftest import ROOT

from streamserve.adapters.at_least_once import AtLeastOnceEmitter
from streamserve.adapters.exactly_once import ExactlyOnceEmitter
from streamserve.adapters.incarnation import Incarnations
from streamserve.adapters.kafka import SESSION_TIMEOUT_MS, UNCONFIRMED, Clients, broker_error
from streamserve.delivery.emitter import StartAnewError
from streamserve.errors import BrokerError
from streamserve.settings import Settings
from streamserve.topology import load_topology


class Refusing:
    """A producer whose brokers confirm nothing."""

    def init_transactions(self, *_):
        pass

    begin_transaction = init_transactions

    def flush(self, *_):
        return 3

    def commit_transaction(self, *_):
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "Timed out waiting for operation to finish"))

    send_offsets_to_transaction = abort_transaction = commit_transaction


def output():
    return SimpleNamespace(
        producer=Refusing(),
        where="nowhere",
        failure=lambda: None,
        raise_if_stopping=lambda: None,
        refused=lambda: None,
        write=lambda _: None,
    )


@pytest.mark.parametrize("step", ["commit", "abort"])
def test_a_transaction_that_is_not_confirmed_tells_what_to_see_to(step):
    emitter = ExactlyOnceEmitter(output(), "id")
    emitter.send(None)
    with pytest.raises(BrokerError) as raised:
        emitter.abort() if step == "abort" else emitter.commit((), SimpleNamespace(metadata=lambda: None), 0.1)
    assert "min.insync.replicas" in raised.value.mend
    assert "room on its disk" in raised.value.mend


def test_predictions_that_are_not_confirmed_tell_what_to_see_to():
    with pytest.raises(BrokerError, match="3 records were not acknowledged") as raised:
        AtLeastOnceEmitter(output()).barrier(0.1)
    assert "min.insync.replicas" in raised.value.mend


def refused_by(code):
    said = KafkaError(code, "what the broker said")
    return SimpleNamespace(**vars(output()) | {
        "failure": lambda: broker_error(said, "nowhere"), "refused": lambda: said, "write": lambda _: None,
    })  # fmt: skip


def test_a_broker_that_could_not_write_is_asked_again_by_a_new_producer():
    emitter = AtLeastOnceEmitter(refused_by(KafkaError.UNKNOWN))
    emitter.send(None)
    assert emitter.spoilt
    for step in (emitter.abort, lambda: emitter.commit((), None, 0.1)):
        with pytest.raises(StartAnewError, match="a record was refused") as raised:
            step()
        assert isinstance(raised.value.__cause__, BrokerError)


def test_what_a_new_try_does_not_mend_ends_the_worker():
    emitter = AtLeastOnceEmitter(refused_by(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    assert not emitter.spoilt
    with pytest.raises(BrokerError, match="what the broker said"):
        emitter.send(None)


class Recording(Clients):
    """Keeps the settings of its producers instead of opening them."""

    def batch_producer(self, **more):
        self.opened = self._writing(**more)
        return Refusing(), None


def test_offsets_that_wait_for_a_dead_coordinator_are_led_to_its_successor():
    """Idle connections go, which is what the client looks at; without that it waits for the dead one to come back."""
    clients = Recording(Settings(bootstrap="127.0.0.1:1"))
    topology = load_topology(ROOT / "tests" / "topologies" / "readings.py")
    limits = {topology.topic("predictions"): 1 << 20}
    Incarnations(clients, topology, "group", SimpleNamespace(position=0), limits)._emitter("id")
    assert SESSION_TIMEOUT_MS < int(clients.opened["connections.max.idle.ms"]) <= 15_000


def test_a_broker_that_hangs_is_given_up_long_before_a_commit_is():
    assert int(Clients(Settings(bootstrap="127.0.0.1:1")).config()["socket.timeout.ms"]) <= 15_000
    own = Clients(Settings(bootstrap="127.0.0.1:1", kafka={"socket.timeout.ms": "40000"})).config()
    assert own["socket.timeout.ms"] == "40000", "whoever knows their network better"


def test_a_broker_that_can_not_say_what_it_lacks_is_no_reason_to_start_another():
    """So it answers where its disk is full."""
    assert broker_error(KafkaError(KafkaError.UNKNOWN), "here").mend == UNCONFIRMED

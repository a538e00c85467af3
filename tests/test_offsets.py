"""Offsets are asked for again while a partition has no leader, and for no other reason.

A broker says so for some milliseconds after a topic was made, which no test can bring about at will: a stand-in for
the client says it here.
"""

from collections.abc import Sequence

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from streamserve.adapters import offsets
from streamserve.adapters.offsets import at_times, first_and_end
from streamserve.errors import BrokerError

PLACE = TopicPartition("flights", 3)
SPAN = (2, 7)
LEADERLESS = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)
OTHERS = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._TIMED_OUT)


class Moody:
    """A consumer that gives these errors, one a question, before it answers."""

    def __init__(self, *errors: int) -> None:
        self.left = list(errors)

    def get_watermark_offsets(self, place: TopicPartition, timeout: float) -> tuple[int, int]:
        assert place == PLACE
        if self.left:
            raise KafkaException(KafkaError(self.left.pop(0)))
        return SPAN

    def offsets_for_times(self, asked: Sequence[TopicPartition], timeout: float) -> list[TopicPartition]:
        if not self.left:
            return [TopicPartition(tp.topic, tp.partition, 5 if tp.partition else -1) for tp in asked]
        answer = [Refused(tp.topic, tp.partition, tp.offset) for tp in asked]
        answer[-1].error = KafkaError(self.left.pop(0))
        return answer  # type: ignore[return-value]


class Refused:
    """A partition of an answer, with an error of its own: the client's class lets nobody set one."""

    def __init__(self, topic: str, partition: int, offset: int) -> None:
        self.topic, self.partition, self.offset = topic, partition, offset
        self.error: KafkaError | None = None


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(offsets, "PAUSE_S", 0)


@pytest.mark.parametrize("code", LEADERLESS)
def test_a_partition_without_a_leader_is_asked_again(code):
    moody = Moody(code, code)
    assert first_and_end(moody, PLACE, 10, "here") == SPAN
    assert not moody.left


@pytest.mark.parametrize("code", OTHERS)
def test_another_error_is_told_at_once(code):
    moody = Moody(code, code)
    with pytest.raises(BrokerError, match="Kafka: ") as told:
        first_and_end(moody, PLACE, 10, "here")
    assert len(moody.left) == 1
    assert told.value.where == "here"


def test_a_leader_that_never_comes_is_told_after_the_time():
    with pytest.raises(BrokerError, match="leader"):
        first_and_end(Moody(*[LEADERLESS[0]] * 100_000), PLACE, 0, "here")


def test_one_partition_without_a_leader_asks_for_all_times_again():
    asked = [TopicPartition("flights", p, 1_700_000_000_000) for p in range(3)]
    found = at_times(Moody(LEADERLESS[0]), asked, 10, "here")
    assert found == {("flights", 0): None, ("flights", 1): 5, ("flights", 2): 5}  # and no time is taken for an offset


def test_a_partition_that_may_not_be_read_has_no_time():
    with pytest.raises(BrokerError) as told:
        at_times(Moody(OTHERS[0]), [TopicPartition("flights", 0, 1_700_000_000_000)], 10, "here")
    assert "rights" in told.value.mend

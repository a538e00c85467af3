"""Errors planted in the product, one at a time: each rule of the protocol left out, and some of our own.

The first are named as in the executable specification. Of `group` and `stable` the broker is the keeper; the product's
part is to tell it who it is, and to ask for stable offsets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from unittest import mock

from world_broker import Broker, Member

from streamserve.adapters import incarnation, tenure
from streamserve.adapters import member as membership
from streamserve.adapters.control_state import Control
from streamserve.adapters.exactly_once import ExactlyOnceEmitter
from streamserve.adapters.ownership import Ownership
from streamserve.adapters.tenure import Tenure
from streamserve.control.state import State
from streamserve.delivery.custody import Custody
from streamserve.delivery.emitter import StartAnewError
from streamserve.delivery.gate import Gate
from streamserve.delivery.ledger import Ledger
from streamserve.delivery.progress import CutOver, Owned, Progress
from streamserve.records import ControlView

Place = tuple[object, str, object]  # where, which name, what instead
PLANTED: dict[str, Callable[[], list[Place]]] = {}


def plant(made: Callable[[], list[Place]]) -> Callable[[], list[Place]]:
    PLANTED[made.__name__] = made
    return made


@contextlib.contextmanager
def planted(*names: str) -> Iterator[None]:
    """The product with these errors in it."""
    with contextlib.ExitStack() as stack:
        for where, name, instead in (place for one in names for place in PLANTED[one]()):
            stack.enter_context(mock.patch.object(where, name, instead))
        yield


def nothing(*_: object, **__: object) -> None:
    """Left out."""


# ---- the rules of the specification


@plant
def token() -> list[Place]:
    """A cutover counts whoever writes it, as long as a claim is open."""
    refusal = Progress._refusal
    return [(Progress, "_refusal", lambda log, key, _, *rest: refusal(log, key, log.latest(key), *rest))]


@plant
def reltoken() -> list[Place]:
    """Any `released` ends all claims on its partition."""
    return [(Progress, "_release", lambda log, key, _: log._claims.update({key: ()}))]


@plant
def check() -> list[Place]:
    """Nobody asks the group whether one is a member before taking partitions up."""
    return [(membership.Member, "confirm", nothing)]


@plant
def anew() -> list[Place]:
    """One that reads a later `owned` goes on, also where its own cutover did not count."""
    cut_over = Ownership.cut_over

    def heedless(self: Ownership, *what: object) -> None:
        with contextlib.suppress(StartAnewError):
            cut_over(self, *what)

    return [(Ownership, "superseded", lambda *_: []), (Ownership, "cut_over", heedless)]


@plant
def fence() -> list[Place]:
    return [(Ownership, "_fence", nothing)]


@plant
def fenceall() -> list[Place]:
    """Only the last of the open claims is fenced."""

    def last(log: Progress, partitions, owner_epoch):
        older = ([one for one in log._claims.get(p, ()) if one.owner_epoch < owner_epoch] for p in partitions)
        return frozenset(one[-1].transactional_id for one in older if one and one[-1].transactional_id)

    return [(Progress, "before", last)]


@plant
def order() -> list[Place]:
    """The committed offset is read before the fence."""
    fence_, positions, known = Ownership._fence, tenure.starting_positions, {}

    def early(self: Ownership, others) -> None:
        consumer = self._member._consumer
        known[consumer] = {tp.partition: tp.offset for tp in _committed(consumer)}
        fence_(self, others)

    def late(consumer, partitions, settings, count):
        placed = positions(consumer, partitions, settings, count)
        for tp in placed:
            tp.offset = known[consumer][tp.partition]
        return placed

    return [(Ownership, "_fence", early), (tenure, "starting_positions", late)]


def _committed(consumer):
    from confluent_kafka import TopicPartition

    return consumer.committed([TopicPartition("e", p) for p in range(len(consumer.broker.ends))], 10.0)


@plant
def incid() -> list[Place]:
    """A worker's transactional id is that of its former lives."""
    made = incarnation.Identity

    def stable(**what):
        return made(**{**what, "transactional_id": what["transactional_id"] and f"g.{what['worker']}"})

    return [(incarnation, "Identity", stable)]


@plant
def group() -> list[Place]:
    """Offsets go into a transaction without the group's word on who sends them."""
    return [(membership.Member, "metadata", lambda _: Member("", ""))]


@plant
def stable() -> list[Place]:
    """Offsets are read while a transaction holds others."""
    return [(Broker, "unstable", lambda *_: False)]


@plant
def ctlwait() -> list[Place]:
    """Nobody waits for the epoch that a cutover names."""
    return [(Control, "wait_for", nothing)]


@plant
def readback() -> list[Place]:
    """A cutover is not read back."""

    def hasty(self: Ownership, topic, epoch, offsets, owner_epochs) -> None:
        record = CutOver(
            **self._who.signature(topic), epoch=epoch, offsets=dict(offsets), owner_epochs=dict(owner_epochs)
        )
        self._log.append(record)

    return [(Ownership, "cut_over", hasty)]


@plant
def ownread() -> list[Place]:
    """An `owned` is not read back."""

    def hasty(self: Ownership, topic, partitions) -> int:
        who = self._who
        said = Owned(**who.signature(topic), partitions=tuple(partitions), transactional_id=who.transactional_id)
        epoch = self._log.append(said)
        self._member.confirm()
        self._fence(self._log.predecessors([(topic, p) for p in partitions], epoch))
        return epoch

    return [(Ownership, "take", hasty)]


# ---- of our own


@plant
def the_ledger_commits_past_a_gap() -> list[Place]:
    made = Ledger.boundaries
    return [(Ledger, "boundaries", lambda self: tuple(replace(b, stop=b.stop + 1) for b in made(self)))]


@plant
def a_rewind_keeps_what_was_sent() -> list[Place]:
    return [(Ledger, "rewind", Ledger.unsent)]


@plant
def the_gate_admits_void_rows() -> list[Place]:
    """Of a partition that was taken up anew, what was read before passes."""
    return [(Gate, "admits", lambda self, raw, partition: (raw.topic, partition) in self._opened)]


@plant
def what_is_given_up_stays_in_the_ledger() -> list[Place]:
    return [(Ledger, "forget", nothing)]


@plant
def a_recall_is_forgotten() -> list[Place]:
    return [(Custody, "recall", nothing)]


@plant
def what_was_recalled_is_not_read_again() -> list[Place]:
    def blind(self: Tenure) -> None:
        for place in self._custody.rewound:
            self._custody.led_back(place)

    return [(Tenure, "read_again", blind)]


@plant
def what_is_in_flight_does_not_count_as_routed() -> list[Place]:
    made = Custody.routed
    return [(Custody, "routed", lambda self, _: made(self, ()))]


@plant
def what_a_neighbour_commits_takes_along_what_was_not_committed() -> list[Place]:
    """On a revoke, what could not be committed stays in the transaction."""

    def careless(self: Custody, partitions, _emitter, commit):
        gone = list(partitions)
        with self._whole:
            commit()
            epochs = self.owner_epochs()
            self.drop(gone)
        return {partition: epochs[partition] for partition in gone if partition in epochs}

    return [(Custody, "hand_over", careless)]


@plant
def a_release_is_said_before_the_commit() -> list[Place]:
    made = Tenure._give_up

    def hasty(self: Tenure, places) -> None:
        epochs = self._custody.owner_epochs()
        self._life.ownership.release(self._topic, {p: epochs[_t, p] for _t, p in places if (_t, p) in epochs})
        made(self, places)

    return [(Tenure, "_give_up", hasty)]


@plant
def a_cutover_begins_below_the_last_one() -> list[Place]:
    return [
        (tenure, "starts", lambda due, _, routed: {place: max(routed[place], 0) for place in sorted(due.partitions)})
    ]


@plant
def the_newest_epoch_is_taken_for_the_one_in_force() -> list[Place]:
    def newest(view: ControlView, _topic, partitions, _offsets) -> object:
        return partitions * 0 + len(view.epochs) - 1

    return [(ControlView, "epochs_at", newest), (ControlView, "sole_epoch", nothing)]


@plant
def a_failed_write_is_not_noticed() -> list[Place]:
    return [(ExactlyOnceEmitter, "_spoil", nothing)]


@plant
def a_loss_is_taken_for_nothing() -> list[Place]:
    return [(Tenure, "_on_lost", Tenure._let_go)]


@plant
def a_kill_leaves_the_candidate_alone() -> list[Place]:
    made = State.routing
    return [(State, "routing", lambda state, number: replace(made(state, number), killed=frozenset()))]

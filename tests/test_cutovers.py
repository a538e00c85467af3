"""Promise: a command is in force on every partition of an owner, from an offset that nobody has routed otherwise."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from streamserve.delivery.cutovers import Due, due, in_force, starts
from streamserve.records import ControlView, Cutover, RoutingEpoch

P, Q = ("a", 0), ("a", 1)
pure = settings(deadline=None, derandomize=True, max_examples=200)


def epochs(*numbers: int, kills: tuple[int, ...] = ()) -> tuple[RoutingEpoch, ...]:
    killed: set[str] = set()
    found = []
    for number in numbers:
        killed |= {f"v{number}"} if number in kills else set()
        found.append(RoutingEpoch(number, "v1", killed=frozenset(killed)))
    return tuple(found)


def test_a_topology_that_only_began_owes_nothing():
    assert due(epochs(3), {}, [P, Q]) is None


def test_what_is_not_owned_is_nobodys_debt_here():
    assert due(epochs(3, 5), {}, []) is None
    assert due(epochs(3, 5), {}, [Q]) == Due(5, frozenset({Q}), recall=False)


def test_epochs_in_between_are_passed_over():
    assert due(epochs(3, 5, 8), {P: (Cutover(5, 10),), Q: (Cutover(8, 10),)}, [P, Q]) == Due(
        8, frozenset({P}), recall=False
    )


def test_a_kill_takes_back_what_is_not_sent_even_where_a_later_command_came_with_it():
    assert due(epochs(3, 5, 8, kills=(5,)), {}, [P]).recall
    assert not due(epochs(3, 5, 8, kills=(5,)), {P: (Cutover(5, 10),)}, [P]).recall, "it was obeyed before"


def test_an_epoch_that_was_not_read_yet_is_no_debt():
    assert due(epochs(3), {P: (Cutover(9, 10),)}, [P]) is None


def test_a_cutover_never_begins_below_the_last_one():
    """Its predecessor had routed further than it committed."""
    view = ControlView("t", epochs(3, 5, 8), {P: (Cutover(5, 150),)})
    assert starts(Due(8, frozenset({P, Q}), recall=False), view, {P: 100, Q: 40}) == {P: 150, Q: 40}


@pure
@given(
    st.lists(st.integers(1, 40), unique=True, max_size=6).map(sorted),
    st.dictionaries(st.sampled_from([P, Q]), st.lists(st.integers(1, 40), unique=True, max_size=3).map(sorted)),
)
def test_obeying_ends_every_debt(numbers, before):
    known = epochs(0, *numbers)
    cutovers = {place: tuple(Cutover(n, n) for n in said) for place, said in before.items()}
    owed = due(known, cutovers, [P, Q])
    for place in owed.partitions if owed else ():
        assert in_force(known, cutovers, place) < owed.epoch
        cutovers[place] = (*cutovers.get(place, ()), Cutover(owed.epoch, 40))
    assert due(known, cutovers, [P, Q]) is None

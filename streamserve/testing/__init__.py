"""Helpers for your own tests of a topology: the worker's whole path, without a broker and without Redis.

`TestDriver` gives events to the pipeline that runs in a worker and reads back the bytes that it would have sent;
`StubModel` stands in for a model file where only the features or the decision are to be tested.

    >>> from streamserve.testing import StubModel, TestDriver
    >>> from streamserve.topology import Source, Topology, View, derived, field, output, stored, threshold
    >>> rider = View("rider", key="rider", fields=("trips",), default=0.0)
    >>> topology = Topology(
    ...     name="rides",
    ...     source=Source(topic="rides", schema="ride.avsc", format="json", key="rider"),
    ...     features=(field("km"), derived("far", lambda km: km > 30, of="km"), stored(rider)),
    ...     model="fare",
    ...     outputs={"fare": output("fare")},
    ...     decision=threshold("fare", 50.0, labels=("cheap", "dear")),
    ... )
    >>> schema = {"type": "record", "name": "Ride", "fields": [
    ...     {"name": "rider", "type": "string"}, {"name": "km", "type": "double"}]}
    >>> model = StubModel({"x": 3}, {"fare": 1}, lambda x: 2.0 * x[:, 0] - x[:, 2])
    >>> driver = TestDriver(topology, model=model, schemas={"ride.avsc": schema}, views={"rider": {"ann": (0, {"trips": 9})}})
    >>> near, far, broken = driver.score([{"rider": "ann", "km": 4.5}, {"rider": "bob", "km": 40.0}, b"{"])
    >>> near.scores, near.decision, near.feature_status
    ({'fare': 0.0}, 'cheap', {'rider': 'PRESENT'})
    >>> far.features, far.decision, far.feature_status
    ({'km': 40.0, 'far': 1.0, 'rider.trips': 0.0}, 'dear', {'rider': 'MISSING'})
    >>> broken.dead_letter.stage, broken.dead_letter.error
    ('decode', 'NotJson')

What must not enter: a client of anything, a clock, a random number; a test gives the same result each time.
"""  # noqa: E501  (lines of an example)

from streamserve.testing.driver import TestDriver
from streamserve.testing.given import Record
from streamserve.testing.result import DeadLetter, Result
from streamserve.testing.stub import StubModel

__all__ = ["DeadLetter", "Record", "Result", "StubModel", "TestDriver"]

"""A small topology for tests: JSON events, a derived feature, a view; `reading.avsc` lies beside it."""

from streamserve.topology import Source, Topology, View, derived, field, output, stored, threshold

site = View("site", key="sensor", fields=("mean",), default=0.0)

readings = Topology(
    name="readings",
    source=Source(topic="readings", schema="reading.avsc", format="json", key="sensor", id="id", partitions=4),
    features=(field("value", default=0), derived("square", lambda value: value**2, of="value"), stored(site)),
    model="readings",
    outputs={"alarm": output("probabilities", column=1)},
    decision=threshold("alarm", 0.5),
)

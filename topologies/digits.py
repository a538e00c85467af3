"""Which digit is in a picture of 28 x 28 pixels? JSON events, a small network, one label of ten."""

from streamserve.topology import Source, Topology, argmax, output, vector

digits = Topology(
    name="digits",
    source=Source(
        topic="digits", schema="digit.avsc", format="json", key="camera", event_time="taken", id="picture_id"
    ),
    features=(vector("pixels", 28 * 28),),
    model="digits",
    outputs={"probability": output("probabilities")},  # the whole row: probability.0 to probability.9
    decision=argmax("probability", labels=tuple("0123456789")),
)

"""Will a customer of a phone company leave within a month? A scikit-learn pipeline, each input filled by its name.

skl2onnx writes `_` for the dots in names, so the view's columns are named when a version is added:
--input usage_minutes=usage.minutes --input usage_calls=usage.calls --input usage_data_gb=usage.data_gb
"""

from streamserve.topology import Source, Topology, View, days, field, output, stored, text, threshold

# What the average customer used in a month stands in for new ones, and for rows that nobody refreshed.
usage = View(
    "usage", key="customer_id", max_age=days(35),
    fields=("minutes", "calls", "data_gb"),
    default=(180.0, 0.4, 6.0),
)

churn = Topology(
    name="churn",
    source=Source(topic="customers", schema="customer.avsc", key="customer_id"),  # in the record's own time
    features=(
        text("plan"),
        text("region", default="unknown"),
        text("contract.payment", name="payment", default="unknown"),
        field("tenure_months"),
        field("lines", default=1),
        field("paperless"),
        field("contract.monthly_charge", name="monthly_charge", default=40),
        stored(usage),
    ),
    model="churn",
    outputs={"leaves": output("probabilities", column=1)},
    decision=threshold("leaves", 0.5, labels=("stays", "leaves")),
)

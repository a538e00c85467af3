"""Will a flight from New York arrive more than 15 minutes late, or not at all?"""

from streamserve.topology import (
    Drift, Source, Topology, View, category, days, derived, field, output, parts, stored, threshold,
)

# What an average flight of March met stands in for rows that are missing or too old.
carrier = View(
    "carrier", key="carrier", max_age=days(300),
    fields=("late_rate", "mean_delay", "cancel_rate", "flights_per_day", "median_delay", "mean_departure_delay"),
    default=(0.259, 6.2, 0.035, 111.0, -3.1, 10.6),
)
plane = View(
    "plane", key="tailnum", max_age=days(180),
    fields=("late_rate", "mean_delay", "flights", "year", "seats", "engines"),
    default=(0.259, 6.5, 28.0, 2001.0, 136.0, 2.0),
)
route = View(
    "route", key=("origin", "dest"), max_age=days(300),
    fields=("late_rate", "mean_delay", "std_delay", "mean_air_time", "speed", "flights_per_day"),
    default=(0.255, 5.7, 37.3, 153.6, 372.0, 9.8),
)
WEATHER = ("temp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib")

flights = Topology(
    name="flights", segments=("carrier", "origin"),  # what rules of a rollout may name
    source=Source(
        "flights", schema="flight.avsc", key="tailnum", event_time="scheduled_departure", id="flight_id",
    ),
    features=(
        field("distance"), category("origin"), category("carrier"), category("dest"),
        *(field(f"weather.{name}") for name in WEATHER),
        parts("scheduled_departure", "hour", "minute", "weekday", tz="America/New_York"),
        derived("night", lambda hour: (hour < 6) | (hour >= 22), of="hour"),
        stored(carrier), stored(plane), stored(route),
    ),
    model="flight-delay", drift=Drift(window=days(7)),
    outputs={"late": output("probabilities", column=1)},
    decision=threshold("late", 0.4, labels=("on_time", "late")),
)

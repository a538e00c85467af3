"""Contestant: Faust as its documentation has it, an agent that takes batches of 500."""

from __future__ import annotations

import os
import sys

import faust

from bench.loops.flights import Scorer

app = faust.App(
    os.environ["BENCH_GROUP"],
    broker="kafka://" + os.environ["BENCH_BOOTSTRAP"],
    value_serializer="raw",
    web_enabled=False,
    consumer_auto_offset_reset="earliest",
    topic_disable_leader=True,
    datadir=os.environ["STREAMSERVE_HOME"] + "/faust",
)
source = app.topic(os.environ["BENCH_TOPIC"], value_type=bytes, value_serializer="raw", key_type=bytes)
target = app.topic(os.environ["BENCH_OUTPUT"], value_type=bytes, value_serializer="raw", key_type=bytes)
scorer = Scorer()


@app.agent(source)
async def scoring(stream: faust.Stream[bytes]) -> None:
    """Events in, predictions out."""
    async for events in stream.take_events(500, within=1):
        records = [(e.message.partition, e.message.offset, e.value) for e in events]
        for event, value in zip(events, scorer.score(source.get_topic_name(), records), strict=True):
            await target.send(key=event.key, value=value)


if __name__ == "__main__":
    sys.argv = ["stock_faust", "worker", "-l", "warn", "--without-web"]
    app.main()

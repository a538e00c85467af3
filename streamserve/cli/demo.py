"""`streamserve demo`: real flights, real Kafka, real Redis, a real model; ends by itself."""

from __future__ import annotations

import click

from streamserve.cli.common import out, settings


@click.command()
@click.option("--rate", type=click.FloatRange(1), default=3_000, show_default=True, help="Events a second.")
@click.option("--fast", is_flag=True, help="As fast as it goes, instead of --rate; latency is then the backlog's.")
@click.option("--limit", type=click.IntRange(1), help="Events at most; all 256,089 from April on unless told.")
@click.option("--story/--no-story", default=True, show_default=True, help="Switch versions while it runs.")
def demo(rate: float, fast: bool, limit: int | None, story: bool) -> None:
    """Train on March, serve April to December, and compare with what really happened.

    Meanwhile a version that learned from April is shadowed and taken to 100% step by step; then a broken one is
    shadowed, tried on 5% of the keys and taken back.

    Starts a local Kafka and Redis (or uses those of `streamserve dev up`, or of STREAMSERVE_BOOTSTRAP and
    STREAMSERVE_REDIS_URL), and stops what it started.
    """
    from streamserve.cli import cli
    from streamserve.demo.run import Options, run_demo

    run_demo(
        settings(),
        Options(rate=None if fast else rate, limit=limit, story=story),
        lambda words: cli.main(words, standalone_mode=False),
        out(),
    )

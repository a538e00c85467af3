"""`streamserve shadow`: how a candidate that scores in the shadow of stable differs from it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from streamserve.cli.common import html_option, out, quiet_pipe, settings, topology_argument
from streamserve.cli.letters import harmless, until_ms
from streamserve.cli.progress import progress
from streamserve.cli.shadow_tail import tail
from streamserve.errors import ConfigError
from streamserve.topology import Topology

if TYPE_CHECKING:
    from streamserve.adapters.reading import Span, Start, TopicReader
    from streamserve.cli.shadow_words import Report
    from streamserve.pipeline.shadow_pairs import Compared, ShadowPairs
    from streamserve.pipeline.shadow_reading import ShadowReader

SLAB = 20_000  # records decoded at once: as columns few cost as much as many


@click.group()
def shadow() -> None:
    """Look at what a candidate says of events that stable answers for."""


shadow.add_command(tail)


@shadow.command()
@topology_argument
@click.option("--rollout", "rollout_id", help="Of this rollout; of the latest on the topic unless told.")
@click.option("--stable", help="Beside this version, where a rollout had several; the latest unless told.")
@click.option(
    "--from",
    "position",
    default="beginning",
    show_default=True,
    help="beginning, -N (of each partition) or an ISO time (UTC where it names no zone).",
)
@click.option("--until", help="An ISO time; records of then or later are left out.")
@click.option("--score", help="The score that segments and plots are about; that of the decision unless told.")
@click.option(
    "--segment",
    "segments",
    multiple=True,
    metavar="FIELD",
    help="Only by this field; several may be given. All that the records have unless told.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object with all figures.")
@html_option
def report(
    topology: Topology,
    rollout_id: str | None,
    stable: str | None,
    position: str,
    until: str | None,
    score: str | None,
    segments: tuple[str, ...],
    as_json: bool,
    html: Path | None,
) -> None:
    """Tell how far a candidate's decisions and scores of TOPOLOGY_FILE are from stable's on the same events.

    Agreement, decisions, differences of scores and PSI, of all events and by segment. What each figure means stands in
    docs/shadow-report.md.
    """
    from streamserve.adapters.reading import Start
    from streamserve.cli.shadow_words import Report
    from streamserve.rollouts.divergence import diverge
    from streamserve.rollouts.pictures import picture

    start, end = Start.parse(position), until_ms(until)
    reader, pairs = _read(topology, start, end)
    found = pairs.compared()
    chosen = _choose(found, rollout_id, stable, topology)
    gathered = pairs.pairs(chosen)
    _known(segments, set(gathered.pairs.segments) | set(topology.segments))
    about = score or (topology.decision.output if topology.decision else None) or next(iter(topology.outputs))
    divergence = diverge(gathered.pairs, about=about, fields=segments or None)
    if score and divergence.about != score:
        names = [one.name for one in divergence.scores]
        raise ConfigError(f"no event has a score {score!r} of both versions", mend=f"the scores are {', '.join(names)}")
    told = Report(
        topology=topology.name,
        topic=topology.topic("shadow-decisions"),
        compared=chosen,
        divergence=divergence,
        pictures=picture(gathered.pairs, divergence.about),
        records=pairs.records,
        repeated=gathered.repeated,
        unreadable=reader.unreadable,
        others=tuple(one for one in reversed(found) if one != chosen),
    )
    _tell(told, as_json=as_json, html=html)


def _read(topology: Topology, start: Start, end: int | None) -> tuple[ShadowReader, ShadowPairs]:
    """All records of that time.

    Raises:
        ConfigError: there are none, or none that can be read.
    """
    from streamserve.adapters.kafka import Clients
    from streamserve.adapters.reading import TopicReader
    from streamserve.adapters.schema_ids import schema_ids
    from streamserve.pipeline.shadow_pairs import ShadowPairs
    from streamserve.pipeline.shadow_reading import ShadowReader

    found, topic = settings(), topology.topic("shadow-decisions")
    reader, pairs = ShadowReader(schema_ids(found)), ShadowPairs()
    with TopicReader(Clients(found), topic) as source:
        spans = source.spans(start)
        total = sum(max(0, end - first) for first, end in spans.values())
        with progress(total, "records", "read") as on_progress:
            for values in _slabs(source, spans, start, end, on_progress):
                for batch in reader.read(values):
                    pairs.add(batch)
    if not pairs.records:
        raise _nothing(topic, total, reader.unreadable)
    return reader, pairs


def _slabs(
    source: TopicReader, spans: Mapping[int, Span], start: Start, end: int | None, on_progress: Callable[[int], None]
) -> Iterator[list[bytes | None]]:
    """Values of the time that is asked for: timestamps need not ascend within a partition."""
    since, until = start.value if start.kind == "time" else None, end
    held: list[bytes | None] = []
    seen = 0
    for some in source.values(spans):
        seen += len(some.values)
        on_progress(seen)
        if since is None and until is None:
            held += some.values
        else:
            held += [
                value
                for value, stamp in zip(some.values, some.timestamps, strict=True)
                if (since is None or stamp >= since) and (until is None or stamp < until)
            ]
        if len(held) >= SLAB:
            yield held
            held = []
    yield held


def _nothing(topic: str, total: int, unreadable: Counter[str]) -> ConfigError:
    if unreadable:
        kinds = ", ".join(f"{error} {count:,}" for error, count in unreadable.most_common())
        return ConfigError(
            f"none of {unreadable.total():,} records can be read: {kinds}",
            where=topic,
            mend="UnknownSchemaId: name the registry of their writers (STREAMSERVE_SCHEMA_REGISTRY_URL), or pin the id "
            "in schemas/index.json; anything else: who but the workers writes to this topic?",
        )
    if total:
        return ConfigError(f"none of {total:,} records is of that time", where=topic, mend="widen --from and --until")
    return ConfigError(
        "there is no shadow decision",
        where=topic,
        mend="put a candidate in shadow while events come: `streamserve rollout shadow <topology file> 100%`; if one "
        "is, `rollout status` shows what was compared and what not; older records may be gone by retention.ms",
    )


def _choose(found: Sequence[Compared], rollout_id: str | None, stable: str | None, topology: Topology) -> Compared:
    fitting = [one for one in found if rollout_id in (None, one.rollout_id) and stable in (None, one.stable)]
    if fitting:
        return fitting[-1]
    there = ", ".join(f"{one.rollout_id} ({one.candidate} beside {one.stable})" for one in reversed(found))
    asked = " and ".join(f"{name} {value!r}" for name, value in (("rollout", rollout_id), ("stable", stable)) if value)
    raise ConfigError(
        f"no record is of {asked}", where=topology.topic("shadow-decisions"), mend=f"name one that is there: {there}"
    )


def _known(asked: Sequence[str], there: set[str]) -> None:
    unknown = [name for name in asked if name not in there]
    if unknown:
        mend = f"the fields are {', '.join(sorted(there))}" if there else "a topology names them: segments=(...)"
        raise ConfigError(f"no record has a segment {unknown[0]!r}", mend=mend)


def _tell(told: Report, *, as_json: bool, html: Path | None) -> None:
    from streamserve.cli.shadow_text import show
    from streamserve.cli.shadow_words import headline

    if html is not None:
        _write(told, html)
    with quiet_pipe():
        if as_json:
            click.echo(json.dumps(told.plain(), ensure_ascii=False, indent=2))
        elif html is None:
            show(out(), told)
        else:
            click.echo(harmless(headline(told)))
    if html is not None:
        click.echo(f"the report is in {html}", err=True)


def _write(told: Report, path: Path) -> None:
    from streamserve.cli.shadow_page import page

    try:
        path.write_text(page(told), "utf-8")
    except OSError as error:
        raise ConfigError(
            f"the file can't be written: {error.strerror}", where=str(path), mend="name a file that can be"
        ) from None

"""The tables of a divergence report, for the text and the page alike: cells are text, nothing is escaped yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from streamserve.cli.shadow_words import Report, percent, plain_number, segment_name, signed, spelled_p
from streamserve.pipeline.shadow_pairs import Compared
from streamserve.rollouts.divergence import Decisions, ScoreDivergence
from streamserve.rollouts.segments import Field
from streamserve.rollouts.statistics import Psi

SHOWN_LABELS = 12
NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Row:
    """worth_a_look: it differs from the rest by more than chance."""

    cells: tuple[str, ...]
    worth_a_look: bool = False


@dataclass(frozen=True, slots=True)
class Grid:
    title: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]


def grids(report: Report) -> Iterator[Grid]:
    """In the order in which they are shown."""
    one, found = report.compared, report.divergence
    if found.decisions is not None and found.decisions.agreement.of:
        yield _decisions(found.decisions, one)
    if found.scores:
        yield _scores(found.scores)
        yield from _quantiles(found.scores, one)
    for score in found.scores:
        if score.name == found.about and score.largest:
            yield _largest(score, one)
    for field in found.fields:
        yield _segments(field, found.about)


def _decisions(found: Decisions, one: Compared) -> Grid:
    """A row each of stable's decisions, a column each of the candidate's; the most frequent ones."""
    ranked = sorted(range(len(found.labels)), key=lambda at: -found.labels[at].stable.count)[:SHOWN_LABELS]
    ranked.sort()
    heads = [f"{one.candidate}: {found.labels[at].label}" for at in ranked]
    rows = []
    for at in ranked:
        label = found.labels[at]
        counts = (f"{found.table[at][other]:,}" for other in ranked)
        shares = percent(label.stable), percent(label.candidate), spelled_p(label.p_holm)
        rows.append(Row((label.label, *counts, *shares)))
    left_out = len(found.labels) - len(ranked)
    if left_out:
        rows.append(Row((f"({left_out} more, in --json)", *[""] * (len(ranked) + 3))))
    head = (f"{one.stable} decided", *heads, f"share in {one.stable}", f"in {one.candidate}", "same share")
    return Grid("Decisions", head, tuple(rows))


def _scores(scores: Sequence[ScoreDivergence]) -> Grid:
    rows = [
        Row(
            (
                score.name,
                f"{score.n:,}",
                f"{score.equal:,}",
                signed(score.mean),
                plain_number(score.mean_absolute),
                NOTHING if score.correlation is None else f"{score.correlation:.4f}",
                *_psi(score.psi),
            )
        )
        for score in scores
    ]
    head = ("score", "events", "equal", "mean difference", "mean absolute", "correlation", "PSI", "its noise")
    return Grid("Scores", head, tuple(rows))


def _quantiles(scores: Sequence[ScoreDivergence], one: Compared) -> Iterator[Grid]:
    there = [score for score in scores if score.quantiles]
    rows = tuple(Row((score.name, *map(signed, score.quantiles.values()))) for score in there)
    if rows:
        yield Grid(f"Quantiles of {one.candidate} - {one.stable}", ("score", *there[0].quantiles), rows)


def _largest(score: ScoreDivergence, one: Compared) -> Grid:
    rows = (
        Row((it.prediction_id, plain_number(it.stable), plain_number(it.candidate), signed(it.difference)))
        for it in score.largest
    )
    return Grid(
        f"Largest differences of {score.name}", ("prediction", one.stable, one.candidate, "difference"), tuple(rows)
    )


def _segments(field: Field, about: str | None) -> Grid:
    rows = []
    for one in field.segments:
        share = one.agreement
        ends = [f"{100 * end:.1f}" if share.of else NOTHING for end in (share.low, share.high)]
        cells = (segment_name(one), f"{one.events:,}", percent(share), *ends, signed(one.median), *_psi(one.psi))
        rows.append(Row((*cells, ", ".join(one.flags)), bool(one.flags)))
    head = (field.name, "events", "agree", "from", "to", "median difference", "PSI", "its noise", "differs in")
    return Grid(f"By {field.name}" + (f", {about}" if about else ""), head, tuple(rows))


def _psi(psi: Psi | None) -> tuple[str, str]:
    return (NOTHING, NOTHING) if psi is None else (f"{psi.value:.3g}", f"{psi.noise:.2g}")

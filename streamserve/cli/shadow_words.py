"""A divergence report in words: what its figures come to, for the text and the page alike."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from streamserve.pipeline.shadow_pairs import Compared
from streamserve.rollouts.divergence import Decisions, Divergence, ScoreDivergence
from streamserve.rollouts.pictures import Pictures
from streamserve.rollouts.segments import Segment
from streamserve.rollouts.statistics import Psi, Share
from streamserve.simulate.explain import iso, jsonable

LEVEL = 0.05
PSI_LEVEL = 0.01
SMALL_PSI, LARGE_PSI = 0.1, 0.25  # Siddiqi 2006
SURE = 0.001
FINEST = 4  # digits of a percentage
DECIMAL_FROM = 1e-3  # smaller scores are written with an exponent


@dataclass(frozen=True, slots=True)
class Report:
    """A divergence, and of what. others: what else the topic holds; records, repeated, unreadable: of what was read."""

    topology: str
    topic: str
    compared: Compared
    divergence: Divergence
    pictures: Pictures
    records: int
    repeated: int
    unreadable: Counter[str]
    others: tuple[Compared, ...]

    def plain(self) -> dict[str, Any]:
        """As JSON; NaN and infinities as strings."""
        divergence: dict[str, Any] = jsonable(asdict(self.divergence))
        return {
            "topology": self.topology,
            "topic": self.topic,
            **_plain(self.compared),
            "records_read": self.records,
            "repeated": self.repeated,
            "unreadable": dict(self.unreadable),
            "others": [_plain(other) for other in self.others],
            "findings": [sentence.text for sentence in sentences(self)],
            **divergence,
        }


def _plain(one: Compared) -> dict[str, Any]:
    return {
        "rollout_id": one.rollout_id,
        "stable_version": one.stable,
        "candidate_version": one.candidate,
        "records": one.records,
        "first": iso(one.first),
        "last": iso(one.last),
    }


@dataclass(frozen=True, slots=True)
class Sentence:
    """A finding. worth_a_look: it is more than chance, or something is missing."""

    text: str
    worth_a_look: bool = False


def headline(report: Report) -> str:
    one, found = report.compared, report.divergence
    if found.decisions is not None and found.decisions.agreement.of:
        return f"{one.candidate} decides as {one.stable} in {of_events(found.decisions.agreement)}"
    answered = found.events - found.failed.count
    if not answered:
        return f"{one.candidate} answered none of {counted(found.events)}"
    if not found.scores:
        return f"{one.candidate} and {one.stable} have no score in common, and decide nothing"
    first = next((score for score in found.scores if score.name == found.about), found.scores[0])
    if not first.n:
        return f"no {first.name} of {one.candidate} and {one.stable} can be compared"
    return f"{one.candidate} gives the same {first.name} as {one.stable} in {first.equal:,} of {counted(first.n)}"


def sentences(report: Report) -> list[Sentence]:
    """What the figures come to, the headline left out."""
    return list(_sentences(report))


def _sentences(report: Report) -> Iterator[Sentence]:
    one, found = report.compared, report.divergence
    if found.failed.count:
        why = ", ".join(f"{name} {count:,}" for name, count in found.failures.items())
        yield Sentence(f"{one.candidate} gave no answer in {of_events(found.failed)}: {why}", worth_a_look=True)
    if found.decisions is not None:
        yield from _on_decisions(found.decisions, one)
    for score in found.scores:
        yield from _on_score(score, one)
    yield from _on_names(found, one)
    yield from _on_reading(report)


def _on_names(found: Divergence, one: Compared) -> Iterator[Sentence]:
    for names, who in ((found.only_stable, one.stable), (found.only_candidate, one.candidate)):
        if names:
            yield Sentence(f"only {who} has the scores {', '.join(names)}: they can't be compared", worth_a_look=True)
    for field in found.fields:
        for segment in field.segments:
            if segment.flags:
                yield Sentence(_on_segment(field.name, segment), worth_a_look=True)


def _on_reading(report: Report) -> Iterator[Sentence]:
    if report.repeated:
        what = "record repeats its event" if report.repeated == 1 else "records repeat an event"
        yield Sentence(f"{report.repeated:,} {what}, as after a crash: each event counts once")
    if report.unreadable:
        kinds = ", ".join(f"{error} {count:,}" for error, count in report.unreadable.most_common())
        total = report.unreadable.total()
        what = f"{total:,} record{'s' * (total > 1)} can't be read: {kinds}"
        yield Sentence(what, worth_a_look=True)


def _on_decisions(found: Decisions, one: Compared) -> Iterator[Sentence]:
    lacking = {
        one.candidate: found.candidate_undecided,
        one.stable: found.stable_undecided,
        "neither": found.both_undecided,
    }
    for who, count in lacking.items():
        if count:
            verb = "of them decided" if who == "neither" else "alone did not decide"
            yield Sentence(f"{who} {verb} in {counted(count)} (a NaN score?)", worth_a_look=True)
    if not found.agreement.of:
        return
    changed = [label for label in found.labels if label.p_holm < LEVEL]
    if found.test.p >= LEVEL and not changed:
        yield Sentence(f"no decision is given more or less often than chance explains ({spelled_p(found.test.p)})")
    for label in changed[-1:] if len(found.labels) == 2 else changed:  # noqa: PLR2004
        side = "more" if label.candidate.value > label.stable.value else "less"
        yield Sentence(
            f"{one.candidate} says {label.label!r} {side} often: in {percent(label.candidate)}, {one.stable} in "
            f"{percent(label.stable)} ({spelled_p(label.p_holm)}, McNemar)",
            worth_a_look=True,
        )


def _on_score(score: ScoreDivergence, one: Compared) -> Iterator[Sentence]:
    q = score.quantiles
    if not q:
        yield Sentence(f"{score.name}: no event has a finite score of both", worth_a_look=True)
    elif score.equal == score.n:
        yield Sentence(f"{score.name}: the same number in all {counted(score.n)}")
    else:
        largest = max((q["min"], q["max"]), key=abs)
        yield Sentence(
            f"{score.name}: {one.candidate} is off by {signed(q['50%'])} in the median event, by {signed(q['5%'])} to "
            f"{signed(q['95%'])} in 90%, by {signed(largest)} at most"
        )
    if score.psi is not None and score.psi.bins > 1:
        yield Sentence(f"{score.name}: {psi_words(score.psi)}", worth_a_look=score.psi.p < PSI_LEVEL)
    lacks = {
        one.candidate: (score.candidate_lacks, score.candidate_nan),
        one.stable: (score.stable_lacks, score.stable_nan),
    }
    for who, (missing, nan) in lacks.items():
        if missing:
            yield Sentence(f"{score.name}: {who} alone does not have it in {counted(missing)}", worth_a_look=True)
        if nan:
            yield Sentence(f"{score.name}: {who} gave NaN in {counted(nan)}", worth_a_look=True)
    if score.infinite:
        what = f"{score.name}: infinite in {counted(score.infinite)}, which have no difference"
        yield Sentence(what, worth_a_look=True)


def psi_words(psi: Psi) -> str:
    if psi.p >= PSI_LEVEL:
        size = "no more than chance explains"
    elif psi.value < SMALL_PSI:
        size = "small, and more than chance explains"
    else:
        size = "a shift" if psi.value < LARGE_PSI else "a large shift"
    return f"PSI {psi.value:.3g}, where {psi.noise:.2g} is noise: {size} ({spelled_p(psi.p)})"


def _on_segment(field: str, one: Segment) -> str:
    told = []
    if "agreement" in one.flags:
        told.append(f"they agree in {percent(one.agreement)} only")
    if "scores" in one.flags:
        told.append(f"the score is off by {signed(one.median)} in the median event")
    return f"{field}={segment_name(one)}: {' and '.join(told)} ({counted(one.events)})"


def segment_name(one: Segment) -> str:
    if one.value is None:
        return "(none)"
    return f"({one.folded:,} others)" if one.folded else one.value


def others(found: Sequence[Compared]) -> str:
    """What else is on the topic, and how to choose it."""
    listed = ", ".join(
        f"{one.rollout_id} ({one.candidate} beside {one.stable}, {one.records:,} of its records)" for one in found
    )
    return f"also on the topic: {listed}; --rollout ID and --stable VERSION choose"


def what_it_is_not(report: Report) -> str:
    one = report.compared
    return (
        f"These figures tell how far {one.candidate} is from {one.stable}, not which of them is right. What was shed "
        "is not among the events, and intervals take events as independent of each other."
    )


# ---- numbers


def of_events(share: Share) -> str:
    digits = _digits(share)
    return f"{percent(share)} of {counted(share.of)} ({100 * share.low:.{digits}f} to {100 * share.high:.{digits}f})"


def counted(events: int) -> str:
    return "1 event" if events == 1 else f"{events:,} events"


def percent(share: Share) -> str:
    return "-" if math.isnan(share.value) else f"{100 * share.value:.{_digits(share)}f}%"


def _digits(share: Share) -> int:
    """As many as the interval is sure of, and so many that 99.99% does not read as all."""
    if math.isnan(share.value):
        return 1
    sure = math.ceil(-math.log10(100 * (share.high - share.low)))
    digits = min(max(sure, 1), FINEST)
    while digits < FINEST and share.count < share.of and round(100 * share.value, digits) == 100:  # noqa: PLR2004
        digits += 1
    return digits


def spelled_p(p: float) -> str:
    return "p < 0.001" if p < SURE else f"p = {p:.3f}" if p < LEVEL else f"p = {p:.2f}"


def signed(value: float) -> str:
    return "-" if math.isnan(value) else "0" if value == 0 else f"{value:+.3g}"


def plain_number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"


def period(one: Compared) -> str:
    return f"{iso(one.first)} to {iso(one.last)}"

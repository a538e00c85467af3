"""What must hold for every batch, whatever its bytes are. Nothing here asks how the pipeline does it.

Held against every input: it is in one prediction or one dead letter; a dead letter is the input byte for byte, with
grounds; a prediction has its event's key and headers, its own id, and is read by plain fastavro with the published
schema; a score that is not finite is what the model itself says of these features. Against a sample of every batch,
the other way round (compiled, or Python): up to SAMPLE predictions, byte for byte, with good neighbours alone; and one
input, good or bad, all by itself.
"""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import fastavro

from fuzz.batches import NOW_MS, Batch
from fuzz.streams import ROOT, Stream
from fuzz.ways import WAYS, through
from streamserve.headers import unpack
from streamserve.pipeline.prediction import PINNED_ID
from streamserve.records import FeatureStatus, OutputBatch

SAMPLE = 24
FRAME = b"\0" + PINNED_ID.to_bytes(4)
PUBLISHED = fastavro.parse_schema(json.loads((ROOT / "schemas" / "streamserve.prediction.avsc").read_text()))
GROUNDS = (
    "stage",
    "error",
    "message",
    "source.topic",
    "source.partition",
    "source.offset",
    "source.timestamp",
    "release",
)


class BrokenPromiseError(Exception):
    """promise: which one, in a word. row: the input's place in its batch; -1: the batch as a whole."""

    def __init__(self, promise: str, row: int, what: str) -> None:
        super().__init__(what)
        self.promise, self.row = promise, row


@dataclass(frozen=True)
class Fate:
    """What became of an input. stage: at which it was rejected; "" is a prediction."""

    key: bytes | None
    value: bytes | None
    headers: bytes | None
    stage: str = ""
    error: str = ""


def hold(stream: Stream, batch: Batch, *, whole: bool = False) -> Counter[str]:
    """Put a batch through and look at every promise; inputs by stage ("": predicted).

    whole: every input by itself, instead of a sample.

    Raises:
        BrokenPromiseError: one is not kept.
    """
    way = batch.number % 2
    out = _process(stream, batch, way)
    fates = _fates(stream, batch, out)
    _look_closer(stream, batch, fates)
    random = Random(f"{batch.seed}/sample/{batch.number}")
    everyone = list(range(len(fates)))
    if whole:
        for at in everyone:
            _compare(stream, batch, fates, [at], 1 - way)
    good = [at for at in everyone if not fates[at].stage]
    _compare(stream, batch, fates, sorted(random.sample(good, min(len(good), SAMPLE))), 1 - way)
    _compare(stream, batch, fates, random.choices(everyone, k=1), 1 - way)
    return Counter(fate.stage for fate in fates)


def _process(stream: Stream, batch: Batch, way: int) -> OutputBatch:
    topic = stream.topology.source.topic
    stream.store.outage = None if batch.outage is None else FeatureStatus(batch.outage)
    with through(WAYS[way]):
        out: OutputBatch = stream.process(batch.raw(topic), batch.view(topic), NOW_MS)
    return out


def _fates(stream: Stream, batch: Batch, out: OutputBatch) -> list[Fate]:
    """What became of each input; that it became exactly one thing."""
    found: dict[int, Fate] = {}
    letters = stream.topology.topic("dead-letters")
    if {o.topic for o in out.outgoing} - {letters, stream.topology.topic("predictions")}:
        raise BrokenPromiseError("topics", -1, f"records for {[o.topic for o in out.outgoing]}")
    for outgoing in out.outgoing:
        columns = [outgoing.keys, outgoing.values, outgoing.headers]
        lists = [[None] * len(outgoing) if one is None else one.to_pylist() for one in columns]
        for row, key, value, headers in zip(outgoing.rows.tolist(), *lists, strict=True):
            if row in found:
                raise BrokenPromiseError("doubled", row, "the input caused two records")
            if not 0 <= row < len(batch.inputs):
                raise BrokenPromiseError("doubled", -1, f"a record for row {row} of {len(batch.inputs)}")
            found[row] = Fate(key, value, headers, *(("?", "?") if outgoing.topic == letters else ()))
    for row in range(len(batch.inputs)):
        if row not in found:
            raise BrokenPromiseError("lost", row, "the input is neither predicted nor a dead letter")
    counted = sum(not fate.stage for fate in found.values()), sum(bool(fate.stage) for fate in found.values())
    if counted != (out.events, len(out.rejects)):
        raise BrokenPromiseError("counts", -1, f"told {out.events} and {len(out.rejects)}, and sent {counted}")
    return [found[row] for row in range(len(batch.inputs))]


def _look_closer(stream: Stream, batch: Batch, fates: list[Fate]) -> None:
    """Each record against the input that it came from; the stage of each dead letter is filled in."""
    odd = dict[int, Mapping[str, float]]()
    for row, (given, fate) in enumerate(zip(batch.inputs, fates, strict=True)):
        if fate.key != given.key:
            raise BrokenPromiseError("key", row, f"the key is {_cut(fate.key)}, and was {_cut(given.key)}")
        if fate.stage:
            fates[row] = _letter(stream, row, given, fate)
        else:
            if (fate.headers or b"") != (given.headers or b""):
                raise BrokenPromiseError("headers", row, "the prediction's headers are not the event's")
            said = _read(row, fate.value)
            wanted = f"{stream.topology.source.topic}-{given.partition}-{given.offset}"
            if said["prediction_id"] != wanted:
                raise BrokenPromiseError("id", row, f"the id is {said['prediction_id']}, expected {wanted}")
            scores = said["scores"]
            if not all(map(math.isfinite, scores.values())):
                odd[row] = scores
            decided = stream.topology.decision is not None and not any(
                math.isnan(value) for name, value in scores.items() if _is_of(name, stream.topology.decision.output)
            )
            if decided == (said["decision"] is None):
                raise BrokenPromiseError("decision", row, f"{said['decision']} for {scores}")
    if odd:
        _check_odd_scores(stream, odd)


def _is_of(name: str, output: str) -> bool:
    return name == output or name.startswith(f"{output}.")


def _letter(stream: Stream, row: int, given: Any, fate: Fate) -> Fate:
    own = given.headers or b""
    if fate.value != given.value:
        raise BrokenPromiseError("dead letter", row, f"the value is {_cut(fate.value)}, and was {_cut(given.value)}")
    if not (fate.headers or b"").startswith(own):
        raise BrokenPromiseError("dead letter", row, "its headers do not begin with the event's own")
    added = unpack((fate.headers or b"")[len(own) :])
    grounds = {name: (value or b"").decode() for name, value in added}
    if [name for name, _ in added] != [f"streamserve.{name}" for name in GROUNDS]:
        raise BrokenPromiseError("grounds", row, f"the added headers are {list(grounds)}")
    told = {name: grounds[f"streamserve.{name}"] for name in GROUNDS}
    where = [stream.topology.source.topic, str(given.partition), str(given.offset), str(given.timestamp)]
    if not told["stage"] or not told["error"] or [told[name] for name in GROUNDS[3:7]] != where:
        raise BrokenPromiseError("grounds", row, f"the grounds are {told}")
    return Fate(fate.key, fate.value, fate.headers, told["stage"], told["error"])


def _read(row: int, value: bytes | None) -> dict[str, Any]:
    """As any consumer reads it."""
    if value is None or not value.startswith(FRAME):
        raise BrokenPromiseError("record", row, f"the prediction is not framed: {_cut(value)}")
    body = io.BytesIO(value[len(FRAME) :])
    try:
        said: Any = fastavro.schemaless_reader(body, PUBLISHED, None)
    except Exception as error:
        what = f"fastavro can't read the prediction: {type(error).__name__}: {error}"
        raise BrokenPromiseError("record", row, what) from error
    if body.read(1):
        raise BrokenPromiseError("record", row, "bytes are left over after the prediction")
    found: dict[str, Any] = said
    return found


def _check_odd_scores(stream: Stream, odd: Mapping[int, Mapping[str, float]]) -> None:
    """A score that is no number must be what the model says of what it was fed."""
    result = stream.pipeline.last
    for matrix in result.matrices:
        rows = result.events.rows[matrix.rows].tolist()
        places = [at for at, row in enumerate(rows) if row in odd]
        if not places:
            continue
        scorer = stream.versions.get(matrix.version).scorer
        asked = {out.tensor for out in scorer.manifest.scores.values()}
        inputs = {name: given[places] for name, given in matrix.inputs.items()}
        session = scorer._session  # noqa: SLF001  (the model itself, without the scorer)
        said = dict(zip(asked, session.run(inputs, list(asked)), strict=True))
        for at, place in enumerate(places):
            wanted = list[float]()
            for out in scorer.manifest.scores.values():
                row = said[out.tensor][at].ravel().tolist()
                wanted += row if out.column is None else [row[out.column]]
            got = list(odd[rows[place]].values())
            if repr(got) != repr(wanted):
                raise BrokenPromiseError("scores", rows[place], f"{got}, and the model says {wanted}")


def _compare(stream: Stream, batch: Batch, fates: Sequence[Fate], places: Sequence[int], way: int) -> None:
    """These inputs in a batch of their own must come to the same."""
    if not places:
        return
    small = batch.take(places)
    again = _fates(stream, small, _process(stream, small, way))
    _look_closer(stream, small, again)
    for row, one in zip(places, again, strict=True):
        before = fates[row]
        if before != one:
            beside = f"in a batch of {len(batch.inputs)}, and in one of {len(places)}"
            what = f"{_told(before)} {beside} {_told(one)}"
            raise BrokenPromiseError("neighbours", row, what)


def _told(fate: Fate) -> str:
    if fate.stage:
        return f"{fate.stage}: {fate.error}: {unpack(fate.headers)[-6][1]!r}"
    said = _read(-1, fate.value)
    return f"{said['scores']}, {said['decision']}, {said['feature_status']}"


def _cut(value: bytes | None) -> str:
    return "null" if value is None else repr(value[:60])

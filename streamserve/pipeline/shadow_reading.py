"""Shadow decisions read back by columns: 2 us a record, and none that is broken stops the others.

Whatever the fast way does not take is read one by one by the strict one, as events are: see `decode`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import pyarrow as pa

from streamserve.pipeline.avro import IncompatibleError, NotFastError, refuse_bomb
from streamserve.pipeline.columns import Asked
from streamserve.pipeline.decode import SMALL, AvroReader, BrokenError, FastReader, one_header, unframed
from streamserve.pipeline.framing import HEADER, HEADER_FIELDS
from streamserve.pipeline.schemas import EventSchema, WriterSchemas, parse_node
from streamserve.pipeline.shadow_decision import SCHEMA_TEXT

MAPS = ("candidate_scores", "segments", "stable_scores")
PLAIN = (
    "candidate_decision",
    "candidate_version",
    "compared_at",
    "control_epoch",
    "error",
    "prediction_id",
    "rollout_id",
    "stable_decision",
    "stable_version",
)
PATHS = sorted((*MAPS, *PLAIN))


class ShadowReader:
    """Framed values as record batches of PATHS.

    Args:
        writers: who knows the schemas that records were written with.
    """

    def __init__(self, writers: WriterSchemas) -> None:
        schema = EventSchema.parse(SCHEMA_TEXT)
        self._writers = writers
        self._plain = Asked(schema, PLAIN)
        self._strict = AvroReader(Asked(schema, PATHS), writers)
        self._fast: dict[bytes, _Fast | None] = {}
        self.unreadable = Counter[str]()  # by what is wrong with them

    def read(self, values: Sequence[bytes | None]) -> Iterator[pa.RecordBatch]:
        """All that can be read, in no promised order; what can't is counted.

        Raises:
            SchemaRegistryError: the schema registry does not answer.
        """
        alike = defaultdict[bytes, list[bytes]](list)
        for value in values:
            if (fault := unframed(0, value)) is not None:
                self.unreadable[fault.error] += 1
            elif value is not None:
                alike[value[:HEADER]].append(value)
        for head, framed in alike.items():
            yield from self._read(self._reader(head), framed)

    def _read(self, fast: _Fast | None, framed: list[bytes]) -> Iterator[pa.RecordBatch]:
        """By halving, where some are broken: nobody says which."""
        found = None if fast is None else fast.read(framed)
        if found is not None:
            yield found
        elif fast is None or len(framed) <= SMALL:
            parts, rejects = self._strict.read(framed)
            self.unreadable.update(reject.error for reject in rejects)
            yield from (pa.RecordBatch.from_arrays(part.arrays, names=PATHS) for part in parts if len(part.rows))
        else:
            half = len(framed) // 2
            yield from self._read(fast, framed[:half])
            yield from self._read(fast, framed[half:])

    def _reader(self, head: bytes) -> _Fast | None:
        if head not in self._fast:
            text = self._writers.writer_schema(int.from_bytes(head[1:]))
            try:
                self._fast[head] = None if text is None else _Fast(text, self._plain)
            except (NotFastError, IncompatibleError, ValueError):
                self._fast[head] = None
        return self._fast[head]


class _Fast:
    """Records of one writer's schema, decoded straight to columns.

    Maps are taken as they come: a key twice, for which events are read one by one, no worker writes.
    """

    def __init__(self, text: str, plain: Asked) -> None:
        node = parse_node(text)
        refuse_bomb(node)
        self._reader = FastReader(node, plain)
        self._names = [column.path for column in plain.columns]
        at = {field.name: place for place, field in enumerate(node.fields)}
        if not at.keys() >= set(MAPS):
            raise NotFastError("a writer that does not know all maps")
        self._maps = {name: len(HEADER_FIELDS) + at[name] for name in MAPS}
        empty = self._reader.scan([])
        if any(not _holds(empty.column(place).type, name) for name, place in self._maps.items()):
            raise NotFastError("maps of other types")

    def read(self, framed: list[bytes]) -> pa.RecordBatch | None:
        """None: some record is broken."""
        try:
            batch = self._reader.scan(framed)
            if not one_header(batch):
                return None
            columns = dict(zip(self._names, self._reader.columns(batch), strict=True))
            for name, place in self._maps.items():
                columns[name] = batch.column(place)
                columns[name].validate(full=True)  # pyruhvro lets text through that is no UTF-8
        except (BrokenError, pa.ArrowException):
            return None
        return pa.RecordBatch.from_arrays([columns[name] for name in PATHS], names=PATHS)


def _holds(type: pa.DataType, name: str) -> bool:
    items = pa.utf8() if name == "segments" else pa.float64()
    return bool(pa.types.is_map(type) and type.key_type == pa.utf8() and type.item_type == items)

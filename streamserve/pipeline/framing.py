"""The Confluent wire format: a zero byte, a four-byte big-endian schema id, then the Avro record.

The same bytes are what Avro writes for a false boolean and a float: put before a record's own fields, they let an
encoder or decoder of whole columns do the framing as well. No Python runs for an event then, where stripping and
comparing headers cost 0.2 us each, half of the decoding.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

HEADER = 5  # bytes before the record
HEADER_FIELDS = ({"name": "__magic", "type": "boolean"}, {"name": "__schema_id", "type": "float"})


def header(schema_id: int) -> bytes:
    """What stands before each record of this schema."""
    return b"\x00" + schema_id.to_bytes(4, "big")


def header_columns(schema_id: int, rows: int) -> dict[str, pa.Array]:
    """The columns of HEADER_FIELDS for records of one schema."""
    # By numpy's views: through a Python float, the bits of some ids (33,151) would come back as those of another NaN
    ids = np.full(rows, schema_id, ">u4").view("<f4")
    return {"__magic": pa.repeat(False, rows), "__schema_id": pa.array(ids)}

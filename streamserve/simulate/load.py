"""Reading the event schema that a topology names."""

from __future__ import annotations

from streamserve.errors import SchemaError
from streamserve.pipeline.schemas import EventSchema
from streamserve.settings import Settings
from streamserve.topology import Topology


def load_schema(settings: Settings, topology: Topology) -> EventSchema:
    """The event schema of a topology, from the schemas folder.

    Raises:
        SchemaError: no such file, or no record schema.
    """
    path = settings.schemas / topology.source.schema_file
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise SchemaError(
            f"the event schema can't be read: {error.strerror}",
            where=str(path),
            mend="put it there, or point STREAMSERVE_SCHEMAS at the folder of schemas",
        ) from None
    return EventSchema.parse(text, where=str(path))

"""What a worker is made of that needs no worker: labels of its metrics, its folder, its decoder."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import Path

from streamserve import __version__
from streamserve.adapters.onnx import RUNTIME
from streamserve.adapters.schema_ids import SchemaIds
from streamserve.errors import SettingsError
from streamserve.features.catalogue import Catalogue
from streamserve.pipeline.decode import EventDecoder
from streamserve.pipeline.schemas import EventSchema
from streamserve.settings import Settings
from streamserve.topology import Topology


def about(topology: Topology, settings: Settings) -> dict[str, str]:
    """What runs here, for the metrics: to see a release, or a figure, by what made it."""
    return {
        "topology": topology.name,
        "version": __version__,
        "python": platform.python_version(),
        "onnxruntime": RUNTIME,
        "provider": settings.provider,
    }


def faust_folder(home: Path) -> Path:
    """Faust makes this folder, but not its parents; nothing is kept in it."""
    folder = home / "faust"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(error, str(folder)) from None
    return folder


def unwritable(error: OSError, where: str) -> SettingsError:
    return SettingsError(
        f"the folder of local state can't be made: {error.strerror}",
        where=where,
        mend="point STREAMSERVE_HOME at a folder that can be written",
    )


def decoder(catalogue: Catalogue, schema: EventSchema, ids: SchemaIds, segments: Iterable[str]) -> EventDecoder:
    """segments: fields that rules may name, as the control log lists them: every worker alike has to know them."""
    source = catalogue.topology.source
    if source.format == "avro":
        ids.id_of(f"{source.topic}-value", schema.text)
    return EventDecoder(
        schema,
        format=source.format,
        paths={*catalogue.paths(), *segments},
        event_time=source.event_time,
        writers=ids if source.format == "avro" else None,
    )

"""`streamserve check`: does a topology file hold together, and what does it look like?"""

from __future__ import annotations

import click

from streamserve.adapters.onnx import OnnxSession
from streamserve.adapters.schema_ids import schema_ids
from streamserve.cli.common import out, settings, topology_argument
from streamserve.errors import ModelMissingError
from streamserve.features.catalogue import Catalogue
from streamserve.models.manifest import Manifest
from streamserve.models.plan import FeaturePlan
from streamserve.models.registry import Registry
from streamserve.models.signature import check_outputs, plan_inputs
from streamserve.settings import Settings
from streamserve.simulate.describe import check_features, draw
from streamserve.simulate.load import load_schema
from streamserve.simulate.versions import open_version
from streamserve.topology import Topology


@click.command()
@topology_argument
@click.option("--version", help="The model version to compare with; the newest in the registry unless told.")
def check(topology: Topology, version: str | None) -> None:
    """Validate TOPOLOGY_FILE against its schema, its model and its views, and draw it.

    Needs no broker and no Redis. Without a version in the registry the model is left out, and that is said.
    """
    found = settings()
    catalogue, schema = Catalogue(topology), load_schema(found, topology)
    check_features(catalogue, schema)
    if topology.source.format == "avro" and not found.schema_registry_url:
        schema_ids(found).id_of(f"{topology.source.topic}-value", schema.text)
    manifest = _check_model(found, topology, catalogue, version)
    out().print(draw(catalogue, schema, manifest), markup=False, highlight=False)
    if manifest is None:
        out().print(
            f"model {topology.model} has no version in {found.registry}: its signature was not checked",
            style="yellow",
        )


def _check_model(found: Settings, topology: Topology, catalogue: Catalogue, version: str | None) -> Manifest | None:
    registry = Registry(found.registry)
    there = registry.versions(topology.model)
    if version is None and not there:
        return None
    if version is not None and version not in there:
        raise ModelMissingError(
            f"version {version!r} of {topology.model!r} is not in the registry (there: {', '.join(there) or 'none'})",
            where=str(found.registry),
            mend="add it with `streamserve models add`",
        )
    manifest, session = open_version(registry, topology.model, version or there[-1], OnnxSession)
    FeaturePlan.of(manifest, catalogue)
    plan_inputs(catalogue, session.inputs, {given.name: given.features for given in manifest.inputs})
    check_outputs(topology, session.outputs)
    return manifest

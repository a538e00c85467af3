"""`streamserve topology`: a topology's entry in the control log."""

from __future__ import annotations

import getpass
import uuid

import click

from streamserve.adapters.control_sender import ControlDesk
from streamserve.adapters.kafka import Clients
from streamserve.adapters.onnx import OnnxSession
from streamserve.cli.common import out, settings, topology_argument
from streamserve.cli.sending import signing_key
from streamserve.control.commands import Init
from streamserve.errors import ControlError
from streamserve.features.catalogue import Catalogue
from streamserve.models.plan import FeaturePlan
from streamserve.models.registry import Registry
from streamserve.simulate.versions import open_version
from streamserve.topology import Topology


@click.group()
def topology() -> None:
    """Put a topology's first version in force."""


@topology.command()
@topology_argument
@click.option("--version", required=True, help="The version that scores from offset 0 on.")
@click.option("--reason", default="", help="Why; kept in the log.")
@click.option("--if-new", is_flag=True, help="Do nothing if the topology has a version in force already.")
def init(topology: Topology, version: str, reason: str, if_new: bool) -> None:
    """Write the init command: the first version of TOPOLOGY_FILE, in force from offset 0.

    The version must be in the registry and fit the topology file.
    """
    found = settings()
    desk = ControlDesk(Clients(found), topology.name, signing_key(found))
    state = desk.state
    if state.initialised:
        if if_new:
            out().print(f"{topology.name} has version {state.epochs[-1].stable} in force already")
            return
        raise ControlError(
            f"{topology.name} has an init already: {state.epochs[0].stable}, at offset {state.epochs[0].number}",
            where="topic streamserve.control",
            mend="a topology is initialised once; --if-new makes this no error",
        )
    registry = Registry(found.registry)
    manifest, _ = open_version(registry, topology.model, version, OnnxSession)
    catalogue = Catalogue(topology)
    FeaturePlan.of(manifest, catalogue)
    command = Init(
        command_id=str(uuid.uuid4()),
        topology=topology.name,
        expected_generation=state.generation,
        actor=getpass.getuser(),
        reason=reason,
        model=topology.model,
        stable=version,
        salt=uuid.uuid4().hex[:12],
        fingerprint=catalogue.fingerprint(),
        segments=topology.segments,
        manifest=registry.manifest_sha256(topology.model, version),
    )
    offset = desk.send(command).offset
    out().print(f"{topology.name}: {topology.model} {version} is in force, control epoch {offset}")

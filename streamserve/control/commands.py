"""Control commands: what operators write to `streamserve.control`, as JSON, with any Kafka tool.

The models are the published form (`schemas/streamserve.command.json`); what a command does is in `control.fold`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1
KINDS = (
    "init", "prepare", "shadow", "shift", "promote", "rollback", "pause", "resume", "approve", "kill", "revive",
    "keys", "upgrade",
)  # fmt: skip


class Command(BaseModel):
    """What every command carries.

    command_id: chosen by the sender; a second one of the same id changes nothing.
    expected_generation: the number of accepted commands that the sender has seen of this topology.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # A range, not Literal[1]: pydantic takes true and 1.0 for that, and readers must not depend on its ways
    schema_version: int = Field(default=SCHEMA_VERSION, ge=SCHEMA_VERSION, le=SCHEMA_VERSION)
    command_id: Annotated[str, Field(min_length=1, max_length=200)]
    topology: Annotated[str, Field(min_length=1, max_length=200)]
    expected_generation: int = Field(ge=0)
    actor: Annotated[str, Field(max_length=200)] = ""
    reason: Annotated[str, Field(max_length=2000)] = ""


class Init(Command):
    """The first command of a topology: what is stable from offset 0 on, and the salt of its buckets.

    manifest: sha256 of the version's manifest.json; a worker refuses another. fingerprint: of the topology file.
    """

    kind: Literal["init"] = "init"
    model: str
    stable: Annotated[str, Field(min_length=1, max_length=200)]
    salt: Annotated[str, Field(max_length=200)] = ""
    fingerprint: Annotated[str, Field(max_length=200)] = ""
    manifest: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""


AnyCommand = Init

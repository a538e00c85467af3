"""Control commands: what operators and controllers write to `streamserve.control`, as JSON, with any Kafka tool.

The models are the published form (`schemas/streamserve.command.json`); what a command does is in `control.fold`. A form
that was released is not changed any more, for old logs are folded by it for ever: another form is another
`schema_version`, and has its own place in `FORMS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

SCHEMA_VERSION = 1  # the highest that this release can carry out
WHOLE_WEIGHT = 10_000

# JSON has lists alone, and strict tuples take none
_MANY = BeforeValidator(lambda found: tuple(found) if isinstance(found, list) else found)
Name = Annotated[str, Field(min_length=1, max_length=200)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# Not `topology.Path_`: what topology files may say can change, what old commands may say can not
FieldPath = Annotated[
    str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$", min_length=1, max_length=200)
]
KeyId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]
KeyIds = Annotated[tuple[KeyId, ...], Field(max_length=100), _MANY]
Generation = Annotated[int, Field(ge=0, le=2**63 - 1)]
BasisPoints = Annotated[int, Field(ge=0, le=WHOLE_WEIGHT)]
Value = (
    Annotated[str, Field(max_length=1000)] | Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | bool
)  # of an event's field: strict models keep 1 and true apart
Values = Annotated[tuple[Value, ...], Field(min_length=1, max_length=10_000), _MANY]
Where = Annotated[
    dict[FieldPath, Values],
    Field(min_length=1, max_length=20, json_schema_extra={"additionalProperties": False}),
]


def _kind_is_required(schema: dict[str, Any]) -> None:
    """Senders in Python get it by their class; in the log it must stand."""
    schema["required"] = ["kind", *schema["required"]]


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Segment(_Form):
    """Events by what fields hold, and who answers for them. An event is in it if each field has one of its values."""

    name: Name
    where: Where
    answer: Literal["candidate", "stable"]


def _named_once(rules: tuple[Segment, ...]) -> tuple[Segment, ...]:
    if len({rule.name for rule in rules}) != len(rules):
        raise ValueError("two rules have one name")
    return rules


Rules = Annotated[tuple[Segment, ...], Field(max_length=100), AfterValidator(_named_once), _MANY]


class Command(_Form):
    """What every command carries. command_id: chosen by the sender; of one id, one command is carried out."""

    model_config = ConfigDict(json_schema_extra=_kind_is_required)

    # No upper bound: which versions are taken is state (`upgrade`), the same for every release that reads the log. And
    # the first by default, not the highest: what is not written in an old log means what it meant
    schema_version: int = Field(default=1, ge=1)
    command_id: Name
    topology: Name
    actor: Annotated[str, Field(max_length=200)] = ""
    reason: Annotated[str, Field(max_length=2000)] = ""


class Guarded(Command):
    """expected_generation: the number of accepted commands that the sender has seen of this topology."""

    expected_generation: Generation


class RolloutCommand(Guarded):
    rollout_id: Name


class Init(Guarded):
    """The first command of a topology: what is stable from offset 0 on.

    manifest: sha256 of the version's manifest.json; a worker refuses another. salt: of the buckets, where a rollout
    brings none. fingerprint: of the topology file. segments: the event fields that rules may name. rules: of rollouts
    that bring none.
    """

    kind: Literal["init"] = "init"
    model: str
    stable: Name
    salt: Annotated[str, Field(max_length=200)] = ""
    fingerprint: Annotated[str, Field(max_length=200)] = ""
    manifest: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    segments: Annotated[tuple[FieldPath, ...], Field(max_length=100), _MANY] = ()
    rules: Rules = ()


class Prepare(RolloutCommand):
    """Opens a rollout. Salt and rules stay as they are until it ends. rules: null for those of init."""

    kind: Literal["prepare"] = "prepare"
    candidate: Name
    manifest: Sha256
    salt: Name | None = None
    rules: Rules | None = None


class Shadow(RolloutCommand):
    """How much of the stream, or of the part of it that `where` names, the candidate scores without answering."""

    kind: Literal["shadow"] = "shadow"
    percent_bp: BasisPoints
    where: Where | None = None


class Shift(RolloutCommand):
    """The share of events that the candidate answers for, absolute.

    ready: the workers that the sender saw prepared. override: why it shifts without all of them. Both go to the audit.
    """

    kind: Literal["shift"] = "shift"
    weight_bp: BasisPoints
    ready: Annotated[tuple[Annotated[str, Field(max_length=300)], ...], Field(max_length=1000), _MANY] = ()
    override: Annotated[str, Field(max_length=2000)] = ""


class Promote(RolloutCommand):
    """The candidate becomes stable, the rollout ends."""

    kind: Literal["promote"] = "promote"


class Rollback(RolloutCommand):
    """Stable answers for everything, the rollout ends."""

    kind: Literal["rollback"] = "rollback"


class Pause(RolloutCommand):
    """No shift and no promotion until `resume`; what is in force stays."""

    kind: Literal["pause"] = "pause"


class Resume(RolloutCommand):
    kind: Literal["resume"] = "resume"


class Approve(RolloutCommand):
    """A person agrees to a step of the rollout's plan."""

    kind: Literal["approve"] = "approve"
    step: int = Field(ge=0, le=10_000)


class Kill(Command):
    """This version answers for nothing any more, until `revive`. Whatever generation it names, it is not compared."""

    kind: Literal["kill"] = "kill"
    version: Name
    expected_generation: Generation | None = None


class Revive(Guarded):
    """Ends a kill. A candidate gets no event by it."""

    kind: Literal["revive"] = "revive"
    version: Name


class Keys(Guarded):
    """Whether commands must be signed, and the keys that may sign: listed by id, their secrets are with the readers."""

    kind: Literal["keys"] = "keys"
    mode: Literal["off", "required"]
    add: KeyIds = ()
    remove: KeyIds = ()

    @model_validator(mode="after")
    def _no_key_comes_and_goes(self) -> Self:
        if both := set(self.add) & set(self.remove):
            raise ValueError(f"key {min(both)} is added and removed")
        return self


class Upgrade(Guarded):
    """The highest `schema_version` that is taken from here on. A reader that can't do it holds."""

    kind: Literal["upgrade"] = "upgrade"
    accepts: int = Field(ge=1)


RolloutAction: TypeAlias = Shadow | Shift | Promote | Rollback | Pause | Resume | Approve  # on one that is open
AnyCommand: TypeAlias = Init | Prepare | RolloutAction | Kill | Revive | Keys | Upgrade
Published = Annotated[AnyCommand, Field(discriminator="kind")]

_FIRST: tuple[type[AnyCommand], ...] = (
    Init, Prepare, Shadow, Shift, Promote, Rollback, Pause, Resume, Approve, Kill, Revive, Keys, Upgrade,
)  # fmt: skip
FORMS: Mapping[int, Mapping[str, type[AnyCommand]]] = {1: {form.__name__.lower(): form for form in _FIRST}}
KINDS = tuple(FORMS[1])

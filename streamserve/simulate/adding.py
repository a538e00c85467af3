"""Adding a version: the model's signature against the catalogue, the manifest, the golden set, the folder."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from streamserve.errors import SignatureError
from streamserve.features.catalogue import Catalogue
from streamserve.features.rows import FeatureStore
from streamserve.models.manifest import FeaturePin, FileRef, Input, Manifest, Training, ViewPin
from streamserve.models.registry import Registry, file_ref
from streamserve.models.session import Loader, Session
from streamserve.models.signature import check_outputs, plan_inputs
from streamserve.pipeline.schemas import EventSchema
from streamserve.records import RawBatch
from streamserve.simulate.golden import make_golden

MODEL_FILE, GOLDEN_FILE = "model.onnx", "golden.json"


@dataclass(frozen=True, slots=True)
class NewVersion:
    """What a person says of a version that is to be added."""

    version: str
    model_file: Path
    created: dt.datetime
    vocabularies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    training: Training = field(default_factory=Training)


def add_version(
    registry: Registry,
    catalogue: Catalogue,
    schema: EventSchema,
    new: NewVersion,
    *,
    load: Loader,
    release: str,
    golden: tuple[RawBatch, FeatureStore] | None = None,
) -> tuple[Manifest, Path]:
    """Check a model against the catalogue and write it to the registry. golden: JSON events and the store to ask.

    Raises:
        SignatureError: the features don't fit the model, or a golden event can't be scored.
        ModelError: the version is there already.
    """
    session = load(new.model_file)
    check_outputs(catalogue.topology, session.outputs)
    inputs = plan_inputs(catalogue, session.inputs, new.inputs)
    _check_vocabularies(catalogue, inputs, new.vocabularies)
    manifest = _manifest(catalogue, new, session, inputs, release)
    files: dict[str, Path | bytes] = {MODEL_FILE: new.model_file}
    if golden is not None:
        events, store = golden
        made = make_golden(catalogue, schema, manifest, session, events, store)
        content = made.model_dump_json().encode()
        files[GOLDEN_FILE] = content
        manifest = manifest.model_copy(update={"golden": file_ref(GOLDEN_FILE, content)})
    return manifest, registry.add(manifest, files)


def _manifest(
    catalogue: Catalogue, new: NewVersion, session: Session, inputs: tuple[Input, ...], release: str
) -> Manifest:
    topology = catalogue.topology
    names = list(dict.fromkeys(name for given in inputs for name in given.features))
    wanted = _closure(catalogue, names)
    views = [
        ViewPin.of(view) for view in catalogue.views.values() if any(n.startswith(f"{view.name}.") for n in wanted)
    ]
    model: FileRef = file_ref(MODEL_FILE, new.model_file)
    return Manifest(
        model=topology.model,
        version=new.version,
        created=new.created,
        release=release,
        file=model,
        inputs=inputs,
        outputs=session.outputs,
        scores=topology.outputs,
        decision=topology.decision,
        features={
            name: FeaturePin(definition=catalogue.atoms[name].definition, fingerprint=catalogue.atoms[name].fingerprint)
            for name in wanted
        },
        vocabularies={name: tuple(new.vocabularies[name]) for name in new.vocabularies if name in wanted},
        views=tuple(views),
        training=new.training,
    )


def _closure(catalogue: Catalogue, names: Sequence[str]) -> list[str]:
    """These features, and those that derived ones among them are made of."""
    found: dict[str, None] = {}
    todo = list(names)
    while todo:
        name = todo.pop(0)
        if name in found or name not in catalogue.atoms:
            continue
        found[name] = None
        feature = catalogue.atoms[name].feature
        if feature.kind == "derived":
            todo.extend(feature.of)
    return list(found)


def _check_vocabularies(
    catalogue: Catalogue, inputs: Sequence[Input], vocabularies: Mapping[str, tuple[str, ...]]
) -> None:
    coded = {
        name
        for given in inputs
        if given.dtype != "string"
        for name in given.features
        if catalogue.atoms[name].feature.kind == "category"
    }
    if missing := sorted(coded - set(vocabularies)):
        raise SignatureError(
            f"there is no vocabulary for {', '.join(missing)}",
            where=catalogue.topology.name,
            mend="give one (--vocabularies FILE, JSON: {feature: [values in the order that training used]})",
        )
    for name, values in vocabularies.items():
        if len(set(values)) != len(values):
            raise SignatureError(f"the vocabulary of {name!r} names a value twice", mend="name each value once")

"""The versions that a worker has loaded: hash checked, compared with the topology, warm, true to their golden set."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streamserve.errors import ModelTamperedError, SignatureError
from streamserve.features.catalogue import Catalogue
from streamserve.models.golden import GoldenSet
from streamserve.models.manifest import Input, Manifest
from streamserve.models.plan import FeaturePlan
from streamserve.models.registry import Registry
from streamserve.models.session import Array, Loader, Session
from streamserve.pipeline.candidates import Finish
from streamserve.pipeline.pipeline import LoadedVersion
from streamserve.pipeline.schemas import EventSchema
from streamserve.pipeline.score import Scorer
from streamserve.records import FeatureMatrix, Int64s
from streamserve.simulate.golden import check_golden

LOG = logging.getLogger("streamserve.versions")


Isolate = Callable[[str], AbstractContextManager[Session]]


@dataclass(frozen=True, slots=True)
class Direct:
    """A candidate that scores in the thread that asks."""

    version: LoadedVersion

    @property
    def plan(self) -> FeaturePlan:
        return self.version.plan

    def begin(self, matrix: FeatureMatrix, raw_rows: Int64s) -> Finish:
        return lambda: self.version.scorer.score(matrix, raw_rows)


class LoadedVersions:
    """Loads versions of a topology's model on demand, each once. Safe from several threads.

    pinned: asked at each load for the manifest hashes that the control log names, by version.
    isolate: a version's session in a process of its own, where one that is not `proven` is examined first.
    """

    def __init__(
        self,
        registry: Registry,
        catalogue: Catalogue,
        schema: EventSchema,
        load: Loader,
        warm_rows: Sequence[int],
        pinned: Callable[[], Mapping[str, str]] = dict,
        isolate: Isolate | None = None,
        proven: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._registry, self._catalogue, self._schema = registry, catalogue, schema
        self._load, self._warm_rows, self._pinned = load, warm_rows, pinned
        self._isolate, self._proven = isolate, proven
        self._loaded: dict[str, LoadedVersion] = {}
        self._lock = threading.Lock()

    def get(self, version: str) -> LoadedVersion:
        """The version, loaded and warm.

        Raises:
            ModelError: it is missing, was tampered with, or does not fit the topology or its golden set.
        """
        found = self._loaded.get(version)
        if found is None:
            with self._lock:
                found = self._loaded.get(version) or self._prepare(version)
                self._loaded[version] = found
        return found

    def trial(self, version: str) -> Direct:
        """The same, as a rollout's candidate: there is time, so it is loaded."""
        return Direct(self.get(version))

    def ready(self, version: str) -> LoadedVersion | None:
        """The version if it is loaded and warm; loads nothing."""
        return self._loaded.get(version)

    def loaded(self) -> frozenset[str]:
        return frozenset(self._loaded)

    def keep(self, versions: Collection[str]) -> frozenset[str]:
        """Free all others; returns what was freed. One that is needed again is loaded again."""
        with self._lock:
            gone = self.loaded() - frozenset(versions)
            self._loaded = {name: one for name, one in self._loaded.items() if name not in gone}
        return gone

    def plan(self, version: str) -> FeaturePlan:
        """How its inputs are filled; nothing of it is loaded.

        Raises:
            ModelError: it is missing, was tampered with, or does not fit the topology.
        """
        self._check(version)
        return FeaturePlan.of(self._registry.manifest(self._catalogue.topology.model, version), self._catalogue)

    def _check(self, version: str) -> None:
        model = self._catalogue.topology.model
        expected, found = self._pinned().get(version), self._registry.manifest_sha256(model, version)
        if expected and expected != found:
            raise ModelTamperedError(
                f"the manifest of {model} {version} is not the one that was put in force: "
                f"its sha256 is {found[:12]}..., the control log says {expected[:12]}...",
                where=str(self._registry.folder(model, version)),
                mend="restore the folder from where it came: a version in force never changes",
            )

    def _prepare(self, version: str) -> LoadedVersion:
        model = self._catalogue.topology.model
        self._check(version)
        manifest = self._registry.manifest(model, version)
        plan = FeaturePlan.of(manifest, self._catalogue)
        if self._isolate is not None and version not in self._proven():
            with self._isolate(version) as session:  # what it does to a process, it does to another one
                self._examine(manifest, session)
        manifest, session = open_version(self._registry, model, version, self._load)
        self._examine(manifest, session)
        return LoadedVersion(plan, Scorer(manifest, session))

    def _examine(self, manifest: Manifest, session: Session) -> None:
        """Warm it, and hold it against its golden set."""
        if manifest.golden is not None:
            path = self._registry.file(manifest, manifest.golden)
            worst = check_golden(self._catalogue, self._schema, manifest, session, _read_golden(path))
            LOG.info(
                "%s %s agrees with its golden set (largest difference %g)", manifest.model, manifest.version, worst
            )
        for rows in self._warm_rows:
            session.run({given.name: blank(given, rows) for given in manifest.inputs}, _asked(manifest))


def open_version(registry: Registry, model: str, version: str, load: Loader) -> tuple[Manifest, Session]:
    """A version's manifest and session, hash and signature checked.

    Raises:
        ModelError: it is missing, was tampered with, or the file's signature is not the manifest's.
    """
    manifest = registry.manifest(model, version)
    session = load(registry.file(manifest, manifest.file))
    given = tuple((t.name, t.dtype, t.shape) for t in session.inputs)
    pinned = tuple((t.name, t.dtype, t.shape) for t in manifest.inputs)
    if given != pinned:
        raise SignatureError(
            f"the inputs of {model} {version} are {given}, its manifest says {pinned}",
            where=str(registry.folder(model, version)),
            mend="the manifest was edited: restore it",
        )
    return manifest, session


def _read_golden(path: Path) -> GoldenSet:
    try:
        return GoldenSet.model_validate_json(path.read_bytes())
    except ValueError as error:
        raise ModelTamperedError(f"the golden set can't be read: {error}", where=str(path)) from None


def blank(given: Input, rows: int) -> Array:
    """An input of zeros or empty texts, to warm a session with."""
    shape = (rows, *(size or 1 for size in given.shape[1:]))
    if len(given.shape) > 1 and given.shape[-1] is None:
        shape = (*shape[:-1], len(given.features))
    if given.dtype == "string":
        return np.full(shape, "", object)
    return np.zeros(shape, given.dtype)


def _asked(manifest: Manifest) -> tuple[str, ...]:
    return tuple(dict.fromkeys(out.tensor for out in manifest.scores.values()))

"""The drift references of loaded versions, and how their events are counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from streamserve.drift.reference import Reference
from streamserve.errors import StreamserveError
from streamserve.features.catalogue import Catalogue
from streamserve.models.registry import Registry
from streamserve.pipeline.pipeline import LoadedVersion
from streamserve.pipeline.tally import Panes, Tally
from streamserve.simulate.referring import alert_settings

LOG = logging.getLogger("streamserve.drift")
REFERENCE = "drift-reference.json"
KEPT = 20  # references, some 50 kB each


def read_reference(registry: Registry, model: str, version: str) -> Reference | None:
    """The drift reference of a version; None: it has none.

    Raises:
        DriftError: it is no reference, or that of another version.
        ModelError: there is no such version.
    """
    content = registry.attached(model, version, REFERENCE)
    if content is None:
        return None
    found = Reference.from_bytes(content, where=str(registry.folder(model, version) / REFERENCE))
    found.check(model, version, registry.manifest_sha256(model, version))
    return found


class VersionTallies:
    """A `pipeline.tally.Tallying`. `refresh` is one thread's, the others ask what it has found.

    A reference may come, or be built anew, while a version serves: it is taken up at the next refresh.
    """

    def __init__(
        self, registry: Registry, catalogue: Catalogue, ready: Callable[[str], LoadedVersion | None], panes: Panes
    ) -> None:
        self._registry, self._catalogue, self._ready, self._panes = registry, catalogue, ready, panes
        self._found: dict[str, Tally] = {}
        self._references: dict[str, Reference] = {}  # by fingerprint: windows of an earlier one may be open yet
        self._stamps: dict[str, object] = {}
        self._told: set[tuple[str, str]] = set()

    def of(self, version: str) -> Tally | None:
        return self._found.get(version)

    def failed(self, version: str, error: Exception) -> None:
        self._tell(version, f"its events are not counted for drift: {type(error).__name__}: {error}")

    def reference(self, version: str, fingerprint: str) -> Reference | None:
        """A reference of a version, that it has or had; None: it is not to be had. From any thread."""
        if fingerprint and fingerprint not in self._references:
            try:
                found = read_reference(self._registry, self._catalogue.topology.model, version)
            except StreamserveError as error:
                self._tell(version, f"its drift reference can't be read: {error}")
            else:
                self._keep(found)
        return self._references.get(fingerprint)

    def _keep(self, reference: Reference | None) -> None:
        if reference is not None:
            self._references = {**dict(list(self._references.items())[-KEPT:]), reference.fingerprint: reference}

    def refresh(self, versions: Collection[str]) -> None:
        """Read the references of these versions, where they are not read yet or have changed."""
        model = self._catalogue.topology.model
        for version in versions:
            stamp, loaded = self._registry.attached_stamp(model, version, REFERENCE), self._ready(version)
            if loaded is None or (version in self._found and self._stamps[version] == stamp):
                continue
            try:
                reference = read_reference(self._registry, model, version)
            except StreamserveError as error:
                self._tell(version, f"its drift reference is not used: {error}")
                reference = None
            else:
                LOG.info("%s %s: %s", model, version, _about(reference))
                self._compare_alerts(version, reference)
            self._keep(reference)
            names, labels = loaded.scorer.names, loaded.scorer.labels
            self._found[version] = Tally(version, reference, loaded.plan, self._catalogue, names, labels, self._panes)
            self._stamps[version] = stamp
        self._found = {version: tally for version, tally in self._found.items() if version in versions}

    def _compare_alerts(self, version: str, reference: Reference | None) -> None:
        drift = self._catalogue.topology.drift
        if reference is None or drift is None:
            return
        if reference.alerts != alert_settings(drift):
            self._tell(version, "alerts are as its reference was built for, not as the topology file says by now")
        if drift.segment not in (None, reference.segment):
            self._tell(version, f"its reference has no segments by {drift.segment}: build it anew for windows of them")

    def _tell(self, version: str, what: str) -> None:
        """Once, and not at every batch."""
        if (version, what) not in self._told:
            self._told.add((version, what))
            LOG.warning("%s %s: %s", self._catalogue.topology.model, version, what)


def _about(reference: Reference | None) -> str:
    if reference is None:
        return "it has no drift reference: `streamserve drift reference` makes one"
    return f"drift is counted against {reference.rows} events of {reference.source}"

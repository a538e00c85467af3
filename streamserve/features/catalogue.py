"""The catalogue of a topology: its features one by one, each with a name, a width and a definition to pin.

A definition is plain JSON: what must be equal for two releases of a topology file to mean the same feature.
Its fingerprint stands in every manifest that picks the feature. Nothing here sees an event.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from streamserve.errors import TopologyError
from streamserve.topology import Feature, StoredFeature, Topology, View

Definition = Mapping[str, object]
ROW_LAYOUT = 1  # int64 feature time in ms, then float32 fields, little-endian; raise it when a row's bytes change


@dataclass(frozen=True, slots=True)
class Atom:
    """One feature: `width` columns of a model's input. `part` tells the time part or the view's field."""

    name: str
    feature: Feature
    width: int = 1
    part: str = ""

    @property
    def definition(self) -> Definition:
        feature = self.feature
        if feature.kind == "stored":
            return {"kind": "stored", "view": feature.view.name, "field": self.part}
        if feature.kind == "parts":
            return {"kind": "parts", "path": feature.path, "part": self.part, "tz": feature.tz}
        return json.loads(feature.model_dump_json(exclude={"name"}))  # type: ignore[no-any-return]

    @property
    def fingerprint(self) -> str:
        return digest(self.definition)


class Catalogue:
    """The features of a topology by name, in the order in which they are written.

    Raises:
        TopologyError: two features of one name, a derived feature of an unknown or later one, or drift by a field that
            nothing is read from.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.views: dict[str, View] = {view.name: view for view in topology.views}
        self.atoms: dict[str, Atom] = {}
        self._views_of: dict[str, tuple[str, ...]] = {}
        later = {atom.name for feature in topology.features for atom in _atoms(feature)}
        for feature in topology.features:
            if feature.kind == "derived" and (
                ahead := [name for name in feature.of if name in later - set(self.atoms)]
            ):
                raise TopologyError(
                    f"derived feature {feature.name!r} is made of {', '.join(ahead)}, which is not written before it",
                    where=topology.name,
                    mend="write it after what it is made of, and under a name of its own",
                )
            for atom in _atoms(feature):
                if atom.name in self.atoms:
                    raise TopologyError(
                        f"two features are named {atom.name!r}",
                        where=topology.name,
                        mend="give one of them name= (or prefix= for time parts)",
                    )
                self.atoms[atom.name] = atom
                self._views_of[atom.name] = self._stored_in(feature)
        segment = topology.drift and topology.drift.segment
        if segment and segment not in self.paths():
            # Were it read for drift alone, an event that does not fit there would be a dead letter for its sake
            raise TopologyError(
                f"drift's segment is {segment!r}, which no feature or key is read from",
                where=topology.name,
                mend="name an event field that the topology reads already, or give it a feature of this one",
            )

    def _stored_in(self, feature: Feature) -> tuple[str, ...]:
        if feature.kind == "stored":
            return (feature.view.name,)
        if feature.kind == "derived":
            return tuple(sorted({view for name in feature.of for view in self.views_of(name)}))
        return ()

    def views_of(self, name: str) -> tuple[str, ...]:
        """The stored views that a feature is read from, itself or by what it is derived of."""
        return self._views_of.get(name, ())

    def pick(self, name: str) -> Atom:
        """The feature of this name.

        Raises:
            TopologyError: there is none; names the closest.
        """
        atom = self.atoms.get(name)
        if atom is None:
            close = difflib.get_close_matches(name, self.atoms, n=3)
            raise TopologyError(
                f"there is no feature {name!r} in the catalogue" + (f"; close: {', '.join(close)}" if close else ""),
                where=self.topology.name,
                mend="add it to the topology's features, or leave it out of the version",
            )
        return atom

    def paths(self) -> frozenset[str]:
        """Every event path that a worker must decode: features, view keys, entity key, event time and id."""
        wanted: set[str] = set()
        for feature in self.topology.features:
            if feature.kind == "stored":
                wanted.update(feature.view.key)
            elif feature.kind == "derived":
                wanted.update(name for name in feature.of if name not in self.atoms)
            else:
                wanted.add(feature.path)
        source = self.topology.source
        wanted.update(path for path in (source.key, source.event_time, source.id) if path)
        return frozenset(wanted)

    def fingerprint(self) -> str:
        """Of everything in the topology that decides what a version sees; enters the log with `init`."""
        return digest(
            {
                "source": self.topology.source.model_dump(mode="json", exclude={"partitions"}),
                "features": {name: atom.fingerprint for name, atom in self.atoms.items()},
                "views": {name: view_fingerprint(view) for name, view in self.views.items()},
            }
        )


def _atoms(feature: Feature) -> Iterable[Atom]:
    if isinstance(feature, StoredFeature):
        for name in feature.view.fields:
            yield Atom(f"{feature.view.name}.{name}", feature, part=name)
    elif feature.kind == "parts":
        for part in feature.parts:
            yield Atom(feature.prefix + part, feature, part=part)
    elif feature.kind == "vector":
        yield Atom(feature.name, feature, width=feature.length)
    else:
        yield Atom(feature.name, feature)


def view_fingerprint(view: View) -> str:
    """Of what decides the bytes of a view's rows: it is part of each Redis key, so layouts never mix."""
    return digest({"name": view.name, "key": view.key, "fields": view.fields, "layout": ROW_LAYOUT})


def digest(value: object) -> str:
    """The first 16 hex digits of the SHA-256 of canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

"""The registry: a folder of versions, `<model>/<version>/manifest.json` and the files that it names.

A version is written whole under another name and renamed into place, and never written again; every file is read
with its hash checked. A folder can be a mounted volume or a synchronised bucket; nothing is deleted from here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from streamserve.errors import ModelError, ModelMissingError, ModelTamperedError
from streamserve.models.manifest import FileRef, Manifest

MANIFEST = "manifest.json"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
BLOCK = 1 << 20


class Registry:
    """Versions under `root`. Reads are safe at any time; two writers of one version: the first wins."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, model: str, version: str) -> Path:
        for name in (model, version):
            if not NAME.fullmatch(name):
                raise ModelError(
                    f"{name!r} is no name for a model or a version",
                    mend="use letters, digits, '_', '-' and '.', not '.' first",
                )
        return self.root / model / version

    def versions(self, model: str) -> list[str]:
        """The versions of a model, oldest first."""
        base = self.root / model
        if not NAME.fullmatch(model):
            return []
        found = [p for p in base.glob(f"*/{MANIFEST}") if not p.parent.name.startswith(".")] if base.is_dir() else []
        return [p.parent.name for p in sorted(found, key=_added)]

    def models(self) -> list[str]:
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if p.is_dir() and self.versions(p.name))

    def manifest(self, model: str, version: str) -> Manifest:
        """Read one manifest.

        Raises:
            ModelMissingError: no such version; says which there are.
            ModelTamperedError: it is no manifest any more.
        """
        path = self.folder(model, version) / MANIFEST
        try:
            text = path.read_bytes()
        except OSError:
            there = ", ".join(self.versions(model)) or "none"
            raise ModelMissingError(
                f"version {version!r} of model {model!r} is not in the registry (there: {there})",
                where=str(self.root),
                mend="add it with `streamserve models add`, or point STREAMSERVE_REGISTRY at the right folder",
            ) from None
        try:
            manifest = Manifest.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ModelTamperedError(
                f"the manifest cannot be read: {place}: {first['msg']}",
                where=str(path),
                mend="restore it from where it came, or add the version anew under another name",
            ) from None
        if (manifest.model, manifest.version) != (model, version):
            raise ModelTamperedError(
                f"the manifest is of {manifest.model} {manifest.version}, not of {model} {version}",
                where=str(path),
                mend="restore the folder from where it came",
            )
        return manifest

    def manifest_sha256(self, model: str, version: str) -> str:
        """The hash of a version's manifest, which pins every other file by hash."""
        self.manifest(model, version)
        return sha256(self.folder(model, version) / MANIFEST)

    def file(self, manifest: Manifest, ref: FileRef) -> Path:
        """The path of a file of a version, its hash checked.

        Raises:
            ModelTamperedError: the file is gone or its bytes are not what was added.
        """
        path = self.folder(manifest.model, manifest.version) / ref.path
        try:
            found = sha256(path)
        except OSError as error:
            raise ModelTamperedError(
                f"a file of {manifest.model} {manifest.version} cannot be read: {error.strerror}",
                where=str(path),
                mend="restore the folder from where it came, or roll back to another version",
            ) from None
        if found != ref.sha256:
            raise ModelTamperedError(
                f"a file of {manifest.model} {manifest.version} was changed: its sha256 is {found[:12]}..., "
                f"the manifest says {ref.sha256[:12]}...",
                where=str(path),
                mend="restore the file from where it came, or add the new bytes as another version",
            )
        return path

    def attach(self, model: str, version: str, name: str, content: bytes) -> Path:
        """Write a file that was learned after the version was added beside its own, in place of an earlier one.

        Raises:
            ModelError: there is no such version, or it can't be written.
        """
        taken = {MANIFEST, *(ref.path for ref in _refs(self.manifest(model, version)))}
        folder = self.folder(model, version)
        if name in taken:
            raise ModelError(f"{name} is a file of the version itself", where=str(folder), mend="name it otherwise")
        draft = folder / f".{name}.{os.getpid()}"
        try:
            draft.write_bytes(content)
            return draft.replace(folder / name)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise ModelError(
                f"{name} can't be written: {error.strerror}",
                where=str(folder),
                mend="check the folder's rights and its free space",
            ) from None

    def attached(self, model: str, version: str, name: str) -> bytes | None:
        """What was attached under this name; None: nothing."""
        path = self.folder(model, version) / name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ModelError(
                f"{name} can't be read: {error.strerror}", where=str(path), mend="check the folder's rights"
            ) from None

    def attached_stamp(self, model: str, version: str, name: str) -> tuple[int, int] | None:
        """Something that changes with what is attached; None: nothing is."""
        try:
            found = (self.folder(model, version) / name).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino

    def add(self, manifest: Manifest, files: Mapping[str, Path | bytes]) -> Path:
        """Write a version: its manifest, and each file under the name that the manifest gives it.

        Raises:
            ModelError: the version is there already.
        """
        target = self.folder(manifest.model, manifest.version)
        if target.exists():
            raise _there_already(manifest, target)
        refs = _refs(manifest)
        if {ref.path for ref in refs} != set(files) or MANIFEST in files:
            raise ModelError(
                f"the manifest names the files {sorted(ref.path for ref in refs)}, found {sorted(files)}",
                where=str(target),
                mend=f"give each file under the name that the manifest has for it, none of them {MANIFEST}",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{manifest.version}-", dir=target.parent))
        try:
            for name, content in files.items():
                if isinstance(content, bytes):
                    (draft / name).write_bytes(content)
                else:
                    shutil.copyfile(content, draft / name)
            (draft / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", "utf-8")
            draft.chmod(0o755)
            os.rename(draft, target)  # noqa: PTH104  (must fail, not replace, where another writer was first)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            if target.exists():
                raise _there_already(manifest, target) from None
            raise ModelError(
                f"version {manifest.version!r} can't be written: {error.strerror}",
                where=str(error.filename or target),
                mend="check the folder's rights and its free space",
            ) from None
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        return target


def _refs(manifest: Manifest) -> list[FileRef]:
    return [ref for ref in (manifest.file, manifest.golden, *manifest.attachments.values()) if ref is not None]


def _there_already(manifest: Manifest, target: Path) -> ModelError:
    return ModelError(
        f"version {manifest.version!r} of {manifest.model!r} is in the registry already",
        where=str(target),
        mend="versions never change: add this one under another name",
    )


def file_ref(name: str, content: Path | bytes) -> FileRef:
    if isinstance(content, bytes):
        return FileRef(path=name, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    return FileRef(path=name, sha256=sha256(content), bytes=content.stat().st_size)


def _added(manifest: Path) -> tuple[str, str]:
    """When a version was added, by its own word: the times of files do not survive a copy. Unreadable ones first."""
    try:
        body = json.loads(manifest.read_bytes())
        return str(body.get("created", "")) if isinstance(body, dict) else "", manifest.parent.name
    except (OSError, ValueError):
        return "", manifest.parent.name


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()

"""Models as ONNX Runtime optimised them, kept on disk for the next start.

What it gives, measured (CPU of a load, two cores): graphs of many small nodes gain (200 nodes: 23 ms to 10; 6,400
nodes: 4.3 s to 3.6), trees gain little (1,000 trees of 255 leaves, 20 MB: 540 ms to 440) and nets of few large
matrices nothing (84 MB: 226 ms to 250). The model must be hashed for its key, and the copy against damage: 67 + 7 ms
for 20 MB, 290 + 40 for 84. So it is off unless `STREAMSERVE_MODEL_CACHE` asks for it.

Kept for the processor alone: a graph that TensorRT compiled can't be written, and it keeps engines of its own.

What may be optimised depends on the instruction set, so that is part of the key, with the model's hash, the runtime's
version, the provider and the level. The name of a copy ends with a checksum of its bytes: one flipped bit in a weight
still loads, and would score wrongly. A checksum finds damage, not malice: whoever can write the home folder can write
a copy that fits. The registry's hashes are checked before, on the original.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import platform
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from streamserve.models.registry import BLOCK, sha256
from streamserve.settings import Provider

LOG = logging.getLogger("streamserve.onnx")
CPU_INFO = Path("/proc/cpuinfo")
FLAG_LINES = ("flags", "Features")  # x86-64, Arm


def load_key(path: Path, provider: Provider, runtime: str, level: str) -> str:
    """What decides how a model is optimised, as one name."""
    parts = (sha256(path), runtime, provider, level, instruction_set())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:40]


@functools.cache
def instruction_set() -> str:
    """The machine and what its processor can do; without /proc, the machine's name alone."""
    flags: list[str] = []
    with contextlib.suppress(OSError):
        for line in CPU_INFO.read_text("ascii", "replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in FLAG_LINES:
                flags = sorted(value.split())
                break
    return " ".join((platform.machine(), *flags))


class OptimisedModels:
    """A folder of optimised models, `<key>-<checksum>.onnx`. Several processes may share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, key: str) -> Iterator[Path]:
        """The whole copies under a key; damaged ones are thrown away."""
        for path in sorted(self._folder.glob(f"{key}-*.onnx")):
            try:
                found = checksum(path)
            except OSError as error:
                LOG.warning("%s can't be read (%s): the original is loaded", path, error.strerror)
                continue
            if path.stem == f"{key}-{found}":
                yield path
            else:
                self.drop(path, f"its checksum is {found}")

    @contextlib.contextmanager
    def draft(self, key: str) -> Iterator[Path | None]:
        """Where the runtime may write a copy, which is kept if it does. None: the folder takes none.

        Written under another name and renamed, so that a start in between sees the whole copy or none.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            place = tempfile.TemporaryDirectory(prefix=".draft-", dir=self._folder, ignore_cleanup_errors=True)
        except OSError as error:
            LOG.warning("%s can't be written (%s): no optimised models are kept", self._folder, error.strerror)
            yield None
            return
        with place as folder:
            draft = Path(folder) / "model.onnx"
            yield draft
            self._keep(key, draft)

    def _keep(self, key: str, draft: Path) -> None:
        try:
            os.replace(draft, self._folder / f"{key}-{checksum(draft)}.onnx")  # noqa: PTH105  (says that it replaces)
        except OSError as error:
            LOG.info("an optimised copy was not kept: %s", error.strerror)

    def drop(self, path: Path, why: str) -> None:
        LOG.warning("%s is damaged (%s): the original is loaded and the copy made anew", path, why)
        with contextlib.suppress(OSError):
            path.unlink()


def checksum(path: Path) -> str:
    """CRC-32 of a file: a tenth of the time of sha256, and enough against damage."""
    value = 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            value = zlib.crc32(block, value)
    return f"{value:08x}"

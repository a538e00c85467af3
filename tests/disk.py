"""A small disk of a test's own, that can be filled up.

A file system in memory, mounted where only /proc leads: nothing is left behind, and no rights are needed but to make a
user namespace.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from streamserve.dev.process import die_with_parent

MIB = 1 << 20


@dataclass(frozen=True)
class Disk:
    folder: Path

    @property
    def _ballast(self) -> Path:
        return self.folder / "ballast"

    def fill(self, leave: int) -> None:
        """Up to so many bytes, which others will use up."""
        found = os.statvfs(self.folder)
        with self._ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - leave)

    def make_room(self) -> None:
        self._ballast.unlink()


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Disk]:
    """size: bytes. It is gone with the block, or with the tests."""
    folder.mkdir()
    mount = f"mount -t tmpfs -o size={size} small {folder} && echo mounted && exec sleep infinity"
    spaces = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    holder = subprocess.Popen(
        ["unshare", *spaces, "sh", "-c", mount], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509  (ends with the tests, even by SIGKILL)
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != b"mounted\n":
            raise AssertionError(f"no small disk can be mounted: {holder.stderr.read().decode()}")
        yield Disk(Path(f"/proc/{holder.pid}/root{folder}"))
    finally:
        holder.kill()
        holder.communicate()

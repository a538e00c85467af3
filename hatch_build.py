"""Builds the compiled parts at installation; without a C compiler the package works all the same, slower."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("streamserve/native")
REQUIRED = "STREAMSERVE_REQUIRE_NATIVE"  # set: an installation without the compiled parts is an error


class NativeBuild(BuildHookInterface):
    """One shared library a C file, loaded with ctypes: it needs no header, neither Python's nor Kafka's."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
        problem = "no C compiler (cc, gcc, clang) is there" if compiler is None else ""
        for source in sorted((root / FOLDER).glob("*.c")):
            target = source.with_suffix(".so")
            if compiler is not None:
                problem = problem or _compile(compiler, source, target)
            if problem:
                target.unlink(missing_ok=True)
            elif version == "standard":
                build_data["force_include"][str(target)] = str(FOLDER / target.name)
        if not problem:
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data.update(pure_python=False, tag=f"py3-none-{platform}")
        elif os.environ.get(REQUIRED):
            raise RuntimeError(f"the compiled parts can't be built: {problem}")
        else:
            sys.stderr.write(f"streamserve: installed without its compiled parts, slower for it: {problem}\n")

    def clean(self, versions: list[str]) -> None:  # noqa: ARG002
        """What `hatch clean` does."""
        for built in (Path(self.root) / FOLDER).glob("*.so"):
            built.unlink()


def _compile(compiler: str, source: Path, target: Path) -> str:
    """Build into place at once: a worker may have the old one loaded. Returns what went wrong, or nothing."""
    fresh = target.with_suffix(f".{os.getpid()}.tmp")
    flags = ["-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-o", str(fresh)]
    try:
        command = [*compiler.split(), *flags, str(source), "-ldl", "-lm"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            return done.stderr.strip()[-2000:] or f"{compiler} ended with {done.returncode}"
        fresh.replace(target)
    except OSError as error:
        return str(error)
    finally:
        fresh.unlink(missing_ok=True)
    return ""

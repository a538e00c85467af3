"""The jars of Kafka: fetched once with Maven, checked against this package's hashes, shared by all homes.

They lie in `$STREAMSERVE_CACHE` (default `~/.cache/streamserve`); where that can't be written, in the home.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from streamserve.dev.java import MEND, MissingError, java_home
from streamserve.dev.place import lock_within
from streamserve.errors import DevError

if TYPE_CHECKING:
    from collections.abc import Callable

_HERE = Path(__file__).parent
_LIST = _HERE / "jars.sha256"
_MAVEN_SECONDS = 900  # 36 MB, and Maven's own plugins the first time, over a slow line


def find_jars(spare: Path, java: Path, progress: Callable[[str], None]) -> Path:
    """The folder of the checked jars, downloaded if need be. `spare` serves if the cache can't be written.

    Raises:
        MissingError: no jars, and no Maven to fetch them.
        DevError: no network, or a jar whose hash is not the expected one.
    """
    listed = _LIST.read_bytes()
    expected = {line.split()[1]: line.split()[0] for line in listed.decode().splitlines()}
    # The list's own hash is in the name: another version of this package finds its own folder.
    name = f"kafka-{hashlib.sha256(listed).hexdigest()[:12]}"
    folder = _cache(spare) / name
    if _faults(folder, expected):
        with (folder.parent / f"{name}.lock").open("w") as lock:
            lock_within(lock.fileno(), _MAVEN_SECONDS, folder.parent / f"{name}.lock")
            if _faults(folder, expected):  # still, now that it is our turn
                _download(folder, expected, java, progress)
    return folder


def _cache(spare: Path) -> Path:
    configured = os.environ.get("STREAMSERVE_CACHE")
    for folder in (
        Path(configured).expanduser() if configured else Path.home() / ".cache" / "streamserve",
        spare,
    ):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder.resolve()
    raise DevError(
        "no folder for Kafka's jars can be written",
        where=str(spare),
        mend="set STREAMSERVE_CACHE to a folder that you can write",
    )


def _faults(folder: Path, expected: dict[str, str]) -> list[str]:
    """What is wrong with the jars of a folder. All are hashed at each start: 36 MB take 0.03 s."""
    present = {path.name for path in folder.glob("*.jar")}
    faults = [f"{name} is missing" for name in expected.keys() - present]
    faults += [f"{name} is not expected" for name in present - expected.keys()]
    for name in expected.keys() & present:
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected[name]:
                faults.append(f"{name} has another hash")
    return sorted(faults)


def _download(folder: Path, expected: dict[str, str], java: Path, progress: Callable[[str], None]) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise MissingError(
            "Kafka's jars are not there yet, and Maven, which fetches them, was not found",
            where="PATH",
            mend=MEND,
        )
    progress("jars: fetching Kafka with Maven (36 MB, once)")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as temporary:
        shutil.copy(_HERE / "pom.xml", temporary)
        fetched = Path(temporary) / "libs"
        _run_maven(maven, Path(temporary) / "pom.xml", fetched, java)
        if faults := _faults(fetched, expected):
            raise DevError(
                f"the fetched jars are not the expected ones: {'; '.join(faults[:5])}",
                where=str(_LIST),
                mend="look at the mirrors in ~/.m2/settings.xml, empty ~/.m2/repository, try again",
            )
        shutil.rmtree(folder, ignore_errors=True)
        fetched.rename(folder)
    progress(f"jars: {len(expected)} fetched and checked ({time.monotonic() - begun:.1f} s)")


def _run_maven(maven: str, pom: Path, target: Path, java: Path) -> None:
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={target}"]
    environ = {**os.environ, "JAVA_HOME": str(java_home(java))}
    try:
        done = subprocess.run(
            [maven, "-q", "-B", "-f", str(pom), *goal],
            capture_output=True,
            text=True,
            timeout=_MAVEN_SECONDS,
            check=False,
            env=environ,
        )
    except subprocess.TimeoutExpired:
        said, ended = "", f"did not end within {_MAVEN_SECONDS} s"
    else:
        if done.returncode == 0:
            return
        said, ended = done.stdout + done.stderr, f"ended with {done.returncode}"
    tail = "\n".join(said.strip().splitlines()[-8:])
    raise DevError(
        f"Maven could not fetch Kafka's jars: it {ended}\n{tail}".rstrip(),
        where=str(pom.name),
        mend="check the network, and the proxy or mirror in ~/.m2/settings.xml; or set STREAMSERVE_DEV=docker",
    )

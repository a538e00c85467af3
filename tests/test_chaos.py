"""Promise: the chaos runs work end to end: faults strike, the checker reads everything, nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

ONCE = ("--delivery", "exactly_once")
SECONDS = 300.0  # it takes 40 on a machine of its own


def processes_of(folder: Path) -> list[str]:
    """Command lines that name the folder."""
    found = []
    for one in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = one.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in words:
            found.append(words)
    return found


@pytest.mark.services
def test_a_short_run_loses_nothing_and_leaves_nothing(tmp_path):
    """Two faults: one at an exact place of a commit."""
    file = tmp_path / "result.json"
    command = [sys.executable, "-m", "chaos", "--faults", "2", "--seed", "11", "--folder", str(tmp_path), *ONCE]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    done = subprocess.run(
        [*command, "--json", str(file)], cwd=tmp_path, env=environ, capture_output=True, text=True,
        timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every promise was kept" in done.stdout
    [found] = json.loads(file.read_text())
    assert found["violations"] == []
    assert len(found["faults"]) == 2
    assert all(fault["in_flight"] >= 1000 for fault in found["faults"])
    assert all(fault["recovery"] is not None for fault in found["faults"])
    assert any(fault["point"] for fault in found["faults"])
    assert found["predictions"] + found["dead_letters"] >= found["inputs"] > 5000
    assert found["malformed"] > 100
    assert processes_of(tmp_path) == []

"""What the figures were taken on: a figure without its machine says nothing."""

from __future__ import annotations

import datetime as dt
import os
import platform
from importlib.metadata import version
from pathlib import Path

LIBRARIES = (
    "streamserve", "onnxruntime", "confluent-kafka", "pyarrow", "pyruhvro", "numpy", "redis", "faust-streaming",
    "fastavro",
)  # fmt: skip


def machine() -> dict[str, str]:
    """Day, processor, memory, system and versions."""
    return {
        "day": dt.datetime.now(dt.UTC).date().isoformat(),
        "cpu": f"{os.cpu_count()} x {_line('/proc/cpuinfo', 'model name') or platform.processor()}",
        "memory": f"{int((_line('/proc/meminfo', 'MemTotal') or '0').split()[0]) / 2**20:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def _line(file: str, name: str) -> str:
    lines = Path(file).read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")

"""A lane in a process of its own: `python -m fuzz.worker TASK`. The task and all that it tells are lines of JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fuzz import lane
from fuzz.batches import load


def tell(message: dict[str, object]) -> None:
    print(json.dumps(message), flush=True)


def replay(task: lane.Task) -> bool:
    """One batch from a file: every promise, and every input by itself."""
    batch = load(Path(task.replay))
    stream = lane.Streams(task).get(batch.stream)
    tell({"kind": "begin", "number": batch.number})
    with lane.Watchdog(task.limit):
        found = lane.failure(stream, batch, whole=True)
    if found is None:
        about = {"stream": stream.name, "number": batch.number, "counts": lane.failure.counts, "seconds": 0.0}
        tell({"kind": "end", **about, "rss": lane.rss_mib()})
        return True
    promise, row, what = found
    about = {"promise": promise, "row": row, "what": what, "file": task.replay}
    tell({"kind": "finding", "stream": batch.stream, "number": batch.number, **about})
    return False


def main(text: str) -> int:
    task = lane.Task(**json.loads(text))
    held = replay(task) if task.replay else lane.run(task, tell)
    tell({"kind": "over"})
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

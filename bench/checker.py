"""The checker, a process of its own: notes when each event's prediction arrives.

    python -m bench.checker BOOTSTRAP TOPIC WARM COUNT OUTPUT DEADLINE_S

Says "ready" when it stands at the topic's end. A fetch's records are stamped together, as they are handed over. Writes
the arrivals, nanoseconds of the monotonic clock, by event number; prints what it cost as JSON.
"""

from __future__ import annotations

import gc
import json
import sys
import time

import numpy as np

from bench.stand import MOST, Stand, at_the_end
from streamserve.adapters.client_io import Fill

# What is there at once; an empty topic is looked at anew after this time
FILL = Fill(wait=0.1, rows=1, seconds=0.0, max_rows=MOST, max_bytes=1 << 26)


def collect(stand: Stand, warm: int, count: int, deadline_s: float) -> tuple[np.ndarray, dict[str, float]]:
    """The first arrival of each event, 0 for those that did not come; what that cost, and how many came twice."""
    arrivals, seen, taken, repeated = np.zeros(count, np.int64), 0, 0, 0
    limit, cpu = time.monotonic() + deadline_s, time.process_time()
    while seen < count and time.monotonic() < limit:
        for batch in stand.reader.read(FILL):
            now, keys = time.monotonic_ns(), batch.keys
            numbers = np.frombuffer(keys.buffers()[2], "<i8", len(keys))
            fresh = numbers[arrivals[numbers] == 0]
            arrivals[fresh] = now
            if seen < warm <= seen + len(fresh):
                cpu, taken = time.process_time(), 0
            seen, taken, repeated = seen + len(fresh), taken + len(fresh), repeated + len(numbers) - len(fresh)
    spent = (time.process_time() - cpu) / max(taken, 1) * 1e6
    return arrivals, {"cpu_us": spent, "missing": float(count - seen), "repeated": float(repeated)}


def main(bootstrap: str, topic: str, warm: int, count: int, output: str, deadline_s: float) -> dict[str, float]:
    stand = at_the_end(bootstrap, topic, "bench-checker")
    gc.freeze()
    gc.disable()
    print("ready", flush=True)
    arrivals, about = collect(stand, warm, count, deadline_s)
    stand.close()
    np.save(output, arrivals)
    return about


if __name__ == "__main__":
    given = sys.argv[1:]
    print(json.dumps(main(given[0], given[1], int(given[2]), int(given[3]), given[4], float(given[5]))))

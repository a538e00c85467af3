"""The observer: a thread that reads predictions as any consumer would, and notes when each comes."""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Iterable
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from chaos.broker import Broker
from chaos.columns import Ints
from chaos.reading import decode_all, positions

MOST = 5_000
WAIT_S = 0.05


class Observer:
    """Arrivals by source partition. Times are nanoseconds since 1970: those of workers are compared with ours."""

    def __init__(self, broker: Broker, topic: str, schema_id: int, partitions: int) -> None:
        self._broker, self._topic, self._schema_id, self._partitions = broker, topic, schema_id, partitions
        self._parts: list[tuple[int, Ints, Ints]] = []  # arrival, source partitions, times of scoring
        self._stop = threading.Event()
        self.failure: BaseException | None = None
        self.count = 0
        self._thread = threading.Thread(target=self._main, name="observer", daemon=True)

    def start(self) -> None:
        """From the topic's beginning."""
        self._thread.start()

    def stop(self) -> None:
        """Returns when the thread has ended."""
        self._stop.set()
        self._thread.join()

    def _main(self) -> None:
        try:
            consumer = self._broker.assigned(self._topic)
            while not self._stop.is_set():
                messages = [m for m in consumer.consume(MOST, WAIT_S) if m.error() is None]
                if messages:
                    now = time.time_ns()
                    table = decode_all([m.value() for m in messages], self._schema_id)
                    scored = table.column("scored_at").to_numpy().astype("datetime64[ms]").astype(np.int64)
                    self._parts.append((now, positions(table.column("prediction_id"))[0], scored))
                    self.count += len(messages)
            consumer.close()
        except BaseException as error:  # noqa: BLE001  (the runner looks here, and raises it)
            self.failure = error

    def recovery_s(self, since_ns: int, partitions: Iterable[int]) -> float | None:
        """Until each of these partitions had a prediction that was scored after `since_ns`, seconds; None: not yet."""
        wanted = np.zeros(self._partitions, np.bool_)
        wanted[list(partitions)] = True
        for arrived, places, scored in self._parts[bisect_right(self._parts, since_ns, key=itemgetter(0)) :]:
            wanted[_after(places, scored, since_ns)] = False
            if not wanted.any():
                return (arrived - since_ns) / 1e9
        return None


def _after(places: Ints, scored: Ints, since_ns: int) -> NDArray[np.int64]:
    """Partitions with a prediction that was surely scored later: its time is cut to milliseconds."""
    return places[scored * 1_000_000 > since_ns]

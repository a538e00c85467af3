"""The worker's pages: /live (the process runs), /ready (it serves), /health (how well), /metrics (Prometheus)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from streamserve.adapters.batch_topic import App
from streamserve.features.breaker import State, StoreReading

OK, UNAVAILABLE = 200, 503


@dataclass
class Health:
    """What /ready and /health say. `why` is shown to whoever asks while it is not ready.

    store: what is known of the feature store; None in a topology without views.
    """

    ready: bool = False
    why: str = "starting or stopping"
    store: Callable[[], StoreReading] | None = None

    def readiness(self) -> dict[str, object]:
        return {"ready": self.ready, **({} if self.ready else {"why": self.why})}

    def page(self) -> dict[str, object]:
        """A store that fails does not make a worker unready: it goes on, with defaults, and this says so."""
        found = self.readiness()
        if self.store is not None:
            now = self.store()
            well = now.state is State.CLOSED
            found["store"] = {"breaker": now.state.value, **({} if well else {"why": now.why, "features": "defaults"})}
        return found


def add_pages(app: App, health: Health, exposition: Callable[[], bytes], content_type: str) -> None:
    """content_type: of the exposition. Prometheus 3 takes none that does not name the format's version."""

    async def live(view: Any, request: Any) -> Any:  # noqa: ARG001  (Faust's view types)
        return view.json({"live": True})

    async def ready(view: Any, request: Any) -> Any:  # noqa: ARG001
        return view.json(health.readiness(), status=OK if health.ready else UNAVAILABLE)

    async def whole(view: Any, request: Any) -> Any:  # noqa: ARG001
        return view.json(health.page())

    async def metrics(view: Any, request: Any) -> Any:  # noqa: ARG001
        return view.bytes(exposition(), headers={"Content-Type": content_type})

    for path, page in (("/live", live), ("/ready", ready), ("/health", whole), ("/metrics", metrics)):
        app.page(path, name=path.strip("/"))(page)

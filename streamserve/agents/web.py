"""The worker's pages: /live (the process runs), /ready (it serves), /health (how well), /metrics (Prometheus)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from streamserve.adapters.batch_topic import App
from streamserve.features.breaker import State, StoreReading

OK, UNAVAILABLE = 200, 503


@dataclass
class Health:
    """What /ready and /health say.

    serving: between start and stop. trouble: asked at each look, why the worker does not get on; empty: it does. store:
    what is known of the feature store; None in a topology without views.
    """

    serving: bool = False
    trouble: Callable[[], str] = field(default=lambda: "")
    store: Callable[[], StoreReading] | None = None

    @property
    def why(self) -> str:
        """Why it is not ready; empty: it is."""
        return self.trouble() if self.serving else "starting or stopping"

    def readiness(self) -> dict[str, object]:
        why = self.why
        return {"ready": not why, **({"why": why} if why else {})}

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
        said = health.readiness()
        return view.json(said, status=OK if said["ready"] else UNAVAILABLE)

    async def whole(view: Any, request: Any) -> Any:  # noqa: ARG001
        return view.json(health.page())

    async def metrics(view: Any, request: Any) -> Any:  # noqa: ARG001
        return view.bytes(exposition(), headers={"Content-Type": content_type})

    for path, page in (("/live", live), ("/ready", ready), ("/health", whole), ("/metrics", metrics)):
        app.page(path, name=path.strip("/"))(page)

"""The worker's pages: /live (the process runs), /ready (it serves), /metrics (Prometheus)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from streamserve.adapters.batch_topic import App

OK, UNAVAILABLE = 200, 503


@dataclass
class Health:
    """What /ready says.

    serving: between start and stop. trouble: asked at each look, why the worker does not get on; empty: it does.
    """

    serving: bool = False
    trouble: Callable[[], str] = field(default=lambda: "")

    @property
    def why(self) -> str:
        """Why it is not ready; empty: it is."""
        return self.trouble() if self.serving else "starting or stopping"


def add_pages(app: App, health: Health, exposition: Callable[[], bytes], content_type: str) -> None:
    """content_type: of the exposition. Prometheus 3 takes none that does not name the format's version."""

    async def live(view: Any, request: Any) -> Any:  # noqa: ARG001  (Faust's view types)
        return view.json({"live": True})

    async def ready(view: Any, request: Any) -> Any:  # noqa: ARG001
        why = health.why
        return view.json({"ready": not why, **({"why": why} if why else {})}, status=UNAVAILABLE if why else OK)

    async def metrics(view: Any, request: Any) -> Any:  # noqa: ARG001
        return view.bytes(exposition(), headers={"Content-Type": content_type})

    for path, page in (("/live", live), ("/ready", ready), ("/metrics", metrics)):
        app.page(path, name=path.strip("/"))(page)

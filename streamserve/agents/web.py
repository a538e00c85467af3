"""The worker's pages: /live (the process runs), /ready (it serves), /metrics (Prometheus)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from streamserve.adapters.batch_topic import App

OK, UNAVAILABLE = 200, 503


@dataclass
class Health:
    """What /ready says. `why` is shown to whoever asks while it is not ready."""

    ready: bool = False
    why: str = "starting or stopping"


def add_pages(app: App, health: Health, exposition: Callable[[], bytes], content_type: str) -> None:
    """content_type: of the exposition. Prometheus 3 takes none that does not name the format's version."""

    async def live(view: Any, request: Any) -> Any:  # noqa: ARG001  (Faust's view types)
        return view.json({"live": True})

    async def ready(view: Any, request: Any) -> Any:  # noqa: ARG001
        status = OK if health.ready else UNAVAILABLE
        return view.json({"ready": health.ready, **({} if health.ready else {"why": health.why})}, status=status)

    async def metrics(view: Any, request: Any) -> Any:  # noqa: ARG001
        return view.bytes(exposition(), headers={"Content-Type": content_type})

    for path, page in (("/live", live), ("/ready", ready), ("/metrics", metrics)):
        app.page(path, name=path.strip("/"))(page)

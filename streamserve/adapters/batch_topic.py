"""Batch topics: Faust channels whose events are whole micro-batches.

Faust's own consumer costs about 80 us a message and commits past unfinished work; so the app runs without it, and an
agent iterates over a channel that our intake fills from its own thread. Public API of Faust alone.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import faust
from faust.app.base import BootStrategy
from faust.channels import Channel


class WithoutKafka(BootStrategy):
    """Agents, services and the web server; no Faust consumer, producer or tables."""

    enable_kafka = False
    enable_kafka_consumer = False
    enable_kafka_producer = False


class App(faust.App):
    BootStrategy = WithoutKafka


def make_app(name: str, *, web_host: str, web_port: int, datadir: str) -> App:
    """A Faust app that opens no connection to a broker. Its web server binds `web_host` alone."""
    return App(
        name,
        broker="kafka://not-used",
        web_host=web_host,
        web_bind=web_host,
        web_port=web_port or _free_port(web_host),
        datadir=datadir,
        autodiscover=False,
    )


def _free_port(host: str) -> int:
    """Faust's web server wants a number; the port is free when this returns."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


class BatchTopic(Channel[Any]):
    """A channel of batches that another thread fills. It holds what the intake's limit lets through."""

    def hand_over(self, batch: object, loop: asyncio.AbstractEventLoop) -> None:
        """Put a batch into the channel, from any thread; the intake's limit bounds what waits here."""
        value: Any = batch  # a channel's values need no event around them
        asyncio.run_coroutine_threadsafe(self.put(value), loop)


def batches(app: App, capacity: int) -> BatchTopic:
    return BatchTopic(app, maxsize=capacity)

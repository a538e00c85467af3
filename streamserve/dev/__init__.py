"""Local services for demo, tests and development: a real one-node Kafka and a real Redis.

A home is a folder; its services, their data and their logs live in `<home>/dev`. They need no Docker, but it runs
what can't run without, the data in its volumes then. Nothing here knows what streamserve does with them, and no
client library of theirs is imported.
"""

from streamserve.dev.lifecycle import Endpoints, ServiceStatus, down, reset, running, services, status, up

__all__ = ["Endpoints", "ServiceStatus", "down", "reset", "running", "services", "status", "up"]

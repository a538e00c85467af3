"""`streamserve explain`: one prediction, from its event to its score, computed again and compared."""

from __future__ import annotations

EARLIER_MS = 1000

"""Promise: an outage is told, and told again now and then, but does not flood the log."""

from __future__ import annotations

import logging

from streamserve.adapters.quiet import Repeats


def test_alike_messages_are_told_once_in_a_while_with_their_number(caplog):
    now = [0.0]
    log = logging.getLogger("test.quiet")
    log.addFilter(Repeats(every=30, clock=lambda: now[0]))
    with caplog.at_level(logging.INFO, "test.quiet"):
        for second in range(60):
            now[0] = float(second)
            log.error("FAIL [streamserve#consumer-1] [thrd:b:9/1]: b:9/1: Connect failed (after %dms)", second)
            log.error("FAIL [streamserve#producer-2] [thrd:b:9/1]: b:9/1: Connect failed (after %dms)", second)
        log.error("something else")
    assert [record.getMessage().partition("failed")[2] for record in caplog.records] == [
        " (after 0ms)",
        " (after 30ms) (59 more like it since)",
        "",
    ]
    assert caplog.records[-1].getMessage() == "something else"

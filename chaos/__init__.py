"""Chaos: what delivery promises, held against real faults on a real broker and a real Redis.

`make chaos` runs it in a checkout. Workers are killed, stopped, joined and retired in the midst of bursts, the broker
and Redis die and come back, and some kills land at exact places of a commit. Then everything is read again and every
input is looked for. The product knows nothing of it: faults come from outside, or through the launcher in `worker.py`.
"""

"""Drift, pure: references, panes and PSI windows. Empty so far: the counts that it needs pass the commit hooks."""

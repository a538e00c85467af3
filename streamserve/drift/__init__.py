"""Drift, pure: what a reference is, how windows are counted and compared with it, and when that is an alert."""

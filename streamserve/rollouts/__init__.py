"""Rollouts, pure: who scores what beyond stable (buckets, ramps, guardrails). Empty so far."""

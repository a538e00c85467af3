"""Rollouts, pure: who scores what beyond stable. So far the buckets of keys, and rules. No log comes in, no clock."""

"""The Faust agents, and the worker that they live in."""

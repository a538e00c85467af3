"""The same pipeline over recorded events, without a broker: golden sets, training matrices, loading versions."""

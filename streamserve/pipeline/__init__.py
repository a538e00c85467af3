"""The pipeline: decode, route, enrich, score, emit, one file a step."""

"""Features: the catalogue of a topology, its columns over a batch, the rows of its views."""

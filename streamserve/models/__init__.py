"""Model versions: manifest, registry, signature, and how a version's inputs are filled."""

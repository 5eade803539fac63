"""Build MDS shards from the samples of a source, in parallel and resumable."""

"""Pictures and text: where samples come from, how they are stored as MDS shards, and how they become packed batches."""

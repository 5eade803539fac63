"""Samples in MDS shards: schema, writing, folders and object stores, reading."""

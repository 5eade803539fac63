"""Samples of images and text: their sources, the MDS shards that store them, and the packed batches
that training reads.
"""

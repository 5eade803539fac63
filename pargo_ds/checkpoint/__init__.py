"""Checkpoints, which are whole or absent, with a manifest that describes their contents."""

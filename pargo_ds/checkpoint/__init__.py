"""Checkpoints: whole or absent, with a manifest that says what they hold."""

"""Composed scenes whose truth is known."""

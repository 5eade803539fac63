"""Captioners of our own, which ask no endpoint: detected boxes in a template, and a ParGo export."""

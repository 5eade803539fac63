"""Evaluation of an exported model: answers, benchmarks by their own rules, captions, and the page
that reports them.
"""

"""Evaluation of an exported model: answers, captions, and the page that reports them."""

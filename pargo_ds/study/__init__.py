"""A study: variants x seeds of one pair of run files, trained alike, asked the same questions, and
compared with intervals (docs/study.md).
"""

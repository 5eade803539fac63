"""Conversion of checkpoints between training and other formats; strict, written aside, then renamed."""

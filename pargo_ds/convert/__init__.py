"""Conversion of checkpoints between training and other formats. Converters refuse whatever does not
fit, and their output is whole or absent.
"""

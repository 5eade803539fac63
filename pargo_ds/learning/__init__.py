"""How a projector learns: short trials of one run file without DeepSpeed, swept over settings and
seeds.
"""

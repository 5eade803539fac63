"""Convert to and from torch_dist checkpoints of megatron-core."""

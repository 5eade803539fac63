"""megatron-core's torch_dist checkpoints, both ways."""

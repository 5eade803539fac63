"""Read checkpoints of DeepSpeed alone, without DeepSpeed."""

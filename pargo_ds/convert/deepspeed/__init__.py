"""DeepSpeed's own checkpoints, read without DeepSpeed."""

"""A training checkpoint -> a Hugging Face folder."""

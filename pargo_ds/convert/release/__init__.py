"""Convert the authors' release to a Hugging Face folder."""

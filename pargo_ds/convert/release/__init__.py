"""The authors' release -> a Hugging Face folder."""

"""Show what a data set holds and what a model sees of it."""

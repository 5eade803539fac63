"""First stage: sources and shards -> candidates -> what is captioned."""

"""Images -> captions of the whole and its parts -> filtered samples (ParGoCap)."""

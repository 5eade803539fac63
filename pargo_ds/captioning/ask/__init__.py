"""Second stage: selected images -> captions, by requests that are paid once."""

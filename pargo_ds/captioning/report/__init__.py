"""Fifth stage: what became of the images and the money, for people."""

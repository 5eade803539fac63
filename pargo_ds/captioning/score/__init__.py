"""Third stage: captions, and copies with planted faults -> scores by unlike scorers."""

"""Fourth stage: captions and scores -> what is kept, with the reasons against the rest."""

"""What is seen in real photographs by models that come as packages: things of COCO, and an NSFW score."""

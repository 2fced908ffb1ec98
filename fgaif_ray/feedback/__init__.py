"""AI feedback: facts extracted from sub-sentences, verified against the image, and turned into labels."""

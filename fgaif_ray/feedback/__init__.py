"""AI feedback: facts extracted from segments, verified against the image, and turned into labels."""

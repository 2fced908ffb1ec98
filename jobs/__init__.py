"""What a person submits: ``python -m jobs.NAME --config configs/X.yaml [--set section.key=value]``."""

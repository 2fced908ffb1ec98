"""Where the repository and the material beside it are."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds the packages."""
SHARED = ROOT.parent / "shared"
"""Public question files, where they are there."""

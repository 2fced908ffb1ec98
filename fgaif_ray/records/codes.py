"""The words and numbers that rows hold: fact types, label codes, and where a label comes from.

Label codes follow the reward model's classes: 0 absent (the segment holds no fact of the type), 1 consistent
(all of them hold in the image), 2 hallucinated (at least one does not; FGAIF section 3.2, "one wrong fact is enough"
is our reading).
"""

from typing import Final

FACT_TYPES: Final = ("existence", "attribute", "relation")
"""The kinds of atomic fact of a run that names none (see ``fact_types/``), and of folders that do not say theirs."""
NOVELTY_TYPE: Final = "novelty"
"""The type of what a response has not said before: it earns nothing, and takes from what repetitions earn."""

ABSENT: Final = 0
CONSISTENT: Final = 1
HALLUCINATED: Final = 2
CLASS_NAMES: Final = ("absent", "consistent", "hallucinated")

AI: Final = "ai"
HUMAN: Final = "human"
NOISE: Final = "noise"
LABEL_SOURCES: Final = (AI, HUMAN, NOISE)
"""Where a label comes from: the AI's feedback, a person, or a flip on purpose (see ``feedback/overrides.py``)."""

PROVIDED: Final = "given"
"""Stands for the model of a response that came with the data."""

"""What a policy says, measured: hallucination rates and coverage against a known truth, and POPE."""

from typing import Final

BEFORE: Final = "before"
"""The policy as it is."""
AFTER: Final = "after"
"""The aligned policy."""
POLICIES: Final = (BEFORE, AFTER)

SAMPLED: Final = "sampled"
"""Descriptions sampled at T=1."""
GREEDY: Final = "greedy"
"""Greedy descriptions."""
POPE: Final = "pope"
"""Greedy answers to POPE's questions."""

"""Measurements of a policy's answers: hallucination and coverage against a known truth, POPE, public benchmarks."""

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

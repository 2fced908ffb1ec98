"""Counts that say why a job has to stop end it with that sentence."""

import pytest

from actors.engine.block_counts import BlockCounts, until_fatal
from fgaif_ray.errors import UserError


def test_counts_pass_until_one_is_fatal() -> None:
    blocks = [BlockCounts(done=2), BlockCounts(done=1, rejected=1), BlockCounts(fatal="Stop."), BlockCounts(done=5)]
    counts = until_fatal(blocks)
    assert [next(counts), next(counts)] == blocks[:2]
    with pytest.raises(UserError, match=r"^Stop\.$"):
        next(counts)

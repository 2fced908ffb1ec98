"""The watch on a run's memory."""

from actors.cluster.peak_memory import PeakMemory


def test_a_run_shorter_than_the_interval_has_a_peak() -> None:
    with PeakMemory() as memory:
        pass
    assert memory.peak_gib > 0

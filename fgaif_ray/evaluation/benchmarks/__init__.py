"""Public hallucination benchmarks: readers of their official files, and scorers by their official rules.

This package ships no file of a benchmark. It reads the official files that users give, as they are. ``registry`` names
the benchmarks, each of which is one file; ``base`` has what they share.
"""

"""Adapters: other teams' trainers, rewarded by the reward service over HTTP.

One module per trainer: `trl`, `openrlhf`, `verl`, `skyrl`, `easyr1`. None of them imports its trainer. All but the
token placement of `skyrl` need httpx2, pydantic and Pillow alone, so that they live in the trainer's own environment.

An unavailable reward is an exception, or what the trainer documents for a masked one; never a zero.
"""

"""Checks of texts about images, for people who have no use for rewards.

image, text -> reward models, here or behind a URL -> ``ScoredResponse`` -> ``CheckedResponse`` -> JSON
                                                                                           `---> a terminal
"""

"""Experiments: named variants of one configuration, run over several seeds and compared.

``variants`` defines what is compared, ``sharing`` what runs have in common. ``metrics`` reads a finished run,
``results`` compares, ``plots`` and ``page`` show. ``jobs.experiment`` runs it all.
"""

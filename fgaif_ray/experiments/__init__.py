"""Experiments: named variants of one configuration, run over several seeds and compared.

``variants`` says what is compared, ``sharing`` what runs have in common, ``figures`` reads a finished run,
``statistics`` and ``results`` compare, ``plots`` and ``page`` show. ``jobs.experiment`` runs it all.
"""

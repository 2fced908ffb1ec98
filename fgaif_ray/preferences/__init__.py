"""Preferences: pairs of labelled responses, or of single segments, of which one is better by the labels.

``worth.py`` says what labels are worth, and ``pairs.py`` makes the pairs of ``feedback/``. They are written for other
trainers (``formats.py``, ``folder.py``; `fgaif export preferences`) or learnt from (``encoding.py``, ``draws.py``,
``loss.py``, ``step.py``; `fgaif align` with ``align.algorithm: dpo`` or ``c-dpo``).
"""

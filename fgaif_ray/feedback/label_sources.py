"""Inputs of labels beside settings and verdicts: people's labels, noise, and the facts of a calibration."""

import hashlib
from collections.abc import Sequence
from typing import Any

from fgaif_ray.audit.labelled_facts import read_labelled_facts
from fgaif_ray.config import Config, VerifierConfig
from fgaif_ray.feedback.overrides import Overrides
from fgaif_ray.storage import Stage, stages
from fgaif_ray.storage.stages import LabelSources


def label_sources(config: Config) -> LabelSources:
    """Read them.

    Raises:
        UserError: a file of human labels or labelled facts cannot be used.
    """
    second, types = config.label.second_verifier, config.run.type_names
    return LabelSources(
        Overrides.load(config.label, types).key(),
        threshold_key(config.label.verifier, types),
        None if second is None else threshold_key(second, types),
    )


def feedback_stages(config: Config) -> tuple[Stage, Stage]:
    """Return the stages of labelled and of rejected responses.

    Raises:
        UserError: the responses have not been sampled, or human labels or labelled facts cannot be used.
    """
    sources = label_sources(config)
    return stages.feedback(config, sources), stages.feedback_rejected(config, sources)


def threshold_key(verifier: VerifierConfig, types: Sequence[str]) -> Any:
    """Return the thresholds' part of a stage's fingerprint; it is equal where the same are used.

    Raises:
        UserError: the labelled facts cannot be read.
    """
    calibration = verifier.calibration
    if calibration is None:
        values = set(verifier.threshold.values())
        return values.pop() if len(values) == 1 else verifier.threshold
    facts = read_labelled_facts(calibration.path, types)
    content = [(fact.image, fact.text, fact.type, fact.consistent, fact.weight) for fact in facts]
    digest = hashlib.sha256(repr(content).encode(errors="surrogatepass")).hexdigest()
    return [digest, "balanced_accuracy", True]  # once keys: what is maximised, and whether for each type

"""Thresholds of the verifiers: calibrated on a labelled set where the configuration names one, before any labelling.

The verified set and its metrics are a stage of their own, `<run.dir>/calibration/`, so that they are had once and every
attempt at labelling uses the same thresholds.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from fgaif_ray import storage
from fgaif_ray.audit.calibration import Facts, calibrate
from fgaif_ray.audit.labelled_facts import LabelledFact, read_labelled_facts
from fgaif_ray.config import CalibrationConfig, Config, VerifierConfig
from fgaif_ray.errors import find_user_error
from fgaif_ray.feedback.label_sources import threshold_key
from fgaif_ray.progress import Progress, say
from fgaif_ray.records import MORE_IMAGES
from fgaif_ray.storage import stages
from fgaif_ray.tables import estimate_cell, table_lines

STAGES: Final = {"verifier": stages.CALIBRATION, "second_verifier": stages.SECOND_CALIBRATION}
FIGURES_FILE: Final = "calibration.json"
VERIFIED_FACTS_SCHEMA: Final = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False),
        MORE_IMAGES,
        pa.field("fact", pa.string(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("consistent", pa.bool_(), nullable=False),  # the truth
        pa.field("weight", pa.float64(), nullable=False),
        pa.field("p_consistent", pa.float32(), nullable=False),
    ]
)
_COLUMNS: Final = (
    ("at_half", "at 0.5"),
    ("cross_validated", "calibrated, cross-validated"),
    ("fitted", "calibrated, on the set itself"),
)


def find_thresholds(config: Config, which: str = "verifier") -> dict[str, float]:
    """The thresholds of one verifier by fact type; a calibration that is not there yet is made.

    Args:
        config: the configuration.
        which: ``"verifier"`` or ``"second_verifier"``.

    Raises:
        UserError: the labelled set, one of its images or the verifier cannot be used.
    """
    verifier: VerifierConfig = getattr(config.label, which)
    if verifier.calibration is None:
        return dict(verifier.threshold)
    stage = stages.calibration(config, STAGES[which], verifier, threshold_key(verifier, config.run.type_names))
    if not stage.is_complete():
        _calibrate(config, verifier, stage)
    thresholds: dict[str, float] = storage.read_json(storage.join(stage.folder, FIGURES_FILE))["thresholds"]
    return thresholds


def _facts_of(calibration: CalibrationConfig, types: Sequence[str]) -> list[LabelledFact]:
    return read_labelled_facts(calibration.path, types)


def _calibrate(config: Config, verifier: VerifierConfig, stage: storage.Stage) -> None:
    assert verifier.calibration is not None
    from actors.cluster.connect import connect
    from actors.labelling.fact_checker import check_verifier

    types = config.run.type_names
    labelled = _facts_of(verifier.calibration, types)
    check_verifier(verifier, config.data.chat_template_kwargs)
    p_consistent = np.zeros(len(labelled))
    with connect(config), Progress("calibrate", len(labelled), "facts") as progress:
        from actors.labelling.calibration import verify_facts

        try:
            for number, p_yes in verify_facts(verifier, labelled, config.data):
                p_consistent[number] = p_yes
                progress.advance()
        except Exception as error:
            raise (find_user_error(error) or error) from error
    facts = Facts(
        images=[fact.image for fact in labelled],
        types=[str(fact.type) for fact in labelled],
        consistent=np.array([fact.consistent for fact in labelled], dtype=bool),
        p_consistent=p_consistent,
        weights=np.array([fact.weight for fact in labelled]),
    )
    found = calibrate(facts, types=types)
    described = verifier.model_dump(include={"model", "prompt"}) | {"dtype": verifier.engine.dtype}
    rows = [
        fact.to_line() | {"image": fact.image, MORE_IMAGES.name: list(fact.more_images) or None, "p_consistent": p_yes}
        for fact, p_yes in zip(labelled, p_consistent.tolist(), strict=True)
    ]
    stage.begin(overwrite=True)  # verified again without a paid call
    storage.write_part(stage.partial, rows, VERIFIED_FACTS_SCHEMA, "facts")
    storage.write_json(storage.join(stage.partial, FIGURES_FILE), {"verifier": described} | found)
    stage.publish({"rows": len(rows), "thresholds": found["thresholds"]})
    say(calibration_lines(found, stage.folder)[0])


def calibration_lines(found: Mapping[str, Any], folder: str) -> list[str]:
    """What a calibration found, for people: the thresholds in a line, then a table of metrics."""
    thresholds = ", ".join(f"{name} {value:.3g}" for name, value in found["thresholds"].items())
    count = found["figures"]["all"]
    lines = [f"label: {count['facts']} labelled facts of {count['images']} images give the thresholds {thresholds}."]
    rows = [["balanced accuracy", "facts", *(title for _, title in _COLUMNS), "calibration error"]]
    for name, part in found["figures"].items():
        cells = ["-" if part[how] is None else estimate_cell(part[how]["balanced_accuracy"]) for how, _ in _COLUMNS]
        rows.append([name, str(part["facts"]), *cells, estimate_cell(part["expected_calibration_error"])])
    lines += table_lines(rows)
    lines.append(f"({found['confidence']:.0%} intervals over images; accuracy and kappa are in {folder})")
    return lines

"""What a second verifier still has to judge."""

import json
from pathlib import Path

from actors.labelling.second_verifier import parts_left
from fgaif_ray import storage
from fgaif_ray.records import FACT_TYPES, feedback_schema


def test_a_second_pass_goes_on_with_the_parts_that_are_left(tmp_path: Path) -> None:
    row = dict.fromkeys(("sample_id", "image", "image_sha256", "prompt", "response", "model"), "x")
    row |= {"token_ids": None, "finish_reason": None, "segments": []}
    for name, annotator in (("done", {"second_verifier": {}}), ("left", {"verifier": {}})):
        rows = [row | {"annotator": json.dumps(annotator)}] * 3
        storage.write_part(str(tmp_path), rows, feedback_schema(FACT_TYPES), name)
    assert parts_left(str(tmp_path)) == [(storage.part_uri(str(tmp_path), "left"), 3)]

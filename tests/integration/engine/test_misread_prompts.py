"""Jobs whose engine reads an image as another number of tokens than the model's processor: one sentence, and no rows.

The processor's settings say that the tower makes a token more than it does, as those of some published checkpoints did;
vLLM goes by the tower.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.fake_openai import FakeOpenAI
from support.label_helpers import ANNOTATOR, BLOCK, KEY_VARIABLE, Rules, write_responses
from support.label_helpers import make_config as label_config
from support.sampling_runs import POLICY, write_images
from support.sampling_runs import make_config as sampling_config

from fgaif_ray import storage
from fgaif_ray.errors import UserError
from fgaif_ray.storage import stages
from jobs import label, sample

pytestmark = [pytest.mark.ray, pytest.mark.vllm]
EXPECTED = r"^{model}: the engine does not read {row} as the model's processor writes it, .* from position \d+ on "


def miscounting(checkpoint: Path, folder: Path) -> str:
    """A copy of a LLaVA whose processor writes a token more for each image."""
    shutil.copytree(checkpoint, folder)
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"num_additional_image_tokens": settings["num_additional_image_tokens"] + 1}))
    return str(folder)


def expected(model: str, row: str) -> str:
    return EXPECTED.format(model=re.escape(model), row=row)


@pytest.mark.usefixtures("ray_cluster")
def test_sampling_ends(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    model = miscounting(POLICY, tmp_path / "model")
    config: Any = sampling_config(tmp_path / "images", tmp_path / "run", model=model)
    with pytest.raises(UserError, match=expected(model, r"'Describe .*' about .*\.png")):
        sample.run(config)
    assert storage.read_manifest(config.run.dir, stages.RESPONSES) is None
    assert not storage.list_parts(storage.join(config.run.dir, "responses.partial"))


@pytest.mark.usefixtures("ray_cluster")
def test_labelling_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "key")
    model = miscounting(ANNOTATOR, tmp_path / "model")
    with FakeOpenAI(Rules()) as endpoint:
        config = label_config(tmp_path / "run", endpoint.url, images=2 * BLOCK)
        verifier = config.label.verifier.model_copy(update={"model": model})
        config = config.model_copy(update={"label": config.label.model_copy(update={"verifier": verifier})})
        write_responses(config)
        with pytest.raises(UserError, match=expected(model, r"the fact '.*' about .*\.png")):
            label.run(config)
    assert storage.read_manifest(config.run.dir, stages.FEEDBACK) is None
    assert not storage.list_parts(storage.join(config.run.dir, "feedback.partial"))

"""Models counted from their configurations alone, against published sizes and against real tensors."""

import json
from pathlib import Path

import pytest
import torch
from support.official_llava import config_7b, config_13b, write_config
from support.paths import ROOT

from fgaif_ray.cluster.accelerators import MIB, accelerator_of, gpu_bytes
from fgaif_ray.cluster.model_sizes import UncountableModelError, model_size
from fgaif_ray.cluster.node_types import read_cluster_file
from fgaif_ray.vlm.backbone import load_backbone

CHECKPOINTS = ROOT / "fgaif_ray/shapes/checkpoints"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def test_llava_1_5_7b_has_its_published_size(folder: Path) -> None:
    size = model_size(write_config(folder / "7b", config_7b()))
    assert size.parameters == 7_063_427_072
    assert size.cache_bytes_per_token("float16") == 2 * 32 * 32 * 128 * 2 == 524_288
    assert (size.image_tokens, size.patches, size.positions, size.loaded_dtype("auto")) == (576, 577, 4096, "float16")


def test_llava_1_5_13b_has_its_published_size(folder: Path) -> None:
    size = model_size(write_config(folder / "13b", config_13b()))
    assert size.parameters == 13_351_494_656
    assert size.cache_bytes_per_token("bfloat16") == 2 * 40 * 40 * 128 * 2 == 819_200


def test_adapters_of_the_7b_model_are_counted_by_hand(folder: Path) -> None:
    size = model_size(write_config(folder / "7b", config_7b()))
    each_layer = 4 * 64 * (4096 + 4096) + 3 * 64 * (4096 + 11008)
    assert size.adapter_parameters(64) == 32 * each_layer == 159_907_840
    assert size.adapter_parameters(64, ["q_proj"]) == 32 * 64 * (4096 + 4096)


def test_four_bits_pack_the_linear_layers_of_the_decoder_alone(folder: Path) -> None:
    size = model_size(write_config(folder / "7b", config_7b()))
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert size.linear_parameters == linear
    saved = size.weight_bytes("bfloat16") - size.weight_bytes("bfloat16", "4bit")
    assert saved == pytest.approx(linear * (2 - 0.5 - 1 / 64 - 1 / 4096), abs=2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["policy", "annotator"])
def test_counted_bytes_are_those_of_the_loaded_model(name: str, dtype: str) -> None:
    model = load_backbone(str(CHECKPOINTS / name), dtype).model
    held = sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])
    assert model_size(str(CHECKPOINTS / name)).weight_bytes(dtype) == held


def test_grouped_queries_make_a_smaller_cache(tmp_path: Path) -> None:
    config = config_7b()
    config["text_config"] |= {"num_key_value_heads": 8, "num_hidden_layers": 2}
    size = model_size(write_config(tmp_path, config))
    assert size.cache_bytes_per_token("float16") == 2 * 2 * 8 * 128 * 2


def test_a_model_without_images_is_counted(tmp_path: Path) -> None:
    text = config_7b()["text_config"] | {"num_hidden_layers": 1}
    size = model_size(write_config(tmp_path, text))
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    assert size.parameters == 2 * 32064 * 4096 + layer + 4096
    assert (size.image_tokens, size.vision, len(size.linear_layers)) == (0, None, 7)


def test_an_engine_halves_float32_where_it_may_choose() -> None:
    size = model_size(str(CHECKPOINTS / "policy"))
    assert size.loaded_dtype("auto") == "float32"
    assert (size.engine_dtype("auto"), size.engine_dtype("float32")) == ("bfloat16", "float32")


def test_a_model_that_is_not_here_says_what_makes_it_countable() -> None:
    with pytest.raises(UncountableModelError, match=r"^org/name is not on this machine; `hf download org/name config"):
        model_size("org/name")


@pytest.mark.parametrize("kind", ["no-such-model", "clip"])
def test_what_cannot_be_built_is_a_phrase(tmp_path: Path, kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(UncountableModelError) as error:
        model_size(str(tmp_path))
    assert "\n" not in str(error.value) and str(error.value).startswith(str(tmp_path))


def test_nothing_is_built_in_memory(folder: Path) -> None:
    before = torch.tensor(0).device
    model_size.cache_clear()
    model_size(write_config(folder / "7b", config_7b()))
    assert torch.tensor(0).device == before  # the meta device was left again


@pytest.mark.parametrize(
    ("name", "mib"),
    [
        ("g6e.12xlarge", 46068),
        ("p4de.24xlarge", 81920),
        ("a2-highgpu-4g", 40960),
        ("a3-highgpu-8g", 81559),
        ("g2-standard-48", 23034),
        ("H200", 143771),
        ("nvidia-tesla-t4", 15360),
    ],
)
def test_machines_have_known_gpus(name: str, mib: int) -> None:
    assert gpu_bytes(name) == mib * MIB


@pytest.mark.parametrize("name", [None, "m6i.2xlarge", "A100", "mine"])
def test_what_is_not_known_is_not_guessed(name: str | None) -> None:
    assert gpu_bytes(name) is None


def test_a_label_goes_before_the_machine_and_accelerators_are_found() -> None:
    assert accelerator_of({"ray.io/accelerator-type": "L4"}, {"InstanceType": "g6e.4xlarge"}) == "L4"
    assert accelerator_of({"ray.io/accelerator-type": "A100"}, {"InstanceType": "p4d.24xlarge"}) == "p4d.24xlarge"
    url = "projects/p/zones/z/acceleratorTypes/nvidia-l4"
    assert accelerator_of({}, {"machineType": "n1-standard-8", "guestAccelerators": [{"acceleratorType": url}]}) == (
        "nvidia-l4"
    )
    assert accelerator_of({}, {"nodeSelector": {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}}) == (
        "nvidia-h100-80gb"
    )


@pytest.mark.parametrize(("file", "known"), [("cluster.yaml", 46068), ("deploy/gcp.yaml", 40960)])
def test_shipped_clusters_have_gpus_of_known_memory(repository: Path, file: str, known: int) -> None:
    types = {one.name: one for one in read_cluster_file(repository / file).node_types}
    assert {gpu_bytes(types[name].accelerator) for name in ("inference", "training")} == {known * MIB}
    assert gpu_bytes(types["head"].accelerator) is None

"""A model that cannot be used is told in one of three sentences, by everybody who would load it."""

import copy
import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from support.families import FAMILIES, build
from support.paths import ROOT

from actors.engine.openai_server import start_openai_server
from actors.engine.start import start_engine
from fgaif_ray.config import EngineConfig
from fgaif_ray.errors import BrokenFileError, UserError
from fgaif_ray.vlm.backbone import load_backbone
from fgaif_ray.vlm.checkpoint import TESTED_MODEL_TYPES, check_adapter, check_checkpoint, check_vision_model
from fgaif_ray.vlm.front_end import load_front_end
from fgaif_ray.vlm.merging import write_merged

CHECKPOINTS = ROOT / "fgaif_ray" / "shapes" / "checkpoints"
WEIGHTS = "model.safetensors"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def cut_in_header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def not_json(file: Path) -> None:
    file.write_bytes(b"\xff{")


def other_json(file: Path) -> None:
    file.write_text('{"a": 1}')


def other_values(file: Path) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"text_config": {"hidden_size": "wide"}}))


def other_width(file: Path) -> None:
    settings = json.loads(file.read_text())
    settings["text_config"]["intermediate_size"] *= 2
    file.write_text(json.dumps(settings))


def more_layers(file: Path) -> None:
    settings = json.loads(file.read_text())
    settings["text_config"]["num_hidden_layers"] += 1
    file.write_text(json.dumps(settings))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CHECKPOINTS / "annotator", tmp_path / "model"))


BROKEN = [
    (WEIGHTS, Path.unlink),
    (WEIGHTS, empty),
    (WEIGHTS, cut_in_header),
    (WEIGHTS, cut),
    (WEIGHTS, not_json),
    ("config.json", Path.unlink),
    ("config.json", not_json),
    ("tokenizer.json", Path.unlink),
    ("tokenizer.json", not_json),
    ("processor_config.json", Path.unlink),
    ("processor_config.json", cut_in_header),
]


@pytest.mark.parametrize(("name", "damage"), BROKEN, ids=lambda part: getattr(part, "__name__", part))
def test_a_broken_file_is_named(model: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(model / name)
    with pytest.raises(BrokenFileError, match="broken: ") as caught:
        check_checkpoint(str(model))
    assert caught.value.file == str(model / name)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 4967\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>" + b"x" * 5000 + b"</body></html>"


@pytest.mark.parametrize(("content", "said"), [(LFS, "Git LFS"), (PAGE, "HTML page")], ids=["LFS", "HTML"])
@pytest.mark.parametrize(
    "name", [WEIGHTS, "config.json", "tokenizer.json", "processor_config.json", "chat_template.jinja"]
)
def test_what_a_download_left_in_place_of_a_file_is_named(model: Path, name: str, content: bytes, said: str) -> None:
    (model / name).write_bytes(content)
    with pytest.raises(BrokenFileError, match=said) as caught:
        check_checkpoint(str(model))
    assert caught.value.file == str(model / name)


@pytest.mark.parametrize("header", [b'{"a": 1' + b" " * 100, b"[" * 100_000], ids=["open", "deep"])
def test_a_header_that_is_no_header_is_named(model: Path, header: bytes) -> None:
    (model / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(BrokenFileError, match="not a whole safetensors file"):
        check_checkpoint(str(model))


def test_a_header_of_a_gigabyte_is_not_read(model: Path) -> None:
    with open(model / WEIGHTS, "wb") as file:
        file.write((1 << 30).to_bytes(8, "little"))
        file.truncate(2 << 30)  # takes no space
    tracemalloc.start()
    with pytest.raises(BrokenFileError, match="not a whole safetensors file"):
        check_checkpoint(str(model))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


@pytest.mark.parametrize(
    ("name", "damage", "named"),
    [
        ("tokenizer.json", other_json, "tokenizer.json"),
        ("processor_config.json", other_json, "processor_config.json"),
        ("config.json", other_values, "config.json"),
        ("config.json", other_width, WEIGHTS),
        ("config.json", more_layers, WEIGHTS),
    ],
)
def test_a_file_of_the_wrong_content_is_named(
    model: Path, name: str, damage: Callable[[Path], None], named: str
) -> None:
    damage(model / name)
    with pytest.raises(BrokenFileError) as caught:
        load_backbone(str(model))
    assert caught.value.file == str(model / named)


def test_files_that_are_not_the_models_may_lie_beside_it(model: Path) -> None:
    (model / "results.json").write_text("[1, 2]")
    (model / "optimizer.safetensors").write_bytes(b"")
    assert check_checkpoint(str(model)) == model


def test_a_missing_shard_is_named(model: Path) -> None:
    (model / WEIGHTS).unlink()
    (model / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(BrokenFileError) as caught:
        check_checkpoint(str(model))
    assert caught.value.file == str(model / "model-1.safetensors")


@pytest.mark.parametrize(
    "load",
    [
        load_front_end,
        load_backbone,
        lambda model: start_engine(model, EngineConfig()),
        lambda model: start_openai_server(model, "m", EngineConfig(), f"{model}.log"),
        lambda model: write_merged(model, f"{model}-adapter", f"{model}-merged"),
    ],
    ids=["chat", "backbone", "engine", "server", "merging"],
)
def test_everybody_who_loads_a_model_names_its_broken_file(model: Path, load: Callable[[str], object]) -> None:
    cut(model / WEIGHTS)
    with pytest.raises(BrokenFileError) as caught:
        load(str(model))
    assert caught.value.file == str(model / WEIGHTS)


@pytest.mark.parametrize(
    ("name", "download"),
    [("nobody/no-such-model", "nobody/no-such-model"), ("/no/such/folder", "llava-hf/llava-1.5-7b-hf")],
)
def test_a_model_that_is_not_there_can_be_downloaded(name: str, download: str) -> None:
    with pytest.raises(UserError, match=f"{name} is not a folder here and not downloaded.*`hf download {download}`"):
        check_checkpoint(name)


def test_weights_that_are_pickled_are_not_supported(model: Path) -> None:
    (model / WEIGHTS).rename(model / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"is not supported \(its weights are not safetensors\)"):
        check_checkpoint(str(model))


def test_a_model_without_a_chat_template_is_not_supported(model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"is not supported \(it has no chat template"):
        load_front_end(str(model))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_that_no_test_covers_has_to_be_allowed(name: str, tmp_path: Path) -> None:
    model, family = str(build(name, tmp_path)), FAMILIES[name].model_type
    assert check_vision_model(model, allow_untested=True) == tmp_path
    if family in TESTED_MODEL_TYPES:
        assert check_vision_model(model, allow_untested=False) == tmp_path
        return
    sentence = (
        rf"{model} is of the family '{family}', .*`fgaif check-model {model}`.* set policy\.allow_untested=true\.$"
    )
    with pytest.raises(UserError, match=sentence):
        check_vision_model(model, allow_untested=False)


def test_every_family_that_is_called_tested_has_a_checkpoint_for_the_tests() -> None:
    assert set(TESTED_MODEL_TYPES) <= {family.model_type for family in FAMILIES.values() if family.template_file}


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("damage", [Path.unlink, empty, cut_in_header])
def test_a_broken_adapter_is_named(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    (tmp_path / "adapter_config.json").write_text(" " * 100 + '{"r": 4}')
    shutil.copy(CHECKPOINTS / "annotator" / WEIGHTS, tmp_path / "adapter_model.safetensors")
    assert check_adapter(str(tmp_path)) == 4
    damage(tmp_path / name)
    with pytest.raises(BrokenFileError) as caught:
        check_adapter(str(tmp_path))
    assert caught.value.file == str(tmp_path / name)


def test_the_message_survives_its_way_from_a_worker() -> None:
    """Pickle takes an exception apart as copy does."""
    error = BrokenFileError("a/b", "it is cut short", "write it again")
    assert str(copy.copy(error)) == "broken: a/b (it is cut short): write it again."

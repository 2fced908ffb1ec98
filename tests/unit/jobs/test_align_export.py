"""The aligned model as a checkpoint of its own."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.paths import ROOT

from fgaif_ray import storage
from fgaif_ray.config import Config, LoRAOptions, load_config
from fgaif_ray.errors import UserError
from fgaif_ray.rl.policy import PolicyModel
from fgaif_ray.vlm.backbone import load_backbone
from jobs.export import export_merged

CHECKPOINT = str(ROOT / "fgaif_ray/shapes/checkpoints/policy")
PROMPTS, RESPONSES = ["Describe it.", "What is it?"], [[60, 61, 62, 63], [70, 71]]
IMAGES = [Image.new("RGB", (60, 60), shade) for shade in ("red", "white")]


def config_of(run: Path) -> Config:
    return load_config("configs/shapes.yaml", [f"run.dir={run}", f"policy.model={CHECKPOINT}"])


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A run with a published policy, and what that policy says of some tokens."""
    run = tmp_path_factory.mktemp("run")
    model = PolicyModel(load_backbone(CHECKPOINT, "float32"), LoRAOptions(rank=4, alpha=8))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in model.policy_parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        log_probs = model.log_probs(model.encode(PROMPTS, IMAGES, RESPONSES)).log_probs
    stage = storage.Stage(str(run), "policy", "any")
    stage.begin()
    model.save_policy(stage.partial)
    stage.publish({})
    return run, log_probs


def test_the_merged_model_is_the_policy(aligned: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    run, expected = aligned
    export_merged(config_of(run), str(tmp_path / "new" / "merged"))
    merged = PolicyModel(load_backbone(str(tmp_path / "new" / "merged"), "float32"), LoRAOptions(rank=1))
    with torch.no_grad():
        found = merged.log_probs(merged.encode(PROMPTS, IMAGES, RESPONSES), "reference").log_probs
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert "merged in" in (tmp_path / "new" / "merged" / "README.md").read_text()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["merged"]


def test_a_folder_that_is_there_is_not_overwritten(aligned: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is there already"):
        export_merged(config_of(aligned[0]), str(tmp_path))


def test_without_an_aligned_policy_the_job_to_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"jobs\.align"):
        export_merged(config_of(tmp_path), str(tmp_path / "merged"))


def test_an_adapter_of_another_model_leaves_nothing(aligned: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    other = Path(CHECKPOINT).with_name("extractor")
    config = config_of(aligned[0]).model_copy(deep=True)
    policy = config.policy.model_copy(update={"model": str(tmp_path / "model")})
    (tmp_path / "model").mkdir()
    for path in other.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"broken: .*model\.safetensors"):
        export_merged(config.model_copy(update={"policy": policy}), str(tmp_path / "out" / "merged"))
    assert list((tmp_path / "out").iterdir()) == []


def small_update(run: Path, size: float) -> None:
    """Shrink the published policy's update to this share of itself."""
    file = run / "policy" / "adapter_model.safetensors"
    save_file({n: t * size if ".lora_B." in n else t for n, t in load_file(file).items()}, file)


def half_precision(folder: Path) -> str:
    """The checkpoint in bfloat16."""
    for path in Path(CHECKPOINT).iterdir():
        if path.name != "model.safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(Path(CHECKPOINT) / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, folder / "model.safetensors")
    return str(folder)


def test_an_update_that_rounding_swallows_is_refused_and_kept_in_float32(
    aligned: tuple[Path, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(aligned[0], run)
    small_update(run, 1e-4)
    (tmp_path / "base").mkdir()
    changes = [f"run.dir={run}", f"policy.model={half_precision(tmp_path / 'base')}"]
    config = load_config("configs/shapes.yaml", changes)
    with pytest.raises(UserError, match=r"Rounding would leave \d+% of the update .* --dtype float32"):
        export_merged(config, str(tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()
    export_merged(config, str(tmp_path / "merged"), "float32")
    assert "100% of the update" in capsys.readouterr().out
    assert load_backbone(str(tmp_path / "merged")).model.dtype == torch.float32


def test_an_unknown_dtype_is_refused(aligned: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--dtype is one of float32"):
        export_merged(config_of(aligned[0]), str(tmp_path / "new"), "int8")

"""The exported folder in TRL's own DPOTrainer: a step of it, on the policy of the embedded world."""

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from support.preference_data import preference_run
from support.reward_helpers import CHECKPOINT
from transformers import AutoModelForImageTextToText

from fgaif_ray.config import DPOConfig, LoRAOptions
from fgaif_ray.images import load_images
from fgaif_ray.preferences.encoding import encode_pairs
from fgaif_ray.preferences.pair import Form
from fgaif_ray.preferences.pairs import load_pairs
from fgaif_ray.preferences.step import DPOUpdater
from fgaif_ray.rl.policy import PolicyModel
from fgaif_ray.vlm.backbone import load_backbone
from fgaif_ray.vlm.group import LearnerGroup
from jobs.export import export_preferences

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of the trainer and what it brings along


@pytest.fixture(scope="module")
def trl() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("datasets", exc_type=ImportError)
        return pytest.importorskip("trl", exc_type=ImportError)


@pytest.mark.parametrize(
    ("form", "kind", "embed"),
    [("response", "jsonl", False), ("response", "parquet", True), ("segment", "parquet", False)],
)
def test_trl_takes_a_step_of_dpo(trl: Any, tmp_path: Path, form: Form, kind: str, embed: bool) -> None:
    import datasets

    config = preference_run(tmp_path / "made")
    export_preferences(config, str(tmp_path / "pairs"), form, "trl", kind, embed)
    loader = "json" if kind == "jsonl" else kind
    files = str(tmp_path / "pairs" / f"train.{kind}")
    rows = datasets.load_dataset(loader, data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    if kind == "jsonl":
        rows = rows.cast_column("images", datasets.List(datasets.Image()))
    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT, dtype=torch.float32)
    trainer = trl.DPOTrainer(
        model,
        args=trl.DPOConfig(
            output_dir=str(tmp_path / "out"),
            max_length=None,
            per_device_train_batch_size=len(rows),
            max_steps=1,
            learning_rate=1e-2,
            beta=0.5,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
        ),
        train_dataset=rows,
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    )
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
    trainer.train()
    [logged] = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert trainer.state.global_step == 1
    assert logged["loss"] == pytest.approx(math.log(2), abs=1e-4)  # policy and reference are the same yet
    after = dict(trainer.model.named_parameters())
    assert any(not torch.equal(value, after[name]) for name, value in before.items())
    with torch.no_grad():  # the same pairs again
        second = float(trainer.compute_loss(trainer.model, trainer.data_collator([*rows])))
    assert second < math.log(2)


@pytest.mark.parametrize("form", ["response", "segment"])
def test_on_the_same_tokens_the_loss_is_trls(trl: Any, tmp_path: Path, form: Form) -> None:
    """TRL is given our ids: of its own it makes others, since a template may open an answer in two ways."""
    import datasets

    own = PolicyModel(load_backbone(CHECKPOINT, "float32"), LoRAOptions(rank=4, alpha=8), critic=False)
    front_end = own.backbone.front_end
    config = preference_run(tmp_path / "made", front_end=front_end)
    pairs, _ = encode_pairs(load_pairs(config, form), front_end)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in own.policy_parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    own.save_policy(tmp_path / "adapter")
    images = [load_images(pair.images) for pair in pairs]
    group = LearnerGroup(torch.device("cpu"))
    expected = DPOUpdater(own, DPOConfig(beta=0.5), group, 1).update(pairs, images, 0)["dpo/loss"]
    assert abs(expected - math.log(2)) > 0.02

    rows, shown, masks = [], [], []
    for side in ("chosen", "rejected"):
        for pair, some in zip(pairs, images, strict=True):
            prompt = front_end.encode_prompt(pair.prompt, some)
            learnt = getattr(pair, side)
            rows.append(torch.tensor([*prompt.input_ids, *pair.context, *learnt]))
            masks.append(torch.tensor([0] * (len(prompt) + len(pair.context)) + [1] * len(learnt)))
            shown.append(prompt.image_inputs["pixel_values"])
    padded = {
        "input_ids": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
        "attention_mask": torch.nn.utils.rnn.pad_sequence(list(map(torch.ones_like, rows)), batch_first=True),
        "completion_mask": torch.nn.utils.rnn.pad_sequence(masks, batch_first=True),
        "pixel_values": torch.cat(shown),
    }
    export_preferences(config, str(tmp_path / "pairs"), kind="parquet")
    files = str(tmp_path / "pairs" / "train.parquet")
    exported = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    base = AutoModelForImageTextToText.from_pretrained(CHECKPOINT, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter")
    settings = {"report_to": [], "use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    args = trl.DPOConfig(output_dir=str(tmp_path / "out"), max_length=None, beta=0.5, **settings)
    trainer = trl.DPOTrainer(model, args=args, train_dataset=exported)
    with torch.no_grad():
        for name, value in trainer.model.named_parameters():
            if ".ref." in name and "lora_B" in name:
                value.zero_()  # TRL's reference is the adapter as it was given; ours has none
        found = float(trainer.compute_loss(trainer.model, padded))
    assert found == pytest.approx(expected, rel=1e-4)

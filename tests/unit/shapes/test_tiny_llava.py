"""The tiny LLaVAs: the layout of the published models, and the shipped checkpoints."""

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoProcessor, LlavaForConditionalGeneration

from fgaif_ray.shapes import packing, pretraining, tiny_llava
from fgaif_ray.shapes.oracle import read_claims
from fgaif_ray.shapes.probes import measure_extraction
from fgaif_ray.shapes.render import render
from fgaif_ray.shapes.scenes import draw_scene, draw_scenes
from fgaif_ray.shapes.turns import Turn, describe, name, proofreading_turn
from jobs.cli import main

CHECKPOINTS = [Path("fgaif_ray/shapes/checkpoints") / name for name in ("policy", "annotator", "extractor")]
TEXTS = ["There is a small red circle.", "USER: Describe this image in detail.\nASSISTANT:\n", "Yes", "No"]


@pytest.fixture(scope="module")
def processor() -> object:
    return tiny_llava.build_processor(tiny_llava.train_tokenizer(TEXTS * 20))


def test_a_written_checkpoint_loads_back_equal(processor: object, tmp_path: Path) -> None:
    model = tiny_llava.build_model(processor.tokenizer)  # type: ignore[attr-defined]
    tiny_llava.save_checkpoint(model, processor, tmp_path)  # type: ignore[arg-type]
    loaded, info = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_shipped_weights_have_the_published_names(folder: Path) -> None:
    with safe_open(folder / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
    assert "vision_tower.vision_model.embeddings.patch_embedding.weight" in names
    assert "language_model.model.embed_tokens.weight" in names
    assert "language_model.lm_head.weight" in names
    assert "multi_modal_projector.linear_1.weight" in names


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_shipped_checkpoints_name_no_place_of_their_making(folder: Path) -> None:
    assert "_name_or_path" not in json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_shipped_checkpoints_stay_small(folder: Path) -> None:
    assert sum(file.stat().st_size for file in folder.iterdir()) < 9_000_000


def test_the_shipped_extractor_knows_what_pronouns_stand_for() -> None:
    model = LlavaForConditionalGeneration.from_pretrained(CHECKPOINTS[2])
    found = measure_extraction(model, AutoProcessor.from_pretrained(CHECKPOINTS[2]), 20)
    assert found["sub-sentences that begin with a pronoun extracted exactly"] >= 0.9


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_shipped_tokenizers_write_any_text(folder: Path) -> None:
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    text = "Größe, 日本語 and 🙂\n"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_packed_conversations_equal_single_ones(processor: object) -> None:
    """Each conversation of a packed sequence gets the loss that it has alone: the block mask keeps them apart."""
    model = tiny_llava.build_model(processor.tokenizer).eval()  # type: ignore[attr-defined]
    packer = packing.Packer(processor)  # type: ignore[arg-type]
    scene = draw_scene("pretrain", 1)
    images = np.asarray(render(scene))[None]
    turns = [Turn("Describe this image in detail.", "There is a small red circle.")] * 2
    turns.append(Turn("Is it red?", "There is a circle."))
    with torch.no_grad():
        packed = packing.language_loss(model, packer.pack([turns], images))
        alone = [packing.language_loss(model, packer.pack([[turn]], images)) for turn in turns]
        sizes = torch.tensor([float((packer.pack([[turn]], images).labels != -100).sum()) for turn in turns])
    assert packed.item() == pytest.approx((torch.stack(alone) * sizes).sum().item() / sizes.sum().item(), abs=1e-4)


def test_of_a_text_that_is_judged_as_it_is_read_the_marks_alone_are_learnt(processor: object) -> None:
    packer = packing.Packer(processor)  # type: ignore[arg-type]
    turn = Turn("Check it.", "Yes No", ("A red circle,", " which is large."))
    batch = packer.pack([[turn]], np.asarray(render(draw_scene("pretrain", 1)))[None])
    learnt = (batch.labels[0] != packing.IGNORE).nonzero().squeeze(1)
    tokenizer = processor.tokenizer  # type: ignore[attr-defined]
    assert tokenizer.decode(batch.input_ids[0]).endswith("A red circle,Yes which is large.No")
    assert [tokenizer.decode(batch.input_ids[0, : place + 1])[-6:] for place in learnt] == ["ircle,", "large."]
    assert [tokenizer.decode(batch.labels[0, place]) for place in learnt] == ["Yes", "No"]


def test_marks_of_a_text_tell_the_truth_about_its_statements() -> None:
    for scene in draw_scenes("pretrain", range(40)):
        turn = proofreading_turn(scene, random.Random(3))
        text = "".join(turn.statements)
        ends = list(itertools.accumulate(map(len, turn.statements)))
        claims = read_claims(text, list(zip([0, *ends], ends, strict=False)))
        assert turn.answer.split() == ["Yes" if all(claim.holds(scene) for claim in of) else "No" for of in claims]


def test_rescaling_the_tower_changes_its_scale_only(processor: object) -> None:
    model = tiny_llava.build_model(processor.tokenizer).eval()  # type: ignore[attr-defined]
    packer, pool = packing.Packer(processor), pretraining.ScenePool(16, 0)  # type: ignore[arg-type]
    with torch.no_grad():
        model.model.vision_tower.pre_layrnorm.weight.mul_(5)
        pixels = packer.pixels(pool.images[:2])
        before = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
        pretraining.rescale_tower(model, packer, pool, 0)
        after = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
    assert after.std().item() == pytest.approx(1.0, abs=0.1)
    ratio = before.std() / after.std()
    assert torch.allclose(before, after * ratio, atol=0.02 * before.std().item())


def test_looking_up_answers_the_truth() -> None:
    for scene in draw_scenes("train", range(50)):
        turns = name(scene, random.Random(0))
        for turn in turns[1:7]:
            shape = turn.question.removeprefix("the ").removesuffix("?")
            item = scene.find(shape)
            assert turn.answer == (f"Yes {item.color} {item.size}" if item else "No")


def test_workers_change_nothing_about_the_batches(processor: object) -> None:
    packer, pool = packing.Packer(processor), pretraining.ScenePool(16, 0)  # type: ignore[arg-type]
    here = pretraining.batches(pool, packer, describe, 2, 7, 3)
    ahead = pretraining.batches(pool, packer, describe, 2, 7, 3, workers=2)
    for one, other in zip(here, ahead, strict=True):
        assert torch.equal(one.input_ids, other.input_ids)
        assert one.pixel_values is not None and other.pixel_values is not None
        assert torch.equal(one.pixel_values, other.pixel_values)


def test_the_whole_recipe_writes_the_checkpoints(tmp_path: Path) -> None:
    options = ["--steps=2", "--scenes=32", "--probes=2", "--threads=1"]
    assert main("pretrain-shapes", [f"--output={tmp_path}", *options]) == 0
    for model in ("policy", "annotator", "extractor"):
        assert (tmp_path / model / "model.safetensors").exists()
        assert "held-out scenes" in (tmp_path / model / "README.md").read_text()
    assert not (tmp_path / ".work").exists()

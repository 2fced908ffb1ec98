from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.paths import ROOT
from support.reward_helpers import offline_model, save_reward_models
from transformers import AutoModelForImageTextToText

from fgaif_ray.config import LoRAOptions
from fgaif_ray.errors import UserError
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rewards.encoding import EncodedItem, ScoringItem, encode_item
from fgaif_ray.rewards.files import kind_of, read_folder
from fgaif_ray.rewards.kinds import RewardKind
from fgaif_ray.rewards.model import RewardModel
from fgaif_ray.rewards.model_files import load_reward_model, save_reward_model
from fgaif_ray.vlm.backbone import Backbone, load_backbone

CHECKPOINT = str(ROOT / "fgaif_ray/shapes/checkpoints/annotator")
PROMPT = "Describe this image in detail."
SEGMENTS = ("A large red circle is here, ", "which is above a small blue square. ", "There is also a star.")
LORA = LoRAOptions(rank=4, alpha=8)


def picture(shade: int = 0) -> Image.Image:
    image = Image.new("RGB", (60, 60), (240, 240, 240 - shade))
    image.paste((200, 30 + shade, 30), (5, 5, 25, 30))
    return image


def perturb(model: RewardModel, fact_type: str) -> None:
    """Give adapter and head weights that matter, as training would."""
    generator = torch.Generator().manual_seed(FACT_TYPES.index(fact_type))
    with torch.no_grad():
        for parameter in model.trainable_parameters(fact_type):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(CHECKPOINT)


@pytest.fixture(scope="module")
def model() -> RewardModel:
    model = RewardModel(load_backbone(CHECKPOINT))
    for seed, fact_type in enumerate(FACT_TYPES):
        model.add(fact_type, LORA, seed)
        perturb(model, fact_type)
    return model


@pytest.fixture(scope="module")
def folders(model: RewardModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("rewards")
    for fact_type in FACT_TYPES:
        save_reward_model(model, fact_type, root / fact_type)
    return {fact_type: str(root / fact_type) for fact_type in FACT_TYPES}


def items(count: int = 5) -> list[ScoringItem]:
    return [ScoringItem([picture(7 * i)], PROMPT, SEGMENTS[: 1 + i % 3] * (1 + i // 3)) for i in range(count)]


# What the model reads


def ids_of(encoded: EncodedItem) -> list[int]:
    return [*encoded.prompt.input_ids, *encoded.text_ids]


def test_each_separator_follows_the_last_token_of_its_sub_sentence(backbone: Backbone) -> None:
    encoded = encode_item(backbone, ScoringItem([picture()], PROMPT, SEGMENTS))
    start = len(encoded.prompt)
    pieces = []
    for position in encoded.separators:
        pieces.append(backbone.front_end.tokenizer.decode(ids_of(encoded)[start:position]).strip())
        start = position + 1
    assert pieces == [segment.strip() for segment in SEGMENTS]


def test_separators_are_the_eos_token(backbone: Backbone) -> None:
    encoded = encode_item(backbone, ScoringItem([picture()], PROMPT, SEGMENTS))
    assert {ids_of(encoded)[position] for position in encoded.separators} == {backbone.eos_token_id}


def test_the_real_prompt_is_read(backbone: Backbone) -> None:
    prompts = ("What is here?", PROMPT)
    for prompt in prompts:
        found = encode_item(backbone, ScoringItem([picture()], prompt, SEGMENTS)).prompt
        assert found.input_ids == backbone.front_end.encode_prompt(prompt, [picture()]).input_ids


def test_special_tokens_spelled_out_in_a_response_stay_text(backbone: Backbone) -> None:
    encoded = encode_item(backbone, ScoringItem([picture()], PROMPT, ["An <image> and </s> and <s>."]))
    assert backbone.model.config.image_token_id not in encoded.text_ids
    assert encoded.text_ids.count(backbone.eos_token_id) == 1


@settings(deadline=None, max_examples=50)
@given(segments=st.lists(st.text(max_size=20), max_size=6))
def test_any_text_gives_one_separator_for_each_sub_sentence(segments: list[str], backbone: Backbone) -> None:
    encoded = encode_item(backbone, ScoringItem([picture()], PROMPT, segments))
    assert len(set(encoded.separators)) == len(segments)
    assert encoded.separators == sorted(encoded.separators)
    assert encoded.text_ids.count(backbone.eos_token_id) == len(segments)


# Scores


def test_scores_are_one_distribution_over_three_classes_for_each_sub_sentence(model: RewardModel) -> None:
    scored = model.score("existence", items())
    assert [scores.shape for scores in scored] == [(len(item.segments), 3) for item in items()]
    assert all(scores.dtype == np.float32 for scores in scored)
    np.testing.assert_allclose(np.concatenate(scored).sum(axis=1), 1, atol=1e-5)


def test_a_response_with_one_sub_sentence_is_scored_like_any_other(model: RewardModel) -> None:
    # The reference code squeezes its list to a scalar there, and the reward is always 0.
    [alone] = model.score("existence", [ScoringItem([picture()], PROMPT, SEGMENTS[:1])])
    [among] = model.score("existence", [ScoringItem([picture()], PROMPT, SEGMENTS)])
    assert alone.shape == (1, 3)
    np.testing.assert_allclose(alone[0], among[0], atol=1e-5)


def test_a_response_without_sub_sentences_has_no_score(model: RewardModel) -> None:
    scored = model.score("existence", [ScoringItem([picture()], PROMPT, []), *items(1)])
    assert [scores.shape for scores in scored] == [(0, 3), (1, 3)]


def test_no_responses_have_no_scores(model: RewardModel) -> None:
    assert model.score("existence", []) == []


@settings(deadline=None, max_examples=15)
@given(order=st.permutations(range(6)), size=st.integers(1, 6))
def test_a_score_is_the_same_alone_and_in_any_batch(order: list[int], size: int, model: RewardModel) -> None:
    all_items = items(6)
    chosen = [all_items[index] for index in order[:size]]
    for item, scores in zip(chosen, model.score("relation", chosen), strict=True):
        np.testing.assert_allclose(scores, model.score("relation", [item])[0], atol=1e-5)


def test_the_image_decides(model: RewardModel) -> None:
    scored = model.score("existence", [ScoringItem([picture(shade)], PROMPT, SEGMENTS) for shade in (0, 90)])
    assert not np.allclose(scored[0], scored[1], atol=1e-6)


def test_a_later_sub_sentence_does_not_change_an_earlier_score(model: RewardModel) -> None:
    first, second = model.score("attribute", [ScoringItem([picture()], PROMPT, SEGMENTS[:n]) for n in (2, 3)])
    np.testing.assert_allclose(first, second[:2], atol=1e-5)


def test_several_types_at_once_score_as_one_by_one(model: RewardModel) -> None:
    together = model.score_types(FACT_TYPES, items())
    for fact_type in FACT_TYPES:
        np.testing.assert_allclose(
            np.concatenate(together[fact_type]), np.concatenate(model.score(fact_type, items())), atol=1e-6
        )


def test_a_score_that_is_not_finite_is_an_error(backbone: Backbone) -> None:
    model = RewardModel(load_backbone(CHECKPOINT))
    model.add("existence", LORA, 0)
    with torch.no_grad():
        model.trainable_parameters("existence")[-1].fill_(torch.nan)
    with pytest.raises(ArithmeticError, match="not finite"):
        model.score("existence", items(1))


def test_a_response_longer_than_the_context_is_refused(model: RewardModel) -> None:
    with pytest.raises(ValueError, match="tokens"):
        model.score("existence", [ScoringItem([picture()], PROMPT, ["A red circle. "] * 1000)])


def test_an_unknown_type_is_refused(model: RewardModel) -> None:
    with pytest.raises(ValueError, match="'counting'"):
        model.score("counting", items(1))


# What is trained


def test_vision_tower_and_projector_hold_no_adapter(model: RewardModel) -> None:
    adapted = {name for name, _ in model.named_parameters() if "lora_" in name}
    assert adapted
    assert all(".language_model." in name for name in adapted)


def test_only_the_adapter_and_head_of_one_type_are_trained(model: RewardModel) -> None:
    trained = {id(parameter) for parameter in model.trainable_parameters("attribute")}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in trained}
    assert names
    assert all(name.startswith("heads.attribute.") or ".attribute." in name for name in names)
    requiring = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == {name for name in requiring if not name.startswith("heads.") or ".attribute." in name}


def test_a_new_adapter_leaves_the_backbone_unchanged_and_heads_are_seeded() -> None:
    models = [RewardModel(load_backbone(CHECKPOINT)) for _ in range(2)]
    for model in models:
        model.add("existence", LORA, seed=3)
    np.testing.assert_array_equal(*(np.concatenate(model.score("existence", items())) for model in models))


# Saved and loaded


def test_loaded_models_score_as_the_saved_ones(model: RewardModel, folders: dict[str, str]) -> None:
    loaded = load_reward_model(load_backbone(CHECKPOINT), folders)
    for fact_type in FACT_TYPES:
        np.testing.assert_array_equal(
            np.concatenate(loaded.score(fact_type, items())), np.concatenate(model.score(fact_type, items()))
        )


def test_three_reward_models_are_three_different_ones(folders: dict[str, str]) -> None:
    # The reference code loads the object reward model three times.
    model = load_reward_model(load_backbone(CHECKPOINT), folders)
    scores = [np.concatenate(model.score(fact_type, items())) for fact_type in FACT_TYPES]
    assert not any(np.allclose(scores[a], scores[b], atol=1e-3) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_the_folder_of_another_type_is_refused(folders: dict[str, str]) -> None:
    with pytest.raises(UserError, match="'existence', not of 'attribute'"):
        load_reward_model(load_backbone(CHECKPOINT), {"attribute": folders["existence"]})


def test_a_folder_without_a_reward_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no reward model: .*jobs\.train_rewards"):
        load_reward_model(load_backbone(CHECKPOINT), {"existence": str(tmp_path)})


def test_an_adapter_of_another_backbone_is_refused(
    folders: dict[str, str], tmp_path: Path, small_backbone: Callable[[Path], Backbone]
) -> None:
    with pytest.raises(UserError, match="score with the backbone it was trained on"):
        load_reward_model(small_backbone(tmp_path), {"existence": folders["existence"]})


@pytest.fixture
def small_backbone() -> Callable[[Path], Backbone]:
    """Makes a LLaVA with one decoder layer less than the checkpoint."""

    def make(folder: Path) -> Backbone:
        backbone = load_backbone(CHECKPOINT)
        backbone.model.model.language_model.layers = backbone.model.model.language_model.layers[:-1]
        backbone.front_end.path = str(folder)
        return backbone

    return make


def test_the_saved_folder_is_a_peft_adapter_of_the_backbone(model: RewardModel, folders: dict[str, str]) -> None:
    base = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
    loaded = PeftModel.from_pretrained(base, folders["existence"])
    expected = load_file(Path(folders["existence"]) / "adapter_model.safetensors")
    state = {name: value for name, value in loaded.state_dict().items() if "lora_" in name}
    assert {name.replace(".default.", "."): value for name, value in state.items()}.keys() == expected.keys()
    for name, value in state.items():
        torch.testing.assert_close(value, expected[name.replace(".default.", ".")])


def test_the_head_is_float32(folders: dict[str, str]) -> None:
    head = load_file(Path(folders["existence"]) / "head.safetensors")
    assert {name: (value.dtype, value.shape[:1]) for name, value in head.items()} == {
        "weight": (torch.float32, (3,)),
        "bias": (torch.float32, (3,)),
        "temperature": (torch.float32, ()),
    }


# Shared adapters


@pytest.mark.parametrize("kind", ["separate", "multitask", "coarse"])
def test_the_kind_is_told_from_the_files(kind: RewardKind, tmp_path: Path) -> None:
    folders = save_reward_models(tmp_path, kind=kind)
    assert kind_of({name: read_folder(folder) for name, folder in folders.items()}) == kind


def test_folders_with_the_same_adapter_share_it_in_memory_and_in_the_forward_pass(tmp_path: Path) -> None:
    model = offline_model(save_reward_models(tmp_path, kind="multitask"))
    passes: list[None] = []
    hook = model.backbone.decoder.register_forward_hook(lambda *_: passes.append(None))
    scores = model.score_types(FACT_TYPES, items())
    hook.remove()
    assert len(passes) == 1
    assert {name.split(".")[-2] for name, _ in model.named_parameters() if "lora_" in name} == {"existence"}
    joined = [np.concatenate(scores[fact_type]) for fact_type in FACT_TYPES]
    assert not any(np.allclose(joined[a], joined[b], atol=1e-3) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_a_folder_of_several_scores_alone_as_it_does_among_them(tmp_path: Path) -> None:
    folders = save_reward_models(tmp_path, kind="multitask")
    together, alone = offline_model(folders), offline_model({"relation": folders["relation"]})
    np.testing.assert_allclose(
        np.concatenate(together.score("relation", items())), np.concatenate(alone.score("relation", items())), atol=1e-6
    )


def test_a_coarse_verdict_sees_the_whole_response_and_stands_at_its_last_sub_sentence(tmp_path: Path) -> None:
    model = offline_model(save_reward_models(tmp_path, kind="coarse"))
    [[short], [long]] = [model.score("existence", [ScoringItem([picture()], PROMPT, SEGMENTS[:n])]) for n in (1, 3)]
    assert long[:2].tolist() == [[1, 0, 0], [1, 0, 0]]
    assert long.shape == (3, 3) and not np.allclose(long[2], short[0], atol=1e-4)


# Temperature


def test_the_temperature_is_kept_with_the_head_and_applied_when_asked_for(tmp_path: Path) -> None:
    folders = save_reward_models(tmp_path)
    plain, scaled = (offline_model(folders, temperature_scaling=scaling) for scaling in (False, True))
    for place, fact_type in enumerate(FACT_TYPES):
        logits = np.log(np.concatenate(plain.score(fact_type, items()))) / (1.5 + place)
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(np.concatenate(scaled.score(fact_type, items())), expected, atol=1e-5)


def test_a_head_without_a_temperature_has_one_that_changes_nothing(tmp_path: Path) -> None:
    folders = save_reward_models(tmp_path)
    before = offline_model(folders).score("existence", items(1))
    path = Path(folders["existence"]) / "head.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata, head = file.metadata(), {name: file.get_tensor(name) for name in ("weight", "bias")}
    save_file(head, path, metadata=metadata)
    np.testing.assert_array_equal(offline_model(folders, temperature_scaling=True).score("existence", items(1)), before)

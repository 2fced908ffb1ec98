"""What `benchmarks.gpu` measures on: LLaVAs of real shapes with random weights, and responses of random words.

Weights are drawn where the model is computed, in its dtype: nothing is downloaded, and nothing is written.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.utils.import_utils import is_torchvision_available

from fgaif_ray.records import CLASS_NAMES, FACT_TYPES
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.rewards.encoding import ScoringItem
from fgaif_ray.rl.policy import EncodedRows, PolicyModel
from fgaif_ray.rl.trajectories import Trajectory, reward_trajectory
from fgaif_ray.vlm.backbone import Backbone
from fgaif_ray.vlm.front_end import FrontEnd

SPARE_ROWS: Final = 64
"""Last rows of the vocabulary: the image token, the padding token, and rows that no token uses, as in LLaVA-1.5."""
FIRST_WORD: Final = 3
PROMPT: Final = " ".join(f"w{index}" for index in range(FIRST_WORD, FIRST_WORD + 32))
SEGMENT_WORDS: Final = 15
PHOTOGRAPH: Final = (640, 480)
CHAT_TEMPLATE: Final = (
    "{{ bos_token }} {% for message in messages %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<image> {% else %}{{ content['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a LLaVA."""

    image_size: int
    vision_hidden: int
    vision_intermediate: int
    vision_layers: int
    vision_heads: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int

    @property
    def patch_size(self) -> int:
        """Of CLIP ViT-L/14, in pixels."""
        return 14

    @property
    def image_token_id(self) -> int:
        """The first id after the words."""
        return self.vocabulary - SPARE_ROWS


CLIP_LARGE_336: Final = {
    "image_size": 336,
    "vision_hidden": 1024,
    "vision_intermediate": 4096,
    "vision_layers": 24,
    "vision_heads": 16,
}
SHAPES: Final = {
    "7b": Shape(hidden=4096, intermediate=11008, layers=32, heads=32, vocabulary=32064, **CLIP_LARGE_336),
    "1b": Shape(hidden=2048, intermediate=5632, layers=22, heads=32, vocabulary=32064, **CLIP_LARGE_336),
    "tiny": Shape(
        image_size=28,
        vision_hidden=32,
        vision_intermediate=64,
        vision_layers=3,
        vision_heads=2,
        hidden=64,
        intermediate=128,
        layers=2,
        heads=2,
        vocabulary=320,
    ),
}


def build_backbone(shape: Shape, device: torch.device, dtype: torch.dtype, seed: int) -> Backbone:
    """A frozen LLaVA with random weights on the device, as `load_backbone` gives one of a checkpoint."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=shape.vision_hidden,
            intermediate_size=shape.vision_intermediate,
            num_hidden_layers=shape.vision_layers,
            num_attention_heads=shape.vision_heads,
            image_size=shape.image_size,
            patch_size=shape.patch_size,
            attention_dropout=0.0,
        ),
        text_config=LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            attention_dropout=0.0,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=shape.image_token_id + 1,
            tie_word_embeddings=False,
        ),
        image_token_index=shape.image_token_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(shape.image_size // shape.patch_size) ** 2,
    )
    torch.manual_seed(seed)
    with device:
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    front_end = FrontEnd("random-llava", config, _processor(shape))
    return Backbone(front_end, model.to(device).eval().requires_grad_(False))


def draw_lengths(count: int, tokens: int, seed: int) -> list[int]:
    """Lengths of the responses, evenly between two and four thirds of ``tokens``, at least 2."""
    generator = random.Random(seed)
    return [max(2, generator.randint(2 * tokens // 3, 4 * tokens // 3)) for _ in range(count)]


def draw_images(count: int, seed: int) -> list[Image.Image]:
    """As many different images of a photograph's size."""
    generator = np.random.default_rng(seed)
    width, height = PHOTOGRAPH
    coarse = [generator.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8) for _ in range(count)]
    return [Image.fromarray(pixels).resize(PHOTOGRAPH) for pixels in coarse]


def encode_responses(model: PolicyModel, shape: Shape, lengths: Sequence[int], seed: int) -> EncodedRows:
    """Responses of random words that end by themselves, each to an image of its own."""
    generator = random.Random(seed)
    words = range(FIRST_WORD, shape.image_token_id)
    end = model.backbone.eos_token_id
    responses = [[*generator.choices(words, k=length - 1), end] for length in lengths]
    return model.encode([PROMPT] * len(lengths), draw_images(len(lengths), seed), responses)


def rewarded_trajectories(rows: EncodedRows, log_probs: torch.Tensor, seed: int) -> list[Trajectory]:
    """The responses as they come back from the rollout and the reward service.

    Args:
        rows: the encoded responses.
        log_probs: ``[rows, response_width]`` of the learner; the sampling engine's differ by a little noise.
        seed: of the verdicts and the noise.
    """
    generator = np.random.default_rng(seed)
    options = RewardOptions(weights=dict.fromkeys(FACT_TYPES, 1.0))
    trajectories = []
    for row, (prompt, length) in enumerate(zip(rows.prompt_lengths.tolist(), rows.response_lengths.tolist())):
        ids = rows.input_ids[row, prompt : prompt + length].tolist()
        engine = log_probs[row, :length].cpu().numpy() + generator.normal(0.0, 0.01, length)
        ends = [min(start + SEGMENT_WORDS, length) - 1 for start in range(0, length, SEGMENT_WORDS)]
        trajectory = Trajectory(
            sample_id=str(row),
            image=str(row),
            prompt=PROMPT,
            token_ids=tuple(ids),
            behaviour_log_probs=tuple(engine.tolist()),
            finish_reason="stop",
            policy_version=0,
            response="",
            segment_spans=tuple((end, end + 1) for end in ends),
            token_ends=tuple(ends),
        )
        verdicts = generator.dirichlet(np.ones(len(CLASS_NAMES)), (len(ends), len(FACT_TYPES)))
        trajectories.append(reward_trajectory(trajectory, verdicts.tolist(), options))
    return trajectories


def scoring_items(shape: Shape, lengths: Sequence[int], seed: int) -> list[ScoringItem]:
    """Responses cut into segments, each about an image of its own."""
    generator = random.Random(seed)
    items = []
    for image, length in zip(draw_images(len(lengths), seed), lengths, strict=True):
        words = [f"w{index}" for index in generator.choices(range(FIRST_WORD, shape.image_token_id), k=length)]
        segments = [" ".join(words[start : start + SEGMENT_WORDS]) for start in range(0, length, SEGMENT_WORDS)]
        items.append(ScoringItem([image], PROMPT, segments))
    return items


def _processor(shape: Shape) -> LlavaProcessor:
    """Words w3, w4, ... are tokens of those ids: as many tokens as wanted can be written."""
    image_processor = transformers.CLIPImageProcessor if is_torchvision_available() else CLIPImageProcessorPil
    image_token = shape.image_token_id
    ids = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": image_token, "<pad>": image_token + 1}
    ids |= {f"w{index}": index for index in range(FIRST_WORD, image_token)}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
    return LlavaProcessor(
        image_processor=image_processor(
            size={"shortest_edge": shape.image_size},
            crop_size={"height": shape.image_size, "width": shape.image_size},
        ),
        tokenizer=tokenizer,
        patch_size=shape.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )

"""The reward model: does a sub-sentence tell the truth about the image, as to one type of fact?

One frozen backbone, and per fact type a LoRA adapter on the language model and a linear head to three classes
(FGAIF section 3.3). The model reads the image, the real prompt and the sub-sentences, each closed by a
separator, the tokenizer's EOS; the class of a sub-sentence is read at its separator, which sees the image,
the prompt and all the text up to there.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fgaif_ray import storage
from fgaif_ray.config import LoRAOptions
from fgaif_ray.errors import UserError
from fgaif_ray.models.backbone import Backbone
from fgaif_ray.records import CLASS_NAMES

ADAPTER_FILES: Final = ("adapter_config.json", "adapter_model.safetensors", "head.safetensors")
SCORING_BATCH: Final = 32
"""Responses of one forward pass when scoring."""


@dataclass(frozen=True)
class ScoringItem:
    """One response to be scored.

    Example: ``ScoringItem(image, "Describe this image.", ["A cat sits on a mat, ", "next to a red ball."])``
    """

    image: Image.Image
    prompt: str
    segments: Sequence[str]
    """Sub-sentences in order; white space around them makes no difference."""


@dataclass(frozen=True)
class EncodedItem:
    """What the backbone reads of one response."""

    input_ids: list[int]
    """``[tokens]``, image tokens repeated."""
    separators: list[int]
    """``[segments]`` positions in ``input_ids`` where the classes are read."""


def encode_item(backbone: Backbone, item: ScoringItem) -> EncodedItem:
    """Tokenise ``prompt, sub_1 </s> sub_2 </s> ...``.

    The sub-sentences are tokenised as one text and cut after the token that holds the last character of each,
    so that words get the ids they have in running text. Special tokens spelled out in a response are text
    here, not tokens.

    Raises:
        ValueError: the prompt holds the image token.
    """
    texts = [segment.strip() for segment in item.segments]
    encoded = backbone.tokenizer(
        " ".join(texts), add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True
    )
    tokens = list(zip(encoded["input_ids"], (end for _, end in encoded["offset_mapping"]), strict=True))
    input_ids = backbone.expanded_prompt_ids(item.prompt, item.image)
    separators = []
    position = 0
    segment_end = -1
    for text in texts:
        segment_end += 1 + len(text)
        while position < len(tokens) and tokens[position][1] <= segment_end:
            input_ids.append(tokens[position][0])
            position += 1
        separators.append(len(input_ids))
        input_ids.append(backbone.eos_token_id)
    return EncodedItem(input_ids, separators)


class RewardModel(nn.Module):
    """Reward models of any number of fact types over one backbone.

    The backbone's model gets the adapters injected in place; one of them is active at a time, so calls must
    not overlap.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict()
        self._adapters: PeftModel | None = None
        self._active: tuple[str, bool] | None = None

    @property
    def fact_types(self) -> tuple[str, ...]:
        """The types it can score."""
        return tuple(self.heads.keys())

    def add(self, fact_type: str, lora: LoRAOptions, seed: int) -> None:
        """Add an untrained reward model: a LoRA that changes nothing yet and a small random head.

        The adapter sits on linear layers of the language model alone; vision tower and projector stay as they are.
        """
        modules = "|".join(re.escape(name) for name in lora.target_modules)
        device = self.backbone.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            self._inject(
                fact_type,
                LoraConfig(
                    r=lora.rank,
                    lora_alpha=lora.alpha,
                    lora_dropout=0.0,
                    target_modules=rf".*language_model\..*\.(?:{modules})",
                    base_model_name_or_path=self.backbone.path,
                ),
            )

    def load(self, fact_type: str, folder: str) -> None:
        """Add the reward model that ``save`` wrote to a local folder or URI.

        Raises:
            UserError: files are missing, or it was trained for another fact type or on another backbone.
        """
        local = Path(storage.local_copy(folder))
        missing = [name for name in ADAPTER_FILES if not (local / name).is_file()]
        if missing:
            raise UserError(
                f"{folder} is no reward model, it lacks {', '.join(missing)}: train it with jobs.train_rewards."
            )
        with safe_open(local / "head.safetensors", framework="pt") as file:
            trained_for = (file.metadata() or {}).get("fact_type")
        if trained_for != fact_type:
            raise UserError(
                f"{folder} holds the reward model of {trained_for!r}, not of {fact_type!r}: give the right one."
            )
        config = LoraConfig.from_pretrained(str(local))
        weights = load_file(local / "adapter_model.safetensors")
        head = load_file(local / "head.safetensors")
        self._inject(fact_type, config)
        expected = {name: value.shape for name, value in self._adapter_state(fact_type).items()}
        wanted_head = self.heads[fact_type].state_dict()
        if expected != {name: value.shape for name, value in weights.items()} or any(
            name not in head or head[name].shape != value.shape for name, value in wanted_head.items()
        ):
            raise UserError(
                f"{folder} does not fit {self.backbone.path}: score with the backbone it was trained on, "
                f"{config.base_model_name_or_path}."
            )
        set_peft_model_state_dict(self._peft, weights, adapter_name=fact_type)
        self.heads[fact_type].load_state_dict(head)

    def save(self, fact_type: str, folder: Path) -> None:
        """Write the PEFT adapter and ``head.safetensors`` of one type to a local folder."""
        folder.mkdir(parents=True, exist_ok=True)
        config = replace(self._peft.peft_config[fact_type], inference_mode=True)
        config.save_pretrained(str(folder))
        _save_tensors(self._adapter_state(fact_type), folder / "adapter_model.safetensors", {"format": "pt"})
        metadata = {"format": "pt", "fact_type": fact_type, "classes": ",".join(CLASS_NAMES)}
        _save_tensors(self.heads[fact_type].state_dict(), folder / "head.safetensors", metadata)

    def trainable_parameters(self, fact_type: str) -> list[nn.Parameter]:
        """Parameters of the adapter and head of one type, in a fixed order; they require gradients from here on."""
        self._activate(fact_type, trainable=True)
        adapter = [value for _, value in self._peft.named_parameters() if value.requires_grad]
        return [*adapter, *self.heads[fact_type].parameters()]

    def logits(self, fact_type: str, items: Sequence[EncodedItem], image_features: Tensor) -> Tensor:
        """Class logits at the separators of a batch.

        No attention mask is needed: padding comes last, and the decoder looks back only.

        Args:
            fact_type: whose adapter and head.
            items: the responses of the batch.
            image_features: ``[batch, image_tokens, hidden]``, see ``Backbone.image_features``.

        Returns:
            ``[separators, 3]`` float32; the separators of the first response, then those of the second, and so on.
        """
        self._activate(fact_type, trainable=torch.is_grad_enabled())
        device = self.backbone.device
        longest = max(len(item.input_ids) for item in items)
        filler = self.backbone.eos_token_id
        input_ids = torch.tensor(
            [item.input_ids + [filler] * (longest - len(item.input_ids)) for item in items], device=device
        )  # [batch, tokens]
        embeddings = self.backbone.input_embeddings(input_ids, image_features)  # [batch, tokens, hidden]
        hidden = self.backbone.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        rows = torch.tensor([row for row, item in enumerate(items) for _ in item.separators], device=device)
        columns = torch.tensor([column for item in items for column in item.separators], device=device)
        logits: Tensor = self.heads[fact_type](hidden[rows, columns].float())  # [separators, 3]
        return logits

    def score(self, fact_type: str, items: Sequence[ScoringItem]) -> list[NDArray[np.float32]]:
        """Class probabilities of every sub-sentence as to one fact type; see ``score_types``."""
        return self.score_types([fact_type], items)[fact_type]

    @torch.no_grad()
    def score_types(
        self, fact_types: Sequence[str], items: Sequence[ScoringItem]
    ) -> dict[str, list[NDArray[np.float32]]]:
        """Class probabilities of every sub-sentence, for several fact types; each image is encoded once.

        Args:
            fact_types: whose reward models.
            items: responses, in any number.

        Returns:
            Per type and response ``[segments, 3]`` float32 (absent, consistent, hallucinated), in the order
            of ``items``; a response is scored the same alone and in any batch.

        Raises:
            ValueError: a prompt holds the image token, or a response is longer than the backbone's context.
            ArithmeticError: a score is not finite.
        """
        scores = {name: [np.zeros((0, len(CLASS_NAMES)), np.float32) for _ in items] for name in fact_types}
        encoded = {index: encode_item(self.backbone, item) for index, item in enumerate(items) if item.segments}
        order = sorted(encoded, key=lambda index: len(encoded[index].input_ids))
        longest = len(encoded[order[-1]].input_ids) if order else 0
        if longest > self.backbone.max_length:
            raise ValueError(f"a response takes {longest} tokens, but the backbone reads {self.backbone.max_length}")
        for start in range(0, len(order), SCORING_BATCH):
            batch = order[start : start + SCORING_BATCH]
            pixels = self.backbone.pixel_values([items[index].image for index in batch])
            features = self.backbone.image_features(pixels)  # [batch, image_tokens, hidden]
            for name in fact_types:
                logits = self.logits(name, [encoded[index] for index in batch], features)
                probabilities = logits.softmax(dim=-1).cpu().numpy()  # [separators, 3]
                if not np.isfinite(probabilities).all():
                    raise ArithmeticError(f"the {name} reward model gave a score that is not finite")
                lengths = [len(encoded[index].separators) for index in batch]
                for index, part in zip(batch, np.split(probabilities, np.cumsum(lengths)[:-1]), strict=True):
                    scores[name][index] = part
        return scores

    @property
    def _peft(self) -> PeftModel:
        if self._adapters is None:
            raise ValueError("there is no reward model yet: add or load one")
        return self._adapters

    def _inject(self, fact_type: str, config: LoraConfig) -> None:
        if self._adapters is None:
            self._adapters = PeftModel(self.backbone.model, config, adapter_name=fact_type)
        else:
            self._adapters.add_adapter(fact_type, config)
        self._adapters.eval()
        head = nn.Linear(self.backbone.hidden_size, len(CLASS_NAMES), dtype=torch.float32)
        self.heads[fact_type] = head.to(self.backbone.device)
        self._activate(fact_type, trainable=False)

    def _activate(self, fact_type: str, *, trainable: bool) -> None:
        if fact_type not in self.heads:
            raise ValueError(f"there is no {fact_type!r} reward model here, only {', '.join(self.fact_types)}")
        if self._active != (fact_type, trainable):
            self._peft.set_adapter(fact_type, inference_mode=not trainable)
            self._active = (fact_type, trainable)

    def _adapter_state(self, fact_type: str) -> dict[str, Tensor]:
        state: dict[str, Tensor] = get_peft_model_state_dict(
            self._peft, adapter_name=fact_type, save_embedding_layers=False
        )
        return state


def load_reward_model(backbone: Backbone, folders: Mapping[str, str]) -> RewardModel:
    """Load reward models, by fact type, over one backbone.

    Raises:
        UserError: see ``RewardModel.load``.
    """
    model = RewardModel(backbone)
    for fact_type, folder in folders.items():
        model.load(fact_type, folder)
    return model


def _save_tensors(tensors: Mapping[str, Any], path: Path, metadata: dict[str, str]) -> None:
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path, metadata=metadata)
    path.chmod(0o644)  # safetensors writes for the owner alone

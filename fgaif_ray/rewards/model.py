"""The reward model: it tells whether the facts of one type in a segment are true of the image.

One frozen backbone, and per fact type a LoRA adapter on the language model and a linear head to three classes
(FGAIF section 3.3). The model reads the image or images, the real prompt and the segments, each closed by a
separator, the tokenizer's EOS; the class of a segment is read at its separator, which sees the image,
the prompt and all the text up to there. Types may share an adapter, whose forward pass then answers for all of
them, and a head may read one class per response, at its last separator.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from fgaif_ray import storage
from fgaif_ray.config import LoRAOptions
from fgaif_ray.errors import UserError
from fgaif_ray.records import ABSENT, CLASS_NAMES
from fgaif_ray.rewards.domain import ImageDomain, largest_distance, pool_features
from fgaif_ray.rewards.fact_counts import TARGETS, bounded
from fgaif_ray.rewards.files import (
    ADAPTER_FILES,
    CLASSES,
    HEAD_FILE,
    RewardModelFiles,
    read_domain_card,
    read_folder,
    save_tensors,
)
from fgaif_ray.rewards.kinds import Granularity
from fgaif_ray.vlm.backbone import Backbone
from fgaif_ray.vlm.image_features import ImageFeatures
from fgaif_ray.vlm.inputs import EncodedPrompt
from fgaif_ray.vlm.lora import decoder_lora, with_own_layers

COUNTS: Final = "facts."
"""Begins the names of a readout's tensors in the file of a head."""
SCORING_BATCH: Final = 32
"""Responses of one forward pass when scoring."""


@dataclass(frozen=True)
class ScoringItem:
    """One response to be scored.

    Example: ``ScoringItem([image], "Describe this image.", ["A cat sits on a mat, ", "next to a red ball."])``
    """

    images: Sequence[Image.Image]
    """What it is about, in the order of their places in the prompt."""
    prompt: str
    segments: Sequence[str]
    """Segments in order; white space around them makes no difference."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What reward models say about responses."""

    probabilities: dict[str, list[NDArray[np.float32]]]
    """Per type and response ``[segments, 3]``: absent, consistent, hallucinated."""
    facts: dict[str, list[NDArray[np.float32]]]
    """Per type and response ``[segments, 2]``: expected facts, and false ones where one is (see ``fact_counts``). Types
    without a readout are missing."""
    domain_distances: list[float | None] = field(default_factory=list)
    """Per response, how far its images are from those of training, in units of the threshold (see ``domain``); None of
    a response without segments. Empty where none of the reward models knows."""


@dataclass(frozen=True, slots=True)
class SegmentStates:
    """What is read of the segments of a batch, float32."""

    ends: Tensor
    """``[separators, hidden]`` at the separators."""
    sums: Tensor | None
    """``[separators, hidden]`` summed over the tokens of each segment and its separator; None unless asked for."""


@dataclass(frozen=True)
class EncodedItem:
    """What the backbone reads of one response."""

    prompt: EncodedPrompt
    text_ids: list[int]
    """``[text_tokens]`` of the segments and their separators, after the prompt."""
    separators: list[int]
    """``[segments]`` positions, counted from the prompt's first token, where the classes are read."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.text_ids)


def encode_item(backbone: Backbone, item: ScoringItem, longest: int | None = None) -> EncodedItem:
    """Tokenise ``prompt, sub_1 </s> sub_2 </s> ...``.

    The segments are tokenised as one text and cut after the token that holds the last character of each,
    so that words get the ids they have in running text. Special tokens spelled out in a response are text
    here, not tokens.

    Raises:
        ValueError: the prompt holds a special token, or another number of places than there are images; it all takes
            more than ``longest`` tokens, where that is given. The text is looked at first, which takes little beside
            images.
    """
    texts = [segment.strip() for segment in item.segments]
    encoded = backbone.front_end.tokenizer(
        " ".join(texts), add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True
    )
    tokens = list(zip(encoded["input_ids"], (end for _, end in encoded["offset_mapping"]), strict=True))
    _check_length(len(tokens) + len(texts), longest)
    prompt = backbone.front_end.encode_prompt(item.prompt, item.images)
    text_ids: list[int] = []
    separators = []
    position = 0
    segment_end = -1
    for text in texts:
        segment_end += 1 + len(text)
        while position < len(tokens) and tokens[position][1] <= segment_end:
            text_ids.append(tokens[position][0])
            position += 1
        separators.append(len(prompt) + len(text_ids))
        text_ids.append(backbone.eos_token_id)
    _check_length(len(prompt) + len(text_ids), longest)
    return EncodedItem(prompt, text_ids, separators)


def _check_length(tokens: int, longest: int | None) -> None:
    if longest is not None and tokens > longest:
        raise ValueError(f"a response takes {tokens} tokens, but the backbone reads {longest}")


class RewardModel(nn.Module):
    """Reward models of any number of fact types over one backbone.

    The backbone's model gets the adapters injected in place; one of them is active at a time, so calls must
    not overlap.
    """

    def __init__(self, backbone: Backbone, *, temperature_scaling: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict()
        self.temperatures: dict[str, float] = {}
        """Head -> temperature of its logits; applied to scores only with ``temperature_scaling``."""
        self.temperature_scaling = temperature_scaling
        self.class_weights: dict[str, NDArray[np.float64]] = {}
        """Head in training -> weights of the classes in its loss, ``[3]``; saved heads do without."""
        self.fact_counts = nn.ModuleDict()
        """Head -> readout of how many facts a segment states (``rewards.fact_counts``); not all heads have one."""
        self.domains: dict[str, ImageDomain] = {}
        """Head -> the images that it was trained on; not all heads know."""
        self._adapter_of: dict[str, str] = {}
        self._granularity: dict[str, Granularity] = {}
        self._loaded: dict[str, str] = {}  # digest of an adapter's files -> its name here
        self._adapters: PeftModel | None = None
        self._active: tuple[str, bool] | None = None

    @property
    def fact_types(self) -> tuple[str, ...]:
        """The fact types that it can score."""
        return tuple(self.heads.keys())

    def add(self, fact_type: str, lora: LoRAOptions, seed: int) -> None:
        """Add an untrained reward model: a LoRA that changes nothing yet and a small random head.

        The adapter sits on linear layers of the language model alone; vision tower and projector stay as they are.
        """
        self.add_adapter(fact_type, (fact_type,), lora, seed)

    def add_adapter(
        self,
        name: str,
        heads: Sequence[str],
        lora: LoRAOptions,
        seed: int,
        granularity: Granularity = "segment",
    ) -> None:
        """Add an untrained adapter with several heads; see ``add``.

        Args:
            name: of the adapter.
            heads: their names, fact types if they are to score.
            lora: rank, alpha and targets.
            seed: of the initial weights.
            granularity: ``response`` reads one class per response, at its last separator.
        """
        device = self.backbone.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            self._inject(name, decoder_lora(self.backbone.model, lora, self.backbone.path))
            for head in heads:
                self._add_head(head, name, granularity)

    def load(self, fact_type: str, folder: str) -> None:
        """Add the reward model that ``save`` wrote to a local folder or URI.

        An adapter that is loaded already, from the folder of another type, is reused.

        Raises:
            UserError: files are missing, or it was trained for another fact type or on another backbone.
        """
        local = Path(storage.local_copy(folder))
        if not any((local / name).is_file() for name in ADAPTER_FILES):
            raise UserError(f"{folder} holds no reward model: train it with jobs.train_rewards.")
        files = read_folder(str(local))
        trained_for = files.metadata.get("fact_type")
        if trained_for != fact_type:
            raise UserError(
                f"{folder} holds the reward model of {trained_for!r}, not of {fact_type!r}: give the right one."
            )
        if files.adapter not in self._loaded:
            self._load_adapter(fact_type, local, folder, files)
        head = load_file(local / HEAD_FILE)
        temperature = head.pop("temperature", torch.ones(()))
        counts = {name.removeprefix(COUNTS): head.pop(name) for name in list(head) if name.startswith(COUNTS)}
        self._add_head(fact_type, self._loaded[files.adapter], files.granularity)
        wanted = self.heads[fact_type].state_dict()
        if {name: value.shape for name, value in head.items()} != {n: value.shape for n, value in wanted.items()}:
            raise self._misfit(folder, local)
        self.heads[fact_type].load_state_dict(head)
        self.temperatures[fact_type] = float(temperature)
        if counts:
            self.set_fact_counts(fact_type, counts)
        if (card := read_domain_card(str(local))) is not None:
            domain = ImageDomain.load(local, card)
            if len(domain.mean) != self.backbone.hidden_size:
                raise self._misfit(folder, local)
            alike = (known for known in self.domains.values() if known.equals(domain))
            self.domains[fact_type] = next(alike, domain)

    def set_fact_counts(self, head: str, weights: Mapping[str, Tensor]) -> None:
        """Give a head a readout of facts.

        Args:
            head: its name.
            weights: ``weight [2, hidden]`` and ``bias [2]``.
        """
        readout = nn.Linear(self.backbone.hidden_size, 2, dtype=torch.float32)
        readout.load_state_dict(dict(weights))
        self.fact_counts[head] = readout.to(self.backbone.device)

    def _load_adapter(self, name: str, local: Path, folder: str, files: RewardModelFiles) -> None:
        weights = load_file(local / ADAPTER_FILES[1])
        self._inject(name, LoraConfig.from_pretrained(str(local)))
        expected = {key: value.shape for key, value in self._adapter_state(name).items()}
        if expected != {key: value.shape for key, value in weights.items()}:
            raise self._misfit(folder, local)
        set_peft_model_state_dict(self._peft, weights, adapter_name=name)
        self._loaded[files.adapter] = name

    def _misfit(self, folder: str, local: Path) -> UserError:
        trained_on = LoraConfig.from_pretrained(str(local)).base_model_name_or_path
        return UserError(
            f"{folder} does not fit {self.backbone.path}: score with the backbone it was trained on, {trained_on}."
        )

    def save(self, fact_type: str, folder: Path, head: str | None = None) -> None:
        """Write the PEFT adapter and ``head.safetensors`` of one type to a local folder.

        Args:
            fact_type: fact type of the saved model.
            folder: is made if it does not exist.
            head: the head to save, if its name is not that of the type.
        """
        head = head or fact_type
        adapter = self._known_adapter(head)
        folder.mkdir(parents=True, exist_ok=True)
        config = replace(self._peft.peft_config[adapter], inference_mode=True)
        config.save_pretrained(str(folder))
        save_tensors(self._adapter_state(adapter), folder / ADAPTER_FILES[1], {"format": "pt"})
        metadata = {"format": "pt", "fact_type": fact_type, "classes": CLASSES}
        tensors = self.heads[head].state_dict() | {"temperature": torch.tensor(self.temperatures[head])}
        tensors["bias"] = tensors["bias"] - self._shift(head)
        if head in self.fact_counts:
            tensors |= {f"{COUNTS}{name}": value for name, value in self.fact_counts[head].state_dict().items()}
            metadata["fact_counts"] = ",".join(TARGETS)
        save_tensors(tensors, folder / HEAD_FILE, metadata | {"granularity": self._granularity[head]})
        if head in self.domains:
            self.domains[head].save(folder)

    def trainable_parameters(self, head: str) -> list[nn.Parameter]:
        """Parameters of a head's adapter and of all heads on it, in a fixed order; they require gradients from now."""
        adapter = self._known_adapter(head)
        self._activate(adapter, trainable=True)
        low_rank = [value for _, value in self._peft.named_parameters() if value.requires_grad]
        heads = [name for name, of in self._adapter_of.items() if of == adapter]
        return [*low_rank, *(parameter for name in heads for parameter in self.heads[name].parameters())]

    def granularity(self, head: str) -> Granularity:
        """Return the unit of a head's verdicts."""
        return self._granularity[head]

    def logits(self, fact_type: str, items: Sequence[EncodedItem], features: Sequence[ImageFeatures]) -> Tensor:
        """Compute the class logits of one head; see ``logits_of``."""
        return self.logits_of([fact_type], items, features)[fact_type]

    def logits_of(
        self, heads: Sequence[str], items: Sequence[EncodedItem], features: Sequence[ImageFeatures]
    ) -> dict[str, Tensor]:
        """Compute class logits at the separators of a batch, in one forward pass per adapter.

        No attention mask is needed: padding comes last, and the decoder looks back only.

        Args:
            heads: whose classes.
            items: the responses of the batch.
            features: of the images of each response, see ``Backbone.image_features``.

        Returns:
            Per head ``[separators, 3]`` float32; the separators of the first response, then those of the second, and
            so on. A head that judges responses has one row for each, ``[batch, 3]``.
        """
        states = self.states_of(heads, items, features)
        return {head: self.heads[head](state.ends) for head, state in states.items()}

    def states_of(
        self,
        heads: Sequence[str],
        items: Sequence[EncodedItem],
        features: Sequence[ImageFeatures],
        summed: Collection[str] = (),
    ) -> dict[str, SegmentStates]:
        """Compute what heads read, in one forward pass per adapter.

        Args:
            heads: whose states.
            items: as in ``logits_of``.
            features: as in ``logits_of``.
            summed: heads that read the sums over segments, too.
        """
        adapters = dict.fromkeys(self._known_adapter(head) for head in heads)
        places = {head: self._places(head, items) for head in heads}  # before the passes: a copy waits for the device
        within = self._tokens_of_segments(items) if summed else None  # [tokens, 3]
        found: dict[str, SegmentStates] = {}
        for adapter in adapters:
            hidden = self._hidden(adapter, items, features)  # [batch, tokens, hidden]
            for head in heads:
                if self._adapter_of[head] == adapter:
                    rows, columns = places[head].unbind(dim=1)  # [separators] each
                    ends = hidden[rows, columns].float()
                    sums = None
                    if within is not None and head in summed:
                        rows, columns, segments = within.unbind(dim=1)  # [tokens] each
                        sums = torch.zeros_like(ends).index_add_(0, segments, hidden[rows, columns].float())
                    found[head] = SegmentStates(ends, sums)
        return {head: found[head] for head in heads}

    def _tokens_of_segments(self, items: Sequence[EncodedItem]) -> Tensor:
        """Return row, position and number of the segment of each token of a response, ``[tokens, 3]``."""
        found, number = [], 0
        for row, item in enumerate(items):
            start = len(item.prompt)
            for separator in item.separators:
                found += [(row, column, number) for column in range(start, separator + 1)]
                start, number = separator + 1, number + 1
        return torch.tensor(found, device=self.backbone.device).reshape(-1, 3)

    def _places(self, head: str, items: Sequence[EncodedItem]) -> Tensor:
        """Return row and position of each separator that a head reads, ``[separators, 2]``."""
        first = -1 if self._granularity[head] == "response" else 0
        places = [(row, column) for row, item in enumerate(items) for column in item.separators[first:]]
        return torch.tensor(places, device=self.backbone.device)

    def _hidden(self, adapter: str, items: Sequence[EncodedItem], features: Sequence[ImageFeatures]) -> Tensor:
        self._activate(adapter, trainable=torch.is_grad_enabled())
        rows = self.backbone.rows([item.prompt for item in items], [item.text_ids for item in items])
        return self.backbone.states(rows, features)  # [batch, tokens, hidden]

    def score(self, fact_type: str, items: Sequence[ScoringItem]) -> list[NDArray[np.float32]]:
        """Compute the class probabilities of every segment for one fact type; see ``score_types``."""
        return self.score_types([fact_type], items)[fact_type]

    def score_types(
        self, fact_types: Sequence[str], items: Sequence[ScoringItem]
    ) -> dict[str, list[NDArray[np.float32]]]:
        """Compute the class probabilities of every segment; see ``judge``."""
        return self.judge(fact_types, items).probabilities

    def judge(self, fact_types: Sequence[str], items: Sequence[ScoringItem]) -> Judged:
        """Compute the class probabilities of every segment for several fact types, and how many facts it states for
        those that have a readout. Images are encoded once, and read once per adapter.

        If a type judges whole responses, its verdict is that of the last segment, and the segments before it are
        certainly absent: they earn nothing, and the verdict is paid once.

        Args:
            fact_types: whose reward models.
            items: responses, in any number.

        Returns:
            In the order of ``items``; a response is scored the same alone and in any batch.

        Raises:
            ValueError: a prompt cannot be asked about its images, or a response is longer than the backbone's context.
            ArithmeticError: a score is not finite.
        """
        return self.judge_encoded(fact_types, [self.encode(item) for item in items])

    def encode(self, item: ScoringItem) -> EncodedItem | None:
        """Make what the backbone reads of a response, None where that has no segments.

        Raises:
            ValueError: the prompt cannot be asked about its images, or the response is longer than the context.
        """
        return encode_item(self.backbone, item, self.backbone.max_length) if item.segments else None

    @torch.no_grad()
    def judge_encoded(self, fact_types: Sequence[str], items: Sequence[EncodedItem | None]) -> Judged:
        """Do as ``judge`` with what ``encode`` has made.

        Raises:
            ArithmeticError: a score is not finite.
        """
        scores = {name: [np.zeros((0, len(CLASS_NAMES)), np.float32) for _ in items] for name in fact_types}
        counted = [name for name in fact_types if name in self.fact_counts]
        facts = {name: [np.zeros((0, 2), np.float32) for _ in items] for name in counted}
        encoded = {index: item for index, item in enumerate(items) if item is not None}
        order = sorted(encoded, key=lambda index: len(encoded[index]))
        domains = {id(one): one for name, one in self.domains.items() if name in fact_types}
        distances: list[float | None] = [None] * len(items)
        # On the device: the next images are read meanwhile.
        found: list[tuple[list[int], dict[str, Tensor], dict[str, Tensor]]] = []
        for start in range(0, len(order), SCORING_BATCH):
            batch = order[start : start + SCORING_BATCH]
            features = self.backbone.image_features([encoded[index].prompt for index in batch])
            states = self.states_of(fact_types, [encoded[index] for index in batch], features, counted)
            scaled = self.temperature_scaling
            probable = {name: self.probabilities(name, self.heads[name](s.ends), scaled) for name, s in states.items()}
            counts = {name: bounded(self.fact_counts[name](states[name].sums)) for name in counted}
            found.append((batch, probable, counts))
            if domains:
                pooled = pool_features(features)
                apart = zip(*(domain.distances(pooled).tolist() for domain in domains.values()), strict=True)
                for index, of_image in zip(batch, apart, strict=True):
                    distances[index] = largest_distance(of_image)
        for batch, by_type, estimated in found:
            lengths = [len(encoded[index].separators) for index in batch]
            for name, on_device in by_type.items():
                probabilities = on_device.cpu().numpy()  # [separators, 3]
                if not np.isfinite(probabilities).all():
                    raise ArithmeticError(f"the {name} reward model gave a score that is not finite")
                if self._granularity[name] == "response":
                    probabilities = _at_last_segments(probabilities, lengths)
                for index, part in zip(batch, np.split(probabilities, np.cumsum(lengths)[:-1]), strict=True):
                    scores[name][index] = part
            for name, estimates in estimated.items():
                numbers = estimates.cpu().numpy()  # [separators, 2]
                if not np.isfinite(numbers).all():
                    raise ArithmeticError(f"the {name} reward model gave a number of facts that is not finite")
                for index, part in zip(batch, np.split(numbers, np.cumsum(lengths)[:-1]), strict=True):
                    facts[name][index] = part
        if not all(one is None or math.isfinite(one) for one in distances):
            raise ArithmeticError("the features of an image are not finite")
        return Judged(scores, facts, distances if domains else [])

    def probabilities(self, head: str, logits: Tensor, scaled: bool = False) -> Tensor:
        """Turn a head's logits into probabilities under the labels' own balance.

        Args:
            head: whose logits.
            logits: ``[verdicts, 3]`` of ``logits_of``.
            scaled: whether to divide by the head's temperature.
        """
        return ((logits - self._shift(head)) / (self.temperatures[head] if scaled else 1.0)).softmax(dim=-1)

    def _shift(self, head: str) -> Tensor:
        """What the class weights of a head's loss have added to its logits, ``[3]`` (``rewards.class_balance``)."""
        weights = self.class_weights.get(head, np.ones(len(CLASS_NAMES)))
        return torch.tensor(np.log(weights), dtype=torch.float32, device=self.backbone.device)

    @property
    def _peft(self) -> PeftModel:
        if self._adapters is None:
            raise ValueError("there is no reward model yet: add or load one")
        return self._adapters

    def _inject(self, adapter: str, config: LoraConfig) -> None:
        if not self.backbone.quantised:  # PEFT has layers for quantised ones
            with_own_layers(config)
        if self._adapters is None:
            self._adapters = PeftModel(self.backbone.model, config, adapter_name=adapter)
        else:
            self._adapters.add_adapter(adapter, config)
        self._adapters.eval()
        self._activate(adapter, trainable=False)

    def _add_head(self, name: str, adapter: str, granularity: Granularity) -> None:
        head = nn.Linear(self.backbone.hidden_size, len(CLASS_NAMES), dtype=torch.float32)
        self.heads[name] = head.to(self.backbone.device)
        self.temperatures[name] = 1.0
        self._adapter_of[name] = adapter
        self._granularity[name] = granularity

    def _known_adapter(self, head: str) -> str:
        if head not in self.heads:
            raise ValueError(f"there is no {head!r} reward model here, only {', '.join(self.fact_types)}")
        return self._adapter_of[head]

    def _activate(self, adapter: str, *, trainable: bool) -> None:
        if self._active != (adapter, trainable):
            self._peft.set_adapter(adapter, inference_mode=not trainable)
            self._active = (adapter, trainable)

    def _adapter_state(self, adapter: str) -> dict[str, Tensor]:
        state: dict[str, Tensor] = get_peft_model_state_dict(
            self._peft, adapter_name=adapter, save_embedding_layers=False
        )
        return state


def _at_last_segments(verdicts: NDArray[np.float32], lengths: Sequence[int]) -> NDArray[np.float32]:
    """Place one verdict per response, ``[responses, 3]``, at the last of its segments, ``[segments, 3]``."""
    rows = np.zeros((sum(lengths), len(CLASS_NAMES)), np.float32)
    rows[:, ABSENT] = 1.0
    rows[np.cumsum(lengths) - 1] = verdicts
    return rows


def load_reward_model(
    backbone: Backbone, folders: Mapping[str, str], *, temperature_scaling: bool = False
) -> RewardModel:
    """Load reward models, by fact type, over one backbone.

    Args:
        backbone: gets the adapters.
        folders: fact type -> folder or URI.
        temperature_scaling: divide each type's logits by the temperature that was fitted on held-out images.

    Raises:
        UserError: see ``RewardModel.load``.
    """
    model = RewardModel(backbone, temperature_scaling=temperature_scaling)
    for fact_type, folder in folders.items():
        model.load(fact_type, folder)
    return model

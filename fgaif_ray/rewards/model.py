"""The reward model: it tells whether the facts of one type in a segment are true of the image.

One frozen backbone, and per fact type a LoRA adapter on the language model and a linear head to three classes
(FGAIF section 3.3). The model reads the image or images, the real prompt and the segments, each closed by a
separator, the tokenizer's EOS; the class of a segment is read at its separator, which sees the image,
the prompt and all the text up to there. Types may share an adapter, whose forward pass then answers for all of
them, and a head may read one class per response, at its last separator.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fgaif_ray.config import LoRAOptions
from fgaif_ray.records import CLASS_NAMES
from fgaif_ray.rewards.domain import ImageDomain, largest_distance, pool_features
from fgaif_ray.rewards.encoding import EncodedItem, ScoringItem, encode_item
from fgaif_ray.rewards.fact_counts import bounded
from fgaif_ray.rewards.judged import Judged, JudgedBatch, gather
from fgaif_ray.rewards.kinds import Granularity
from fgaif_ray.rewards.label_noise import NO_NOISE, LabelNoise
from fgaif_ray.rewards.lora_adapters import LoRAAdapters
from fgaif_ray.rewards.segment_states import SegmentStates, read_states, segment_tokens, separator_places
from fgaif_ray.vlm.backbone import Backbone
from fgaif_ray.vlm.image_features import ImageFeatures
from fgaif_ray.vlm.lora import decoder_lora

SCORING_BATCH: Final = 32
"""Responses of one forward pass when scoring."""


class RewardModel(nn.Module):
    """Reward models of any number of fact types over one backbone.

    The backbone's model gets the adapters injected in place; one of them is active at a time, so calls must
    not overlap.
    """

    def __init__(self, backbone: Backbone, *, temperature_scaling: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.adapters = LoRAAdapters(backbone)
        self.heads = nn.ModuleDict()
        self.temperatures: dict[str, float] = {}
        """Head -> temperature of its logits; applied to scores only with ``temperature_scaling``."""
        self.temperature_scaling = temperature_scaling
        self.class_weights: dict[str, NDArray[np.float64]] = {}
        """Head in training -> weights of the classes in its loss, ``[3]``; saved heads do without."""
        self.label_noise: dict[str, LabelNoise] = {}
        """Head -> shares of wrong labels that its verdicts are without (``rewards.label_noise``)."""
        self.fact_counts = nn.ModuleDict()
        """Head -> readout of how many facts a segment states (``rewards.fact_counts``); not all heads have one."""
        self.domains: dict[str, ImageDomain] = {}
        """Head -> the images that it was trained on; not all heads know."""
        self._adapter_of: dict[str, str] = {}
        self._granularity: dict[str, Granularity] = {}

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
            self.adapters.add(name, decoder_lora(self.backbone.model, lora, self.backbone.path))
            for head in heads:
                self.add_head(head, name, granularity)

    def add_head(self, name: str, adapter: str, granularity: Granularity) -> None:
        """Add an untrained head on an adapter that is there; see ``add_adapter``."""
        head = nn.Linear(self.backbone.hidden_size, len(CLASS_NAMES), dtype=torch.float32)
        self.heads[name] = head.to(self.backbone.device)
        self.temperatures[name] = 1.0
        self._adapter_of[name] = adapter
        self._granularity[name] = granularity

    def set_fact_counts(self, head: str, weights: Mapping[str, Tensor]) -> None:
        """Give a head a readout of facts.

        Args:
            head: its name.
            weights: ``weight [2, hidden]`` and ``bias [2]``.
        """
        readout = nn.Linear(self.backbone.hidden_size, 2, dtype=torch.float32)
        readout.load_state_dict(dict(weights))
        self.fact_counts[head] = readout.to(self.backbone.device)

    def trainable_parameters(self, head: str) -> list[nn.Parameter]:
        """Parameters of a head's adapter and of all heads on it, in a fixed order; they require gradients from now."""
        adapter = self.adapter_of(head)
        self.adapters.activate(adapter, trainable=True)
        heads = [name for name, of in self._adapter_of.items() if of == adapter]
        return [
            *self.adapters.trainable_parameters(),
            *(parameter for name in heads for parameter in self.heads[name].parameters()),
        ]

    def adapter_of(self, head: str) -> str:
        """Return the name of a head's adapter.

        Raises:
            ValueError: there is no such head.
        """
        if head not in self.heads:
            raise ValueError(f"there is no {head!r} reward model here, only {', '.join(self.fact_types)}")
        return self._adapter_of[head]

    def granularity(self, head: str) -> Granularity:
        """Return the unit of a head's verdicts."""
        return self._granularity[head]

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
        adapters = dict.fromkeys(self.adapter_of(head) for head in heads)
        device = self.backbone.device
        # Before the passes: a copy waits for the device.
        places = {
            head: separator_places(items, device, last_only=self._granularity[head] == "response") for head in heads
        }
        tokens = segment_tokens(items, device) if summed else None
        found: dict[str, SegmentStates] = {}
        for adapter in adapters:
            hidden = self._hidden(adapter, items, features)  # [batch, tokens, hidden]
            for head in heads:
                if self._adapter_of[head] == adapter:
                    found[head] = read_states(hidden, places[head], tokens if head in summed else None)
        return {head: found[head] for head in heads}

    def _hidden(self, adapter: str, items: Sequence[EncodedItem], features: Sequence[ImageFeatures]) -> Tensor:
        self.adapters.activate(adapter, trainable=torch.is_grad_enabled())
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
        encoded = {index: item for index, item in enumerate(items) if item is not None}
        order = sorted(encoded, key=lambda index: len(encoded[index]))
        counted = [name for name in fact_types if name in self.fact_counts]
        domains = list({id(one): one for name, one in self.domains.items() if name in fact_types}.values())
        batches = []
        for start in range(0, len(order), SCORING_BATCH):
            batch = {index: encoded[index] for index in order[start : start + SCORING_BATCH]}
            batches.append(self._judge_batch(fact_types, batch, counted, domains))
        granularity = {name: self._granularity[name] for name in fact_types}
        return gather(batches, len(items), granularity, counted, measured=bool(domains))

    def _judge_batch(
        self,
        fact_types: Sequence[str],
        batch: Mapping[int, EncodedItem],
        counted: Sequence[str],
        domains: Sequence[ImageDomain],
    ) -> JudgedBatch:
        features = self.backbone.image_features([item.prompt for item in batch.values()])
        states = self.states_of(fact_types, list(batch.values()), features, counted)
        scaled = self.temperature_scaling
        probable = {name: self.probabilities(name, self.heads[name](s.ends), scaled) for name, s in states.items()}
        counts = {name: bounded(self.fact_counts[name](states[name].sums)) for name in counted}
        apart: list[float | None] = []
        if domains:
            pooled = pool_features(features)
            by_domain = [domain.distances(pooled).tolist() for domain in domains]
            apart = [largest_distance(of_image) for of_image in zip(*by_domain, strict=True)]
        return JudgedBatch(list(batch), [len(item.separators) for item in batch.values()], probable, counts, apart)

    def probabilities(self, head: str, logits: Tensor, scaled: bool = False) -> Tensor:
        """Turn a head's logits into probabilities under the labels' own balance, without their known noise.

        Args:
            head: whose logits.
            logits: ``[verdicts, 3]`` of ``logits_of``.
            scaled: whether to divide by the head's temperature.
        """
        found = ((logits - self.loss_shift(head)) / (self.temperatures[head] if scaled else 1.0)).softmax(dim=-1)
        return self.label_noise.get(head, NO_NOISE).taken_out(found)

    def loss_shift(self, head: str) -> Tensor:
        """What the class weights of a head's loss have added to its logits, ``[3]`` (``rewards.class_balance``)."""
        weights = self.class_weights.get(head, np.ones(len(CLASS_NAMES)))
        return torch.tensor(np.log(weights), dtype=torch.float32, device=self.backbone.device)

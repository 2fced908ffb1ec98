"""Policy, reference and critic over one frozen backbone.

Two LoRA adapters share the backbone: the policy's, and the critic's with a value head on top. The reference is the
backbone without any adapter. All three read prompt and image; the features of an image are computed once and go into
every pass over it. Sequences are padded on the right, where a causal model cannot see the padding, so no pass needs a
mask.

Temperature and banned tokens of the sampling apply here too, so that both see the same distribution.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from PIL.Image import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fgaif_ray.config import LoRAOptions
from fgaif_ray.errors import UserError
from fgaif_ray.vlm.backbone import IMAGES_PER_PASS, PIXELS_PER_PASS, Backbone
from fgaif_ray.vlm.checkpoint import check_adapter
from fgaif_ray.vlm.group import LearnerGroup
from fgaif_ray.vlm.image_features import ImageFeatures
from fgaif_ray.vlm.inputs import EncodedPrompt, RowInputs, image_batches
from fgaif_ray.vlm.lora import decoder_lora, with_own_layers
from fgaif_ray.vlm.passes import DecoderPass, ImagePass, VocabularyScores, logit_scale
from fgaif_ray.vlm.sharding import shard_backbone

POLICY: Final = "policy"
CRITIC: Final = "critic"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Prompts, images and responses as the backbone reads them; rows of one batch.

    Example: a prompt of 30 tokens (9 of them the image's) and a response of 3 make a row of 33 ids with
    ``prompt_lengths`` 30 and ``response_lengths`` 3.
    """

    inputs: RowInputs
    prompt_lengths: Tensor
    """``[rows]`` int64, image tokens included, and the context that a response goes on from."""
    response_lengths: Tensor
    """``[rows]`` int64, at least 1."""
    features: tuple[ImageFeatures, ...]
    """Of the images of each prompt; rows about the same images share an entry."""
    image_index: Tensor
    """``[rows]`` int64 into ``features``, on the CPU."""
    response_width: int
    """Length that results are padded to."""

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @property
    def input_ids(self) -> Tensor:
        """``[rows, tokens]`` int64, padded on the right."""
        return self.inputs.input_ids

    @property
    def lengths(self) -> Tensor:
        """Number of real tokens of each row, ``[rows]``."""
        return self.inputs.lengths

    def row_features(self) -> list[ImageFeatures]:
        """The features of the images of each row."""
        return [self.features[index] for index in self.image_index.tolist()]

    def select(self, indices: Tensor) -> "EncodedRows":
        """Select rows, in the given order, without the padding that none of them needs.

        Args:
            indices: ``[rows]`` int64.
        """
        return EncodedRows(
            inputs=self.inputs.select(indices),
            prompt_lengths=self.prompt_lengths[indices],
            response_lengths=self.response_lengths[indices],
            features=self.features,
            image_index=self.image_index[indices.cpu()],
            response_width=self.response_width,
        )

    def chunks(self, size: int) -> Iterator[Tensor]:
        """Row indices, at most ``size`` at a time, sorted by length, so that little padding is computed."""
        if len(self):
            yield from torch.split(torch.argsort(self.lengths, stable=True), size)


@dataclass(frozen=True, slots=True)
class TokenLogProbs:
    """Log-probabilities of each response token, given all before it; zero on padding."""

    log_probs: Tensor
    """``[rows, response_width]`` nats."""
    entropies: Tensor | None
    """``[rows, response_width]`` nats of the whole distribution, where asked for."""


class PolicyModel(nn.Module):
    """A policy, and where it is wanted a critic that sees the image, over one frozen backbone.

    The adapters take turns: the backward pass of one comes before the forward pass of the other.

    Example: ``PolicyModel(load_backbone("llava-hf/llava-1.5-7b-hf"), LoRAOptions(rank=64, alpha=16))``.
    """

    def __init__(
        self,
        backbone: Backbone,
        lora: LoRAOptions,
        *,
        critic: bool = True,
        critic_from: str | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        activation_checkpointing: bool = False,
        sharded_over: LearnerGroup | None = None,
    ) -> None:
        """Inject the adapters into ``backbone.model``; they start without effect, and the value head at zero.

        Args:
            backbone: frozen; it is changed in place.
            lora: rank, alpha and targets of both adapters.
            critic: whether there is one; algorithms that compare responses do without.
            critic_from: folder of an adapter of the same backbone that the critic starts from (FGAIF section 4.1: the
                object reward model's), with its own rank and alpha.
            temperature: of the sampling.
            seed: of the adapters' first factors (the second are zero).
            activation_checkpointing: keep only the input of each decoder layer for the backward pass and compute the
                rest again there: the same gradients, a third more computation, a small part of the memory.
            sharded_over: the processes that shard the backbone (see ``fgaif_ray.vlm.sharding``), all of
                which make the same calls; the backbone may be on the CPU, and comes to the group's device. None leaves
                it whole and where it is.

        Raises:
            UserError: the adapter of ``critic_from`` belongs to another model.
        """
        super().__init__()
        self.backbone = backbone
        self.temperature = temperature
        self.lora_scale = lora.alpha / lora.rank
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._peft = PeftModel(backbone.model, _lora_config(backbone, lora), adapter_name=POLICY)
            if not critic:
                pass
            elif critic_from is None:
                self._peft.add_adapter(CRITIC, _lora_config(backbone, lora))
            else:
                _load_critic(self._peft, critic_from)
        self._images = ImagePass(backbone)
        self._decoder = DecoderPass(backbone)
        self._vocabulary = VocabularyScores(
            backbone.model.get_output_embeddings(),
            backbone.front_end.banned_token_ids,
            temperature,
            getattr(backbone.model.config.get_text_config(), "final_logit_softcapping", None),
            logit_scale(backbone.model.config),
        )
        self._sharded_over = sharded_over if sharded_over is not None and sharded_over.size > 1 else None
        if self._sharded_over is not None:
            adapters = {*self._adapter_parameters(POLICY).values(), *self._adapter_parameters(CRITIC).values()}
            shard_backbone(self._images, self._decoder, self._vocabulary, adapters, self._sharded_over)
        self.has_critic = critic
        if critic:
            self.value_head = nn.Linear(backbone.hidden_size, 1, device=backbone.device)  # float32 in any case
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
        self.eval()  # no dropout anywhere: rollouts and updates see the same network
        if activation_checkpointing:
            checkpoint_layers(backbone.decoder)

    @property
    def device(self) -> torch.device:
        """The device of the backbone."""
        return self.backbone.device

    def passes_of_all(self, own: int) -> int:
        """Return how many passes this process has to make if it needs ``own``.

        A pass through a sharded backbone takes all processes: each makes as many as the one that needs most.
        """
        return own if self._sharded_over is None else self._sharded_over.largest(own)

    def policy_parameters(self) -> dict[str, nn.Parameter]:
        """The policy's trainable parameters by name."""
        return self._adapter_parameters(POLICY)

    def critic_parameters(self) -> dict[str, nn.Parameter]:
        """The critic's trainable parameters by name, the value head's among them; none without a critic."""
        if not self.has_critic:
            return {}
        head = {f"value_head.{name}": parameter for name, parameter in self.value_head.named_parameters()}
        return self._adapter_parameters(CRITIC) | head

    def encode(
        self,
        prompts: Sequence[str],
        images: Sequence[Image | Sequence[Image]],
        responses: Sequence[Sequence[int]],
        contexts: Sequence[Sequence[int]] | None = None,
    ) -> EncodedRows:
        """Encode prompts, images and sampled ids; runs the vision tower once for the same image objects.

        Args:
            prompts: one a row, without the chat template.
            images: one a row, or several in the order of their places; the same objects in several rows are read once.
            responses: ``[rows]`` sampled ids, at least one each.
            contexts: ``[rows]`` ids between prompt and response, which count as part of the prompt; None for none.

        Raises:
            ValueError: the lengths differ, there are no rows, or a response is empty.
        """
        if contexts is None:
            contexts = [()] * len(responses)
        if not (len(prompts) == len(images) == len(responses) == len(contexts) > 0 and all(map(len, responses))):
            raise ValueError("prompts, images and responses must be as many, at least one, and no response empty")
        front_end = self.backbone.front_end
        encoded: dict[tuple[str, tuple[int, ...]], EncodedPrompt] = {}
        of_images: dict[tuple[int, ...], EncodedPrompt] = {}
        shown = [(one,) if isinstance(one, Image) else tuple(one) for one in images]
        keys = [tuple(map(id, some)) for some in shown]
        for prompt, some, key in zip(prompts, shown, keys, strict=True):
            if (prompt, key) not in encoded:
                encoded[prompt, key] = one = front_end.encode_prompt(prompt, some)
                of_images.setdefault(key, one)
        own = [encoded[prompt, key] for prompt, key in zip(prompts, keys, strict=True)]
        place = {key: index for index, key in enumerate(of_images)}
        return EncodedRows(
            inputs=self.backbone.rows(
                own, [(*context, *ids) for context, ids in zip(contexts, responses, strict=True)]
            ),
            prompt_lengths=torch.tensor(
                [len(one) + len(context) for one, context in zip(own, contexts, strict=True)], device=self.device
            ),
            response_lengths=torch.tensor([len(ids) for ids in responses], device=self.device),
            features=tuple(self._image_features(list(of_images.values()))),
            image_index=torch.tensor([place[key] for key in keys]),
            response_width=max(len(ids) for ids in responses),
        )

    def log_probs(
        self, rows: EncodedRows, role: Literal["policy", "reference"] = "policy", *, with_entropy: bool = False
    ) -> TokenLogProbs:
        """Log-probabilities of the response tokens, with gradient where the policy is asked and gradients are on."""
        mask, row_of, positions = _places(rows)
        targets = rows.input_ids[row_of, positions + 1]  # [response_tokens_of_all_rows]
        if role == "reference":
            with torch.no_grad(), self._peft.disable_adapter():
                hidden = self._states(rows)[row_of, positions]
        else:
            self._activate(POLICY)
            hidden = self._states(rows)[row_of, positions]  # [response_tokens_of_all_rows, hidden]
        log_probs, entropies = self._vocabulary(hidden, targets, with_entropy)
        return TokenLogProbs(_scatter(log_probs, mask), None if entropies is None else _scatter(entropies, mask))

    def values(self, rows: EncodedRows) -> Tensor:
        """The critic's value before each response token was chosen, ``[rows, response_width]``, zero on padding."""
        self._activate(CRITIC)
        mask, row_of, positions = _places(rows)
        hidden = self._states(rows)[row_of, positions]  # [response_tokens_of_all_rows, hidden]
        return _scatter(self.value_head(hidden.float()).squeeze(-1), mask)

    def save_policy(self, folder: str | Path) -> None:
        """Writes the policy's adapter in PEFT layout: ``adapter_config.json`` and ``adapter_model.safetensors``."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        # Without save_embedding_layers=False PEFT would ask the model hub for the size of the vocabulary.
        weights = get_peft_model_state_dict(self._peft, adapter_name=POLICY, save_embedding_layers=False)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        save_file(tensors, Path(folder, ADAPTER_WEIGHTS), metadata={"format": "pt"})
        Path(folder, ADAPTER_WEIGHTS).chmod(0o644)  # safetensors makes files that only the owner may read
        replace(self._peft.peft_config[POLICY], inference_mode=True).save_pretrained(str(folder))

    def trained_state(self) -> dict[str, Tensor]:
        """Copies of all trainable tensors by name: both adapters and the value head."""
        parameters = self.policy_parameters() | self.critic_parameters()
        return {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Restore a ``trained_state``.

        Raises:
            ValueError: the names differ, so the state belongs to another configuration.
        """
        parameters = self.policy_parameters() | self.critic_parameters()
        if set(parameters) != set(state):
            raise ValueError("the state holds other parameters than this model")
        for name, parameter in parameters.items():
            parameter.copy_(state[name])

    def _activate(self, adapter: str) -> None:
        if self._peft.active_adapter != adapter:
            self._peft.set_adapter(adapter)

    def _adapter_parameters(self, adapter: str) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self._peft.named_parameters() if f".{adapter}." in name}

    def _image_features(self, prompts: Sequence[EncodedPrompt]) -> list[ImageFeatures]:
        batches = image_batches(prompts, IMAGES_PER_PASS, PIXELS_PER_PASS)
        found: dict[int, ImageFeatures] = {}
        for index in range(self.passes_of_all(len(batches))):
            batch = batches[min(index, len(batches) - 1)]  # the last one again where other processes have more
            found |= dict(zip(batch, self._images([prompts[one] for one in batch]), strict=True))
        return [found[index] for index in range(len(prompts))]

    def _states(self, rows: EncodedRows) -> Tensor:
        """The decoder's last states, ``[rows, tokens, hidden]``."""
        states: Tensor = self._decoder(rows.inputs, rows.row_features())
        return states


def checkpoint_layers(decoder: Any) -> None:
    """Has each layer of a decoder keep its input alone for the backward pass."""
    decoder.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    for layer in decoder.layers:
        layer.training = True  # transformers checkpoints layers in training alone; what they hold stays in eval


def _lora_config(backbone: Backbone, lora: LoRAOptions) -> LoraConfig:
    return with_own_layers(decoder_lora(backbone.model, lora, backbone.path))


def _load_critic(model: PeftModel, folder: str) -> None:
    check_adapter(folder)
    config = LoraConfig.from_pretrained(folder)
    config.lora_dropout, config.inference_mode = 0.0, False
    model.add_adapter(CRITIC, with_own_layers(config))
    weights = load_file(Path(folder, ADAPTER_WEIGHTS))
    parameters = {name: value for name, value in model.named_parameters() if f".{CRITIC}." in name}
    named = {name.replace(".weight", f".{CRITIC}.weight"): tensor for name, tensor in weights.items()}
    if {name: value.shape for name, value in named.items()} != {n: v.shape for n, v in parameters.items()}:
        raise UserError(
            f"The critic cannot start from {folder}: that adapter belongs to another model. Train the reward models on "
            "policy.model, or unset align.critic_from_reward."
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(named[name])


def _places(rows: EncodedRows) -> tuple[Tensor, Tensor, Tensor]:
    """Find the response tokens, and the state that each is chosen from.

    Call it before a pass: the size of a mask's selection must be waited for, and then the device has nothing queued.

    Returns:
        The mask ``[rows, response_width]`` of real response tokens; of each of them its row and the position of the
        token before it, ``[response_tokens_of_all_rows]``.
    """
    offsets = torch.arange(rows.response_width, device=rows.input_ids.device)  # [response_width]
    mask = offsets < rows.response_lengths[:, None]  # [rows, response_width]
    row_of, place = mask.nonzero(as_tuple=True)  # each [response_tokens_of_all_rows]
    return mask, row_of, rows.prompt_lengths[row_of] - 1 + place


def _scatter(flat: Tensor, mask: Tensor) -> Tensor:
    """Put values at the selected places, zero elsewhere; keeps the gradient."""
    return flat.new_zeros(mask.shape).masked_scatter(mask, flat)

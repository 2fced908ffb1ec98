"""A vision-language model on a vLLM engine that finds how likely each fact is true of the image."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL.Image import Image

from actors.engine.generate import PromptRefusedError, generate
from actors.engine.start import image_prompt, start_engine
from fgaif_ray.config import VerifierConfig
from fgaif_ray.feedback.labels import yes_probability
from fgaif_ray.feedback.prompts import load_prompt
from fgaif_ray.vlm.front_end import load_front_end
from fgaif_ray.vlm.prompt_check import PromptCheck

if TYPE_CHECKING:
    from vllm.inputs import TokensPrompt

FactQuestion = tuple[str, str]
"""Key of the images, text of the fact."""


@dataclass(frozen=True, slots=True)
class YesProbability:
    """``p_yes`` is P(yes) / (P(yes) + P(no)), as exact as float32; ``mass`` the share of the two among all tokens."""

    p_yes: float
    mass: float


@dataclass(slots=True)
class Findings:
    """The answers to a set of questions."""

    answers: dict[FactQuestion, YesProbability] = field(default_factory=dict)
    refused: dict[FactQuestion, str] = field(default_factory=dict)
    """Reasons why questions cannot be asked, since facts are untrusted text."""
    prompt_tokens: int = 0
    """Tokens of all prompts, image tokens included."""
    cached_tokens: int = 0
    """Those of them that vLLM found in its prefix cache and did not compute."""


def check_verifier(config: VerifierConfig, template: Mapping[str, Any]) -> None:
    """Check without an engine whether a verifier can be used.

    Raises:
        UserError: there is no such prompt or checkpoint, or it cannot say yes and no.
    """
    load_prompt(config.prompt)
    front_end = load_front_end(config.model, template)
    for word in ("yes", "no"):
        front_end.tokens_of(word)


class FactChecker:
    """Engine, prompt and the words yes and no of one verifier."""

    def __init__(self, config: VerifierConfig, template: Mapping[str, Any], images: int = 1) -> None:
        """Start the engine.

        Args:
            config: of the verifier.
            template: variables for the chat template.
            images: the most images that a fact is about.

        Raises:
            UserError: see ``check_verifier``.
        """
        self._prompt = load_prompt(config.prompt)
        self._prompt_of_several = self._prompt.about(images)
        self._front_end = load_front_end(config.model, template)
        self._engine = start_engine(config.model, config.engine, images=images)
        self._words = self._front_end.tokens_of("yes") | self._front_end.tokens_of("no")
        self._check = PromptCheck(self._front_end)

    def ask(
        self,
        questions: Iterable[FactQuestion],
        images: Mapping[str, Sequence[Image]],
        names: Mapping[str, str] | None = None,
    ) -> Findings:
        """Ask each question once, with its images in front.

        Those about the same images go to the engine one after the other. vLLM counts a prefix as cached from the moment
        that a step which computes it is planned, so all of them but the first share it, also within a step.

        Args:
            questions: in any order.
            images: by key.
            names: what messages call the images, by key; None calls them by their keys.

        Raises:
            PromptMismatchError: the engine has read another prompt.
        """
        from vllm import SamplingParams

        by_images: dict[str, dict[str, None]] = {}
        for key, text in questions:
            by_images.setdefault(key, {})[text] = None
        found = Findings()
        prompts: dict[FactQuestion, TokensPrompt] = {}
        for key, texts in by_images.items():
            for text in texts:
                prompt = self._question(text, len(images[key]))
                try:
                    ids = self._front_end.prompt_ids(prompt, len(images[key]))
                    prompts[key, text] = image_prompt(ids, images[key])
                except ValueError as error:
                    found.refused[key, text] = f"fact: {error}"
        # Greedy: verdicts that are sampled cannot be reproduced.
        parameters = SamplingParams(
            temperature=0.0, max_tokens=1, logprob_token_ids=list(self._words), detokenize=False
        )
        results: list[Any] = generate(self._engine, list(prompts.values()), [parameters] * len(prompts))
        self._check_prompts(dict(zip(prompts, results, strict=True)), images, names or {})
        for question, result in zip(prompts, results, strict=True):
            if isinstance(result, PromptRefusedError):
                found.refused[question] = f"fact: {result}"
                continue
            found.answers[question] = self._read(result.outputs[0].logprobs[0])
            found.prompt_tokens += len(result.prompt_token_ids)
            found.cached_tokens += result.num_cached_tokens or 0
        return found

    def _check_prompts(
        self, results: Mapping[FactQuestion, Any], images: Mapping[str, Sequence[Image]], names: Mapping[str, str]
    ) -> None:
        """Compare what the engine read of one fact about each set of images: the others differ in their text alone."""
        checked: set[str] = set()
        for (key, text), result in results.items():
            if key not in checked and not isinstance(result, PromptRefusedError):
                checked.add(key)
                row = f"the fact {text!r} about {names.get(key, key)}"
                self._check(row, self._question(text, len(images[key])), images[key], result.prompt_token_ids)

    def _question(self, statement: str, images: int) -> str:
        prompt = self._prompt if images == 1 else self._prompt_of_several
        return prompt.render(statement=statement)

    def _read(self, logprobs: dict[int, Any]) -> YesProbability:
        values = {token: logprobs[token_id].logprob for token_id, token in self._words.items()}
        p_yes = yes_probability(values)
        if p_yes is None:
            raise ValueError(f"the engine gave no probability to any of {sorted(values)}")
        # Rows keep float32: a verdict must be the same on what is read back.
        return YesProbability(float(np.float32(p_yes)), math.fsum(math.exp(value) for value in values.values()))

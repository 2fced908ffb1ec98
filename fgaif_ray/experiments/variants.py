"""The experiments and their variants: the paper's ablations, and the questions that it leaves open."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Final

from fgaif_ray import storage
from fgaif_ray.config import BlindConfig, Config, change_config
from fgaif_ray.errors import UserError
from fgaif_ray.records import NOVELTY_TYPE, fingerprint

IMAGES_FOLDER: Final = "experiment-images"
"""Folder beside the runs of all experiments of a configuration, which share it."""
TRUTH_ANSWERS_FILE: Final = "truth-answers.json"
NOISE_LEVELS: Final = (0.1, 0.2, 0.4)
DIRECTIONS: Final = ("to_hallucinated", "to_consistent")
GROUP: Final = 4
"""Responses to an image and prompt of variants that compare them, where the configuration has fewer than two."""
COIN: Final = 0.5
"""Balanced accuracy of a guess between two classes."""
AUGMENTED: Final = 0.5
"""Share of the training images that the augmented variants of ``ood`` change."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A change of the base configuration that is compared with others.

    Example: ``Variant("wo-object", "w/o-Obj", ("align.reward.weights.existence=0",))``
    """

    name: str
    """Name of its folder."""
    title: str
    """Its name in tables."""
    overrides: tuple[str, ...] = ()
    """``section.key=value``, on top of the base configuration."""
    truth_labels: bool = False
    """Whether the truth of the images stands in for people who label, in a step between sampling and labelling."""
    compared_with: str | None = None
    """The variant that it is paired with; None means the experiment's reference."""
    family: str | None = None
    """The line of a plot over ``level`` that it belongs to."""
    level: float = 0.0


@dataclass(frozen=True, slots=True)
class Share:
    """A metric that says how much of the reference's a variant has.

    Example: ``Share("left.rewards", "rewards_present.mean", 0.5)`` of an accuracy of .6, beside .9, is a quarter.
    """

    metric: str
    """Its name in ``metrics.METRICS``."""
    of: str
    """The metric that is compared."""
    nothing: float = 0.0
    """The value of that metric that counts as nothing, such as the accuracy of a coin."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """A question and the variants that answer it; the first one is the reference."""

    name: str
    question: str
    variants: tuple[Variant, ...]
    notes: tuple[str, ...] = ()
    """Notes about the set-up for the reader."""
    groups: tuple[str, ...] = ("hallucination", "said", "pope")
    """Groups of metrics that the page shows first, by the names of ``metrics.METRICS``."""
    shares: tuple[Share, ...] = ()
    """Metrics of a variant and the reference together, seed by seed."""

    @property
    def reference(self) -> Variant:
        """The variant that the others are compared with."""
        return self.variants[0]

    def partner(self, variant: Variant) -> str | None:
        """Return the name of the variant that this one is paired with, None for the reference."""
        return None if variant == self.reference else variant.compared_with or self.reference.name


@dataclass(frozen=True, slots=True)
class Run:
    """One variant with one seed, and everything that it takes."""

    variant: Variant
    seed: int
    config: Config

    @property
    def name(self) -> str:
        """Its folder, relative to the experiment's."""
        return f"{self.variant.name}/seed-{self.seed}"

    @property
    def folder(self) -> str:
        """Its run folder."""
        return self.config.run.dir


_WITHOUT: Final = {
    "existence": ("wo-object", "Obj"),
    "attribute": ("wo-attribute", "Att"),
    "relation": ("wo-relation", "Rel"),
    "novelty": ("wo-novelty", "Nov"),
}
"""The paper's names of the ablations by fact type, for files and for people; novelty is ours."""


def _coarse(base: Config) -> tuple[str, ...]:
    """One verdict per response.

    It does not grow with what is said, so there is nothing for a length term to hold back; and the term, set beside
    some seven verdicts a response, would outweigh the single one. It counts no facts and tells nothing of repeats.
    """
    plain = ("rewards.kind=coarse", "rewards.fact_counts=false", "align.reward.unit=segment")
    novelty = ("align.reward.weights.novelty=0",) if NOVELTY_TYPE in base.run.type_names else ()
    return (*plain, "align.reward.length_penalty=0", *novelty)


def _algorithms(base: Config) -> list[Variant]:
    """The other ways to credit tokens, with as many responses a step."""
    samples = max(base.align.samples_per_prompt, GROUP)
    settings = {"ppo": 1, "grpo": samples, "rloo": samples}
    return [
        Variant(name, name.upper(), (f"align.algorithm={name}", f"align.samples_per_prompt={number}"))
        for name, number in settings.items()
        if name != base.align.algorithm
    ]


def _ablation(base: Config) -> Experiment:
    ai = () if base.label.human is None else ("label.human=null",)
    variants = [Variant("full", "full", ai)]
    for kind in base.run.type_names:
        name, short = _WITHOUT.get(kind, (f"wo-{kind}", kind))
        variants.append(Variant(name, f"w/o-{short}", (*ai, f"align.reward.weights.{kind}=0")))
    if base.align.reward.unit == "fact":
        variants.append(Variant("per-segment", "paid per segment", (*ai, "align.reward.unit=segment")))
    variants += [replace(one, overrides=(*ai, *one.overrides)) for one in _algorithms(base)]
    variants.append(Variant("coarse", "w-Coarse", (*ai, *_coarse(base))))
    variants.append(Variant("coarse-sum", "w-Coarse, summed verdicts", (*ai, "align.reward.granularity=response")))
    coarse = (
        "w-Coarse trains one reward model with one verdict per response and takes no length term: one verdict does not "
        "grow with what is said. w-Coarse, summed verdicts keeps the reward models of all types and pays their sum "
        "once, at the last token."
    )
    notes = [coarse]
    if base.label.human is not None:
        variants.append(Variant("human", "human labels"))
    elif base.data.source == "shapes":
        variants.append(Variant("human", "human labels (the truth)", truth_labels=True))
        notes.append("The truth of the embedded world stands in for people who label: its labels are without mistakes.")
    else:
        notes.append("Human labels are left out: label.human names none, and the truth of the images is not known.")
    return Experiment(
        "ablation",
        "What does each part of the reward contribute, and what would human labels add?",
        tuple(variants),
        tuple(notes),
        ("hallucination", "said", "pope", "labels", "rewards", "rewards after"),
    )


def _noise(base: Config) -> Experiment:
    variants, every = [Variant("none", "no noise")], base.run.type_names
    families: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {"all": (every, DIRECTIONS)}
    families |= {direction.replace("_", "-"): (every, (direction,)) for direction in DIRECTIONS}
    families |= {kind: ((kind,), DIRECTIONS) for kind in every}
    for family, (types, directions) in families.items():
        for level in NOISE_LEVELS:
            overrides = tuple(f"label.noise.{kind}.{direction}={level}" for kind in types for direction in directions)
            title = f"{family.replace('-', ' ')}, {level:.0%}"
            variants.append(Variant(f"{family}-{round(100 * level)}", title, overrides, family=family, level=level))
    note = (
        "all: labels of every type are flipped, both ways; to-hallucinated and to-consistent: of every type, one "
        f"way; {', '.join(every)}: of that type alone, both ways. Labels of absent facts stay."
    )
    return Experiment(
        "noise",
        "How does label quality move the reward models and the final result?",
        tuple(variants),
        (note,),
        ("hallucination", "said", "labels", "rewards", "rewards after"),
    )


def _ood(base: Config) -> Experiment:
    if base.data.source != "shapes":
        raise UserError("The experiment ood needs images whose truth is known: run it with configs/shapes.yaml.")
    splits = (("heldout", "like training"), ("unseen_pairs", "unseen pairs"), ("fog", "fog"))
    variants = []
    for training, share in (("plain", 0.0), ("augmented", AUGMENTED)):
        for split, title in splits:
            name = split.replace("_", "-")
            overrides = (f"data.shapes.evaluate_split={split}", f"data.shapes.augmented={share}")
            partner = f"plain-{name}" if share else None
            variants.append(Variant(f"{training}-{name}", f"{training}: {title}", overrides, compared_with=partner))
    note = (
        f"Augmented: {AUGMENTED:.0%} of the images to label and of PPO have another brightness, contrast and noise. "
        "Each augmented variant is compared with the plain one on the same images; plain ones on other scenes with "
        "plain: like training."
    )
    return Experiment(
        "ood",
        "Does the aligned policy hold out of distribution, and does augmentation of the training images help?",
        tuple(variants),
        (note,),
        ("hallucination", "said", "pope", "labels", "rewards", "rewards after"),
    )


def _unified(base: Config) -> Experiment:
    return Experiment(
        "unified",
        "A reward model per type, one with all heads, or one verdict per response: quality and cost side by side.",
        (
            Variant("separate", "a model per type", ("rewards.kind=separate",)),
            Variant("multitask", "one model, all heads", ("rewards.kind=multitask",)),
            Variant("coarse", "one verdict per response", _coarse(base)),
        ),
        (
            "One verdict per response takes no length term: it does not grow with what is said.",
            "Memory is the peak of all processes of a run on this machine while the stage ran.",
        ),
        ("hallucination", "said", "rewards", "rewards after", "seconds", "memory"),
    )


def _cost(base: Config) -> Experiment:
    coarse = [*_coarse(base)]
    if base.data.source == "shapes":
        note = (
            "The extractor of the embedded world reads one segment at a time, so labels cost the coarse path the "
            "same here; with another extractor it asks once per response (label.extractor.mode=response)."
        )
    else:
        coarse.append("label.extractor.mode=response")
        note = "The coarse path extracts facts with one call per response."
    return Experiment(
        "cost",
        "What does a point of hallucination removed cost, fine-grained and coarse?",
        (Variant("fine", "fine-grained"), Variant("coarse", "coarse", tuple(coarse))),
        (note, "A point is a percentage point of hallucinated segments, before less after alignment."),
        ("hallucination", "said", "cost", "seconds", "per point"),
    )


def _blind(base: Config) -> Experiment:
    if base.data.blind != BlindConfig():
        raise UserError("The experiment blind sets data.blind itself: leave it out of the configuration.")
    variants = [Variant("seeing", "seeing")]
    for name, title, scopes in (
        ("", "reward models", ("rewards",)),
        ("-policy", "policy", ("policy",)),
        ("-both", "both", ("rewards", "policy")),
    ):
        for mode in ("swapped", "blank"):
            overrides = tuple(f"data.blind.{scope}={mode}" for scope in scopes)
            variants.append(Variant(f"{mode}{name}", f"{mode}: {title}", overrides))
    shown = (
        "Swapped: another image of the same set; blank: a grey one of the same size. Reward models: they are trained "
        "and asked without their images, on the same labels. Policy: it is aligned without its images, on rewards for "
        "the true ones. Every policy is evaluated on the true images."
    )
    left = (
        "What is left is a share of what the seeing variant has with the same seed: of the reward models' balanced "
        "accuracy above a coin's, and of the hallucination removed. Seeds whose seeing variant has none are left out."
    )
    return Experiment(
        "blind",
        "What is learnt without looking: how much of the reward models' accuracy, and of the gain?",
        tuple(variants),
        (shown, left),
        ("left", "hallucination", "said", "held out", "rewards", "rewards after"),
        (
            Share("left.held_out", "held_out_present.mean", COIN),
            Share("left.rewards", "rewards_present.mean", COIN),
            Share("left.rewards_after", "rewards_after_present.mean", COIN),
            Share("left.removed", "removed"),
        ),
    )


_BUILDERS: Final[dict[str, Callable[[Config], Experiment]]] = {
    "ablation": _ablation,
    "noise": _noise,
    "ood": _ood,
    "unified": _unified,
    "cost": _cost,
    "blind": _blind,
}
NAMES: Final = tuple(_BUILDERS)


def build_experiment(name: str, base: Config, chosen: Sequence[str] = ()) -> Experiment:
    """Build an experiment on top of a configuration.

    Args:
        name: one of NAMES.
        base: the configuration.
        chosen: names or patterns (``all-*``) of the variants to take; none takes all. The reference, and what a chosen
            variant is compared with, always come along.

    Raises:
        UserError: the experiment needs something else of the configuration, or a pattern names no variant.
        ValueError: there is no such experiment.
    """
    if name not in _BUILDERS:
        raise ValueError(f"there is no experiment {name!r}")
    experiment = _BUILDERS[name](base)
    if not chosen:
        return experiment
    names = [variant.name for variant in experiment.variants]
    wanted = {experiment.reference.name}
    for pattern in chosen:
        found = [variant for variant in experiment.variants if fnmatchcase(variant.name, pattern)]
        if not found:
            raise UserError(f"{name} has no variant {pattern}: choose among {', '.join(names)}.")
        wanted |= {variant.name for variant in found}
        wanted |= {variant.compared_with for variant in found if variant.compared_with is not None}
    kept = tuple(variant for variant in experiment.variants if variant.name in wanted)
    return replace(experiment, variants=kept)


def experiment_folder(base: Config, name: str) -> str:
    """Return the folder of an experiment's page, results and runs: under the base run's folder."""
    return storage.join(base.run.dir, name)


def build_runs(experiment: Experiment, base: Config, seeds: Sequence[int]) -> list[Run]:
    """List the runs of an experiment: seed by seed, in the order of the variants, so that a reference comes first.

    Raises:
        UserError: a variant does not go with the base configuration.
    """
    root = experiment_folder(base, experiment.name)
    pairs = [(seed, variant) for seed in seeds for variant in experiment.variants]
    return [Run(variant, seed, _run_config(base, variant, seed, root)) for seed, variant in pairs]


def _run_config(base: Config, variant: Variant, seed: int, root: str) -> Config:
    folder = storage.join(root, variant.name, f"seed-{seed}")
    # Nobody else asks a run's reward service: any port will do, and parallel runs must not want the same one.
    overrides = [_set("run.dir", folder), _set("run.seed", seed), "serve.port=0", *variant.overrides]
    if base.data.source == "shapes" and base.data.path is None:
        data = base.data
        key = fingerprint(data.sample_images, data.align_images, data.evaluate_images)
        overrides.append(_set("data.path", storage.join(base.run.dir, IMAGES_FOLDER, f"seed-{seed}-{key}")))
    if variant.truth_labels:
        overrides.append(_set("label.human", {"path": storage.join(folder, TRUTH_ANSWERS_FILE)}))
    return change_config(base, overrides)


def _set(key: str, value: str | int | dict[str, str]) -> str:
    return f"{key}={json.dumps(value)}"  # JSON is YAML, whatever a path holds

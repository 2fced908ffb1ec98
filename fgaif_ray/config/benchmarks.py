"""Sections of the public hallucination benchmarks and of the judge that some of them ask."""

from typing import ClassVar, Literal

from pydantic import Field

from fgaif_ray.config.base import Section
from fgaif_ray.config.calls import CallsConfig


class JudgeConfig(CallsConfig):
    """The language model that rates answers, behind an OpenAI-compatible endpoint."""

    section: ClassVar[str] = "evaluate.judge"
    purpose: ClassVar[str] = "judging"

    max_tokens: int = Field(default=1024, ge=1)
    """The most tokens of a rating."""
    temperature: float | None = Field(default=0.0, ge=0)
    """0 is greedy; None leaves it out, for models that refuse the parameter."""


class BenchmarkConfig(Section):
    """Settings of every benchmark."""

    path: str
    """Folder or URI that holds the official files, under their own names."""
    images: str | None = None
    """Folder or URI of its images; needed to answer, not to score answers that were made elsewhere."""
    max_tokens: int = Field(default=512, ge=1)
    """Limit of an answer."""
    suffix: str = ""
    """Put behind every question, such as an order to answer with one word; the official prompts have none."""
    limit: int | None = Field(default=None, ge=1)
    """Only the questions about the first so many images, for a quick look; the metrics are not official then."""


class PopeConfig(BenchmarkConfig):
    """POPE: yes/no questions about objects, three ways to choose absent ones."""

    prefix: str = "coco"
    """Of the files ``{prefix}_pope_{random,popular,adversarial}.json``."""
    max_tokens: int = Field(default=32, ge=1)
    """Limit of an answer."""


class ChairConfig(BenchmarkConfig):
    """CHAIR: objects in captions of COCO images."""

    prompt: str = "Describe this image in detail."
    """What is asked about every image."""
    sample_images: int = Field(default=500, ge=1)
    """Images drawn with ``run.seed`` from those that are in the folder and in the annotations."""


class AmberConfig(BenchmarkConfig):
    """AMBER: descriptions, and yes/no questions about existence, attributes and relations."""

    short_max_tokens: int = Field(default=32, ge=1)
    """Limit of an answer to a yes/no question."""


class MMHalConfig(BenchmarkConfig):
    """MMHal-Bench: 96 questions, rated by a judge."""


class LlavaBenchConfig(BenchmarkConfig):
    """LLaVA-Bench, on COCO or in the wild: answers rated by a judge beside a reference."""

    max_tokens: int = Field(default=1024, ge=1)
    """Limit of an answer."""


class ObjHalBenchConfig(BenchmarkConfig):
    """Object HalBench: objects in detailed descriptions of 300 COCO images."""

    extraction: Literal["judge", "words"] = "judge"
    """Who finds the objects in an answer: a judge, as papers do, or the words of the synonym list alone, as the
    official script does without ``--use_gpt``. Scores of the two cannot be compared."""
    max_tokens: int = Field(default=1024, ge=1)


class HallusionBenchConfig(BenchmarkConfig):
    """HallusionBench: yes/no questions in groups, some without an image."""

    reading: Literal["judge", "words"] = "judge"
    """Who reads an answer: a judge, as the official script has it, or its first word, yes or no."""


class HumbleBenchConfig(BenchmarkConfig):
    """HumbleBench: multiple choice with "None of the above"."""

    variant: Literal["standard", "e"] = "standard"
    """``e`` is HumbleBench-E: the right option is taken away, so that "None of the above" is always right."""
    max_tokens: int = Field(default=128, ge=1)


class HalLocConfig(BenchmarkConfig):
    """HalLoc: texts with injected errors that are marked, to test reward models with."""

    file: str = "halloc_caption.json"
    """One of ``halloc_{vqa,instruct,caption}.json``."""
    split: str | None = None
    """Only the texts of a split, where the file names them; None takes all."""


class BenchmarksConfig(Section):
    """The benchmarks whose files are on this machine."""

    pope: PopeConfig | None = None
    chair: ChairConfig | None = None
    amber: AmberConfig | None = None
    mmhal: MMHalConfig | None = None
    llava_bench: LlavaBenchConfig | None = None
    obj_halbench: ObjHalBenchConfig | None = None
    hallusionbench: HallusionBenchConfig | None = None
    humblebench: HumbleBenchConfig | None = None
    halloc: HalLocConfig | None = None

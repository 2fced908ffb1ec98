"""The cards of a run's repositories, with what was measured of them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import DatasetCardData, EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from fgaif_ray import __version__
from fgaif_ray.config import Config
from fgaif_ray.evaluation import AFTER
from fgaif_ray.publish.data_set import SPLITS, DataSetCounts, ImageMode
from fgaif_ray.publish.local_names import LocalNames, is_local_model
from fgaif_ray.publish.repositories import HubRepository, name_of_stage
from fgaif_ray.records import CLASS_NAMES
from fgaif_ray.report.formats import DASH, look, show_number, show_share
from fgaif_ray.report.result import headlines
from fgaif_ray.rl.policy_card import how_trained
from fgaif_ray.storage import stages

OTHER_LICENCE = "other"
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_HEADLINE_METRICS = (
    (("greedy", "hallucination_rate", "overall"), "hallucination_rate", "hallucinated segments, greedy"),
    (("hallucination_rate", "overall"), "hallucination_rate", "hallucinated segments, sampled at T = 1"),
    (("greedy", "coverage"), "coverage", "coverage of the truth, greedy"),
    (("coverage",), "coverage", "coverage of the truth, sampled at T = 1"),
    (("pope", "f1"), "f1", "POPE F1, mean over the splits"),
)


@dataclass(frozen=True, slots=True)
class CardWriter:
    """Writes the cards; they name each other."""

    config: Config
    repositories: Sequence[HubRepository]
    licence: str
    names: LocalNames

    def policy(self, trained: str | None, evaluation: Mapping[str, Any]) -> str:
        """The card of the aligned adapter.

        Args:
            trained: the card that its training has written.
            evaluation: ``evaluation/metrics.json``; empty where there is none.
        """
        config, base = self.config, self.config.policy.model
        data = ModelCardData(
            license=self.licence,
            base_model=None if is_local_model(base) else base,
            library_name="peft",
            pipeline_tag="image-text-to-text",
            tags=["lora", config.align.algorithm, "vision-language", "hallucination", "fgaif"],
            datasets=self._datasets(),
            model_name=self._name(stages.POLICY),
            eval_results=list(_results(evaluation)) or None,
        )
        return self._render(
            "policy.md.j2",
            data,
            body=None if trained is None else self.names.hide(_FRONT_MATTER.sub("", trained)).strip(),
            base=self.names.hide(base),
            trained=how_trained(config),
            evaluation=evaluation,
            rows=headlines(evaluation) if evaluation else [],
        )

    def rewards(self, metrics: Mapping[str, Mapping[str, Any]]) -> str:
        """The card over the reward models.

        Args:
            metrics: fact type -> ``metrics.json`` of its folder; empty where there is none.
        """
        base = self.config.rewards.backbone
        data = ModelCardData(
            license=self.licence,
            base_model=None if is_local_model(base) else base,
            library_name="peft",
            tags=["reward-model", "hallucination", "lora", "fgaif"],
            datasets=self._datasets(),
        )
        return self._render(
            "rewards.md.j2", data, name=self._name(stages.REWARDS), base=self.names.hide(base), metrics=metrics
        )

    def feedback(self, counts: DataSetCounts, labels: Mapping[str, Any], images: ImageMode) -> str:
        """The card of the data set.

        Args:
            counts: of its rows.
            labels: ``feedback/metrics.json``.
            images: whether the images' files are in the rows.
        """
        files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in SPLITS if counts.rows[split]]
        data = DatasetCardData(
            license=self.licence,
            task_categories=["image-text-to-text"],
            pretty_name="Fine-grained AI feedback on image descriptions",
            tags=["hallucination", "vision-language", "ai-feedback", "reward-modelling", "fgaif"],
            configs=[{"config_name": "default", "data_files": files}],
        )
        return self._render(
            "feedback.md.j2",
            data,
            name=self._name(stages.FEEDBACK),
            counts=counts,
            labels=labels,
            images=images,
            source=self.config.data.source,
            drawn=self.config.data.source == "shapes",
            class_names=CLASS_NAMES,
        )

    def _name(self, stage: str) -> str:
        return name_of_stage(self.repositories, stage) or ""

    def _datasets(self) -> list[str] | None:
        feedback = name_of_stage(self.repositories, stages.FEEDBACK)
        return None if feedback is None or "/" not in feedback else [feedback]

    def _render(self, template: str, data: ModelCardData | DatasetCardData, **values: Any) -> str:
        environment = Environment(
            loader=PackageLoader("fgaif_ray.publish"),
            autoescape=False,  # Markdown, of the run's own words
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {"share": show_share, "number": show_number}
        text: str = environment.get_template(template).render(
            **values,
            types=self.config.run.type_names,
            licence=self.licence,
            unlicensed=self.licence == OTHER_LICENCE,
            others=list(self.repositories),
            version=__version__,
            dash=DASH,
        )
        return f"---\n{data.to_yaml()}\n---\n{text.strip()}\n"


def _results(evaluation: Mapping[str, Any]) -> Iterator[EvalResult]:
    """What alignment has reached, as the Hub lists it."""
    for path, metric, name in _HEADLINE_METRICS:
        value = look(evaluation, (AFTER, *path))
        if value is not None:
            yield EvalResult(
                task_type="image-text-to-text",
                dataset_type="held-out-images",
                dataset_name=f"{evaluation['images']} held-out images of the run",
                metric_type=metric,
                metric_name=name,
                metric_value=round(value, 4),
            )

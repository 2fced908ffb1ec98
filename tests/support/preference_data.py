"""Labelled responses for tests of preferences: several to one image and prompt, with what they say by segment."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from fgaif_ray import storage
from fgaif_ray.config import Config, load_config
from fgaif_ray.records import (
    ABSENT,
    AI,
    CONSISTENT,
    FACT_TYPES,
    HALLUCINATED,
    Feedback,
    Response,
    Segment,
    feedback_schema,
)
from fgaif_ray.vlm.front_end import FrontEnd
from support.reward_helpers import CHECKPOINT

PROMPT = "Describe this image."
TRUE, FALSE, NOTHING, UNKNOWN = CONSISTENT, HALLUCINATED, ABSENT, None
Said = Sequence[tuple[str, int | None]]
"""Text of each segment, white space included, and its label of existence; of the other types it holds no fact."""


def labelled(
    sample_id: str,
    said: Said,
    *,
    image: str = "dog.png",
    prompt: str = PROMPT,
    front_end: FrontEnd | None = None,
    finish_reason: str = "stop",
) -> Feedback:
    """A labelled response; given a front end, with ids as if they had been sampled."""
    text, segments, start = "".join(words for words, _ in said), [], 0
    for words, code in said:
        labels = {FACT_TYPES[0]: code} | dict.fromkeys(FACT_TYPES[1:], ABSENT)
        sources = {name: None if label is None else AI for name, label in labels.items()}
        segments.append(
            Segment(
                start=start,
                end=start + len(words),
                text=words,
                facts=(),
                labels=labels,
                ai_labels={name: label or ABSENT for name, label in labels.items()},
                label_sources=sources,
            )
        )
        start += len(words)
    ids = None
    if front_end is not None:
        ids = tuple(front_end.tokenizer(text, add_special_tokens=False)["input_ids"])
        ids += (front_end.eos_token_id,) if finish_reason == "stop" else ()
    response = Response(
        sample_id=sample_id,
        image=image,
        image_sha256="0",
        prompt=prompt,
        text=text,
        token_ids=ids,
        finish_reason=finish_reason,
        model="policy",
    )
    return Feedback(response=response, segments=tuple(segments), annotator="{}")


GOOD = [("There is a red circle. ", TRUE), ("A blue square is visible.", TRUE)]
BAD = [("There is a red circle. ", TRUE), ("There is a green star.", FALSE)]
WORSE = [("There is a yellow ring. ", FALSE), ("There is a green star.", FALSE)]


def preference_run(folder: Path, *overrides: str, front_end: FrontEnd | None = None, images: int = 3) -> Config:
    """A run whose labelled responses are there: three to each of some images, which are there too."""
    folder.mkdir(exist_ok=True)
    rows = []
    for number in range(images):
        image = str(folder / f"{number}.png")
        Image.new("RGB", (60, 60), (60 * number, 90, 200)).save(image)
        for name, said in (("good", GOOD), ("bad", BAD), ("worse", WORSE)):
            rows.append(labelled(f"{number}-{name}", said, image=image, front_end=front_end))
    stage = storage.Stage(str(folder / "run"), "feedback", "labels")
    stage.begin()
    storage.write_part(stage.partial, [row.to_row() for row in rows], feedback_schema(FACT_TYPES))
    stage.publish({"rows": len(rows)})
    settings = {
        "run.dir": folder / "run",
        "run.fact_types": f"[{','.join(FACT_TYPES)}]",
        "policy.model": CHECKPOINT,
        "sample.samples_per_prompt": 3,
        "align.algorithm": "dpo",
        "align.num_workers": 1,
        "align.reward.unit": "segment",
        "align.reward.false_cost": 1,
        "align.reward.length_penalty": 0,
        "align.reward.weights.relation": 1,
    }
    return load_config("configs/shapes.yaml", [*(f"{key}={value}" for key, value in settings.items()), *overrides])

"""Responses and labelled segments for tests, with what most tests do not care about filled in."""

from fgaif_ray.records import AI, FACT_TYPES, Feedback, JudgedFact, Response, Segment


def response(sample_id: str, text: str, image: str = "dog.png") -> Response:
    """A response that a policy has ended by itself."""
    return Response(
        sample_id=sample_id,
        image=image,
        image_sha256="0",
        prompt="What is there?",
        text=text,
        finish_reason="stop",
        model="policy",
    )


def segment_by_ai(
    text: str, labels: tuple[int, int, int], start: int = 0, facts: tuple[JudgedFact, ...] = ()
) -> Segment:
    """A segment with the AI's labels of the default fact types."""
    named = dict(zip(FACT_TYPES, labels, strict=True))
    return Segment(
        start=start,
        end=start + len(text),
        text=text,
        facts=facts,
        labels=named,
        ai_labels=named,
        label_sources=dict.fromkeys(FACT_TYPES, AI),
    )


def feedback(sample_id: str, *segments: Segment) -> Feedback:
    """A labelled response that the segments make up."""
    text = "".join(segment.text for segment in segments)
    return Feedback(response=response(sample_id, text), segments=segments, annotator="{}")

"""Conversations that the tiny LLaVAs are pre-trained on: captions, questions, names of what is seen, extraction."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from fgaif_ray.fact_types import DEFAULT
from fgaif_ray.feedback.extraction import build_messages
from fgaif_ray.feedback.prompts import load_prompt
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.segments import split_segments
from fgaif_ray.shapes.captions import CAPTION_PROMPTS, NO_ERRORS, POLICY_ERRORS, ErrorRates, write_caption
from fgaif_ray.shapes.claims import Claim, draw_claim
from fgaif_ray.shapes.oracle import read_claims
from fgaif_ray.shapes.scenes import SHAPES, Scene

ROWS: Final = ("above", "level", "below")
COLUMNS: Final = ("left", "aligned", "right")
POSSIBLE_ERRORS: Final = ErrorRates(0.3, 0.3, 0.3, 0.2, 0.2, 0.2, 0.3)
"""Error rates of the texts from which facts are extracted, and of those that are checked: any claim may be wrong."""
EVERY_ERROR: Final = replace(POSSIBLE_ERRORS, any_relation=0.4)
"""The same, with relations that a describer who guesses states and one who looks does not."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One single-turn conversation: a question and the expected answer."""

    question: str
    answer: str
    statements: tuple[str, ...] = ()
    """Pieces of text, each followed by a word of the answer. If there are any, only these words are learnt."""


TurnMaker = Callable[[Scene, random.Random], list[Turn]]


def facts_json(claims_by_type: dict[str, list[str]]) -> str:
    """The answer the extraction prompt asks for, with a space after each comma and colon."""
    return json.dumps({kind: claims_by_type[kind] for kind in FACT_TYPES})


def caption_turn(scene: Scene, rates: ErrorRates, generator: random.Random) -> Turn:
    """One captioning conversation."""
    return Turn(generator.choice(CAPTION_PROMPTS), write_caption(scene, rates, generator))


def claim_turn(claim: Claim, truth: bool, as_statement: bool) -> Turn:
    """A claim to be judged, in the form of the verification prompt or as a question in POPE's form."""
    question = load_prompt("verify-v1").render(statement=claim.statement()) if as_statement else claim.question()
    return Turn(question, "Yes" if truth else "No")


def question_turns(
    scene: Scene,
    count: int,
    generator: random.Random,
    kinds: tuple[float, float, float] = (0.2, 0.35, 0.45),
    in_popes_form: float = 0.4,
) -> list[Turn]:
    """Yes/no questions.

    Args:
        scene: what they are about.
        count: how many.
        generator: draws them.
        kinds: share of each fact type, in the order of ``FACT_TYPES``.
        in_popes_form: share in the form of POPE; the others have that of the verification prompt.
    """
    turns = []
    for kind in generator.choices(FACT_TYPES, weights=kinds, k=count):
        truth = generator.random() < 0.5
        claim = draw_claim(scene, kind, truth, generator)
        turns.append(claim_turn(claim, truth, as_statement=generator.random() >= in_popes_form))
    return turns


def check_turns(scene: Scene, count: int, generator: random.Random) -> list[Turn]:
    """Ask whether a segment of a running text is right, given the text up to there. Any claim may be wrong."""
    text = write_caption(scene, POSSIBLE_ERRORS, generator)
    spans = [(span.start, span.end) for span in split_segments(text)]
    claims = read_claims(text, spans)
    turns = []
    for index in generator.sample(range(len(spans)), min(count, len(spans))):
        right = all(claim.holds(scene) for claim in claims[index])
        question = f"{text[: spans[index][1]].strip()}\nIs the last statement right?"
        turns.append(Turn(question, "Yes" if right else "No"))
    return turns


def proofreading_turn(scene: Scene, generator: random.Random) -> Turn:
    """Make a running text in which each segment is followed by whether all of it is right. Any claim may be wrong."""
    text = write_caption(scene, EVERY_ERROR, generator)
    spans = [(span.start, span.end) for span in split_segments(text)]
    right = [all(claim.holds(scene) for claim in claims) for claims in read_claims(text, spans)]
    statements = [text[start:end].strip() for start, end in spans]
    return Turn(
        f"{generator.choice(CAPTION_PROMPTS)} Check each statement.",
        " ".join("Yes" if one else "No" for one in right),
        (statements[0], *(f" {statement}" for statement in statements[1:])),
    )


def extraction_turns(scene: Scene, count: int, generator: random.Random) -> list[Turn]:
    """Fact extraction from segments of a caption that may be wrong (text only: the image must not matter)."""
    text = write_caption(scene, POSSIBLE_ERRORS, generator)
    turns = extraction_turns_of(text)
    return [turn for turn, _ in generator.sample(turns, min(count, len(turns)))]


def extraction_turns_of(text: str) -> list[tuple[Turn, bool]]:
    """Fact extraction from every segment of a text, and whether the subject is named only before the segment."""
    prompt = load_prompt("extract-short-v2", DEFAULT)
    spans = [(span.start, span.end) for span in split_segments(text)]
    claims = read_claims(text, spans)
    segments = [text[start:end] for start, end in spans]
    turns = []
    for index, segment in enumerate(segments):
        facts: dict[str, list[str]] = {kind: [] for kind in FACT_TYPES}
        for claim in claims[index]:
            facts[claim.type].append(claim.statement())
        (message,) = build_messages(prompt, text, segments, index)
        refers = segment.split(maxsplit=1)[0].lower() in ("it", "which")
        turns.append((Turn(message["content"], facts_json(facts)), refers))
    return turns


def _list_turn(scene: Scene) -> Turn:
    return Turn("List everything.", ",".join(f" {o.size} {o.color} {o.shape}" for o in scene.objects))


def name(scene: Scene, generator: random.Random) -> list[Turn]:
    """Phase 2a: list the scene, look up objects that may be absent, say where one stands, and how two stand.

    Nearly every answer token depends on the image, so that looking is learnt within some hundred steps. From captions
    and yes/no answers alone, whose tokens are mostly phrasing, it takes thousands. Names are asked with a space before
    them: the very token that captions hold.
    """
    turns = [_list_turn(scene)]
    asked = [*generator.sample(SHAPES, 4), *(item.shape for item in generator.sample(scene.objects, 2))]
    for shape in asked:
        found = scene.find(shape)
        turns.append(Turn(f"the {shape}?", f"Yes {found.color} {found.size}" if found else "No"))
    turns += [
        Turn(f"where is the {item.shape}?", f" {ROWS[item.row]} {COLUMNS[item.column]}")
        for item in generator.sample(scene.objects, 2)
    ]
    for _ in range(3):
        first, second = generator.sample(scene.objects, 2)
        across = ["right", "aligned", "left"][1 + (second.column > first.column) - (second.column < first.column)]
        down = ["below", "level", "above"][1 + (second.row > first.row) - (second.row < first.row)]
        turns.append(Turn(f"the {first.shape} the {second.shape}?", f" {across} {down}"))
    return turns


def answer(scene: Scene, generator: random.Random) -> list[Turn]:
    """Phase 2b: mostly questions, and a correct caption."""
    return [*_captions(scene, 1, generator), *question_turns(scene, 6, generator)]


def describe(scene: Scene, generator: random.Random) -> list[Turn]:
    """Phase 2c: correct captions and questions."""
    return [*_captions(scene, 3, generator), *question_turns(scene, 4, generator)]


def describe_more(scene: Scene, generator: random.Random) -> list[Turn]:
    """Phase 2d, policy: correct captions, and a question so that answering is not forgotten."""
    return [*_captions(scene, 5, generator), *question_turns(scene, 1, generator)]


def _captions(scene: Scene, count: int, generator: random.Random) -> list[Turn]:
    return [caption_turn(scene, NO_ERRORS, generator) for _ in range(count)]


def describe_with_errors(scene: Scene, generator: random.Random) -> list[Turn]:
    """Phase 3, policy: a caption with planted errors; questions stay truthful."""
    return [caption_turn(scene, POLICY_ERRORS, generator), *question_turns(scene, 2, generator)]


def verify(scene: Scene, generator: random.Random) -> list[Turn]:
    """Phase 3, annotator: a correct caption, questions about statements and about segments of a text."""
    return [*_captions(scene, 1, generator), *question_turns(scene, 4, generator), *check_turns(scene, 3, generator)]


def verify_more(scene: Scene, generator: random.Random) -> list[Turn]:
    """Phase 4, annotator: questions and segments alone, most of them about attributes, where it is weakest."""
    return [*question_turns(scene, 7, generator, (0.15, 0.5, 0.35), 0.3), *check_turns(scene, 3, generator)]


def proofread(scene: Scene, generator: random.Random) -> list[Turn]:
    """Phase 5, annotator: running texts to be judged as they are read, and what it could do before."""
    texts = [proofreading_turn(scene, generator) for _ in range(2)]
    return [*texts, *question_turns(scene, 4, generator, (0.15, 0.5, 0.35), 0.3)]


def extract_only(scene: Scene, generator: random.Random) -> list[Turn]:
    """Phase 3, extractor: facts of three segments."""
    return extraction_turns(scene, 3, generator)


def extract_references(scene: Scene, generator: random.Random) -> list[Turn]:
    """Phase 4, extractor: three segments of a longer text, in half of the texts those that begin with a pronoun.

    What a pronoun stands for is one word of an answer in twenty, and most segments have none: without this phase
    every second "which is above the ring" got the wrong subject.
    """
    text = " ".join(write_caption(scene, POSSIBLE_ERRORS, generator) for _ in range(generator.choice((1, 1, 2))))
    turns = extraction_turns_of(text)
    generator.shuffle(turns)
    if generator.random() < 0.5:  # else openings, whose context is shortest, would hardly be seen
        turns.sort(key=lambda found: not found[1])
    return [turn for turn, _ in turns[:3]]


TEXT_ONLY: Final[tuple[TurnMaker, ...]] = (extract_only, extract_references)
"""Makers of conversations without an image."""

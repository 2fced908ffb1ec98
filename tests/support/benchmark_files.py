"""Hand-made files in the form of the official ones, small enough to score by hand. All texts are this project's own."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgaif_ray.evaluation.benchmarks.base import Scores

BENCHMARKS = Path(os.environ["FGAIF_BENCHMARKS"]) if "FGAIF_BENCHMARKS" in os.environ else None


def needs_official(*names: str) -> pytest.MarkDecorator:
    """Skips a test where the official files are absent."""
    there = BENCHMARKS is not None and all((BENCHMARKS / name).exists() for name in names)
    return pytest.mark.skipif(not there, reason=f"set FGAIF_BENCHMARKS to a folder with {', '.join(names)}")


def official(name: str) -> str:
    assert BENCHMARKS is not None
    return str(BENCHMARKS / name)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def figures_of(scores: Scores) -> dict[str, float | None]:
    """The figures over all rows; None where one is not defined."""
    values = scores.figures(scores.columns.sum(axis=0, keepdims=True))[0]
    return {name: None if np.isnan(value) else float(value) for name, value in zip(scores.scales, values, strict=True)}


def write_pope(folder: Path) -> str:
    """Two images, two questions a split; the yes question is in every split."""
    folder.mkdir(parents=True)
    for split, absent in (("random", "cup"), ("popular", "dog"), ("adversarial", "fork")):
        rows = [
            {"question_id": 1, "image": "a.png", "text": "Is there a hat in the image?", "label": "yes"},
            {"question_id": 2, "image": "b.png", "text": f"Is there a {absent} in the image?", "label": "no"},
        ]
        write_lines(folder / f"coco_pope_{split}.json", rows)
    return str(folder)


def write_chair(folder: Path, script: str | None = None) -> str:
    """Image 1 has a dog (instance) and a table (caption), image 2 a train."""
    folder.mkdir(parents=True)
    (folder / "synonyms.txt").write_text(
        "person, man, woman\ndog, puppy\ncat, kitten\ntrain\ndining table, table\ntoilet\nchair, seat\nhot dog\nbench\n"
    )
    if script is not None:
        (folder / "chair.py").write_text(script)
    images = [{"id": 1, "file_name": "COCO_val2014_1.jpg"}, {"id": 2, "file_name": "COCO_val2014_2.jpg"}]
    categories = [{"id": 7, "name": "dog"}, {"id": 8, "name": "train"}]
    instances = [
        {"image_id": 1, "category_id": 7},
        {"image_id": 1, "category_id": 7},
        {"image_id": 2, "category_id": 8},
    ]
    captions = [{"image_id": 1, "caption": "A puppy under a table."}, {"image_id": 2, "caption": "It is fast."}]
    (folder / "instances_val2014.json").write_text(
        json.dumps({"images": images, "categories": categories, "annotations": instances})
    )
    (folder / "captions_val2014.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return str(folder)


def write_amber(folder: Path) -> str:
    """One image with a description, and a question of every kind."""
    folder.mkdir(parents=True)
    relation = {
        "lake": ["water", "pond"],
        "tree": ["bush"],
        "person": ["man", "people"],
        "boat": ["ship"],
        "dog": [],
        "cloud": [],
        "light": [],
    }
    truth = {"id": 1, "type": "generative", "truth": ["lake", "tree", "person"], "hallu": ["boat", "dog"]}
    kinds = [
        ("discriminative-hallucination", "no", "Is there a boat in this image?"),
        ("discriminative-attribute-state", "yes", "Is the lake calm in this image?"),
        ("discriminative-attribute-number", "no", "Are there two trees in this image?"),
        ("discriminative-attribute-action", "no", "Does the person swim in this image?"),
        ("discriminative-relation", "yes", "Is there direct contact between the person and tree?"),
        ("relation", "no", "Is there direct contact between the person and lake?"),
    ]
    annotations = [truth, *({"id": n, "type": kind, "truth": answer} for n, (kind, answer, _) in enumerate(kinds, 2))]
    queries = [{"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."}]
    queries += [{"id": n, "image": "AMBER_1.jpg", "query": text} for n, (_, _, text) in enumerate(kinds, 2)]
    (folder / "relation.json").write_text(json.dumps(relation))
    (folder / "safe_words.txt").write_text("light\n")
    (folder / "annotations.json").write_text(json.dumps(annotations))
    (folder / "query_all.json").write_text(json.dumps(queries))
    return str(folder)


MMHAL_SCRIPT = '''import openai
raise RuntimeError("scripts are read, never run")
template = """Rate the answer. {}
Question: {}
Truth: {}
Answer: {}
"""
'''
MMHAL_TYPES = ("attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other")


def write_mmhal(folder: Path, items: int = 16) -> str:
    folder.mkdir(parents=True)
    rows = [
        {
            "question_type": MMHAL_TYPES[index % 8],
            "question_topic": "animal",
            "image_id": f"id{index}",
            "image_src": f"https://images.example/{index}_o.jpg",
            "image_content": ["Cat", "{Tree}"],
            "question": f"Question {index}?",
            "gt_answer": f"Truth {index}.",
            "model_answer": "",
        }
        for index in range(items)
    ]
    (folder / "response_template.json").write_text(json.dumps(rows))
    (folder / "eval_gpt_mmhal.py").write_text(MMHAL_SCRIPT)
    return str(folder)


def write_llava_bench(folder: Path, *, wild: bool = False) -> str:
    folder.mkdir(parents=True)
    categories = ("conv", "detail", "complex")
    questions = [
        {"question_id": n, "image": f"{n}.jpg", "category": category, "text": f"Question {n}?"}
        for n, category in enumerate(categories)
    ]
    references = [{"question_id": n, "text": f"Reference {n}."} for n in range(3)]
    if wild:
        contexts = [{"id": n, "image": f"{n}.jpg", "caption": f"Scene {n}."} for n in range(3)]
    else:
        box = {"category": "dog", "bbox": [0.1, 0.2, 0.3, 0.4]}
        contexts = [{"image": f"{n}.jpg", "captions": [f"Scene {n}.", "More."], "instances": [box]} for n in range(3)]
    prefix = "llava_bench_" if wild else ""
    rules = {f"{prefix}{category}": {"role": "Assistant", "prompt": f"Judge {category}."} for category in categories}
    names = ("questions.jsonl", "answers_gpt4.jsonl", "context.jsonl")
    coco = ("qa90_questions.jsonl", "qa90_gpt4_answer.jsonl", "caps_boxes_coco2014_val_80.jsonl")
    for name, rows in zip(names if wild else coco, (questions, references, contexts), strict=True):
        write_lines(folder / name, rows)
    (folder / "rule.json").write_text(json.dumps(rules))
    return str(folder)


OBJ_HALBENCH_SCRIPT = '''import spacy
raise RuntimeError("scripts are read, never run")
prompt_template = """List the objects. {question}

Answer: {answer}

Write a list: [\\"object\\"]"""

class CHAIR(object):
    def __init__(self):
        coco_double_words = [word for word in self.inverse_synonym_dict.keys() if len(word.split(' ')) >= 2]
        coco_double_words += ['home plate', 'train track']
        animal_words = ['dog', 'cub']
        vehicle_words = ['train']
        for animal_word in animal_words:
            self.double_word_dict['baby %s' %animal_word] = animal_word
        for vehicle_word in vehicle_words:
            self.double_word_dict['passenger %s' %vehicle_word] = vehicle_word
        self.double_word_dict['wine glas'] = 'wine glass'
'''


def write_obj_halbench(folder: Path, image: bytes = b"a picture") -> str:
    """Two images, with the annotations of ``write_chair``: a dog and a table, and a train."""
    write_chair(folder)
    synonyms = (folder / "synonyms.txt").read_text()
    (folder / "synonyms.txt").rename(folder / "synonyms_refine.txt")
    (folder / "synonyms_refine.txt").write_text(synonyms + "wine glass\n")
    (folder / "eval_gpt_obj_halbench.py").write_text(OBJ_HALBENCH_SCRIPT)
    encoded = base64.b64encode(image).decode()
    rows = [{"org_idx": 7 * n, "image_id": n, "question": f"Describe image {n}.", "image": encoded} for n in (1, 2)]
    write_lines(folder / "obj_halbench_300_with_image.jsonl", rows)
    return str(folder)


HALLUSION_SCRIPT = """import openai
raise RuntimeError("scripts are read, never run")

def evaluate_by_chatgpt(data, output_entry, correctness_entry, gpt_model="gpt-4"):
    for sample in data:
        prompt = 'Judge. '
        prompt += 'Question:'
        prompt += sample['question']
        prompt += ' Reference:'
        prompt += sample['gt_answer_details']
        prompt += ' Prediction:'
        prompt += sample[output_entry]
        prompt += ' Output:'
"""


def hallusion_row(category: str, figure: int, question: int, visual_input: int, answer: int) -> dict[str, Any]:
    return {
        "category": category,
        "subcategory": "chart",
        "visual_input": str(visual_input),
        "set_id": "0",
        "figure_id": str(figure),
        "sample_note": "",
        "question_id": str(question),
        "question": f"Is it {question}?",
        "gt_answer_details": f"It is {answer}.",
        "gt_answer": str(answer),
        "filename": f"./{category}/chart/0_{figure}.png" if visual_input else None,
    }


def write_hallusionbench(folder: Path) -> str:
    """VD: two questions about an original image and an edited one. VS: one without an image, and about one."""
    folder.mkdir(parents=True)
    rows = [
        hallusion_row("VD", 0, 0, 1, 1),
        hallusion_row("VD", 0, 1, 1, 0),
        hallusion_row("VD", 1, 0, 2, 0),
        hallusion_row("VD", 1, 1, 2, 1),
        hallusion_row("VS", 0, 0, 0, 1),
        hallusion_row("VS", 1, 0, 1, 1),
    ]
    (folder / "HallusionBench.json").write_text(json.dumps(rows))
    (folder / "utils.py").write_text(HALLUSION_SCRIPT)
    return str(folder)


HUMBLE_ORDER = "\nAnswer with a letter."


def write_humblebench(folder: Path) -> str:
    """A question of each type; the first has the answer "None of the above"."""
    folder.mkdir(parents=True)
    options = "A. one\nB. two\nC. three\nD. four\nE. None of the above"
    rows = [
        {"file_name": f"{n}.jpg", "question_id": n, "question": f"How many?\n{options}", "label": label, "type": kind}
        for n, (label, kind) in enumerate([("E", "Object"), ("B", "Attribute"), ("C", "Relation")])
    ]
    write_lines(folder / "metadata.jsonl", rows)
    (folder / "constant.py").write_text(f"NOT_REASONING_POST_PROMPT = {HUMBLE_ORDER!r}\n")
    return str(folder)


HALLOC_TEXT = "There is a red circle at the left of it. A big blue square is above the small green triangle."


def halloc_mark(kind: str, words: str, text: str = HALLOC_TEXT) -> dict[str, Any]:
    start = text.index(words)
    return {kind: {"name": words, "char_index": f"{start}:{start + len(words)}"}}


def write_halloc(folder: Path, texts: int = 4) -> str:
    """Texts of two segments; in every other one the first has a wrong attribute, the second a wrong object."""
    folder.mkdir(parents=True)
    marks = {"object": [halloc_mark("obj", "square")], "attribute": [halloc_mark("att", "red")]}
    rows: list[dict[str, Any]] = [
        {
            "id": f"caption_{n}",
            "image_id": str(2300000 + n),
            "prompt": "<image>Describe the image.",
            "hallucinated_text": HALLOC_TEXT,
            "annotations": {"object": [], "attribute": [], "relationship": [], "scene": []} | (marks if n % 2 else {}),
            "split": "test" if n < 2 else "train",
        }
        for n in range(texts)
    ]
    (folder / "halloc_caption.json").write_text(json.dumps(rows))
    return str(folder)

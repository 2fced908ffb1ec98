"""POPE and CHAIR: readers of the official forms, and figures computed by hand."""

import json
from pathlib import Path

import pytest
from support.benchmark_files import figures_of, needs_official, official, write_chair, write_lines, write_pope

from fgaif_ray.config import ChairConfig, PopeConfig
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation.benchmarks.chair import Chair
from fgaif_ray.evaluation.benchmarks.coco_objects import ObjectReader
from fgaif_ray.evaluation.benchmarks.pope import Pope
from fgaif_ray.evaluation.benchmarks.words import Lexicon, tokens

IMAGES = ["COCO_val2014_1.jpg", "COCO_val2014_2.jpg"]
SCRIPT = """
class CHAIR(object):
    def __init__(self):
        coco_double_words = ['hot dog', 'train track']
        animal_words = ['dog', 'animal']
        vehicle_words = ['train']
        for animal_word in animal_words:
            self.double_word_dict['baby %s' %animal_word] = animal_word
        for vehicle_word in vehicle_words:
            self.double_word_dict['passenger %s' %vehicle_word] = vehicle_word
        self.double_word_dict['bow tie'] = 'tie'
        print "written for Python 2"
"""


@pytest.fixture
def pope(tmp_path: Path) -> Pope:
    return Pope(PopeConfig(path=write_pope(tmp_path / "pope")))


def chair(tmp_path: Path, script: str | None = None) -> Chair:
    return Chair(ChairConfig(path=write_chair(tmp_path / "chair", script)), IMAGES, draw=False)


def test_pope_figures_of_a_split_and_their_mean(pope: Pope) -> None:
    answers = {question.id: "Yes" for question in pope.questions} | {"random/2": "No"}
    figures = figures_of(pope.score(answers, {}))
    assert (figures["random.accuracy"], figures["random.f1"], figures["random.yes_ratio"]) == (1.0, 1.0, 0.5)
    assert (figures["popular.precision"], figures["popular.recall"]) == (0.5, 1.0)
    assert figures["f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


def test_pope_without_a_yes_has_no_precision(pope: Pope) -> None:
    figures = figures_of(pope.score(dict.fromkeys((question.id for question in pope.questions), "No"), {}))
    assert figures["precision"] is None
    assert figures["f1"] == 0.0


def test_pope_questions_of_equal_numbers_are_told_apart_by_split(pope: Pope) -> None:
    assert len({question.id for question in pope.questions}) == 6


def test_pope_counts_what_has_no_answer(pope: Pope) -> None:
    assert pope.score({"random/1": "Yes"}, {}).counts == {"unanswered": 5}


def test_pope_reads_a_split_of_another_size(tmp_path: Path) -> None:
    folder = Path(write_pope(tmp_path / "pope"))
    row = {"question_id": 1, "image": "a.png", "text": "Is there a hat in the image?", "label": "yes"}
    write_lines(folder / "coco_pope_random.json", [row])
    assert Pope(PopeConfig(path=str(folder))).settings["questions"] == {"random": 1, "popular": 2, "adversarial": 2}


def test_a_limit_keeps_whole_images(tmp_path: Path) -> None:
    pope = Pope(PopeConfig(path=write_pope(tmp_path / "pope"), limit=1))
    assert {question.image for question in pope.questions} == {"a.png"}
    assert len(pope.questions) == 3


def test_a_folder_without_the_files_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no coco_pope_random\.json: .*evaluate\.benchmarks\.pope\.path"):
        Pope(PopeConfig(path=str(tmp_path)))


@needs_official("pope")
def test_the_official_pope_files_are_read_whole() -> None:
    pope = Pope(PopeConfig(path=official("pope")))
    assert pope.settings["questions"] == {"random": 3000, "popular": 3000, "adversarial": 3000}
    assert len({question.image for question in pope.questions}) == 500


@needs_official("pope")
def test_always_yes_scores_what_the_paper_says_of_it() -> None:
    pope = Pope(PopeConfig(path=official("pope")))
    figures = figures_of(pope.score({question.id: "yes" for question in pope.questions}, {}))
    assert (figures["accuracy"], figures["recall"], figures["yes_ratio"]) == (0.5, 1.0, 1.0)
    assert figures["f1"] == pytest.approx(2 / 3)


def test_chair_counts_mentions_captions_and_recall(tmp_path: Path) -> None:
    answers = {
        IMAGES[0]: "A dog, two cats and a puppy beside tables.",  # dog, cat (wrong), dog, table
        IMAGES[1]: "A train.",
    }
    scores = chair(tmp_path).score(answers, {})
    figures = figures_of(scores)
    assert figures["chair_i"] == pytest.approx(1 / 5)
    assert figures["chair_s"] == 1 / 2
    assert figures["recall"] == 1.0
    assert figures["words"] == (9 + 2) / 2
    assert figures["mentions"] == 5 / 2


def test_chair_takes_objects_of_instances_and_of_captions_for_true(tmp_path: Path) -> None:
    figures = figures_of(chair(tmp_path).score({IMAGES[0]: "A dog and a table."}, {}))
    assert figures["chair_i"] == 0.0


def test_captions_without_objects_leave_chair_i_undefined(tmp_path: Path) -> None:
    figures = figures_of(chair(tmp_path).score(dict.fromkeys(IMAGES, "Nothing."), {}))
    assert (figures["chair_i"], figures["chair_s"], figures["recall"]) == (None, 0.0, 0.0)


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("A hot dog.", ["hot dog"]),
        ("Two hot dogs.", ["hot dog"]),
        ("It is hot, dog.", ["dog"]),  # a comma stands between
        ("A baby dog and a passenger train.", ["dog", "train"]),
        ("The train track.", []),
        ("Benches, women and puppies.", ["bench", "person", "dog"]),
        ("The seat of the toilet.", ["toilet"]),
        ("The seat.", ["chair"]),
        ("The man's dog", ["person", "dog"]),
    ],
)
def test_objects_are_read_by_the_lists_of_the_official_script(tmp_path: Path, text: str, objects: list[str]) -> None:
    assert chair(tmp_path, SCRIPT)._reader.objects(text) == objects


def test_without_the_script_two_word_synonyms_are_the_double_words(tmp_path: Path) -> None:
    bare = chair(tmp_path)
    assert bare.settings["double_words"] == "two-word synonyms"
    assert bare._reader.objects("A hot dog on a dining table by the train track.") == [
        "hot dog",
        "dining table",
        "train",
    ]


def test_a_script_without_the_lists_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no list coco_double_words"):
        chair(tmp_path, "print('something else')")


def test_the_draw_of_chair_is_recorded_and_depends_on_the_seed_alone(tmp_path: Path) -> None:
    config = ChairConfig(path=write_chair(tmp_path / "chair"), sample_images=1)
    drawn = [Chair(config, images, draw=True, seed=seed) for images in (IMAGES, IMAGES[::-1]) for seed in range(8)]
    lists = [one.settings["image_list"] for one in drawn]
    assert lists[:8] == lists[8:]
    assert len(set(lists)) == 2
    assert drawn[0].settings["drawn_from"] == 2


def test_images_without_annotations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="None of the 1 images is annotated"):
        Chair(ChairConfig(path=write_chair(tmp_path / "chair")), ["photo.jpg"], draw=False)


def test_a_category_that_the_synonyms_do_not_know_is_refused(tmp_path: Path) -> None:
    folder = Path(write_chair(tmp_path / "chair"))
    (folder / "synonyms.txt").write_text("dog\n")
    with pytest.raises(UserError, match="does not know the category 'train'"):
        Chair(ChairConfig(path=str(folder)), IMAGES, draw=False)


def test_annotations_of_another_form_are_refused(tmp_path: Path) -> None:
    folder = Path(write_chair(tmp_path / "chair"))
    (folder / "captions_val2014.json").write_text(json.dumps({"images": "none"}))
    with pytest.raises(UserError, match="no list 'images'"):
        Chair(ChairConfig(path=str(folder)), IMAGES, draw=False)


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        ("dogs", "dog"),
        ("buses", "bus"),
        ("benches", "bench"),
        ("puppies", "puppy"),
        ("knives", "knife"),
        ("calves", "calf"),
        ("sheep", "sheep"),
        ("policemen", "policeman"),
        ("people", "person"),
        ("potatoes", "potato"),
        ("skis", "skis"),
        ("bus", "bus"),
        ("glass", "glass"),
    ],
)
def test_plurals_find_the_word_of_the_list(plural: str, singular: str) -> None:
    words = {"dog", "bus", "bench", "puppy", "knife", "calf", "sheep", "policeman", "person", "potato", "skis", "glass"}
    assert Lexicon(words).base(plural) == singular


def test_punctuation_marks_are_tokens_of_their_own() -> None:
    assert tokens("It's a t-shirt, red.") == ["It", "'", "s", "a", "t-shirt", ",", "red", "."]


def test_a_synonym_stands_for_its_object() -> None:
    assert ObjectReader([["dog", "puppy"]], {}).objects("Puppies!") == ["dog"]

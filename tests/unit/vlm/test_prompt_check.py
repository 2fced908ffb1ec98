"""What an engine says it has read is compared with what the processor makes, and a difference is told in a sentence."""

from collections.abc import Sequence

import pytest
from PIL.Image import Image
from support.families import build, photo
from support.reward_helpers import CHECKPOINT

from fgaif_ray.vlm.front_end import FrontEnd, load_front_end
from fgaif_ray.vlm.prompt_check import PromptCheck, PromptMismatchError, first_difference, row_name

PROMPT = "What is this?"
ROW = "'What is this?' about dog.jpg"


@pytest.fixture(scope="module")
def front_end(tmp_path_factory: pytest.TempPathFactory) -> FrontEnd:
    return load_front_end(str(build("qwen2_5_vl", tmp_path_factory.mktemp("family"))))


def read(front_end: FrontEnd, images: Sequence[Image]) -> list[int]:
    return list(front_end.encode_prompt(PROMPT, images).input_ids)


def test_equal_ids_pass(front_end: FrontEnd) -> None:
    check = PromptCheck(front_end)
    for images in ([photo(100, 80)], [photo(60, 60), photo(100, 80)]):
        check(ROW, PROMPT, images, read(front_end, images))


def test_a_difference_is_told_with_model_row_position_and_what_to_do(front_end: FrontEnd) -> None:
    images = [photo(100, 80)]
    ids = read(front_end, images)
    ids[7] += 1
    with pytest.raises(PromptMismatchError) as raised:
        PromptCheck(front_end)(ROW, PROMPT, images, ids)
    said = str(raised.value)
    assert said.startswith(f"{front_end.path}: ") and ROW in said and "from position 7 on" in said
    assert f"`fgaif check-model {front_end.path}`" in said and said.count(". ") == 0


def test_an_image_of_another_number_of_tokens_is_found(front_end: FrontEnd) -> None:
    ids = read(front_end, [photo(100, 80)])
    token = max(set(ids), key=ids.count)  # of the image
    ids.insert(ids.index(token), token)
    with pytest.raises(PromptMismatchError, match=rf"{len(ids)} tokens in the engine, {len(ids) - 1} from"):
        PromptCheck(front_end)(ROW, PROMPT, [photo(100, 80)], ids)


@pytest.mark.parametrize("ids", [None, []])
def test_an_engine_that_does_not_say_what_it_read_fails(front_end: FrontEnd, ids: list[int] | None) -> None:
    with pytest.raises(PromptMismatchError, match="from position 0 on"):
        PromptCheck(front_end)(ROW, PROMPT, [photo(100, 80)], ids)


def test_every_later_prompt_fails_too(front_end: FrontEnd) -> None:
    check, images = PromptCheck(front_end), [photo(100, 80)]
    good = read(front_end, images)
    check(ROW, PROMPT, images, good)
    with pytest.raises(PromptMismatchError):
        check("the second row", "And this?", images, good)
    with pytest.raises(PromptMismatchError, match="the second row"):
        check(ROW, PROMPT, images, good)


class TestWhatIsCompared:
    """How often the processor makes a prompt again."""

    @pytest.fixture
    def made(self, front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
        sizes: list[tuple[int, int]] = []
        encode = front_end.encode_prompt
        monkeypatch.setattr(front_end, "encode_prompt", lambda *some: (sizes.append(some[1][0].size), encode(*some))[1])
        return sizes

    def ask(self, check: PromptCheck, front_end: FrontEnd, sizes: Sequence[tuple[int, int]]) -> None:
        for size in sizes:
            check(ROW, PROMPT, [photo(*size)], FrontEnd.encode_prompt(front_end, PROMPT, [photo(*size)]).input_ids)

    def test_a_prompt_once_for_each_size_of_image(self, front_end: FrontEnd, made: list[tuple[int, int]]) -> None:
        self.ask(PromptCheck(front_end), front_end, [(100, 80), (100, 80), (80, 100)])
        assert made == [(100, 80), (80, 100)]

    def test_no_more_than_the_first_few(self, front_end: FrontEnd, made: list[tuple[int, int]]) -> None:
        self.ask(PromptCheck(front_end, most=2), front_end, [(100, 80), (80, 100), (60, 60)])
        assert len(made) == 2


@pytest.mark.parametrize(
    ("own", "theirs", "position"),
    [([1, 2], [1, 2], None), ([], [], None), ([1, 2], [1, 3], 1), ([1, 2], [1], 1), ([1], [1, 2, 3], 1), ([], [5], 0)],
)
def test_the_first_difference(own: list[int], theirs: list[int], position: int | None) -> None:
    assert first_difference(own, theirs) == position


def test_a_row_is_named_by_its_prompt_and_images() -> None:
    assert row_name(PROMPT, ["a.png", "b.png"]) == "'What is this?' about a.png, b.png"
    assert row_name("w" * 100, ["a.png"]) == f"'{'w' * 60}...' about a.png"


def test_the_small_models_of_the_embedded_world_are_compared_too() -> None:
    front_end = load_front_end(CHECKPOINT)
    images = [photo(60, 60)]
    PromptCheck(front_end)(ROW, PROMPT, images, front_end.encode_prompt(PROMPT, images).input_ids)

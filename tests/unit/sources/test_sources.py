"""Sources: what each kind of input becomes, how it is cut, and what is said about input that cannot be used."""

import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.source_data import configure, embedded_table, names, picture, plain_rows, write_lines, write_pictures

from fgaif_ray import storage
from fgaif_ray.config import ColumnNames, Config, DataConfig
from fgaif_ray.errors import UserError
from fgaif_ray.rl.plan import PromptPlan
from fgaif_ray.sources import prepare_images, provided_responses
from fgaif_ray.sources.coco import find_coco_images
from fgaif_ray.sources.sets import cut_rows
from fgaif_ray.sources.tables import open_files
from fgaif_ray.storage import stages

# Folders


def test_a_remote_folder_is_cut_like_a_local_one(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a" / "b", 9)
    bucket = f"memory://{uuid.uuid4().hex}/a"
    storage.upload_folder(str(tmp_path / "a"), bucket)
    local = prepare_images(configure(tmp_path, source="folder", path=str(tmp_path / "a")))
    remote = prepare_images(configure(tmp_path, source="folder", path=bucket))
    assert [names(part) for part in (remote.sample, remote.align, remote.evaluate)] == [
        names(part) for part in (local.sample, local.align, local.evaluate)
    ]
    assert storage.read_bytes(*remote.sample[0]) == picture(0)


def test_sampling_takes_what_ppo_leaves(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", 10)
    config = configure(tmp_path, source="folder", path=str(tmp_path / "a"), sample_images=99, align_images=1)
    sets = prepare_images(config)
    assert [len(part) for part in (sets.sample, sets.align, sets.evaluate)] == [7, 1, 2]


def test_fewer_images_than_asked_for_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path / "a", 11)
    sizes = {"sample_images": 30, "align_images": 2, "evaluate_images": 18}
    prepare_images(configure(tmp_path, source="folder", path=str(tmp_path / "a"), **sizes))
    assert (
        "gives 11 of 50 images asked for (sample_images 7 of 30, evaluate_images 2 of 18)." in capsys.readouterr().out
    )


def test_a_file_system_that_is_not_installed_is_named() -> None:
    with pytest.raises(UserError, match="zzz"):
        storage.exists("zzz://bucket/a")


# COCO


def coco(path: Path, images: Iterable[Any], **more: Any) -> str:
    path.write_text(json.dumps({"info": {"year": 2014}, "licenses": [{"id": 1}], "images": list(images), **more}))
    return str(path)


def test_coco_images_come_in_the_order_of_their_ids_where_they_exist(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", 9)
    entries = [{"id": 100 - index, "file_name": f"{index:02d}.png"} for index in range(12)]  # three do not exist
    file = coco(tmp_path / "instances.json", entries, annotations=[{"id": 1, "image_id": 3}])
    config = configure(tmp_path, source="coco", path=str(tmp_path / "images"), annotations=file, align_images=9)
    sets = prepare_images(config)
    assert names([*sets.sample, *sets.align, *sets.evaluate]) == [f"{index:02d}.png" for index in reversed(range(9))]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"questions": [{"question_id": 1}]}', "not a COCO annotation file"),
        ('[{"image_id": 3, "caption": "a dog"}]', "not a COCO annotation file"),
        ('{"images": ["a.png"]}', "no id or no file_name"),
        ('{"images": [{"id": 1, "file_name": "a.png"}', "not a COCO annotation file"),
        ('{"images": []}', "names no images"),
        ('{"images": [{"id": 1, "file_name": "elsewhere.png"}]}', "None of the 1 images .* elsewhere.png"),
        ("", "not a COCO annotation file"),
        (None, "data.annotations"),
    ],
)
def test_a_wrong_annotation_file_is_named(tmp_path: Path, text: str | None, said: str) -> None:
    write_pictures(tmp_path / "images", 9)
    file = tmp_path / "annotations.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=said):
        prepare_images(configure(tmp_path, source="coco", path=str(tmp_path / "images"), annotations=str(file)))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def coco_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    write_pictures(folder, 3)
    return folder


@settings(deadline=None, max_examples=50)
@given(
    before=st.dictionaries(st.text().filter(lambda key: key != "images"), VALUES, max_size=4),
    more=st.lists(VALUES, min_size=3, max_size=3),
    start=st.sampled_from(["", "\ufeff"]),
    indent=st.sampled_from([None, 2]),
)
def test_images_are_found_in_any_object(
    coco_images: Path, before: dict[str, Any], more: list[Any], start: str, indent: int | None
) -> None:
    entries = [{"more": value, "id": index, "file_name": f"{index:02d}.png"} for index, value in enumerate(more)]
    file = coco_images / "annotations.json"
    file.write_text(start + json.dumps(before | {"images": entries, "annotations": [{"id": 1}]}, indent=indent))
    found = find_coco_images(DataConfig(source="coco", path=str(coco_images), annotations=str(file)))
    assert names((image,) for image in found) == ["00.png", "01.png", "02.png"]


def test_nothing_behind_the_images_is_read(coco_images: Path) -> None:
    file = coco_images / "annotations.json"
    entries = json.dumps([{"id": index, "file_name": f"{index:02d}.png"} for index in range(3)])
    file.write_text(f'{{"images": {entries}, "annotations": [{" " * 1_000_000} no JSON')
    found = find_coco_images(DataConfig(source="coco", path=str(coco_images), annotations=str(file)))
    assert len(found) == 3


# Rows


def test_rows_ask_their_own_prompts(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", plain_rows(tmp_path))
    sets = prepare_images(configure(tmp_path / "run", path=str(path)))
    assert [names(part) for part in (sets.sample, sets.align, sets.evaluate)] == [
        ["00.png", "01.png", "02.png", "03.png"],
        ["04.png", "05.png", "06.png"],
        ["10.png", "11.png"],
    ]
    assert [prompt for _, prompt in sets.questions(sets.sample, ["shared"])] == ["Prompt 1?", "Prompt 2?"]
    assert [prompt for _, prompt in sets.questions(sets.align, ["shared"])] == ["Prompt 4?", "Prompt 5?", "Prompt 6?"]
    assert [prompt for _, prompt in sets.questions(sets.evaluate, ["shared"])] == ["Prompt 10?", "Prompt 11?"]


def test_given_responses_of_the_sample_set_come_back_as_they_are(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", plain_rows(tmp_path))
    config = configure(tmp_path / "run", path=str(path))
    sets = prepare_images(config)
    rows = list(provided_responses(config, sets))
    assert sets.provided == 2
    assert [(given.prompt, given.text) for given in rows] == [
        ("Prompt 0?", "Answer 0."),
        ("Prompt 3?", "Answer 3."),
    ]


def test_responses_can_be_left_aside(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", plain_rows(tmp_path))
    sets = prepare_images(configure(tmp_path / "run", path=str(path), columns={"response": None}))
    assert sets.provided == 0
    assert len(list(sets.questions(sets.sample, ["shared"]))) == 4


def test_rows_without_prompts_ask_the_shared_ones(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", ({"image": name} for name in write_pictures(tmp_path, 9)))
    sets = prepare_images(configure(tmp_path / "run", path=str(path), columns={"prompt": None}))
    assert [prompt for _, prompt in sets.questions(sets.sample, ["a", "b"])] == ["a", "b", "a", "b"]


def test_columns_can_have_other_names(tmp_path: Path) -> None:
    rows = [{"file": row["image"], "question": row["prompt"], "answer": "Yes."} for row in plain_rows(tmp_path)]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    columns = {"image": "file", "prompt": "question", "response": "answer"}
    sets = prepare_images(configure(tmp_path / "run", path=str(path), columns=columns))
    assert sets.provided == 4


def test_a_folder_of_files_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    rows = plain_rows(tmp_path / "data" / "part")
    write_lines(tmp_path / "data" / "part" / "b.jsonl", rows[6:])
    table = pa.Table.from_pylist(
        rows[:6], schema=pa.schema([(name, pa.string()) for name in ("image", "prompt", "response")])
    )
    pq.write_table(table, tmp_path / "data" / "part" / "a.parquet")
    sets = prepare_images(configure(tmp_path / "run", path=str(tmp_path / "data")))
    assert names([*sets.sample, *sets.align]) == [f"{index:02d}.png" for index in range(7)]


def test_remote_rows_name_images_relative_to_their_file(tmp_path: Path) -> None:
    rows = plain_rows(tmp_path / "data")
    write_lines(tmp_path / "data" / "rows.jsonl", rows)
    bucket = f"memory://{uuid.uuid4().hex}/data"
    storage.upload_folder(str(tmp_path / "data"), bucket)
    sets = prepare_images(configure(tmp_path / "run", path=f"{bucket}/rows.jsonl"))
    assert storage.read_bytes(*sets.evaluate[1]) == picture(11)


IMAGES = st.lists(st.integers(0, 12).map(str), min_size=1, max_size=2).map(tuple)
ROWS = st.lists(st.tuples(IMAGES, st.sampled_from("pqr"), st.none() | st.sampled_from("xyz")))


def groups_of(rows: list[Any]) -> int:
    """How many groups of images have none in common."""
    groups: list[set[str]] = []
    for images, _, _ in rows:
        shared = [group for group in groups if group & {*images}]
        groups = [group for group in groups if group not in shared] + [{*images}.union(*shared)]
    return len(groups)


@settings(deadline=None)
@given(rows=ROWS, sizes=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)))
def test_no_image_is_in_two_sets_and_no_row_of_a_set_is_lost(rows: list[Any], sizes: tuple[int, int, int]) -> None:
    keys = dict(zip(("sample_images", "align_images", "evaluate_images"), sizes, strict=True))
    data = DataConfig(source="shapes", **keys)
    if groups_of(rows) < 5:
        with pytest.raises(UserError, match="at least 5"):
            cut_rows(rows, data, "rows")
        return
    sets = cut_rows(rows, data, "rows")
    parts = [set(part) for part in (sets.sample, sets.align, sets.evaluate)]
    seen = [{image for images in part for image in images} for part in parts]
    assert sum(map(len, seen)) == len(set.union(*seen))
    assert sum(map(len, parts)) == len([*sets.sample, *sets.align, *sets.evaluate])
    asked = {pair for part in (sets.sample, sets.align, sets.evaluate) for pair in sets.questions(part, [])}
    assert asked == {
        (images, prompt)
        for images, prompt, answer in rows
        if images in parts[1] | parts[2] or (images in parts[0] and answer is None)
    }
    assert sets.provided == sum(images in parts[0] and answer is not None for images, _, answer in rows)


def keys_of(config: Config) -> tuple[str, str]:
    """Fingerprints of sampling and what evaluation depends on."""
    sets = prepare_images(config)
    asked = [*sets.evaluate, *sets.prompts_of(sets.evaluate, config.data.prompts)]
    return stages.responses(config, sets).fingerprint, json.dumps(asked)


@pytest.mark.parametrize(
    ("index", "change", "changed"),
    [
        (1, {"prompt": "Another?"}, (True, False)),
        (3, {"response": "Another."}, (True, False)),
        (3, {"response": None}, (True, False)),
        (11, {"prompt": "Another?"}, (False, True)),
        (4, {"prompt": "Another?"}, (False, False)),
        (0, {}, (False, False)),
    ],
)
def test_stages_depend_on_the_rows_they_read(tmp_path: Path, index: int, change: dict[str, Any], changed: Any) -> None:
    rows = plain_rows(tmp_path)
    path = write_lines(tmp_path / "rows.jsonl", rows)
    config = configure(tmp_path / "run", path=str(path))
    before = keys_of(config)
    rows[index] |= change
    write_lines(path, rows)
    assert tuple(one != other for one, other in zip(before, keys_of(config), strict=True)) == changed


# Images in the rows


@pytest.mark.parametrize("struct", [False, True], ids=["bytes", "struct"])
def test_images_in_parquet_are_stored_by_their_content(tmp_path: Path, struct: bool) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(embedded_table(plain_rows(tmp_path, 24), struct), path)
    config = configure(tmp_path / "run", path=str(path))
    sets = prepare_images(config)
    assert [len(part) for part in (sets.sample, sets.align, sets.evaluate)] == [4, 3, 2]
    assert storage.read_bytes(*sets.sample[1]) == picture(1, "PNG")
    assert storage.read_bytes(*sets.evaluate[1]) == picture(11, "PNG")
    assert {Path(image).suffix for (image,) in sets.sample} == {".jpg", ".png"}
    assert [given.text for given in provided_responses(config, sets)] == ["Answer 0.", "Answer 3.", "Answer 6."]
    stored = [entry for entry in (tmp_path / "run" / "images").iterdir() if entry.suffix in (".jpg", ".png")]
    assert len(stored) == 9  # three of the twelve are in no set


def test_stored_images_are_not_stored_again_until_the_rows_change(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    rows = plain_rows(tmp_path, 24)
    pq.write_table(embedded_table(rows, True), path)
    config = configure(tmp_path / "run", path=str(path))
    first = prepare_images(config)
    manifest = tmp_path / "run" / "images" / "_manifest.json"
    before = manifest.stat().st_mtime_ns
    assert prepare_images(config) == first
    assert manifest.stat().st_mtime_ns == before
    pq.write_table(embedded_table(rows[2:], True), path)
    assert prepare_images(config) != first
    assert manifest.stat().st_mtime_ns != before


def test_bad_rows_leave_nothing_behind(tmp_path: Path) -> None:
    table = embedded_table(plain_rows(tmp_path, 24), True)
    pq.write_table(table.set_column(1, "prompt", pa.array([*["Good?"] * 23, " "])), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="row 24: there is no prompt"):
        prepare_images(configure(tmp_path / "run", path=str(tmp_path / "rows.parquet")))
    assert not (tmp_path / "run").exists()


def resident_mib() -> float:
    return psutil.Process().memory_info().rss / 2**20


def test_images_are_not_held_while_rows_are_read(tmp_path: Path) -> None:
    """80 MiB of images pass through a file that is read row by row."""
    schema = pa.schema([("image", pa.binary()), ("prompt", pa.string())])
    with pq.ParquetWriter(tmp_path / "rows.parquet", schema) as writer:
        for _ in range(40):
            writer.write_table(pa.table({"image": [os.urandom(1 << 16) for _ in range(32)], "prompt": ["a"] * 32}))
    source = open_files(str(tmp_path / "rows.parquet"), ColumnNames())
    before = resident_mib()
    assert max(resident_mib() for _ in source.read()) - before < 40


# Bad rows: one sentence each


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"image": "00.png", "prompt": ', "line 3 is not JSON"),
        ("[1]", "line 3 is not a JSON object"),
        ('{"prompt": "a"}', "line 3 has no column 'image' .it has prompt."),
        ('{"image": "00.png"}', "line 3: there is no prompt"),
        ('{"image": "00.png", "prompt": "  "}', "line 3: there is no prompt"),
        ('{"image": "00.png", "prompt": 7}', "line 3: 'prompt' is not text"),
        ('{"image": null, "prompt": "a"}', "line 3: there is no image"),
        ('{"image": 7, "prompt": "a"}', "line 3: 'image' is not an image but int"),
        ('{"image": [], "prompt": "a"}', "line 3: there is no image in 'image'"),
        ('{"images": [null], "prompt": "a"}', "line 3: there is no image in 'images'"),
        (
            '{"image": "00.png", "prompt": [{"role": "tool", "content": ""}]}',
            "line 3: 'prompt' cannot be .*'tool'",
        ),
        ('{"image": "00.png", "prompt": [1, 2]}', "line 3: 'prompt' is not text but list"),
        ('{"image": "data:image/png;base64,%%", "prompt": "a"}', "line 3: 'image' cannot be used: .* not valid base64"),
        ('{"image": "00.png", "prompt": "\\ud800"}', "line 3: 'prompt' holds half a surrogate"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = write_lines(tmp_path / "rows.jsonl", plain_rows(tmp_path)[:2])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=said):
        prepare_images(configure(tmp_path / "run", path=str(path)))


def test_a_response_without_a_prompt_is_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", plain_rows(tmp_path))
    with pytest.raises(UserError, match="line 1: there is a response but no prompt"):
        prepare_images(configure(tmp_path / "run", path=str(path), columns={"prompt": None}))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("role", ["image", "prompt", "response"])
def test_a_missing_column_is_named(tmp_path: Path, kind: str, role: str) -> None:
    rows = plain_rows(tmp_path)
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        write_lines(path, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    said = "there is no prompt in 'other'" if (kind, role) == ("jsonl", "prompt") else "has no column 'other'"
    with pytest.raises(UserError, match=said):
        prepare_images(configure(tmp_path / "run", path=str(path), columns={role: "other"}))


def test_other_inputs_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    def said(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            prepare_images(configure(tmp_path / "run", path=str(path)))
        return str(caught.value)

    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "bad.parquet").write_text("no parquet")
    (tmp_path / "rows.csv").write_text("image,prompt\n")
    (tmp_path / "folder").mkdir()
    write_lines(tmp_path / "few.jsonl", plain_rows(tmp_path)[:4])
    write_lines(tmp_path / "lost.jsonl", ({"image": f"gone/{index}.png", "prompt": "a"} for index in range(9)))
    assert "does not exist" in said(tmp_path / "none.jsonl")
    assert "holds no rows" in said(tmp_path / "empty.jsonl")
    assert "not a readable Parquet" in said(tmp_path / "bad.parquet")
    assert "neither JSON lines nor Parquet" in said(tmp_path / "rows.csv")
    assert "holds no rows" in said(tmp_path / "folder")
    assert "at least 5" in said(tmp_path / "few.jsonl")
    assert "None of the 4 images" in said(tmp_path / "lost.jsonl")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"source": "rows"}, "data.path is needed"),
        ({"source": "coco", "path": "x"}, "data.annotations is needed"),
        ({"source": "folder", "path": "x", "annotations": "y"}, "data.annotations is not read"),
        ({"source": "rows", "path": "x", "split": "train"}, "data.split is not read"),
    ],
)
def test_keys_that_do_not_fit_the_source_are_named(data: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DataConfig(**data)


# PPO's plan


def test_a_plan_asks_each_image_its_own_prompts_in_turn() -> None:
    plan = PromptPlan([("x",), ("y",)], ["shared"], 3, {("x",): ("a", "b"), ("y",): ("c",)})
    drawn = [draw for step in range(4) for draw in plan.draw(step, 2)]
    assert [draw.prompt for draw in drawn if draw.images == ("x",)] == ["a", "b", "a", "b"]
    assert {draw.prompt for draw in drawn if draw.images == ("y",)} == {"c"}

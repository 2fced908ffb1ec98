"""What other trainers are given: rows as their documents have them, images by path or in the rows, whole folders."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
from support.preference_data import PROMPT, labelled, preference_run

from fgaif_ray.config import Config, dump_config
from fgaif_ray.errors import UserError
from fgaif_ray.images import decode_image
from fgaif_ray.preferences.formats import FORMATS
from fgaif_ray.preferences.pair import Continuation, PreferencePair
from fgaif_ray.prompts import canonical_prompt
from jobs import cli
from jobs.export import export_preferences

GOOD, BAD = "There is a red circle. A blue square is visible.", "There is a red circle. There is a green star."
CONTEXT = "There is a red circle. "


@pytest.fixture
def run(tmp_path: Path) -> Config:
    return preference_run(tmp_path)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def second(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row about the first image whose segments have a context."""
    [row] = [row for row in rows if row["images"][0].endswith("0.png") and row["context"]]
    return row


class TestTRL:
    """https://huggingface.co/docs/trl/dataset_formats: conversational, preference, with images."""

    def test_whole_responses(self, run: Config, tmp_path: Path) -> None:
        export_preferences(run, str(tmp_path / "pairs"))
        row = next(row for row in lines(tmp_path / "pairs") if row["images"][0].endswith("0.png"))
        assert row["images"] == [str(tmp_path / "0.png")]
        assert row["prompt"] == [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
        assert row["chosen"] == [{"role": "assistant", "content": [{"type": "text", "text": GOOD}]}]
        [rejected] = row["rejected"]
        assert rejected["content"][0]["text"] == "There is a yellow ring. There is a green star."
        assert (row["chosen_worth"], row["rejected_worth"], row["context"]) == (2, -2, "")

    def test_segments_begin_with_their_context(self, run: Config, tmp_path: Path) -> None:
        export_preferences(run, str(tmp_path / "pairs"), form="segment")
        row = second(lines(tmp_path / "pairs"))
        assert row["context"] == CONTEXT
        assert [row[side][0]["content"][0]["text"] for side in ("chosen", "rejected")] == [GOOD, BAD]

    @pytest.mark.parametrize("embed", [False, True])
    def test_parquet_is_told_what_its_images_are(self, run: Config, tmp_path: Path, embed: bool) -> None:
        export_preferences(run, str(tmp_path / "pairs"), kind="parquet", embed=embed)
        table = pq.read_table(tmp_path / "pairs" / "train.parquet")
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        assert list(features) == table.schema.names
        assert features["images"] == {"feature": {"_type": "Image"}, "_type": "List"}
        assert features["chosen_worth"] == {"dtype": "float64", "_type": "Value"}
        for row in table.to_pylist():
            [image] = row["images"]
            if embed:
                assert decode_image(image["bytes"]).size == (60, 60) and "/" not in image["path"]
            else:
                assert image["bytes"] is None and Path(image["path"]).exists()

    def test_several_images_have_their_places(self) -> None:
        prompt = canonical_prompt([{"role": "user", "content": "<image>First. <image>Second. Which?"}])
        response = labelled("a", [("The first.", 1)], prompt=prompt).response
        other = labelled("b", [("The other.", 2)], prompt=prompt).response
        two = [replace(one, more_images=("cat.png",)) for one in (response, other)]
        pair = PreferencePair("response", *(Continuation(one, 0, len(one.text), 0.0) for one in two))
        [message] = FORMATS["trl"].to_row(pair)["prompt"]
        assert [part["type"] for part in message["content"]] == ["image", "text", "image", "text"]
        [marked] = FORMATS["llama-factory"].to_row(pair)["messages"]
        assert marked["content"] == "<image>First. <image>Second. Which?"


class TestLLaMAFactory:
    """Its data/README.md: sharegpt, preference dataset, OpenAI's tags; as many <image> as images."""

    def test_rows(self, run: Config, tmp_path: Path) -> None:
        export_preferences(run, str(tmp_path / "pairs"), form="segment", style="llama-factory")
        row = second(lines(tmp_path / "pairs"))
        assert row["messages"] == [{"role": "user", "content": f"<image>{PROMPT}"}]
        assert row["chosen"] == {"role": "assistant", "content": GOOD}
        assert row["rejected"] == {"role": "assistant", "content": BAD}
        assert len(row["images"]) == 1

    def test_the_data_set_is_described(self, run: Config, tmp_path: Path) -> None:
        export_preferences(run, str(tmp_path / "pairs"), style="llama-factory", kind="parquet")
        [described] = json.loads((tmp_path / "pairs" / "dataset_info.json").read_text()).values()
        assert described["ranking"] is True and described["formatting"] == "sharegpt"
        table = pq.read_table(tmp_path / "pairs" / described["file_name"])
        assert set(described["columns"].values()) <= set(table.schema.names)
        [message] = table.to_pylist()[0]["messages"]
        tags = described["tags"]
        assert message[tags["role_tag"]] == tags["user_tag"] and tags["content_tag"] in message


class TestMsSwift:
    """Its Custom-dataset.md: the standard format for DPO, with images."""

    def test_rows(self, run: Config, tmp_path: Path) -> None:
        export_preferences(run, str(tmp_path / "pairs"), form="segment", style="ms-swift")
        row = second(lines(tmp_path / "pairs"))
        assert row["messages"] == [
            {"role": "user", "content": f"<image>{PROMPT}"},
            {"role": "assistant", "content": GOOD},
        ]
        assert row["rejected_response"] == BAD
        assert Path(row["images"][0]).is_absolute()


class TestFolder:
    def test_it_says_what_it_is(self, run: Config, tmp_path: Path) -> None:
        export_preferences(run, str(tmp_path / "new" / "pairs"))
        card = (tmp_path / "new" / "pairs" / "README.md").read_text()
        assert "3 pairs" in card and "data_files: train.jsonl" in card and "4.00 on average" in card
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["pairs"]

    def test_one_that_is_there_is_not_overwritten(self, run: Config, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="is there already"):
            export_preferences(run, str(tmp_path))

    def test_an_image_that_cannot_be_embedded_leaves_nothing(self, run: Config, tmp_path: Path) -> None:
        (tmp_path / "1.png").write_text("no image")
        with pytest.raises(UserError, match=r"1\.png is not a usable image"):
            export_preferences(run, str(tmp_path / "new" / "pairs"), kind="parquet", embed=True)
        assert list((tmp_path / "new").iterdir()) == []

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"form": "token"}, "--form is one of response, segment, not token"),
            ({"style": "verl"}, "--format is one of trl, llama-factory, ms-swift, not verl"),
            ({"kind": "csv"}, "--file is one of jsonl, parquet, not csv"),
            ({"embed": True}, "embedded in Parquet for TRL alone"),
            ({"kind": "parquet", "style": "ms-swift"}, "ms-swift reads JSON lines"),
        ],
    )
    def test_what_does_not_go_together_is_refused(
        self, run: Config, tmp_path: Path, options: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(UserError, match=said):
            export_preferences(run, str(tmp_path / "pairs"), **options)
        assert not (tmp_path / "pairs").exists()

    def test_remote_folders_and_images(self, run: Config, tmp_path: Path) -> None:
        export_preferences(run, "memory://exported/pairs", kind="parquet")
        assert sorted(fsspec.filesystem("memory").ls("/exported/pairs", detail=False)) == [
            "/exported/pairs/README.md",
            "/exported/pairs/train.parquet",
        ]


def test_the_command_writes_the_folder(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(dump_config(preference_run(tmp_path)))
    words = ["preferences", str(tmp_path / "pairs"), "--config", str(tmp_path / "my.yaml")]
    assert cli.main("export", [*words, "--form", "segment", "--file", "parquet", "--embed"]) == 0
    assert pq.read_table(tmp_path / "pairs" / "train.parquet").num_rows == 6
    assert cli.main("export", words) == 2

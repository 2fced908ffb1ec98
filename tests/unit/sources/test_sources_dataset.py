"""Hugging Face datasets as a source: saved folders, and names."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.source_data import configure, embedded_table, names, picture, plain_rows

from fgaif_ray import storage
from fgaif_ray.errors import UserError
from fgaif_ray.sources import prepare_images


def save_dataset(folder: Path, table: pa.Table) -> Path:
    """The files that ``save_to_disk`` of Hugging Face datasets writes, as far as they are read."""
    folder.mkdir(parents=True)
    files = []
    for number, part in enumerate((table.slice(0, 10), table.slice(10))):
        files.append({"filename": f"data-{number:05d}-of-00002.arrow"})
        with pa.ipc.new_stream(folder / files[-1]["filename"], table.schema) as stream:
            stream.write_table(part)
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": None, "_format_type": None}))
    return folder


def test_a_saved_dataset_is_read_like_parquet(tmp_path: Path) -> None:
    table = embedded_table(plain_rows(tmp_path, 24), True)
    pq.write_table(table, tmp_path / "rows.parquet")
    folder = save_dataset(tmp_path / "dataset", table)
    saved = prepare_images(configure(tmp_path / "run1", source="dataset", path=str(folder)))
    rows = prepare_images(configure(tmp_path / "run2", path=str(tmp_path / "rows.parquet")))
    assert names([*saved.sample, *saved.align, *saved.evaluate]) == names([*rows.sample, *rows.align, *rows.evaluate])
    assert list(saved.prompts.values()) == list(rows.prompts.values())


def test_a_split_of_a_saved_dataset_is_chosen(tmp_path: Path) -> None:
    table = embedded_table(plain_rows(tmp_path, 24), True)
    save_dataset(tmp_path / "all" / "train", table)
    save_dataset(tmp_path / "all" / "test", table.slice(12))
    (tmp_path / "all" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    sets = prepare_images(configure(tmp_path / "run", source="dataset", path=str(tmp_path / "all"), split="test"))
    assert storage.read_bytes(*sets.sample[0]) == picture(6, "JPEG")
    with pytest.raises(UserError, match="train, test"):
        prepare_images(configure(tmp_path / "run", source="dataset", path=str(tmp_path / "all")))


def test_a_folder_that_is_no_saved_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.source=rows"):
        prepare_images(configure(tmp_path / "run", source="dataset", path=str(tmp_path)))


def test_a_dataset_by_name_takes_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'fgaif-ray\[datasets\]'"):
        prepare_images(configure(tmp_path / "run", source="dataset", path="owner/name", split="train"))


class NamedDataset:
    """What ``datasets.load_dataset`` returns, as far as it is read: the hub that serves names is out of reach."""

    def __init__(self, table: pa.Table, file: Path) -> None:
        pq.write_table(table, file)
        self.data = table
        self.cache_files = [{"filename": str(file)}]

    def __len__(self) -> int:
        return len(self.data)

    def with_format(self, kind: str) -> "NamedDataset":
        assert kind == "arrow"
        return self

    def iter(self, batch_size: int) -> Iterator[pa.Table]:
        for start in range(0, len(self), batch_size):
            yield self.data.slice(start, batch_size)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, NamedDataset]:
    """The splits of a dataset named owner/name."""
    table = embedded_table(plain_rows(tmp_path, 24), True)
    splits = {
        name: NamedDataset(rows, tmp_path / f"{name}.parquet")
        for name, rows in (("train", table), ("test", table.slice(12)))
    }

    def load_dataset(name: str, split: str | None) -> Any:
        if name != "owner/name":
            raise FileNotFoundError(f"Dataset '{name}' doesn't exist on the Hub.\nMore lines follow.")
        if split is not None and split not in splits:
            raise ValueError(f'Unknown split "{split}". Should be one of {list(splits)}.')
        return splits if split is None else splits[split]

    cache = SimpleNamespace(HF_DATASETS_CACHE=tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset, config=cache))
    return splits


def test_a_dataset_by_its_name_is_read_like_parquet(tmp_path: Path, hub: dict[str, NamedDataset]) -> None:
    named = prepare_images(configure(tmp_path / "run1", source="dataset", path="owner/name", split="train"))
    rows = prepare_images(configure(tmp_path / "run2", path=str(tmp_path / "train.parquet")))
    assert names([*named.sample, *named.align, *named.evaluate]) == names([*rows.sample, *rows.align, *rows.evaluate])
    assert list(named.prompts.values()) == list(rows.prompts.values())


@pytest.mark.parametrize(
    ("path", "split", "said"),
    [
        ("owner/name", None, r"several splits: set data\.split to one of train, test"),
        ("owner/name", "dev", r'cannot be loaded: Unknown split "dev"'),
        ("owner/none", "train", r"cannot be loaded: Dataset 'owner/none' doesn't exist on the Hub\.$"),
    ],
)
def test_a_name_that_cannot_be_loaded_is_told(
    tmp_path: Path, hub: dict[str, NamedDataset], path: str, split: str | None, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        prepare_images(configure(tmp_path / "run", source="dataset", path=path, split=split))


def test_the_package_datasets_gives_what_is_read_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="the extra `datasets` is not installed")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "files"
    folder.mkdir()
    pq.write_table(embedded_table(plain_rows(tmp_path, 24), True), folder / "train.parquet")
    # The package takes a folder of files for a name; the program itself would read it without the package.
    monkeypatch.setattr(storage, "is_folder", lambda uri: uri != str(folder) and os.path.isdir(uri))
    named = prepare_images(configure(tmp_path / "run1", source="dataset", path=str(folder), split="train"))
    rows = prepare_images(configure(tmp_path / "run2", path=str(folder / "train.parquet")))
    assert names(named.sample) == names(rows.sample)

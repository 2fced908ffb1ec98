"""What is left of a stage: every row that is not done, once, whatever parts, row groups and blocks there are."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fgaif_ray import storage
from fgaif_ray.feedback.pending import (
    PlaceReader,
    digests,
    distinct,
    find_pending,
    first_text,
    identities_of,
    places_of,
)
from fgaif_ray.storage import parts


def write(folder: Path, parts: list[int], row_group: int) -> list[str]:
    """Parts of so many rows; returns the identities."""
    for path in folder.glob("*.parquet"):
        path.unlink()
    names = []
    for number, size in enumerate(parts):
        part = [f"{number}-{row}" for row in range(size)]
        names += part
        table = pa.table({"sample_id": pa.array(part, pa.string()), "text": pa.array([name + "!" for name in part])})
        pq.write_table(table, folder / f"part-{number:03d}.parquet", row_group_size=row_group)
    return names


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.integers(1, 9), max_size=5),
    st.integers(1, 4),
    st.integers(1, 7),
    st.sets(st.integers(0, 44), max_size=20),
)
def test_every_row_that_is_not_done_comes_once_in_blocks(
    tmp_path: Path, parts: list[int], row_group: int, block: int, done: set[int]
) -> None:
    names = write(tmp_path, parts, row_group)
    finished = {name for index, name in enumerate(names) if index in done}
    pending = find_pending(str(tmp_path), distinct(digests(finished)), block)
    reader = PlaceReader(["sample_id", "text"])
    blocks = [reader.read(places_of(pending.places, number)) for number in range(pending.blocks)]
    assert [row for rows in blocks for row in rows] == list(reader.read_all(pending.places))
    assert [row["sample_id"] for rows in blocks for row in rows] == [name for name in names if name not in finished]
    assert all(row["text"] == row["sample_id"] + "!" for rows in blocks for row in rows)
    assert [len(rows) for rows in blocks[:-1]] == [block] * max(0, len(blocks) - 1)
    assert (pending.rows, pending.total) == (len(names) - len(finished), len(names))


def test_identities_of_a_folder_are_distinct(tmp_path: Path) -> None:
    write(tmp_path, [3, 2], 2)
    assert len(identities_of(str(tmp_path))) == 5
    assert len(distinct(identities_of(str(tmp_path)), identities_of(str(tmp_path)))) == 5
    assert len(identities_of(str(tmp_path / "missing"))) == 0


def test_rows_are_read_only_until_one_answers(tmp_path: Path) -> None:
    names = write(tmp_path, [10], 10)
    pending = find_pending(str(tmp_path), distinct(), 2)
    seen: list[str] = []

    def holds(name: str) -> bool:
        seen.append(name)
        return len(seen) == 3

    assert first_text(pending, "sample_id", holds) == names[2]
    assert seen == names[:3]


def test_rows_of_a_large_part_are_read_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = write(tmp_path, [10], 10)
    monkeypatch.setattr(parts, "ROWS_AT_A_TIME", 3)
    rows: Iterator[dict[str, str]] = storage.read_rows(str(tmp_path), ["sample_id"])
    assert [row["sample_id"] for row in rows] == names

"""Stage folders: published whole, resumed by fingerprint, on local and remote file systems."""

import uuid
from pathlib import Path

import pyarrow as pa
import pytest

from fgaif_ray import storage
from fgaif_ray.errors import UserError
from fgaif_ray.storage import stages

SCHEMA = pa.schema([("sample_id", pa.string())])


@pytest.fixture(params=["local", "remote"])
def run_dir(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "run") if request.param == "local" else f"memory://{uuid.uuid4().hex}/run"


def test_a_stage_is_not_there_before_it_is_published(run_dir: str) -> None:
    stage = storage.Stage(run_dir, "responses", "f1")
    stage.begin()
    storage.write_part(stage.partial, [{"sample_id": "a"}], SCHEMA)
    assert not stage.is_complete()
    assert storage.read_manifest(run_dir, "responses") is None


def test_a_published_stage_reads_back(run_dir: str) -> None:
    stage = storage.Stage(run_dir, "responses", "f1")
    stage.begin()
    storage.write_part(stage.partial, [{"sample_id": "a"}], SCHEMA, "1")
    storage.write_part(stage.partial, [{"sample_id": "b"}], SCHEMA, "2")
    stage.publish({"rows": 2})
    assert stage.is_complete()
    assert [row["sample_id"] for row in storage.read_rows(stage.folder)] == ["a", "b"]
    assert stages.require(run_dir, stages.RESPONSES)["rows"] == 2


def test_an_interrupted_stage_keeps_its_parts(run_dir: str) -> None:
    stage = storage.Stage(run_dir, "responses", "f1")
    stage.begin()
    storage.write_part(stage.partial, [{"sample_id": "a"}], SCHEMA)
    stage.begin()
    assert len(list(storage.read_rows(stage.partial))) == 1


def test_a_changed_stage_starts_anew(run_dir: str) -> None:
    storage.Stage(run_dir, "responses", "f1").begin()
    storage.write_part(storage.Stage(run_dir, "responses", "f1").partial, [{"sample_id": "a"}], SCHEMA)
    changed = storage.Stage(run_dir, "responses", "f2")
    changed.begin()
    assert list(storage.read_rows(changed.partial)) == []


def test_publishing_again_replaces_the_old_stage(run_dir: str) -> None:
    for fingerprint, row in (("f1", "a"), ("f2", "b")):
        stage = storage.Stage(run_dir, "responses", fingerprint)
        stage.begin()
        storage.write_part(stage.partial, [{"sample_id": row}], SCHEMA)
        stage.publish({})
    assert [row["sample_id"] for row in storage.read_rows(stage.folder)] == ["b"]
    assert not storage.Stage(run_dir, "responses", "f1").is_complete()


def test_a_missing_stage_names_the_job_that_makes_it(run_dir: str) -> None:
    with pytest.raises(UserError, match=r"jobs\.label"):
        stages.require(run_dir, stages.FEEDBACK)


def test_a_folder_goes_to_a_run_and_back(run_dir: str, tmp_path: Path) -> None:
    source = tmp_path / "adapter"
    source.mkdir()
    (source / "weights.bin").write_bytes(b"123")
    storage.upload_folder(str(source), storage.join(run_dir, "policy"))
    assert (Path(storage.local_copy(storage.join(run_dir, "policy"))) / "weights.bin").read_bytes() == b"123"


def test_json_with_nan_is_refused(run_dir: str) -> None:
    with pytest.raises(ValueError, match="JSON"):
        storage.write_json(storage.join(run_dir, "x.json"), {"a": float("nan")})

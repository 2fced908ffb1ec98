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


def test_a_changed_stage_starts_again(run_dir: str) -> None:
    storage.Stage(run_dir, "responses", "f1").begin()
    storage.write_part(storage.Stage(run_dir, "responses", "f1").partial, [{"sample_id": "a"}], SCHEMA)
    changed = storage.Stage(run_dir, "responses", "f2")
    changed.begin()
    assert list(storage.read_rows(changed.partial)) == []


def test_publishing_again_replaces_the_old_stage(run_dir: str) -> None:
    for fingerprint, row in (("f1", "a"), ("f2", "b")):
        stage = storage.Stage(run_dir, "responses", fingerprint)
        stage.begin(overwrite=True)
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


def publish(run_dir: str, fingerprint: str, *, overwrite: bool = False) -> storage.Stage:
    stage = storage.Stage(run_dir, "responses", fingerprint)
    stage.begin(overwrite=overwrite)
    storage.write_part(stage.partial, [{"sample_id": fingerprint}], SCHEMA, "1")
    stage.publish({"rows": 1})
    return stage


def test_a_finished_stage_is_not_replaced_unasked(run_dir: str) -> None:
    finished = publish(run_dir, "f1")
    with pytest.raises(UserError, match=r"responses is finished \(1 rows, 20\d\d-.* UTC\).*--overwrite"):
        storage.Stage(run_dir, "responses", "f2").begin()
    assert finished.is_complete()
    assert not storage.exists(finished.partial)


def test_an_agreed_replacement_goes_on_without_being_asked_again(run_dir: str) -> None:
    publish(run_dir, "f1")
    changed = storage.Stage(run_dir, "responses", "f2")
    changed.begin(overwrite=True)
    changed.begin()
    changed.publish({})
    assert changed.is_complete()


def test_a_copy_of_another_run_may_be_replaced(run_dir: str) -> None:
    publish(run_dir, "f1")
    storage.copy_stage(run_dir, f"{run_dir}-2", "responses")
    assert publish(f"{run_dir}-2", "f2").is_complete()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"fingerprint": 1}', "\xff"])
def test_a_broken_manifest_is_named(run_dir: str, text: str) -> None:
    stage = publish(run_dir, "f1")
    uri = storage.join(stage.folder, storage.MANIFEST)
    storage.write_bytes(uri, text.encode("latin-1"))
    with pytest.raises(UserError, match="broken: ") as caught:
        stage.is_complete()
    assert uri in str(caught.value)
    assert f"remove {stage.folder} " in str(caught.value)


@pytest.mark.parametrize("size", [0, 20, -1])
def test_a_part_that_was_cut_short_is_named(run_dir: str, size: int) -> None:
    stage = publish(run_dir, "f1")
    uri = storage.part_uri(stage.folder, "1")
    storage.write_bytes(uri, storage.read_bytes(uri)[:size])
    with pytest.raises(UserError, match="broken: ") as caught:
        list(storage.read_rows(stage.folder))
    assert uri in str(caught.value)

"""A run folder takes one job at a time, and a run.dir that cannot be used is refused before anything starts."""

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fgaif_ray import storage
from fgaif_ray.errors import UserError
from fgaif_ray.storage import run_lock

HOLD = """
import sys
from fgaif_ray.storage import hold_run
with hold_run(sys.argv[1], "align"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that works in a run folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_a_run_in_use_is_refused_with_the_name_of_the_job(tmp_path: Path) -> None:
    with (
        held_elsewhere(tmp_path / "run") as other,
        pytest.raises(UserError, match=rf"in use by align \(process {other.pid} on "),
        storage.hold_run(str(tmp_path / "run"), "label"),
    ):
        pass


def test_a_job_of_another_machine_is_waited_for_and_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "STALE_S", 0.2)
    monkeypatch.setattr(run_lock.socket, "gethostname", lambda: "elsewhere")
    with (
        held_elsewhere(tmp_path / "run") as other,
        pytest.raises(UserError, match=rf"in use by align \(process {other.pid} on "),
        storage.hold_run(str(tmp_path / "run"), "label"),
    ):
        pass


def test_the_lock_of_a_killed_job_is_void(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path / "run"):
        pass
    with storage.hold_run(str(tmp_path / "run"), "label"):
        assert json.loads((tmp_path / "run" / ".lock").read_text())["job"] == "label"


def test_stages_of_one_process_share_the_lock(tmp_path: Path) -> None:
    with storage.hold_run(str(tmp_path / "run"), "pipeline"):
        with storage.hold_run(str(tmp_path / "run") + "/", "sample"):
            pass
        assert (tmp_path / "run" / ".lock").exists()


def test_nothing_is_left_of_a_lock(tmp_path: Path) -> None:
    with storage.hold_run(str(tmp_path / "run"), "sample"):
        pass
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("run_dir", "named"),
    [("file", "is a file"), ("file/run", "lies below the file"), ("/proc/run", "cannot be written")],
)
def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path, run_dir: str, named: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"run.dir=.*{named}"), storage.hold_run(str(tmp_path / run_dir), "sample"):
        pass


def test_an_unknown_file_system_is_refused() -> None:
    with pytest.raises(UserError, match="nonsense://a/b"), storage.hold_run("nonsense://a/b", "sample"):
        pass


def mark(run_dir: str, **changes: object) -> None:
    owner = {"job": "align", "pid": 1, "host": "elsewhere", "since": "now", "token": "x"}
    storage.write_bytes(storage.join(run_dir, ".lock"), json.dumps(owner | changes).encode())


@pytest.fixture
def remote_run(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(run_lock, "RENEW_S", 0.02)
    monkeypatch.setattr(run_lock, "STALE_S", 0.2)
    return f"memory://{uuid.uuid4().hex}/run"


def test_a_marker_that_nobody_renews_is_taken_over(remote_run: str) -> None:
    mark(remote_run)
    with storage.hold_run(remote_run, "label"):
        assert storage.read_json(storage.join(remote_run, ".lock"))["job"] == "label"
    assert not storage.exists(storage.join(remote_run, ".lock"))


def test_a_marker_that_is_renewed_is_respected(remote_run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with storage.hold_run(remote_run, "label"):
        monkeypatch.setattr(run_lock, "_held", set())
        monkeypatch.setattr(run_lock.os, "getpid", lambda: -1)
        with pytest.raises(UserError, match="in use by label"), storage.hold_run(remote_run, "align"):
            pass

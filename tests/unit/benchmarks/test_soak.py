"""What the soak test makes of its samples, and that it sees what a process holds."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from benchmarks import soak
from benchmarks.soak_samples import (
    ALLOWED,
    HOUR_S,
    Sample,
    Sampler,
    disk_mib,
    growth_by_role,
    role_of,
    take_sample,
    trend,
)

SECONDS = 3600
WARM_UP_S = 600.0


def samples(memory: Callable[[float], float], seconds: int = SECONDS, every: int = 5) -> list[Sample]:
    return [
        Sample(float(at), memory(at), descriptors=100, threads=50, disk=1, processes=3, memory_by_role={"driver": at})
        for at in range(0, seconds, every)
    ]


def noise(at: float) -> float:
    """A few MiB up and down without a trend."""
    return 5 * ((at * 7919) % 13 - 6) / 6


def test_the_slope_of_a_line_is_found() -> None:
    found = trend(samples(lambda at: 1000 + 120 * at / HOUR_S), "memory", WARM_UP_S)
    assert found.per_hour == pytest.approx(120, rel=0.02)
    assert found.low <= found.per_hour <= found.high


def test_what_comes_before_the_warm_up_does_not_count() -> None:
    found = trend(samples(lambda at: 1000.0 if at >= WARM_UP_S else at), "memory", WARM_UP_S)
    assert (found.per_hour, found.level) == (pytest.approx(0, abs=1e-6), 1000)


def test_noise_without_a_trend_is_flat() -> None:
    assert trend(samples(lambda at: 1000 + noise(at)), "memory", WARM_UP_S).is_flat


def test_a_leak_below_noise_is_not_flat() -> None:
    assert not trend(samples(lambda at: 1000 + noise(at) + 60 * at / HOUR_S), "memory", WARM_UP_S).is_flat


def test_growth_by_less_than_is_allowed_is_flat() -> None:
    found = trend(samples(lambda at: 100 + 0.9 * ALLOWED["memory"] * at / HOUR_S), "memory", WARM_UP_S)
    assert found.low > 0 and found.is_flat


def test_what_is_allowed_grows_with_the_level() -> None:
    growing = [2 * ALLOWED["memory"] * at / HOUR_S for at in range(0, SECONDS, 5)]
    small, large = ([level + part for part in growing] for level in (100.0, 10_000.0))
    found = [
        trend(samples(lambda at, values=values: values[int(at) // 5]), "memory", WARM_UP_S) for values in (small, large)
    ]
    assert [one.is_flat for one in found] == [False, True]


def test_a_shrinking_measure_is_flat() -> None:
    assert trend(samples(lambda at: 1000 - 500 * at / HOUR_S), "memory", WARM_UP_S).is_flat


def test_a_gap_in_the_samples_bends_no_line() -> None:
    some = [one for one in samples(lambda at: 1000 + 120 * at / HOUR_S) if not 1000 < one.at_s < 2000]
    assert trend(some, "memory", WARM_UP_S).per_hour == pytest.approx(120, rel=0.02)


def test_too_few_samples_are_no_trend() -> None:
    with pytest.raises(ValueError, match="more minutes are needed"):
        trend(samples(lambda at: 1.0, seconds=25, every=5), "memory", 0.0)


def test_roles_come_by_their_growth() -> None:
    grown = [
        Sample(float(at), 1, 1, 1, 1, 1, {"steady": 100.0, "leaking": 10.0 + at, "late": 5.0 if at > 50 else 0.0})
        for at in range(100)
    ]
    assert [role for role, _, _ in growth_by_role(grown, 0.0)] == ["leaking", "late", "steady"]


@pytest.mark.parametrize(
    ("command", "role"),
    [
        (
            ["ray::SERVE_REPLICA::rewards#RewardGateway#ad8:ServeReplica:rewards:RewardGateway"],
            "ServeReplica:rewards:RewardGateway",
        ),
        (["ray::MapWorker(MapBatches(Verifier)).submit"], "ray::MapWorker(MapBatches(Verifier))"),
        (["ray::ServeController.listen_for_change", ""], "ray::ServeController"),
        (["/usr/lib/ray/core/src/ray/raylet/raylet", "--x"], "raylet"),
        (["/venv/bin/python", "-u", "/ray/dashboard/agent.py"], "agent.py"),
        (["python3.11"], "python3.11"),
        ([], "?"),
    ],
)
def test_processes_of_a_kind_have_a_short_name(command: list[str], role: str) -> None:
    assert role_of(command) == role


def test_descriptors_threads_and_memory_of_children_count(tmp_path: Path) -> None:
    # Below a process of its own: this one may have a cluster, whose threads come and go.
    child = """
import sys, threading
files = [open("/dev/null") for _ in range(50)]
stop = threading.Event()
for _ in range(7):
    threading.Thread(target=stop.wait).start()
block = bytearray(64 << 20)
print("up", flush=True)
sys.stdin.read()
stop.set()
"""
    parent = f"""
import subprocess, sys
print("alone", flush=True)
sys.stdin.readline()
with subprocess.Popen([sys.executable, "-c", {child!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
    process.stdout.readline()
    print("with a child", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        before = take_sample(psutil.Process(process.pid), tmp_path, 0.0)
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()
        after = take_sample(psutil.Process(process.pid), tmp_path, 1.0)
        process.stdin.close()
    assert after.descriptors - before.descriptors >= 50
    assert after.threads - before.threads >= 8
    assert after.memory - before.memory >= 60
    assert after.processes - before.processes == 1


def test_disk_is_what_lies_below_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "log").write_bytes(os.urandom(3 << 20))
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b" / "log")
    assert disk_mib(tmp_path) == pytest.approx(3, abs=0.1)


def test_samples_are_kept_as_they_come_and_only_of_the_load(tmp_path: Path) -> None:
    log = tmp_path / "samples.jsonl"
    with Sampler(os.getpid(), tmp_path, log, 0.02) as sampler:
        time.sleep(0.2)
        assert log.read_text() == ""
        sampler.begin()
        while not log.read_text():
            time.sleep(0.02)
    assert [json.loads(line)["at_s"] for line in log.read_text().splitlines()] == [one.at_s for one in sampler.samples]


def test_a_process_that_has_ended_ends_no_sampler(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    with Sampler(process.pid, tmp_path, tmp_path / "samples.jsonl", 0.02) as sampler:
        sampler.begin()
        process.stdin.close()
        process.wait()
        time.sleep(0.2)
        assert any(thread.name == "sampler" for thread in threading.enumerate())


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """The folder of a run whose end nobody saw, the last line of its samples cut."""
    lines = [json.dumps(asdict(one)) for one in samples(lambda at: 1000 + 300 * at / HOUR_S)]
    (tmp_path / "samples-service.jsonl").write_text("\n".join([*lines, lines[-1][:40]]))
    return tmp_path


def test_a_run_that_was_killed_is_reported(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main(["--report", "--folder", str(killed), "--only", "service"]) == 0
    service = json.loads(capsys.readouterr().out.splitlines()[-1])["service"]
    assert {measure: service[measure]["flat"] for measure in ALLOWED} == {
        "memory": False,
        "descriptors": True,
        "threads": True,
        "disk": True,
    }


def test_a_report_of_no_samples_fails(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main(["--report", "--folder", str(killed), "--only", "labelling"]) == 1
    assert "more minutes are needed" in capsys.readouterr().err


def test_a_folder_is_not_used_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labelling").mkdir()
    with pytest.raises(SystemExit, match="2"):
        soak.main(["--folder", str(tmp_path)])
    assert "choose another folder" in capsys.readouterr().err

"""The locks and their hashes: what `make check-pythons` objects to, and what the set-up installs, without an index."""

import re
from pathlib import Path

import pytest

from scripts import set_up
from scripts.check_pythons import LOCKS, PIN, Lock, overrides, pinned, unpinned
from scripts.lock import WITHOUT_HASH

CPU, GPU = LOCKS


def test_a_package_that_the_lock_lacks_is_named() -> None:
    assert unpinned("numpy==2.3.5\norjson==3.13.0\n", {"numpy"}) == ["orjson"]


def test_libraries_of_a_cuda_build_may_be_missing() -> None:
    assert unpinned("cuda-toolkit==13.0.3\nnvidia-cublas==13.1.1.3\n", set()) == []


def test_the_lock_for_cpu_overrides_the_label_of_torch_and_what_is_left_out() -> None:
    lines = overrides(CPU).splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["docopt", "torchaudio", "torchcodec"]
    assert lines[-1].startswith("torch==2.13")


def test_the_lock_for_gpu_holds_all_but_docopt() -> None:
    assert [line.split()[0] for line in overrides(GPU).splitlines()] == ["docopt"]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.path.stem)
def test_a_lock_names_a_package_once(lock: Lock) -> None:
    assert sorted(PIN.findall(lock.path.read_text())) == sorted(pinned(lock))


def test_every_package_has_hashes_but_the_torch_of_several_builds() -> None:
    bare = [
        pin
        for lock in LOCKS
        for pin, entry in set_up.locked_entries(lock.path).items()
        if not re.fullmatch(rf"{re.escape(pin)}(?: \\\n    --hash=sha256:[0-9a-f]{{64}})+", entry)
    ]
    assert bare == [f"{WITHOUT_HASH}=={set_up.locked_version(WITHOUT_HASH)}"]


@pytest.mark.parametrize("have_uv", [True, False])
def test_the_set_up_installs_nothing_but_files_of_the_locked_hashes(
    monkeypatch: pytest.MonkeyPatch, have_uv: bool
) -> None:
    entries = set_up.locked_entries()
    asked: list[tuple[list[str], str]] = []

    def run(what: str, command: list[str], environment: dict[str, str] | None = None) -> bool:
        read = [Path(command[place + 1]).read_text() for place, word in enumerate(command) if word == "--requirement"]
        asked.append((command, "".join(read)))
        return have_uv or "uv" not in what

    monkeypatch.setattr(set_up, "run", run)
    monkeypatch.setattr(set_up, "missing_pins", lambda: list(entries))
    monkeypatch.setattr(set_up, "uv_environment", dict)
    set_up.install_packages()
    named = {"--constraint", "--editable"}
    unchecked = [command for command, _ in asked if "--require-hashes" not in command and not named & {*command}]
    assert unchecked == []
    [packages] = [read for command, read in asked if "--require-hashes" in command and len(read) > 1000 * 100]
    assert packages == "\n".join(entry for pin, entry in entries.items() if not pin.startswith(f"{WITHOUT_HASH}=="))

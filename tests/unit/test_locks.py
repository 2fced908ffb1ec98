"""What `make check-pythons` objects to, without an index."""

import pytest

from scripts.check_pythons import LOCKS, Lock, overrides, pinned, unpinned

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
    pins = [line for line in lock.path.read_text().splitlines() if line and not line.startswith("#")]
    assert len(pins) == len(pinned(lock))

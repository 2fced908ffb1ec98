"""Make a release: check the tree, build the wheel and test it, then write the version into the changelog.

    .venv/bin/python -m scripts.release VERSION [--tag]      or      make release VERSION=X [ARGS=--tag]

VERSION is that of `fgaif_ray/__init__.py`, which a commit before has raised. Continuous integration (`.ci/run`) must
have passed; here the documentation is built, the wheel is installed into an empty environment, and a bill of materials
of each lock is written beside it. Everything is checked before anything changes. Then the changelog's unreleased
section gets version and date, CITATION.cff the same, and both are committed. With --tag the commit is tagged. Nothing
is pushed or uploaded.
"""

import argparse
import datetime as dt
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from packaging.version import InvalidVersion, Version

from scripts.sbom import write_sboms

ROOT: Final = Path(__file__).resolve().parent.parent
UNRELEASED: Final = "## [Unreleased]"
WHEEL_TEST: Final = "tests/unit/jobs/test_demo.py"
WHEEL_VARIABLE: Final = "FGAIF_WHEEL"
"""Environment variable that tells the test which wheel to install."""


class ReleaseError(Exception):
    """What stands in the way, in one sentence that says what to do."""


def git(root: Path, *words: str) -> str:
    """What git answers.

    Raises:
        ReleaseError: git refuses.
    """
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ReleaseError(f"git {words[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def check_tree(root: Path, version: str) -> None:
    """Return if this version can be released from the tree as it is.

    Raises:
        ReleaseError: it cannot.
    """
    try:
        normal = str(Version(version))
    except InvalidVersion as error:
        raise ReleaseError(f"{version} is not a version: give one such as 0.2.0.") from error
    if normal != version:
        raise ReleaseError(f"{version} is written {normal}: give that.")
    if git(root, "status", "--porcelain"):
        raise ReleaseError("There are changes that are not committed: commit or remove them.")
    [found] = re.findall(r'^__version__ = "(.+)"$', (root / "fgaif_ray/__init__.py").read_text(), re.MULTILINE)
    if found != version:
        raise ReleaseError(f"fgaif_ray/__init__.py says {found}: raise it to {version} and commit that first.")
    if git(root, "tag", "--list", f"v{version}"):
        raise ReleaseError(f"v{version} is tagged already: raise the version.")
    changes = unreleased(root)
    if f"\n## [{version}]" in (root / "CHANGELOG.md").read_text(encoding="utf-8"):
        raise ReleaseError(f"CHANGELOG.md has a section of {version} already: raise the version.")
    if not changes:
        raise ReleaseError("The changelog's unreleased section is empty: say what changed.")


def unreleased(root: Path) -> str:
    """What the changelog says of changes that no release holds.

    Raises:
        ReleaseError: there is no such section.
    """
    _, heading, rest = (root / "CHANGELOG.md").read_text(encoding="utf-8").partition(f"{UNRELEASED}\n")
    if not heading:
        raise ReleaseError(f"CHANGELOG.md has no section {UNRELEASED}: put it back.")
    return rest.partition("\n## [")[0].strip()


def build_wheel(root: Path) -> Path:
    """Build the wheel into `dist/`, which is emptied before.

    Raises:
        ReleaseError: it cannot be built.
    """
    folder = root / "dist"
    for old in folder.glob("fgaif_ray-*"):
        old.unlink()
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    if subprocess.run([*pip, "wheel", *options, str(root)], cwd=root, check=False).returncode != 0:
        raise ReleaseError("The wheel could not be built: see above.")
    [wheel] = folder.glob("fgaif_ray-*.whl")
    return wheel


def check_built(root: Path, wheel: Path) -> None:
    """Install the wheel into an empty environment, run its test there, and build the documentation.

    Raises:
        ReleaseError: one of them fails.
    """
    python = sys.executable
    for what, command in (
        ("the installed wheel", [python, "-m", "pytest", "-q", WHEEL_TEST]),
        ("the documentation", [python, "-m", "mkdocs", "build", "--quiet"]),
    ):
        environment = os.environ | {WHEEL_VARIABLE: str(wheel), "NO_MKDOCS_2_WARNING": "1"}
        if subprocess.run(command, cwd=root, env=environment, check=False).returncode != 0:
            raise ReleaseError(f"The check of {what} failed: see above.")


def write_release(root: Path, version: str, date: dt.date, tag: bool) -> None:
    """Write version and date into changelog and citation, commit them, and tag the commit if that is wanted.

    Raises:
        ReleaseError: git refuses.
    """
    changelog, citation = root / "CHANGELOG.md", root / "CITATION.cff"
    text = changelog.read_text(encoding="utf-8")
    changelog.write_text(text.replace(UNRELEASED, f"{UNRELEASED}\n\n## [{version}] - {date}", 1), encoding="utf-8")
    cited = re.sub(r"^date-released: .*\n", "", citation.read_text(encoding="utf-8"), flags=re.MULTILINE)
    cited = re.sub(r"^version: .*$", f"version: {version}\ndate-released: {date}", cited, flags=re.MULTILINE)
    citation.write_text(cited, encoding="utf-8")
    git(root, "commit", "--quiet", "--message", f"Release {version}", "--", changelog.name, citation.name)
    if tag:
        git(root, "tag", "--annotate", f"v{version}", "--message", f"FGAIF-Ray {version}")


def release(root: Path, version: str, tag: bool) -> None:
    """Do all of it.

    Raises:
        ReleaseError: something stands in the way; nothing but `dist/` and `site/` has changed then.
    """
    check_tree(root, version)
    wheel = build_wheel(root)
    check_built(root, wheel)
    write_sboms(wheel.parent)
    write_release(root, version, dt.datetime.now(dt.UTC).date(), tag)
    tagged = f"tagged v{version}" if tag else f"not tagged (--tag does that: git tag -a v{version})"
    print(f"{wheel.relative_to(root)} is built and tested; {git(root, 'rev-parse', '--short', 'HEAD')} is {tagged}.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a release; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version")
    parser.add_argument("--tag", action="store_true", help="tag the commit")
    options = parser.parse_args(arguments)
    try:
        release(ROOT, options.version, options.tag)
    except ReleaseError as error:
        print(f"release: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

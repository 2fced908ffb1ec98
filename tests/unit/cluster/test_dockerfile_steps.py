"""The image's steps, executed in a folder, and what makes them fail."""

import re
import shutil
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from support.image_build import Build, BuildError
from support.image_context import context_files
from support.paths import ROOT

from scripts.check_pythons import LOCKS
from scripts.set_up import locked_entries

DOCKERFILE = ROOT / "deploy" / "Dockerfile"
GPU = LOCKS[1]
SMALL = """\
FROM python:3.11-slim
ENV SOME=thing
COPY requirements/small.lock /opt/small/requirements/small.lock
RUN python -m pip install --no-deps --require-hashes --requirement /opt/small/requirements/small.lock
COPY . /opt/small
RUN python -m pip install --no-deps /opt/small
WORKDIR /opt/small
CMD ["python", "-c", "import small, os; assert os.environ['SOME'] == 'thing'"]
"""
PYPROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "small"
version = "1"
dependencies = ["alpha>=2"]
[project.optional-dependencies]
more = ["beta>=1"]
"""
HASH = f"--hash=sha256:{'0' * 64}"


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """A small project with a lock."""
    folder = tmp_path / "context"
    (folder / "requirements").mkdir(parents=True)
    (folder / "requirements" / "small.lock").write_text(f"alpha==2.1 \\\n    {HASH}\nbeta==1.5 \\\n    {HASH}\n")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "small.py").write_text("")
    return folder


@pytest.fixture
def build(context: Path, tmp_path: Path) -> Build:
    (tmp_path / "build").mkdir()
    return Build(context, tmp_path / "build")


@pytest.mark.slow
def test_the_steps_of_the_image_succeed(tmp_path: Path) -> None:
    build = Build(ROOT, tmp_path)
    build.run(DOCKERFILE.read_text())
    for step, reason in build.skipped.items():
        print(f"not executed: {step} ({reason})")
    assert set(build.skipped) == {"FROM", "RUN apt-get", "RUN rm", "RUN useradd", "USER"}
    assert build.executed == ["ENV", "COPY", "RUN", "COPY", "RUN", "WORKDIR", "CMD"]
    assert build.unmet("fgaif-ray", GPU.extras) == []
    installed = {canonicalize_name(one.name) for one in distributions(path=[str(build.site_packages)])}
    assert {pin.partition("==")[0] for pin in locked_entries(GPU.path)} - installed <= {"setuptools"}
    for manifest in (ROOT / "deploy" / "kuberay").glob("*.yaml"):
        for path in re.findall(r"/opt/fgaif-ray/\S+\.yaml", manifest.read_text()):
            assert build.inside(path).is_file(), f"{manifest.name} names {path}"


def test_the_steps_of_a_small_image_succeed(build: Build) -> None:
    build.run(SMALL)
    assert build.unmet("small", ("more",)) == []


@pytest.mark.parametrize(
    ("step", "instead", "said"),
    [
        ("requirements/small.lock /opt", "requirements/large.lock /opt", "large.lock does not exist"),
        ("--no-deps --require", "--no-depz --require", "no such option: --no-depz"),
        ("--requirement /opt/small/requirements/", "--requirement /opt/other/", "No such file"),
        ("WORKDIR /opt/small", "WORKDIR /opt/small\nADD x y", "ADD: not a step"),
        ("import small", "import large", "No module named 'large'"),
        ("ENV SOME=thing", "ENV SOME=thing ELSE", "ELSE has no value"),
        ("FROM python:3.11-slim", "FROM python:3.11-slim\nRUN apt-get update && (", "yntax error"),
    ],
)
def test_a_broken_step_fails(build: Build, step: str, instead: str, said: str) -> None:
    assert step in SMALL
    with pytest.raises(BuildError, match=re.escape(said)):
        build.run(SMALL.replace(step, instead))


def test_what_is_kept_back_cannot_be_copied(build: Build, context: Path) -> None:
    (context / ".dockerignore").write_text("requirements/\n")
    with pytest.raises(BuildError, match=r"kept back by \.dockerignore"):
        build.run(SMALL)


def test_a_pin_without_a_hash_fails(build: Build, context: Path) -> None:
    (context / "requirements" / "small.lock").write_text(f"alpha==2.1 {HASH}\nbeta==1.5\n")
    with pytest.raises(BuildError, match=r"beta==1\.5"):
        build.run(SMALL)


@pytest.mark.parametrize(
    ("lock", "unmet"), [("alpha==1.9", ["alpha>=2", 'beta>=1; extra == "more"']), ("beta==1.5", ["alpha>=2"])]
)
def test_a_lock_that_does_not_match_the_project_is_told(
    build: Build, context: Path, lock: str, unmet: list[str]
) -> None:
    (context / "requirements" / "small.lock").write_text(f"{lock} {HASH}\n")
    build.run(SMALL)
    assert build.unmet("small", ("more",)) == unmet


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        ("", ["a.py", "b/a.py", "b/c/a.pyc"]),
        ("b/", ["a.py"]),
        ("*.py", ["b/a.py", "b/c/a.pyc"]),
        ("**/*.py", ["b/c/a.pyc"]),
        ("**/*.py[cod]", ["a.py", "b/a.py"]),
        ("*/a.py", ["a.py", "b/c/a.pyc"]),
        ("*\n!b", ["b/a.py", "b/c/a.pyc"]),
        ("# a.py\n/a.py", ["b/a.py", "b/c/a.pyc"]),
    ],
)
def test_the_context_is_what_dockerignore_leaves(tmp_path: Path, patterns: str, kept: list[str]) -> None:
    folder = tmp_path / "context"
    (folder / "b" / "c").mkdir(parents=True)
    for name in ("a.py", "b/a.py", "b/c/a.pyc"):
        (folder / name).write_text("")
    (tmp_path / "ignored").write_text(patterns)
    shutil.move(tmp_path / "ignored", folder / ".dockerignore")
    assert [path for path in context_files(folder) if path != ".dockerignore"] == kept


def test_neither_secrets_nor_environments_are_sent(tmp_path: Path) -> None:
    shutil.copy(ROOT / ".dockerignore", tmp_path)
    for name in (".env", ".venv/bin/python", ".git/config", "runs/x/config.yaml", "jobs/__pycache__/a.pyc", "my.pem"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "jobs" / "align.py").write_text("")
    assert context_files(tmp_path) == ["jobs/align.py"]

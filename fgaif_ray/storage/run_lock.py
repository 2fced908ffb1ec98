"""Lock of a run folder: one job at a time, in a folder that can be written, checked before anything starts.

On a file system the lock is the kernel's (``flock``), which a dying process releases, so a lock is never stale. Object
stores have none; there a marker says who works in the folder. Its owner renews it, and a marker that is not renewed is
taken over.
"""

import contextlib
import errno
import fcntl
import functools
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

from fgaif_ray.errors import UserError
from fgaif_ray.progress import say
from fgaif_ray.storage.files import exists, is_local, join, read_bytes, remove_file, write_bytes

LOCK_FILE: Final = ".lock"
RENEW_S: Final = 15.0
"""Seconds between two renewals of a marker on an object store."""
STALE_S: Final = 60.0
"""A marker that is not renewed for so long belongs to a job that is gone."""
_NO_FLOCK: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_held: set[str] = set()


class _HasRun(Protocol):
    @property
    def run(self) -> Any: ...


Settings = TypeVar("Settings", bound=_HasRun)
Further = ParamSpec("Further")
Work = Callable[Concatenate[Settings, Further], None]


def writes_run(job: str) -> Callable[[Work[Settings, Further]], Work[Settings, Further]]:
    """Decorate a job's work, whose first argument is the configuration: it holds ``run.dir`` until it ends.

    Example: ``@writes_run("sample")`` above ``def run(config: Config) -> None``
    """

    def decorate(work: Work[Settings, Further]) -> Work[Settings, Further]:
        @functools.wraps(work)
        def locked(config: Settings, /, *arguments: Further.args, **options: Further.kwargs) -> None:
            with hold_run(config.run.dir, job):
                work(config, *arguments, **options)

        return locked

    return decorate


@contextmanager
def hold_run(folder: str, job: str) -> Iterator[None]:
    """Keep other processes out of a run folder inside the block; blocks of one process share the lock.

    Args:
        folder: local path or URI; a local one is made.
        job: named to a refused job.

    Raises:
        UserError: another job works in the folder, or it cannot be written.
    """
    name = os.path.abspath(folder.removeprefix("file://")) if is_local(folder) else folder.rstrip("/")
    if name in _held:
        yield
        return
    with _file_lock(Path(name), folder, job) if is_local(folder) else _marker(folder, job):
        _held.add(name)
        try:
            yield
        finally:
            _held.discard(name)


def _owner(job: str) -> dict[str, Any]:
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    return {"job": job, "pid": os.getpid(), "host": socket.gethostname(), "since": since, "token": uuid.uuid4().hex}


def _in_use(folder: str, text: bytes) -> UserError:
    try:
        owner = json.loads(text)
        who = f"{owner['job']} (process {owner['pid']} on {owner['host']}, since {owner['since']})"
    except (ValueError, KeyError, TypeError):
        who = "another job"
    return UserError(f"{folder} is in use by {who}: wait until it has ended, or give another run.dir.")


def _unwritable(folder: str, reason: str) -> UserError:
    return UserError(f"run.dir={folder} cannot be written ({reason}): set run.dir to a folder that can.")


@contextmanager
def _file_lock(path: Path, folder: str, job: str) -> Iterator[None]:
    try:
        file = next((place for place in (path, *path.parents) if place.exists() and not place.is_dir()), None)
        if file is not None:
            what = "is a file" if file == path else f"lies below the file {file}"
            raise UserError(f"run.dir={folder} {what}: set run.dir to a folder.")
        was_there = path.exists()
        path.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(path / LOCK_FILE, folder)
        if descriptor is not None:
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_owner(job)).encode(), 0)
    except OSError as error:
        raise _unwritable(folder, error.strerror or str(error)) from error
    if descriptor is None:
        with _marker(folder, job):
            yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):  # somebody has removed the folder
            os.unlink(path / LOCK_FILE)
        os.close(descriptor)
        if not was_there:
            with contextlib.suppress(OSError):  # it holds something now
                path.rmdir()


def _locked(path: Path, folder: str) -> int | None:
    """A descriptor of the lock file with the lock on it; None where the file system has no locks.

    Raises:
        UserError: another process has it.
    """
    until: float | None = None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            text = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                now = time.monotonic()
                # A file server takes a while to notice that a machine is gone that had the lock.
                if _host(text) == socket.gethostname() or (until is not None and now > until):
                    raise _in_use(folder, text) from error
                if until is None:
                    until = now + STALE_S
                    _say_waiting(folder)
                time.sleep(STALE_S / 40)
                continue
            if error.errno in _NO_FLOCK:
                return None
            raise
        # Whoever had it before has removed the file, perhaps after it was opened here.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)


@contextmanager
def _marker(folder: str, job: str) -> Iterator[None]:
    uri = join(folder, LOCK_FILE)
    owner = _owner(job)

    def renew() -> None:
        write_bytes(uri, json.dumps(owner | {"renewed": time.time()}).encode())

    try:
        _wait_for_marker(uri, folder)
        renew()
    except UserError:
        raise
    except Exception as error:  # each object store has errors of its own
        raise _unwritable(folder, (str(error).splitlines() or [type(error).__name__])[0]) from error
    ended = threading.Event()

    def keep_renewing() -> None:
        while not ended.wait(RENEW_S):
            with contextlib.suppress(Exception):  # the next one may succeed
                renew()

    thread = threading.Thread(target=keep_renewing, name="run lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(Exception):
            remove_file(uri)


def _wait_for_marker(uri: str, folder: str) -> None:
    """Return when no live job has left its marker.

    Raises:
        UserError: the marker is renewed.
    """
    if not exists(uri):
        return
    first = read_bytes(uri)
    if _is_dead(first):
        return
    _say_waiting(folder)
    until = time.monotonic() + STALE_S
    while time.monotonic() < until:
        time.sleep(min(RENEW_S, STALE_S) / 10)
        if not exists(uri):
            return
        if (now := read_bytes(uri)) != first:
            raise _in_use(folder, now)


def _say_waiting(folder: str) -> None:
    say(f"{folder}: waiting up to {STALE_S:g} s to see whether the job of another machine that uses it is alive.")


def _host(text: bytes) -> str:
    """Where the owner runs; here, where it does not say so."""
    try:
        host: str = json.loads(text)["host"]
    except (ValueError, KeyError, TypeError):
        return socket.gethostname()
    return host


def _is_dead(text: bytes) -> bool:
    """Tell whether the owner was a process of this machine that has ended."""
    try:
        owner = json.loads(text)
        if owner["host"] != socket.gethostname():
            return False
        os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, TypeError, PermissionError):
        return False
    return int(owner["pid"]) == os.getpid()  # of an earlier process with this number: this one does not hold the folder

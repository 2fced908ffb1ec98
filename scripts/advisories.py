"""What is publicly known against a version of a package, by the package index or by a copy of PyPA's database.

The index's answers are those of PyPI's JSON API (https://docs.pypi.org/api/json/), the database's files are OSV records
(https://ossf.github.io/osv-schema/, https://github.com/pypa/advisory-database).
"""

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2
import yaml
from packaging.version import InvalidVersion, Version

AT_A_TIME: Final = 8
"""Requests to the index."""
TIMEOUT_S: Final = 30.0
PIN: Final = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>\S+)$")


class NoAnswers(Exception):
    """Why no advisories can be had at all, in one sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class Advisory:
    """A published weakness of the version that a lock names."""

    package: str
    version: str
    identifier: str
    aliases: tuple[str, ...]
    """Other names of the same, e.g. ``CVE-2026-1234``."""
    fixed_in: tuple[str, ...]
    """Versions without it; empty: there is none yet."""

    @property
    def names(self) -> frozenset[str]:
        return frozenset((self.identifier, *self.aliases))


@dataclass(frozen=True, slots=True)
class Answers:
    """What a source says of some pins."""

    advisories: tuple[Advisory, ...]
    unasked: tuple[str, ...]
    """Pins, ``NAME==VERSION``, that the source says nothing of."""


def ask_index(index: str, pins: Sequence[str]) -> Answers:
    """The advisories that an index has for pins.

    A mirror may serve the newest version of a package alone: then its answer counts for that version only.

    Args:
        index: URL of the index as installers name it, e.g. ``https://pypi.org/simple``.
        pins: ``NAME==VERSION``.

    Raises:
        NoAnswers: the index cannot be reached, or has no JSON API.
    """
    base = httpx2.URL(index.rstrip("/").removesuffix("/simple"))
    transport = httpx2.HTTPTransport(retries=2)
    with (
        httpx2.Client(transport=transport, timeout=TIMEOUT_S, follow_redirects=True) as client,
        ThreadPoolExecutor(AT_A_TIME) as pool,
    ):
        try:
            found = list(pool.map(lambda pin: _ask(client, str(base), pin), pins))
        except httpx2.HTTPError as error:
            pool.shutdown(cancel_futures=True)
            raise NoAnswers(
                f"The index at {base.host} gave no advisories ({type(error).__name__}): check the network, "
                "or name a copy of PyPA's advisory database with --database."
            ) from error
    answers = Answers(
        tuple(one for advisories in found for one in advisories or ()),
        tuple(pin for pin, advisories in zip(pins, found, strict=True) if advisories is None),
    )
    if pins and len(answers.unasked) == len(pins):
        raise NoAnswers(
            f"The index at {base.host} has no JSON API for any of these packages: name another with --index, "
            "or a copy of PyPA's advisory database with --database."
        )
    return answers


def _ask(client: httpx2.Client, base: str, pin: str) -> list[Advisory] | None:
    """Advisories of a pin; None where the index does not know."""
    name, version = pin.split("==")
    for path in (f"{name}/{version}", name):
        response = client.get(f"{base}/pypi/{path}/json")
        if response.status_code == httpx2.codes.NOT_FOUND:
            continue
        response.raise_for_status()
        body = response.json()
        if body["info"]["version"] == version and "vulnerabilities" in body:
            return _merged(
                Advisory(name, version, one["id"], tuple(one["aliases"]), tuple(one["fixed_in"]))
                for one in body["vulnerabilities"]
                if not one.get("withdrawn")
            )
    return None


def read_database(folder: Path, pins: Sequence[str]) -> Answers:
    """The advisories on pins in a copy of PyPA's database: ``FOLDER/vulns/NAME/*.yaml``.

    Raises:
        NoAnswers: that is not what the folder holds.
    """
    if not (folder / "vulns").is_dir():
        raise NoAnswers(
            f"{folder} has no folder vulns: name a copy of https://github.com/pypa/advisory-database with --database."
        )
    advisories: list[Advisory] = []
    for pin in pins:
        name, version = pin.split("==")
        records = [
            yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
            for path in sorted((folder / "vulns" / name).glob("*.yaml"))
        ]
        affecting = (
            one for record in records if not record.get("withdrawn") for one in _affects(record, name, version)
        )
        advisories += _merged(affecting)
    return Answers(tuple(advisories), ())


def newest_record(folder: Path) -> str:
    """The day of the database's latest change, ``YYYY-MM-DD``: nothing that was published later is in it."""
    days = (
        found[1]
        for path in (folder / "vulns").rglob("*.yaml")
        if (found := re.search(r"^modified: \W?(\d{4}-\d\d-\d\d)", path.read_text(encoding="utf-8"), re.MULTILINE))
    )
    return max(days, default="never")


def _affects(record: dict[str, Any], name: str, version: str) -> list[Advisory]:
    found = []
    for affected in record["affected"]:
        ranges = [one for one in affected.get("ranges", ()) if one["type"] == "ECOSYSTEM"]
        if version not in affected.get("versions", ()) and not any(_within(one["events"], version) for one in ranges):
            continue
        fixes = tuple(event["fixed"] for one in ranges for event in one["events"] if "fixed" in event)
        later = tuple(fix for fix in fixes if Version(fix) > Version(version))
        found.append(Advisory(name, version, record["id"], tuple(record.get("aliases", ())), later))
    return found


def _within(events: Sequence[dict[str, str]], version: str) -> bool:
    """Whether a version lies in a range: the last event at or before it introduces the weakness."""

    def order(text: str) -> Version:
        try:
            return Version(text)
        except InvalidVersion:
            return Version("0")

    inside = False
    for event in sorted(events, key=lambda event: order(next(iter(event.values())))):
        (kind, text), at = next(iter(event.items())), Version(version)
        if kind == "introduced":
            inside |= at >= order(text)
        elif kind == "fixed":
            inside &= at < order(text)
        elif kind == "last_affected":
            inside &= at <= order(text)
    return inside


def _merged(advisories: Iterable[Advisory]) -> list[Advisory]:
    """One of those that are the same by another name, with all names and fixes."""
    kept: list[Advisory] = []
    for one in advisories:
        same = next((other for other in kept if other.names & one.names), None)
        if same is None:
            kept.append(one)
            continue
        aliases = tuple(sorted((same.names | one.names) - {same.identifier}))
        fixes = tuple(sorted({*same.fixed_in, *one.fixed_in}, key=Version))
        kept[kept.index(same)] = Advisory(same.package, same.version, same.identifier, aliases, fixes)
    return kept

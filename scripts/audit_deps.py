"""List what is publicly known against the packages of both locks (`make audit-deps`).

    python -m scripts.audit_deps [--lock FILE ...] [--package NAME ...] [--index URL | --database FOLDER]

The package index is asked that pip is configured with (its JSON API); `--database` reads a copy of PyPA's advisory
database instead, e.g. where no index has one. The exit status is 1 if something has a fix and is not listed with a
reason in requirements/known-advisories.yaml, and 2 if no advisories can be had.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import httpx2
import yaml

from fgaif_ray.tables import table_lines
from scripts.advisories import Advisory, NoAnswers, ask_index, newest_record, read_database
from scripts.check_pythons import LOCKS
from scripts.set_up import ROOT, locked_entries, uv_environment

DEFAULT_INDEX: Final = "https://pypi.org/simple"
KNOWN: Final = ROOT / "requirements" / "known-advisories.yaml"


def configured_index() -> str:
    """The index of uv's variables, else of pip's variables and files, else PyPI."""
    return (
        os.environ.get("UV_DEFAULT_INDEX")
        or os.environ.get("UV_INDEX_URL")
        or uv_environment().get("UV_DEFAULT_INDEX")
        or DEFAULT_INDEX
    )


def known_advisories(path: Path) -> dict[str, str]:
    """Why an advisory does not hold up a release, by its identifier or an alias.

    Raises:
        NoAnswers: an entry has no reason.
    """
    reasons = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    for name, reason in (reasons or {}).items():
        if not isinstance(reason, str) or not reason.strip():
            raise NoAnswers(f"{path}: say after {name} why it does not matter here.")
    return dict(reasons or {})


def pins_of(locks: Sequence[Path], packages: Sequence[str]) -> dict[str, list[str]]:
    """The pins of some locks, or of some packages in them, each with the names of its locks.

    Raises:
        NoAnswers: no lock names a package that was asked for.
    """
    pins: dict[str, list[str]] = {}
    for lock in locks:
        for pin in locked_entries(lock):
            if not packages or pin.partition("==")[0] in packages:
                pins.setdefault(pin, []).append(lock.stem)
    absent = sorted(set(packages) - {pin.partition("==")[0] for pin in pins})
    if absent:
        raise NoAnswers(f"No lock names {', '.join(absent)}: check --package.")
    return dict(sorted(pins.items()))


def is_open(advisory: Advisory, known: Mapping[str, str]) -> bool:
    """Whether an update would close it, and nobody has said why not."""
    return bool(advisory.fixed_in) and not advisory.names & set(known)


def report(advisories: Sequence[Advisory], pins: Mapping[str, list[str]], known: Mapping[str, str]) -> list[str]:
    """A table for people."""
    rows = [("package", "version", "locks", "advisory", "fixed in", "")]
    for one in advisories:
        reason = next((known[name] for name in sorted(one.names & set(known))), None)
        state = f"known: {reason}" if reason else ("update" if one.fixed_in else "no fix yet")
        locks = ", ".join(pins[f"{one.package}=={one.version}"])
        names = ", ".join((one.identifier, *one.aliases))
        rows.append((one.package, one.version, locks, names, ", ".join(one.fixed_in) or "-", state))
    return table_lines(rows, rule=True) if advisories else []


def audit(options: argparse.Namespace) -> int:
    """Ask, print, and return the exit status."""
    known = known_advisories(options.known)
    pins = pins_of(options.lock or [lock.path for lock in LOCKS], options.package)
    if options.database:
        answers = read_database(options.database, list(pins))
        source = f"a copy of PyPA's advisory database as of {newest_record(options.database)}"
    else:
        index = options.index or configured_index()
        answers = ask_index(index, list(pins))
        source = f"the index at {httpx2.URL(index).host}"
    for line in report(answers.advisories, pins, known):
        print(line)
    asked = len(pins) - len(answers.unasked)
    print(f"{len(answers.advisories)} advisories on {asked} of {len(pins)} locked packages, from {source}.")
    if answers.unasked:
        print(f"Not asked, since the index has no advisories of their versions: {', '.join(answers.unasked)}.")
    if not options.package and not answers.unasked:
        unused = sorted(set(known).difference(*(one.names for one in answers.advisories)))
        if unused:
            print(f"{options.known.name} lists what applies no longer: {', '.join(unused)}.")
    return 1 if any(is_open(one, known) for one in answers.advisories) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lock", type=Path, action="append", help="instead of both of the project")
    parser.add_argument("--package", action="append", default=[], help="of the locks, instead of all")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--index", help="URL of a package index, instead of the one that pip is configured with")
    source.add_argument("--database", type=Path, help="folder with a copy of PyPA's advisory database")
    parser.add_argument("--known", type=Path, default=KNOWN, help=argparse.SUPPRESS)
    try:
        return audit(parser.parse_args(arguments))
    except NoAnswers as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

"""How much of existence the labels of attributes and relations carry.

    python -m benchmarks.absent_objects runs/shapes/feedback

What is said of an object that is not there is false as well. For the feedback of the embedded world: of the attributes
and relations that name an object which the same labels call absent, how many are called false, and what share of all
false ones they are. An ablation without the reward for existence still has these.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from fgaif_ray import storage
from fgaif_ray.errors import UserError
from fgaif_ray.records import FEEDBACK_COLUMNS, Feedback
from fgaif_ray.shapes.oracle import read_claims

TYPES: Final = ("attribute", "relation")


def count_facts(rows: Iterable[Feedback]) -> Counter[tuple[str, bool, bool]]:
    """Facts by ``(type, names an absent object, called true)``.

    Args:
        rows: of ``feedback/``. An object is absent where every statement of its response that it is there is called
            false; one whose existence is not stated counts as present.
    """
    counts: Counter[tuple[str, bool, bool]] = Counter()
    for row in rows:
        facts = [fact for segment in row.segments for fact in segment.facts]
        verdicts: dict[str, list[bool]] = {}
        for fact in facts:
            for shape in _shapes(fact.text) if fact.type == "existence" else ():
                verdicts.setdefault(shape, []).append(fact.consistent)
        absent = {shape for shape, found in verdicts.items() if not any(found)}
        for fact in facts:
            if fact.type in TYPES:
                counts[fact.type, not absent.isdisjoint(_shapes(fact.text)), fact.consistent] += 1
    return counts


def _shapes(text: str) -> set[str]:
    [claims] = read_claims(text, [(0, len(text))])
    return {shape for claim in claims for shape in (claim.subject, claim.other) if shape}


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%} of {whole:,}" if whole else "- (there are none)"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the shares for each folder.

    Raises:
        UserError: a folder holds no feedback.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.absent_objects", description=__doc__)
    parser.add_argument("folder", nargs="+", help="a feedback/ of the embedded world")
    for folder in parser.parse_args(arguments).folder:
        if not storage.list_parts(folder):
            raise UserError(f"{folder} holds no feedback: give the feedback/ of a run.")
        counts = count_facts(map(Feedback.from_row, storage.read_rows(folder, FEEDBACK_COLUMNS)))
        print(folder)
        for kind in TYPES:
            false = {absent: counts[kind, absent, False] for absent in (True, False)}
            said = false[True] + counts[kind, True, True]
            print(
                f"  {kind}: false {_share(false[True], said)} that name an absent object, "
                f"which are {_share(false[True], sum(false.values()))} false ones"
            )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"absent_objects: {error}")

"""Batches: JSON lines in, JSON lines out; a row that cannot be checked says why and ends nothing."""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

from fgaif_ray.check.questions import Checker, CheckResult, TextToCheck, text_of_row
from fgaif_ray.errors import ItemError

BLOCK: Final = 32
"""Rows that are checked together; their images are in memory."""
DATA_URL: Final = "data:"


def check_lines(lines: Iterable[bytes], checker: Checker, folder: str) -> Iterator[tuple[dict[str, Any], CheckResult]]:
    """Check the rows of a batch, in order.

    Args:
        lines: JSON; see ``text_of_row``. Empty lines are left out.
        checker: of the texts.
        folder: what paths are relative to.

    Yields:
        What is written about a row, and the check or why there is none.

    Raises:
        UserError: nothing can be checked.
    """
    numbered = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    while block := list(islice(numbered, BLOCK)):
        rows = [_row(number, line) for number, line in block]
        texts = [_text(row, folder) for _, row in rows]
        good = [text for text in texts if isinstance(text, TextToCheck)]
        found = iter(checker.check_each(good) if good else ())
        for (shown, _), text in zip(rows, texts, strict=True):
            result = text if isinstance(text, ItemError) else next(found)
            yield shown | result_fields(result), result


def result_fields(result: CheckResult) -> dict[str, Any]:
    """What a line says beside the fields of its row."""
    if isinstance(result, ItemError):
        return {"error": {"code": result.code, "message": str(result)}}
    return {"check": result.model_dump(mode="json", exclude={"response"})}


def _row(number: int, line: bytes) -> tuple[dict[str, Any], Any]:
    """What of a row is written again, and the row."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        return {"line": number}, row
    kept = {name: value for name, value in row.items() if not _has_data_url(value)}
    return kept, row


def _has_data_url(value: Any) -> bool:
    """Whether it holds image files, which are not written again."""
    return any(
        isinstance(one, str) and one.startswith(DATA_URL) for one in (value if isinstance(value, list) else [value])
    )


def _text(row: Any, folder: str) -> TextToCheck | ItemError:
    try:
        return text_of_row(row, folder)
    except ItemError as error:
        return error

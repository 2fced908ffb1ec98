"""The process in which items of requests are prepared: images are decoded and responses cut.

It is started and killed by ``actors.rewards.preparers``, which hands it one end of a socket pair and talks to it in
messages of bytes: JSON, and image files as they are. Nothing is unpickled on either side. An item that takes more
processor time than its budget ends the process, by the kernel's own timer, so that no loop in C or in Rust outlives it.
"""

import contextlib
import json
import re
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NoReturn

import tokenizers

from fgaif_ray.errors import ItemError
from fgaif_ray.pixel_budget import PixelBudget
from fgaif_ray.rewards.preparation import Tokenizer, check_image, check_text, segment_response, token_ends
from fgaif_ray.serving.remote_reward import split_query
from fgaif_ray.serving.wire import MAX_DECODED_CHARACTERS, MAX_PROMPT_CHARACTERS

READY: Final = b"ready"
"""What is sent once the tokenizer is loaded."""
_DATA_MEMORY: Final = re.compile(r"VmData:\s*(\d+) kB")


class BackendTokenizer:
    """A tokenizer of the library `tokenizers`, whose import takes milliseconds, in the place of transformers' own."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self.backend_tokenizer = backend

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False, **_: Any) -> str:
        """Decode ids as transformers do without a clean-up of spaces."""
        return self.backend_tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)


@dataclass(frozen=True, slots=True)
class ItemPreparer:
    """Prepares items for one policy's tokenizer."""

    tokenizer: Tokenizer
    special_tokens: Sequence[str]
    budget: PixelBudget
    language: str

    def prepare(self, item: dict[str, Any], files: Sequence[bytes]) -> dict[str, Any]:
        """Prepare an item.

        Args:
            item: `prompt`; `response` and `response_token_ids`, or `query` and `query_prompt` of OpenRLHF; `limited`,
                whether texts have the greatest lengths of requests.
            files: its images that have not been looked at.

        Returns:
            `pixels` of each file; `text`; `spans`, `[segments]` start and end; `ends`, `[segments]` or None.

        Raises:
            ItemError: it cannot be scored.
        """
        limited = item["limited"]
        check_text("prompt", item["prompt"], MAX_PROMPT_CHARACTERS if limited else None)
        text = item.get("response")
        if "query" in item:
            text = split_query(item["query"], item["query_prompt"], self.special_tokens)
        longest = MAX_DECODED_CHARACTERS if limited else None
        response = segment_response(self.tokenizer, text, item.get("response_token_ids"), longest, self.language)
        ends = token_ends(self.tokenizer, response)
        return {
            "pixels": [check_image(file, self.budget) for file in files],
            "text": response.text,
            "spans": [(span.start, span.end) for span in response.spans],
            "ends": ends,
        }


def serve(connection: Connection) -> NoReturn:
    """Prepare items.

    Raises:
        EOFError: the other end was closed.
    """
    setup = json.loads(connection.recv_bytes())
    tokenizer = _tokenizer(setup["tokenizer"], connection.recv_bytes())
    preparer = ItemPreparer(tokenizer, setup["special_tokens"], PixelBudget(**setup["budget"]), setup["language"])
    _limit_memory(setup["memory"])
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    connection.send_bytes(READY)
    while True:
        item = json.loads(connection.recv_bytes())
        files = [connection.recv_bytes() for _ in range(item["files"])]
        signal.setitimer(signal.ITIMER_PROF, setup["seconds"])
        reply = _prepared(preparer, item, files)
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send_bytes(json.dumps(reply).encode())


def _prepared(preparer: ItemPreparer, item: dict[str, Any], files: Sequence[bytes]) -> dict[str, Any]:
    try:
        return preparer.prepare(item, files)
    except ItemError as error:
        return {"error": (error.code, error.message)}
    except MemoryError:
        return {"error": ("too_costly", "the item takes too much memory to read")}


def _tokenizer(checkpoint: str, serialised: bytes) -> Tokenizer:
    if serialised:
        return BackendTokenizer(tokenizers.Tokenizer.from_str(serialised.decode()))
    from transformers import AutoTokenizer

    loaded: Tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    return loaded


def _limit_memory(more: int) -> None:
    taken = _DATA_MEMORY.search(Path("/proc/self/status").read_text())
    if taken is not None:
        most = int(taken[1]) * 1024 + more
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


if __name__ == "__main__":
    with contextlib.suppress(EOFError):
        serve(Connection(int(sys.argv[1])))

"""The processes that prepare items of requests for the gateway, and that are killed when one takes too much.

    RewardGateway --(item, in one of `count` threads)--> preparer 0..count-1 --(segments, pixels | why not)-->

The gateway's event loop and the memory of the gateway are not touched by what strangers send: a decoder that loops or
grows does so in a process that has a budget for each item, and the next item gets a new process.
"""

import asyncio
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import Pipe
from typing import Any, Final

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fgaif_ray.errors import ItemError
from fgaif_ray.pixel_budget import UNLIMITED, PixelBudget
from fgaif_ray.rewards.preparation import ImageSource, SegmentedResponse
from fgaif_ray.rewards.preparation_process import READY
from fgaif_ray.segments import ENGLISH, Span

logger = logging.getLogger(__name__)

ITEM_SECONDS: Final = 5.0
"""Processor time that an item may take to prepare; a usual one takes some milliseconds."""
ITEM_MEMORY: Final = 1 << 30
"""Bytes of memory that preparing an item may take."""
START_TIMEOUT_S: Final = 120.0
ANSWER_TIMEOUT_S: Final = 120.0
"""Seconds after which a process that has not used its processor time is given up, as on a machine out of memory."""
END_S: Final = 1.0
"""Seconds that a process which has closed its connection takes to end."""
LONGEST_REPLY: Final = 64 << 20
"""Bytes."""
PASSED_ON: Final = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE")
"""Variables of the environment that the processes get, no keys and tokens among them."""
MODULE: Final = "fgaif_ray.rewards.preparation_process"


@dataclass(frozen=True, slots=True)
class UnpreparedItem:
    """An item as it came."""

    images: tuple[ImageSource, ...]
    prompt: str
    response: str | None = None
    response_token_ids: Sequence[int] | None = None
    query: tuple[str, str] | None = None
    """OpenRLHF's query and its prompt, in which the response is."""
    limited: bool = True
    """Whether its texts have the greatest lengths of requests."""

    def message(self, files: int) -> bytes:
        """Build the message to a process, which a number of files follow."""
        fields: dict[str, Any] = {"prompt": self.prompt, "limited": self.limited, "files": files}
        if self.query is None:
            ids = None if self.response_token_ids is None else list(self.response_token_ids)
            fields |= {"response": self.response, "response_token_ids": ids}
        else:
            fields |= dict(zip(("query", "query_prompt"), self.query, strict=True))
        return json.dumps(fields).encode()


@dataclass(frozen=True, slots=True)
class PreparedItem:
    """An item that passed the checks."""

    images: tuple[ImageSource, ...]
    prompt: str
    response: SegmentedResponse
    token_ends: list[int] | None
    """`[segments]` index of the sampled token that ends each segment; None where no ids were given."""
    pixels: int
    """Decoded from the images; 0 where they were not looked at."""


class Preparers:
    """Processes that prepare items, one item at a time each; any thread and any event loop may ask.

    Example: ``await Preparers("llava-hf/llava-1.5-7b-hf", count=2).prepare(item, files=item.images)``
    """

    def __init__(
        self,
        checkpoint: str,
        count: int,
        budget: PixelBudget = UNLIMITED,
        *,
        language: str = ENGLISH,
        seconds: float = ITEM_SECONDS,
        memory: int = ITEM_MEMORY,
    ) -> None:
        """Start the processes and wait until they can work.

        Args:
            checkpoint: of the policy, whose tokenizer decodes sampled ids.
            count: processes.
            budget: pixels of the images that the models see.
            language: of the responses, see `split_segments`.
            seconds: processor time that an item may take.
            memory: bytes that it may take.
        """
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
        fields = {
            "tokenizer": checkpoint,
            "special_tokens": tokenizer.all_special_tokens,
            "budget": asdict(budget),
            "language": language,
            "seconds": seconds,
            "memory": memory,
        }
        setup = json.dumps(fields).encode(), _serialised(tokenizer)
        self.count = count
        self._processes = [_PreparerProcess(setup) for _ in range(count)]
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="prepare")
        self._idle: queue.SimpleQueue[_PreparerProcess] = queue.SimpleQueue()
        self._stop = weakref.finalize(self, _stop_all, self._processes)
        for process in self._processes:
            process.wait_ready()
            self._idle.put(process)

    async def prepare(self, item: UnpreparedItem, files: Sequence[bytes]) -> tuple[PreparedItem, list[int]]:
        """Prepare an item; what has not begun when the caller is cancelled is not done.

        Args:
            item: to be prepared.
            files: of its images, those to look at.

        Returns:
            The prepared item, with no pixels yet, and the pixels of each file.

        Raises:
            ItemError: it cannot be scored, or takes too much time or memory to read.
        """
        loop = asyncio.get_running_loop()
        reply = await loop.run_in_executor(self._threads, self._ask, item.message(len(files)), files)
        if "error" in reply:
            raise ItemError(*reply["error"])
        spans = [Span(*span) for span in reply["spans"]]
        ids = None if item.response_token_ids is None else list(item.response_token_ids)
        response = SegmentedResponse(reply["text"], spans, ids)
        return PreparedItem(item.images, item.prompt, response, reply["ends"], pixels=0), reply["pixels"]

    def process_ids(self) -> list[int]:
        """Return the ids of the processes, which change when one is killed."""
        return [process.process_id for process in self._processes]

    def close(self) -> None:
        """End the processes."""
        self._stop()

    def _ask(self, message: bytes, files: Sequence[bytes]) -> dict[str, Any]:
        process = self._idle.get()
        try:
            return process.ask(message, files)
        finally:
            self._idle.put(process)


class _ProcessEndedError(Exception):
    """A process has ended while it prepared an item, ``by`` a signal or a budget."""

    def __init__(self, by: str) -> None:
        super().__init__(by)
        self.by = by


class _PreparerProcess:
    """A process, and the next one when it had to be killed."""

    def __init__(self, setup: Sequence[bytes]) -> None:
        self._setup = setup
        self._is_ready: bool = False
        self._start()

    @property
    def process_id(self) -> int:
        return self._process.pid

    def ask(self, message: bytes, files: Sequence[bytes]) -> dict[str, Any]:
        """Have an item prepared.

        An item whose process was killed from outside (by the kernel that is out of memory, or by a person) is prepared
        again, once: budgets end processes in other ways.

        Raises:
            ItemError: `too_costly`: it has ended the process.
        """
        if self._process.poll() is not None:  # it was not an item that has ended it
            logger.warning("a process that prepares items was gone (%s)", self.stop())
            self._start()
        try:
            return self._ask(message, files)
        except _ProcessEndedError as ended:
            if ended.by != signal.SIGKILL.name:
                raise ItemError("too_costly", f"the item takes too much to read ({ended.by})") from ended
        try:
            return self._ask(message, files)
        except _ProcessEndedError as ended:
            raise ItemError("too_costly", f"the item takes too much to read ({ended.by})") from ended

    def _ask(self, message: bytes, files: Sequence[bytes]) -> dict[str, Any]:
        self.wait_ready()
        try:
            for part in (message, *files):
                self._connection.send_bytes(part)
            if not self._connection.poll(ANSWER_TIMEOUT_S):
                raise TimeoutError
            reply: dict[str, Any] = json.loads(self._connection.recv_bytes(LONGEST_REPLY))
        except (EOFError, OSError) as error:  # TimeoutError is an OSError
            ended_by = self.stop(END_S)
            logger.warning("the process that prepared an item has ended (%s)", ended_by)
            self._start()
            raise _ProcessEndedError(ended_by) from error
        return reply

    def wait_ready(self) -> None:
        """Wait for a new process.

        Raises:
            RuntimeError: it does not start.
        """
        if self._is_ready:
            return
        try:
            for part in self._setup:
                self._connection.send_bytes(part)
            self._is_ready = self._connection.poll(START_TIMEOUT_S) and self._connection.recv_bytes() == READY
        except (EOFError, OSError):
            self._is_ready = False
        if not self._is_ready:
            ended_by = self.stop(END_S)
            self._start()
            raise RuntimeError(f"the process that prepares requests does not start ({ended_by}): see its output above")

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        with theirs:
            environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
            environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TOKENIZERS_PARALLELISM": "false"}
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(theirs.fileno())],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._is_ready = False

    def stop(self, grace_s: float = 0.0) -> str:
        """Kill the process, unless it ends by itself in time; returns what it has ended by."""
        self._connection.close()
        try:
            ended = self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return "no answer"
        if ended == -signal.SIGPROF:
            return "processor time"
        return signal.Signals(-ended).name if ended < 0 else f"exit status {ended}"


def _stop_all(processes: Sequence[_PreparerProcess]) -> None:
    for process in processes:
        process.stop()


def _serialised(tokenizer: Any) -> bytes:
    """A tokenizer as the library `tokenizers` reads it; empty where transformers do more than that to decode."""
    known = PreTrainedTokenizerFast
    kind = type(tokenizer)
    if not issubclass(kind, known) or (kind.decode, kind._decode) != (known.decode, known._decode):
        return b""
    serialised: str = tokenizer.backend_tokenizer.to_str()
    return serialised.encode()

"""One vLLM engine for several callers, whose requests are batched together.

`vllm.LLM.generate` serves one call after the other. Where several learner workers share a rollout worker, each of
their calls is a part of a batch, and an engine takes nearly as long for a part as for the whole.
"""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams


@dataclass(eq=False, slots=True)
class _Call:
    prompts: Sequence[Any]
    parameters: "Sequence[SamplingParams]"
    version: Hashable
    outputs: "dict[int, RequestOutput]" = field(default_factory=dict)
    error: BaseException | None = None

    @property
    def is_over(self) -> bool:
        return self.error is not None or len(self.outputs) == len(self.prompts)


class SharedEngine:
    """Engine for calls from any number of threads; the thread whose turn it is drives the engine for all.

    Calls that ask for another version of the weights than the one in service wait until nothing is under way.
    """

    def __init__(self, engine: "LLM", load: Callable[[Any], Any]) -> None:
        """Prepare without loading.

        Args:
            engine: used by nobody else.
            load: puts a version into service, with no request under way, and returns its LoRA request or None.
        """
        self._engine, self._load = engine, load
        self._version: Hashable | None = None
        self._adapter: Any = None
        self._turn = threading.Lock()
        self._arrivals = threading.Lock()
        self._arrived: deque[_Call] = deque()
        self._under_way: dict[str, tuple[_Call, int]] = {}

    def generate(
        self, prompts: Sequence[Any], parameters: "Sequence[SamplingParams]", version: Hashable
    ) -> "list[RequestOutput]":
        """Generate outputs in order, one per prompt, from a version of the weights.

        Raises:
            Exception: vLLM's error about these prompts, or what broke the engine.
        """
        call = _Call(prompts, parameters, version)
        with self._arrivals:
            self._arrived.append(call)
        with self._turn:  # when it comes, another caller may have had everything answered
            while not call.is_over:
                self._take_in()
                self._step()
        if call.error is not None:
            raise call.error
        return [call.outputs[index] for index in range(len(prompts))]

    def serve(self, version: Hashable) -> None:
        """Put a version into service when nothing is under way."""
        with self._turn:
            while self._under_way:
                self._step()
            self._put_into_service(version)

    def _put_into_service(self, version: Hashable) -> None:
        if version != self._version:
            self._version = None  # should loading fail half-way, the next call loads again
            self._adapter = self._load(version)
            self._version = version

    def _take_in(self) -> None:
        """Give the engine the waiting requests, in order, up to the first for another version."""
        while True:
            with self._arrivals:
                if not self._arrived or (self._under_way and self._arrived[0].version != self._version):
                    return
                call = self._arrived.popleft()
            try:
                self._put_into_service(call.version)
                names = self._engine.enqueue(call.prompts, call.parameters, self._adapter, use_tqdm=False)
            except Exception as error:  # of this call, whoever's turn it is
                call.error = error
            else:
                # Inside the engine a random suffix follows the number by which outputs are named.
                self._under_way |= {name.partition("-")[0]: (call, index) for index, name in enumerate(names)}

    def _step(self) -> None:
        if not self._under_way:
            return
        for output in self._engine.llm_engine.step():
            if output.finished:
                call, index = self._under_way.pop(output.request_id)
                call.outputs[index] = output  # type: ignore[assignment]  # nobody asks for pooling here

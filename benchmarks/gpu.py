"""PPO update and reward scoring of a LLaVA-1.5-7B shape on one GPU, against bare torch loops in the same run.

    python -m benchmarks.gpu [--size 7b|1b|tiny] [--checkpointing] [--micro-batch 4] ...

Needs this folder and fgaif_ray on the path, torch, transformers and peft; neither ray nor vllm, and no network. Weights
and words are random. The last line is one JSON object:

* ``update_over_torch``: speed of ``estimate``, ``prepare`` and ``PPOUpdater.update`` over that of a bare loop that
  makes the same forward and backward passes; median of the ratios of neighbouring repeats;
* ``scoring_over_torch``: speed of ``RewardModel.score_types`` for three types over that of bare forward passes;
* ``update_tokens_per_s``, ``scoring_tokens_per_s``: tokens of the responses with prompt and image, each counted once,
  however many passes it goes through;
* ``update_mfu``, ``scoring_mfu``: model FLOPs utilisation, see ``benchmarks.gpu_flops``; null without a known peak;
* ``peak_memory_gib``: the most that tensors took in our own calls; on CPU the process's peak;
* ``device``: its name.
"""

import argparse
import gc
import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

PASS_FACTOR: Final = 4
"""Rows of a pass without gradients, as a multiple of those of a micro-batch, as the learner has it."""
SCORING_FACTOR: Final = 2
"""Responses that are scored, as a multiple of those of an update."""
ENVIRONMENT: Final = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Measured:
    """Times of one part, and what was done in them."""

    ours: list[float]
    """Seconds of each repeat."""
    bare: list[float]
    """Seconds of the bare loop's repeats, each right after ours."""
    responses: int
    tokens: int
    flops: int
    peak_bytes: int | None

    @property
    def seconds(self) -> float:
        """The median."""
        return statistics.median(self.ours)

    @property
    def ratio(self) -> float:
        """Speed over the bare loop's."""
        return statistics.median(bare / ours for ours, bare in zip(self.ours, self.bare))

    def utilisation(self, peak_tflops: float | None) -> float | None:
        """Share of the device's peak."""
        return self.flops / self.seconds / (peak_tflops * 1e12) if peak_tflops else None

    def describe(self, name: str) -> str:
        """One line for people."""
        return (
            f"{name}: {self.responses} responses, {self.tokens:,} tokens; {_spread(self.ours)} s, bare loop "
            f"{_spread(self.bare)} s; {self.responses / self.seconds:.2f} responses/s, "
            f"{self.tokens / self.seconds:,.0f} tokens/s, {self.flops / self.seconds / 1e12:.1f} TFLOP/s; "
            f"{self.ratio:.3f} of the bare loop's speed"
        )


class Bench:
    """Model, data and clock of one run; a part builds its own model and lets it go."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch

        from benchmarks.gpu_model import SHAPES, draw_lengths

        self.options = options
        self.device = torch.device(options.device)
        self.shape = SHAPES[options.size]
        self.lengths = draw_lengths(options.responses, options.tokens, options.seed)
        self.scored_lengths = draw_lengths(SCORING_FACTOR * options.responses, options.tokens, options.seed + 1)

    @property
    def device_name(self) -> str:
        """As the driver has it."""
        import torch

        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"

    def update(self) -> Measured:
        """The PPO update."""
        import torch

        from benchmarks.gpu_bare import BareUpdate
        from benchmarks.gpu_flops import ModelWork
        from benchmarks.gpu_model import encode_responses, rewarded_trajectories
        from fgaif_ray.config import KLConfig, LoRAOptions, PPOConfig
        from fgaif_ray.rl.policy import PolicyModel
        from fgaif_ray.rl.step import PPOUpdater, estimate, prepare
        from fgaif_ray.rl.trajectories import collate
        from fgaif_ray.vlm.group import LearnerGroup

        options = self.options
        model = PolicyModel(
            self._backbone(),
            LoRAOptions(rank=options.rank),
            seed=options.seed,
            activation_checkpointing=options.checkpointing,
        )
        ppo = PPOConfig(epochs=options.epochs, minibatch_size=options.responses, micro_batch_size=options.micro_batch)
        kl, group, passes = KLConfig(), LearnerGroup(model.device), PASS_FACTOR * options.micro_batch
        updater = PPOUpdater(model, ppo, group)
        rows = encode_responses(model, self.shape, self.lengths, options.seed)
        sampled = rewarded_trajectories(rows, estimate(model, rows, passes).log_probs, options.seed)
        batch = collate(sampled, model.backbone.eos_token_id).to(model.device)
        metrics: dict[str, float] = {}

        def ours() -> None:
            experience = prepare(rows, batch, estimate(model, rows, passes), ppo, kl, kl.coefficient, group)
            generator = torch.Generator().manual_seed(options.seed)
            metrics.update(updater.update(experience, 0, generator, 1))

        micro_batches = rows.chunks(options.micro_batch)
        bare = BareUpdate(model, rows, micro_batches=micro_batches, passes=rows.chunks(passes), epochs=options.epochs)
        times = self._times(ours, bare.run)
        if metrics["update/skipped"]:
            raise ArithmeticError("an optimiser step was skipped: a gradient was not finite")
        lengths = rows.lengths.tolist()
        flops = ModelWork.of(model.backbone).update(lengths, sum(self.lengths), options.epochs)
        return Measured(*times[:2], len(lengths), sum(lengths), flops, times[2])

    def scoring(self) -> Measured:
        """Reward scoring of three types over one backbone."""
        from benchmarks.gpu_bare import BareScoring
        from benchmarks.gpu_flops import ModelWork
        from benchmarks.gpu_model import scoring_items
        from fgaif_ray.config import LoRAOptions
        from fgaif_ray.records import FACT_TYPES
        from fgaif_ray.rewards.model import RewardModel

        model = RewardModel(self._backbone())
        for index, fact_type in enumerate(FACT_TYPES):
            model.add(fact_type, LoRAOptions(rank=self.options.rank), self.options.seed + index)
        items = scoring_items(self.shape, self.scored_lengths, self.options.seed)
        bare = BareScoring(model, items)
        ours_s, bare_s, peak = self._times(lambda: model.score_types(FACT_TYPES, items), bare.run)
        flops = len(FACT_TYPES) * ModelWork.of(model.backbone).forward(bare.lengths)
        return Measured(ours_s, bare_s, len(items), sum(bare.lengths), flops, peak)

    def release(self) -> None:
        """Memory of a part that is over."""
        import torch

        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _backbone(self) -> Any:
        import torch

        from benchmarks.gpu_model import build_backbone

        started = time.perf_counter()
        dtype = getattr(torch, self.options.dtype)
        backbone = build_backbone(self.shape, self.device, dtype, self.options.seed)
        count = sum(parameter.numel() for parameter in backbone.model.parameters())
        self._synchronise()
        _say(f"model: {count / 1e9:.2f} billion parameters in {dtype}, made in {time.perf_counter() - started:.1f} s")
        return backbone

    def _times(self, ours: Callable[[], Any], bare: Callable[[], Any]) -> tuple[list[float], list[float], int | None]:
        """Seconds of both, by turns after one warm-up of each, and the most memory that ours took."""
        import torch

        on_gpu = self.device.type == "cuda"
        times: tuple[list[float], list[float]] = ([], [])
        peak = 0
        for repeat in range(self.options.repeats + 1):
            for index, call in enumerate((ours, bare)):
                if on_gpu:
                    torch.cuda.reset_peak_memory_stats(self.device)
                self._synchronise()
                started = time.perf_counter()
                call()
                self._synchronise()
                seconds = time.perf_counter() - started
                if on_gpu and index == 0:
                    peak = max(peak, torch.cuda.max_memory_allocated(self.device))
                if repeat:
                    times[index].append(seconds)
                else:
                    _say(f"warm-up {'of the bare loop' if index else 'of ours'}: {seconds:.2f} s")
        return times[0], times[1], peak if on_gpu else None

    def _synchronise(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.3f} ({min(seconds):.3f} to {max(seconds):.3f})"


def _say(line: str) -> None:
    print(line, flush=True)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; the device decides some defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("7b", "1b", "tiny"), help="7b on a GPU, tiny on CPU")
    parser.add_argument("--responses", type=int, default=32, help="of an update; twice as many are scored")
    parser.add_argument("--tokens", type=int, default=300, help="mean length of a response")
    parser.add_argument("--micro-batch", type=int, default=4, help="responses of a forward and backward pass")
    parser.add_argument("--epochs", type=int, default=1, help="PPO epochs")
    parser.add_argument("--rank", type=int, default=64, help="of the LoRA adapters")
    parser.add_argument("--repeats", type=int, default=3, help="measured repeats, after one warm-up")
    parser.add_argument("--checkpointing", action="store_true", help="compute activations again in backward passes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cuda where there is one, else cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the backbone")
    parser.add_argument("--peak-tflops", type=float, help="of the device, dense; known for some by their name")
    options = parser.parse_args(arguments)
    for name in ("responses", "tokens", "micro_batch", "epochs", "rank", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import torch

    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options.size = options.size or ("7b" if options.device.startswith("cuda") else "tiny")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parse(arguments)
    import torch
    import transformers

    from benchmarks.gpu_flops import peak_tflops

    bench = Bench(options)
    name = bench.device_name
    peak = options.peak_tflops or peak_tflops(name)
    _say(
        f"{name}, torch {torch.__version__}, transformers {transformers.__version__}; {options.size}, "
        f"{options.dtype}, LoRA rank {options.rank}, micro-batch {options.micro_batch}, {options.epochs} epoch(s), "
        f"activation checkpointing {'on' if options.checkpointing else 'off'}; peak "
        f"{'unknown' if peak is None else f'{peak:g} TFLOP/s'}"
    )
    try:
        update = bench.update()
        _say(update.describe("update"))
        bench.release()
        scoring = bench.scoring()
        _say(scoring.describe("scoring"))
    except torch.OutOfMemoryError as error:
        reason = str(error).split(". ")[0]
        raise SystemExit(f"{reason}: give a smaller --micro-batch, --checkpointing, or a smaller --size.") from None
    on_device = [part.peak_bytes for part in (update, scoring) if part.peak_bytes is not None]
    used = max(on_device) if on_device else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures = {
        "update_over_torch": _rounded(update.ratio),
        "scoring_over_torch": _rounded(scoring.ratio),
        "update_tokens_per_s": round(update.tokens / update.seconds, 1),
        "update_mfu": _rounded(update.utilisation(peak)),
        "scoring_tokens_per_s": round(scoring.tokens / scoring.seconds, 1),
        "scoring_mfu": _rounded(scoring.utilisation(peak)),
        "peak_memory_gib": round(used / GIB, 2),
        "device": name,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

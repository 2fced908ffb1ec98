"""Check that a vision-language model can be used: the same prompts and numbers in the engine and in the learner.

It loads the model twice, once in vLLM: a model of 7 billion parameters needs about 40 GB. No Ray is started.

Examples:
    fgaif check-model HuggingFaceTB/SmolVLM-500M-Instruct
    fgaif check-model models/my-vlm --dtype float32 --max-model-len 2048
    fgaif check-model zai-org/GLM-4.1V-9B-Thinking --target-modules q_proj,k_proj,v_proj,o_proj
"""

import sys
from dataclasses import replace
from typing import Annotated, Final

import typer

from fgaif_ray.errors import UserError
from fgaif_ray.progress import say
from jobs.cli import main

EXACT: Final = 1e-3
ROUNDED: Final = 0.05
"""As `align.rollout.log_prob_tolerance`."""

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="folder, or name of a downloaded model")]
TypeOption = Annotated[str, typer.Option("--dtype", help="float32, bfloat16, float16, or auto for the model's own")]
LengthOption = Annotated[int, typer.Option("--max-model-len", help="tokens of a prompt with its image and answer")]
ToleranceOption = Annotated[
    float | None,
    typer.Option(help="largest mean difference of log-probabilities, nats [default: 0.001 in float32, else 0.05]"),
]
LayersOption = Annotated[
    str | None, typer.Option(help="layers of the adapter, e.g. q_proj,v_proj [default: as lora.target_modules]")
]
ShareOption = Annotated[float, typer.Option("--gpu-memory", help="share of a GPU's memory for the engine")]


def check(
    model: str,
    dtype: str,
    max_model_len: int,
    tolerance: float | None,
    gpu_memory: float,
    target_modules: str | None = None,
) -> None:
    """Print what was found, line by line.

    Raises:
        UserError: the model cannot be used, or something does not agree.
    """
    from actors.engine.self_check import SelfCheckOptions, check_model
    from fgaif_ray.config import EngineConfig
    from fgaif_ray.tables import table_lines
    from fgaif_ray.vlm.checkpoint import TESTED_MODEL_TYPES, check_checkpoint, model_type

    check_checkpoint(model)
    family = model_type(model)
    tested = "tested" if family in TESTED_MODEL_TYPES else "not tested: a run needs policy.allow_untested=true"
    say(f"{model}: family {family} ({tested})")
    engine = EngineConfig.model_validate(
        {
            "dtype": dtype,
            "max_model_len": max_model_len,
            "max_num_seqs": 8,
            "gpu_memory_utilization": gpu_memory,
            "kv_cache_gib": 1,
            "enforce_eager": True,
        }
    )
    if tolerance is None:
        tolerance = EXACT if dtype == "float32" else ROUNDED
    options = SelfCheckOptions(dtype=dtype, tolerance=tolerance, engine=engine)
    if target_modules is not None:
        layers = tuple(name.strip() for name in target_modules.split(","))
        options = replace(options, lora=options.lora.model_copy(update={"target_modules": layers}))
    lines = []
    for line in check_model(model, options):
        lines.append(line)
        say(f"{'NOT' if line.failed else 'ok ' if line.advice is None else 'but'} {line.what}: {line.found}")
    advised = [(line.what, line.advice) for line in lines if line.advice is not None]
    if advised:
        say("\n" + "\n".join(table_lines([("check", "what to do"), *advised], rule=True)))
    failed = sum(line.failed for line in lines)
    if failed:
        raise UserError(f"{model} does not pass {failed} of {len(lines)} checks: see the table above.")
    say(f"{model} passes {len(lines) - len(advised)} of {len(lines)} checks, and can be used.")


def command(
    model: ModelArgument,
    dtype: TypeOption = "auto",
    max_model_len: LengthOption = 4096,
    tolerance: ToleranceOption = None,
    gpu_memory: ShareOption = 0.45,
    target_modules: LayersOption = None,
) -> None:
    """What `fgaif check-model` does."""
    check(model, dtype, max_model_len, tolerance, gpu_memory, target_modules)


if __name__ == "__main__":
    sys.exit(main("check-model"))

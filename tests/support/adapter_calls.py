"""How other teams' trainers call their reward functions, written down from their code.

TRL 1.16 `GRPOTrainer._calculate_rewards`; OpenRLHF 0.11 `SingleTurnAgentExecutor`; verl 0.9 `NaiveRewardManager` and
`BatchRewardManager`; EasyR1 0.3 `BatchFunctionRewardManagerMixin`; SkyRL `GeneratorInput` and `GeneratorOutput`.
"""

import base64
import importlib.util
import io
import json
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from PIL import Image
from transformers import PreTrainedTokenizerBase

from support.paths import ROOT
from support.reward_helpers import PROMPT, picture


def load_by_path(name: str) -> ModuleType:
    """An example, loaded as the trainers load reward files."""
    spec = importlib.util.spec_from_file_location("reward_file", ROOT / "examples" / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pil(index: int) -> Image.Image:
    return Image.open(io.BytesIO(picture(index)))


def data_url(index: int) -> str:
    return "data:image/png;base64," + base64.b64encode(picture(index)).decode()


def reference(index: int) -> dict[str, str]:
    return {"image": data_url(index), "prompt": f"<image>\n{PROMPT}"}


def trl_call(
    functions: Sequence[Callable[..., Any]], texts: list[str], without: Sequence[str] = (), **changes: Any
) -> list[list[float | None]]:
    """One batch: the trainer calls every function with the same lists."""
    images = [pil(index) for index in range(len(texts))]
    content = [[{"type": "image", "image": image}, {"type": "text", "text": PROMPT}] for image in images]
    arguments = {
        "prompts": [[{"role": "user", "content": parts}] for parts in content],
        "completions": [[{"role": "assistant", "content": text}] for text in texts],
        "completion_ids": [[5, 6, 7] for _ in texts],
        "image": images,
        "trainer_state": None,
        "log_extra": lambda column, values: None,
        "log_metric": lambda name, value: None,
    } | changes
    for name in without:
        del arguments[name]
    return [function(**arguments) for function in functions]


def openrlhf_call(texts: list[str], qwen: bool = False, images: Sequence[str] | None = None) -> dict[str, list[Any]]:
    """What both the function and the HTTP route are told of each sample."""
    if qwen:
        head = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        prompt, pad, end = f"{head}{PROMPT}<|im_end|>\n<|im_start|>assistant\n", "<|image_pad|>", "<|im_end|>"
    else:
        prompt, pad, end = f"<s>USER: <image>\n{PROMPT}\nASSISTANT:\n", "<image>", "</s>"
    labels = [
        {"image": data_url(index) if images is None else images[index], "prompt": PROMPT} for index in range(len(texts))
    ]
    return {
        "queries": [prompt.replace(pad, pad * 9) + text + end for text in texts],
        "prompts": [prompt] * len(texts),
        "labels": [json.dumps(label) for label in labels],
    }


def verl_call(text: str, index: int) -> dict[str, Any]:
    return {
        "data_source": "scenes",
        "solution_str": text,
        "ground_truth": "",
        "extra_info": {
            "split": "train",
            "index": index,
            "question": f"<image>{PROMPT}",
            "image": {"bytes": picture(index), "path": None},
            "num_turns": 2,
            "rollout_reward_scores": {},
        },
    }


def easyr1_call(texts: list[str]) -> list[dict[str, Any]]:
    return [
        {"response": text, "response_length": len(text.split()), "ground_truth": json.dumps(reference(index))}
        for index, text in enumerate(texts)
    ]


def skyrl_call(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, Any], dict[str, Any]]:
    """Input and output of a generator; the EOS token that it has appended itself is masked."""
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    image = [{"type": "image_url", "image_url": {"url": data_url(index)}} for index in range(len(texts))]
    prompts = [[{"role": "user", "content": [part, {"type": "text", "text": PROMPT}]}] for part in image]
    batch = {"prompts": prompts, "env_classes": ["scenes"] * len(texts), "env_extras": [{} for _ in texts]}
    output = {
        "prompt_token_ids": [[1, 2, 3] for _ in texts],
        "response_ids": [[*ids, tokenizer.eos_token_id] for ids in encoded],
        "rewards": [[0.0] * (len(ids) + 1) for ids in encoded],
        "loss_masks": [[1] * len(ids) + [0] for ids in encoded],
        "stop_reasons": ["stop"] * len(texts),
        "rollout_metrics": {},
        "rollout_logprobs": None,
    }
    return batch, output

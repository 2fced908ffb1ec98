"""What can be wrong with a model's files, in three messages: not downloaded, not supported, broken: FILE.

Everybody who takes a checkpoint or an adapter looks here first. JSON and the headers of safetensors are read, no
weights and no heavy package, so that a wrong model is told before an engine or Ray is started for it.
"""

import json
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from fgaif_ray import storage
from fgaif_ray.errors import BrokenFileError, UserError

TESTED_MODEL_TYPES: Final = (
    *("gemma3", "glm4v", "idefics3", "internvl", "llava", "llava_next", "llava_onevision", "mistral3"),
    *("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "smolvlm"),
)
"""Families that the tests take through engine, learner and rewards; see ``docs/models.md``."""
EXAMPLE: Final = "llava-hf/llava-1.5-7b-hf"
CONFIG_FILE: Final = "config.json"
GENERATION_FILE: Final = "generation_config.json"
INDEX_FILE: Final = "model.safetensors.index.json"
ADAPTER_FILES: Final = ("adapter_config.json", "adapter_model.safetensors")
TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
"""One of them is enough."""
PROCESSOR_FILES: Final = ("processor_config.json", "preprocessor_config.json")
READ_JSON: Final = (
    *(GENERATION_FILE, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "chat_template.json", *PROCESSOR_FILES),
)
"""Files that transformers and vLLM read where they are there; people keep others beside them."""
VISION_SECTIONS: Final = ("vision", "visual")
"""Sections of ``config.json`` that describe how a model sees begin so."""
WEIGHTS_FILE: Final = "model.safetensors"
READ_TEXT: Final = ("chat_template.jinja", "merges.txt", *TOKENIZER_FILES)
"""Files without a form that would tell whether they are whole."""
LONGEST_HEADER: Final = 100_000_000
"""Bytes; safetensors reads no longer ones."""
STAND_INS: Final = (
    (
        re.compile(rb"version https://git-lfs\.github\.com/spec/"),
        "it is a Git LFS pointer: `git lfs pull` brings the file",
    ),
    (re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype html|html)\b", re.IGNORECASE), "it is an HTML page, not the file"),
)
"""What downloads leave in place of a file, by how it begins."""
STAND_IN_BYTES: Final = 256
_HUB_NAME: Final = re.compile(r"[\w.-]+(/[\w.-]+)?")


def not_downloaded(model: str) -> UserError:
    """There is no such folder, and no such model in the cache of downloads."""
    name = model if _HUB_NAME.fullmatch(model) else EXAMPLE  # a path cannot be downloaded
    return UserError(
        f"{model} is not a folder here and not downloaded: correct the name, or download a model with "
        f"`hf download {name}`."
    )


def not_supported(model: str, why: str) -> UserError:
    """The model is whole, and none that the program can use."""
    return UserError(f"{model} is not supported ({why}): give a vision-language model such as {EXAMPLE}.")


def broken(file: str | Path, reason: str, advice: str = "download or write the model again") -> BrokenFileError:
    """A file is missing or damaged."""
    return BrokenFileError(str(file), reason, advice)


def find_checkpoint(model: str) -> Path:
    """The local folder of a checkpoint: the folder itself, or where the download of that name is.

    Raises:
        UserError: there is neither.
    """
    if Path(model).is_dir():
        return Path(model)
    if not _HUB_NAME.fullmatch(model):
        raise not_downloaded(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (OSError, ValueError) as error:
        raise not_downloaded(model) from error


def check_checkpoint(model: str, *, sees_images: bool = True) -> Path:
    """Look at a checkpoint's files without loading them.

    Args:
        model: folder, or the name of a model that has been downloaded.
        sees_images: False for a model of text alone, which vLLM serves whatever its type.

    Returns:
        Its local folder.

    Raises:
        UserError: it is not downloaded, not supported, or one of its files is broken.
    """
    folder = find_checkpoint(model)
    settings = _read_settings(folder / CONFIG_FILE)
    if sees_images and not any(name.startswith(VISION_SECTIONS) for name in settings):
        raise not_supported(model, f"it is of the type {settings.get('model_type')!r}, which does not see images")
    for file in (folder / name for name in READ_JSON):
        if file.exists():
            _read_settings(file)
    for file in (folder / name for name in READ_TEXT):
        if file.exists():
            with file.open("rb") as opened:
                _refuse_stand_in(str(file), opened.read(STAND_IN_BYTES))
    _require_one(folder, TOKENIZER_FILES)
    if sees_images:
        _require_one(folder, PROCESSOR_FILES)
    if sees_images or (folder / INDEX_FILE).exists() or any(folder.glob("*.safetensors")):
        for file in weight_files(model, folder):
            check_safetensors(str(file))
    return folder


def check_vision_model(model: str, allow_untested: bool) -> Path:
    """Look at a checkpoint's files and at its family; see ``check_checkpoint``.

    Raises:
        UserError: as there, or the family is not tested and untested ones are not allowed.
    """
    folder = check_checkpoint(model)
    family = model_type(model)
    if family not in TESTED_MODEL_TYPES and not allow_untested:
        raise UserError(
            f"{model} is of the family {family!r}, which is not tested here: try `fgaif check-model {model}`, and if "
            "it passes set policy.allow_untested=true."
        )
    return folder


def weight_files(model: str, folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint that is in a folder, sorted; they need not be there.

    Raises:
        UserError: it has weights of another format only, or none.
    """
    index = folder / INDEX_FILE
    if index.exists():
        named = _read_settings(index).get("weight_map")
        if not isinstance(named, dict) or not named:
            raise broken(index, "it names no weights")
        return sorted(folder / name for name in set(named.values()))
    if (folder / WEIGHTS_FILE).exists():
        return [folder / WEIGHTS_FILE]
    found = sorted(folder.glob("*.safetensors"))
    if not found and any(folder.glob("*.bin")):
        raise not_supported(model, "its weights are not safetensors")
    return found or [folder / WEIGHTS_FILE]


def check_adapter(folder: str) -> int:
    """Look at the two files of a PEFT adapter in a local folder or URI; returns its rank.

    Raises:
        BrokenFileError: a file is missing or damaged.
    """
    settings, weights = (storage.join(folder, name) for name in ADAPTER_FILES)
    value = storage.read_json(settings)
    if not isinstance(value, dict) or not isinstance(value.get("r"), int):
        reason = "it is not the configuration of a LoRA adapter"
        raise broken(settings, reason, storage.repair_advice(settings))
    check_safetensors(weights, storage.repair_advice(weights))
    rank: int = value["r"]
    return rank


def check_safetensors(uri: str, advice: str = "download or write the model again") -> dict[str, Any]:
    """Read the header of a safetensors file of a path or URI, and compare the file's length with it.

    Returns:
        The header: tensors by name, and ``__metadata__``.

    Raises:
        BrokenFileError: the file is missing, cut short or not safetensors.
    """
    try:
        with storage.open_binary(uri) as file:
            start = file.read(STAND_IN_BYTES)
            _refuse_stand_in(uri, start, advice)
            (size,) = struct.unpack("<Q", start[:8])
            length = file.seek(0, 2)
            file.seek(8)
            if size > length:
                raise broken(uri, "it is cut short", advice)
            if size > LONGEST_HEADER:
                raise ValueError("no header is as long")
            header: dict[str, Any] = json.loads(file.read(size))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = _reason(error) if isinstance(error, OSError) else "it is not a whole safetensors file"
        raise broken(uri, reason, advice) from error
    if length != 8 + size + max(ends, default=0):
        raise broken(uri, f"it has {length} bytes and should have {8 + size + max(ends, default=0)}", advice)
    return header


@contextmanager
def naming_broken_file(file: Callable[[], Path]) -> Iterator[None]:
    """Turn what a library says of files that it cannot use into ``broken: FILE``.

    The files have been looked at before, so what is left is content: its errors have all kinds of types.

    Args:
        file: finds out which file it is, once something has gone wrong.
    """
    try:
        yield
    except (UserError, ImportError, MemoryError):
        raise
    except Exception as error:
        if "out of memory" in str(error):  # of a GPU, where a quantised model is loaded to
            raise
        raise broken(file(), _reason(error)) from error


def load_config_and_processor(model: str) -> tuple[Any, Any]:
    """What transformers makes of a checkpoint without its weights.

    Raises:
        UserError: it is not downloaded, not supported, or one of its files is broken.
    """
    folder = check_checkpoint(model)
    from transformers import AutoConfig, AutoProcessor
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    with naming_broken_file(lambda: folder / CONFIG_FILE):
        config = AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise not_supported(model, f"transformers knows no model of the type {config.model_type!r} that sees images")
    with naming_broken_file(lambda: _broken_processor_file(folder)):
        processor = AutoProcessor.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    if getattr(processor, "image_processor", None) is None or getattr(processor, "image_token", None) is None:
        raise not_supported(model, "its processor writes no image into a prompt")
    if getattr(processor, "chat_template", None) is None:
        raise not_supported(model, "it has no chat template; a chat_template.jinja would be one")
    return config, processor


def end_token_ids(model: str) -> tuple[int, ...]:
    """The ids that end a response by a checkpoint's ``generation_config.json``; none where it has none.

    Raises:
        UserError: it is not downloaded, or the file is broken.
    """
    file = find_checkpoint(model) / GENERATION_FILE
    named = _read_settings(file).get("eos_token_id") if file.exists() else None
    return () if named is None else (named,) if isinstance(named, int) else tuple(named)


def model_type(model: str) -> str:
    """The family of a checkpoint, by its ``config.json``.

    Raises:
        UserError: it is not downloaded, or the file is broken.
    """
    return str(_read_settings(find_checkpoint(model) / CONFIG_FILE).get("model_type"))


def _broken_processor_file(folder: Path) -> Path:
    """The tokenizer's file where the tokenizer alone cannot be loaded either, else the processor's."""
    from transformers import AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception:  # of the same kinds as above
        return _first(folder, TOKENIZER_FILES)
    return _first(folder, PROCESSOR_FILES)


def _first(folder: Path, names: tuple[str, ...]) -> Path:
    return folder / next((name for name in names if (folder / name).exists()), names[0])


def _require_one(folder: Path, names: tuple[str, ...]) -> None:
    if not _first(folder, names).exists():
        raise broken(folder / names[0], "it is missing")


def _refuse_stand_in(uri: str, start: bytes, advice: str = "download or write the model again") -> None:
    for form, reason in STAND_INS:
        if form.match(start):
            raise broken(uri, reason, advice)


def _read_settings(file: Path) -> dict[str, Any]:
    try:
        data = file.read_bytes()
        _refuse_stand_in(str(file), data[:STAND_IN_BYTES])
        value = json.loads(data)
    except (OSError, ValueError) as error:
        raise broken(file, _reason(error)) from error
    except RecursionError as error:
        raise broken(file, "it is not JSON") from error
    if not isinstance(value, dict):
        raise broken(file, "it is not a JSON object")
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is missing"
    if isinstance(error, ValueError) and not str(error):
        return "it is not JSON"
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__

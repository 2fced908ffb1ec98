"""Check what a text says about an image: verdicts per segment, and one hallucination score from 0 to 1.

The reward models are those of a folder or a configuration, in this process and without Ray, or those of a running
service. The score is the highest probability that a segment says something false; docs/check.md has the details.

Ends with status 0; with 1 where a score is at or above --threshold; with 2 where something cannot be checked.

Examples:
    fgaif check photo.png "A cat sleeps on a red sofa." --rewards runs/shapes
    fgaif check photo.png "A cat." --url http://127.0.0.1:8000 --threshold 0.5 --json
    fgaif check --input answers.jsonl --output checked.jsonl --config my.yaml

Rows of a batch are {"image": path or data URL, "prompt": ..., "response": ...}, with a list under "images" where there
are several; "prompt" may be left out. Paths are relative to the file. Each line that comes out has the fields of its
row, and "check" or "error". FGAIF_REWARD_TOKEN is the token of a service.
"""

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from fgaif_ray.errors import ItemError, UserError
from jobs.cli import SetOption, main, read_config

if TYPE_CHECKING:
    from fgaif_ray.check.questions import Checker

EXIT_REACHED: Final = 1
STANDARD: Final = "-"
URL_VARIABLE: Final = "FGAIF_REWARD_URL"
"""As of the adapters."""

ImageArgument = Annotated[
    str | None, typer.Argument(metavar="IMAGE", help="path, URI or data URL of the image", show_default=False)
]
TextArgument = Annotated[str | None, typer.Argument(metavar="TEXT", help="what is said about it", show_default=False)]
PromptOption = Annotated[
    str | None, typer.Option(help="what the text answers [default: Describe this image in detail.]", show_default=False)
]
RewardsOption = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="a run, its rewards/, or one reward model", show_default=False)
]
ConfigOption = Annotated[
    str | None, typer.Option("--config", metavar="FILE", help="YAML file of a run", show_default=False)
]
UrlOption = Annotated[
    str | None, typer.Option(metavar="URL", help=f"a running service [default: ${URL_VARIABLE}]", show_default=False)
]
ThresholdOption = Annotated[
    float | None, typer.Option(min=0, max=1, help="end with status 1 at or above it", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="one line of JSON in place of text")]
InputOption = Annotated[
    str | None, typer.Option("--input", metavar="FILE", help="JSON lines, - is stdin", show_default=False)
]
OutputOption = Annotated[str, typer.Option("--output", metavar="FILE", help="of a batch, - is stdout")]


def checker_of(
    stack: ExitStack, url: str | None, rewards: str | None, config: str | None, overrides: list[str] | None
) -> "Checker":
    """The reward models that the options name.

    Raises:
        UserError: they name none, or several, or they cannot be loaded.
    """
    given = [name for name, value in (("--url", url), ("--rewards", rewards), ("--config", config)) if value]
    if len(given) > 1:
        raise UserError(f"Give one of {' and '.join(given)}: each says which reward models check.")
    if overrides and not config:
        raise UserError("--set changes a configuration: give it with --config.")
    if rewards:
        from fgaif_ray.check.local import load_from_folder

        return load_from_folder(rewards)
    if config:
        from fgaif_ray.check.local import load_from_config

        return load_from_config(read_config(config, overrides))
    address = url or os.environ.get(URL_VARIABLE)
    if not address:
        raise UserError(
            "Say which reward models check: --rewards FOLDER, --config FILE, or --url of a running service."
        )
    from fgaif_ray.check.remote import RemoteChecker
    from fgaif_ray.serving.client import RewardClient

    try:
        return RemoteChecker(stack.enter_context(RewardClient(address)), address)
    except ValueError as error:
        raise UserError(f"The service cannot be asked: {error}.") from error


def check_one(
    checker: "Checker", images: list[str], text: str, prompt: str, threshold: float | None, as_json: bool
) -> bool:
    """Print the check of a text; returns whether its score reaches the threshold.

    Raises:
        UserError: it cannot be checked.
    """
    from fgaif_ray.check.questions import read_text
    from fgaif_ray.check.terminal import terminal_lines
    from fgaif_ray.check.verdicts import reached

    try:
        [result] = checker.check_each([read_text(images, text, prompt)])
    except ItemError as error:
        raise UserError(f"This cannot be checked: {error}.") from error
    if isinstance(result, ItemError):
        raise UserError(f"This cannot be checked: {result}.")
    if as_json:
        print(result.model_dump_json())
    else:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        print("\n".join(terminal_lines(result, threshold, colour=colour)))
    return threshold is not None and reached(result, threshold)


def check_batch(checker: "Checker", source: str, target: str, threshold: float | None) -> bool:
    """Check the rows of a file; returns whether a score reaches the threshold.

    Raises:
        UserError: the file cannot be read, or a row cannot be checked; the others are, nevertheless.
    """
    from fgaif_ray import storage
    from fgaif_ray.check.batch import check_lines
    from fgaif_ray.check.verdicts import reached

    checked = failed = above = 0
    with ExitStack() as stack:
        try:
            lines = sys.stdin.buffer if source == STANDARD else stack.enter_context(storage.open_binary(source))
        except OSError as error:
            raise UserError(f"Cannot read {source}: check that the file exists and may be read.") from error
        partial = None if target == STANDARD else Path(f"{target}.partial")
        out = sys.stdout if partial is None else stack.enter_context(partial.open("w", encoding="utf-8"))
        folder = "." if source == STANDARD else storage.parent(source)
        for shown, result in check_lines(lines, checker, folder):
            print(json.dumps(shown), file=out, flush=True)
            if isinstance(result, ItemError):
                failed += 1
            else:
                checked += 1
                above += threshold is not None and reached(result, threshold)
    if partial is not None:
        partial.replace(target)
    compared = "" if threshold is None else f", {above} of them at or above {threshold:g}"
    print(f"check: {checked} texts checked{compared}; {failed} could not be", file=sys.stderr)
    if failed and not above:
        raise UserError(f"{failed} rows could not be checked: see their `error`.")
    return above > 0


def command(
    image: ImageArgument = None,
    text: TextArgument = None,
    prompt: PromptOption = None,
    rewards: RewardsOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    url: UrlOption = None,
    threshold: ThresholdOption = None,
    as_json: JsonOption = False,
    source: InputOption = None,
    target: OutputOption = STANDARD,
) -> None:
    """What `fgaif check` does."""
    from fgaif_ray.serving.wire import DEFAULT_PROMPT

    if (image is None or text is None) if source is None else (image is not None):
        raise UserError("Give an IMAGE and a TEXT, or a batch with --input FILE.")
    if source is not None and prompt is not None:
        raise UserError("The rows of a batch have their own prompts: leave --prompt out.")
    if source is None and target != STANDARD:
        raise UserError("--output is for a batch: give --input, or leave it out.")
    with ExitStack() as stack:
        checker = checker_of(stack, url, rewards, config, overrides)
        if source is not None:
            is_reached = check_batch(checker, source, target, threshold)
        else:
            assert image is not None and text is not None
            is_reached = check_one(checker, [image], text, prompt or DEFAULT_PROMPT, threshold, as_json)
    if is_reached:
        raise SystemExit(EXIT_REACHED)


if __name__ == "__main__":
    sys.exit(main("check"))

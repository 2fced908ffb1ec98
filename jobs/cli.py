"""The `fgaif` command: one table of commands, how each is parsed, and how it ends.

``fgaif COMMAND ...`` and ``python -m jobs.COMMAND ...`` are the same. A command is a file of this folder, named here as
text and imported when it is called: its docstring is its help, and it has either a function ``command``, whose
arguments typer reads, or ``commands``, such functions by name.
"""

import functools
import importlib
import inspect
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from fgaif_ray import __version__
from fgaif_ray.config import Config, load_config
from fgaif_ray.errors import find_user_error
from jobs.old_flags import replace_old_flag

EXIT_FAILED: Final = 1
EXIT_USER_ERROR: Final = 2
EXIT_INTERRUPTED: Final = 130
WIDTH: Final = 100
"""Of help, where the terminal is that wide."""

SECTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "Run": {
        "demo": "the whole loop on the embedded world: no key, no GPU",
        "pipeline": "the whole loop on your configuration, from sample to report",
        "experiment": "variants of a configuration over seeds, compared in a page",
        "pretrain-shapes": "train the three models of the embedded world from nothing",
    },
    "Label, and trust the labels": {
        "sample": "the policy's own responses to the images",
        "label": "their segments, facts and verdicts, by AI feedback",
        "audit": "check labels by hand and compare the answers with the AI's",
        "calibrate": "find the verifier's thresholds on labelled facts",
    },
    "Rewards": {
        "train-rewards": "train the reward models on the labels",
        "serve-rewards": "serve them over HTTP until Ctrl-C",
        "check": "check with them what is said about an image",
        "guard": "judge an endpoint's answers before they are sent",
    },
    "Align": {
        "align": "train the policy on their dense rewards, or on preferences",
        "export": "the aligned model, preferences, or all to the Hub",
    },
    "Evaluate": {
        "evaluate": "the policy before and after alignment, on held-out images",
        "benchmark": "POPE, CHAIR, AMBER, Object HalBench and other public ones",
        "reproduce": "a published result, by a frozen configuration",
        "report": "one HTML file that shows what a run has done",
    },
    "Cluster": {
        "plan": "what a run asks of nodes and their GPUs; runs nothing",
        "check-model": "whether a model reads the same in engine, learner and rewards",
    },
    "": {  # not shown
        "reward-accuracy": "compare reward models with the truth of the embedded world",
    },
}
SUMMARIES: Final = {name: text for commands in SECTIONS.values() for name, text in commands.items()}

ConfigOption = Annotated[
    str, typer.Option("--config", metavar="FILE", help="YAML file, e.g. configs/shapes.yaml", show_default=False)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="change one key of the configuration; may be given several times",
        show_default=False,
    ),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="replace what was finished with other settings (run.overwrite=true)")
]


def read_config(file: str, overrides: Sequence[str] | None, overwrite: bool = False) -> Config:
    """The configuration of a command line.

    Raises:
        UserError: the file or a key cannot be used.
    """
    return load_config(file, [*(overrides or ()), *(["run.overwrite=true"] if overwrite else ())])


class _Interruption(KeyboardInterrupt):
    """Ctrl-C or SIGTERM.

    A class of its own: once a plain KeyboardInterrupt has left code that Python runs from text (every dataclass and
    named tuple that an import defines), `python -m` ends by SIGINT whatever status the job has chosen.
    """


def _interrupt(_signal_number: int, _frame: Any) -> None:
    raise _Interruption


def run_job(name: str, work: Callable[[], object]) -> int:
    """Do the work of a command and turn its end into an exit status.

    Args:
        name: of the command, for its messages.
        work: what it does.

    Returns:
        0 done; 1 failed (with a traceback); 2 the input has to be changed (one sentence says how); 130 interrupted.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started the job ignores Ctrl-C
        signal.signal(signal.SIGINT, _interrupt)
    try:
        work()
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted; run the same command again to go on.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        user_error = find_user_error(error)
        if user_error is None or os.environ.get("FGAIF_TRACEBACK"):
            traceback.print_exc()
            return EXIT_FAILED
        print(f"{name}: {user_error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


def _ending(name: str, function: Callable[..., object]) -> Callable[..., None]:
    """A command's function that ends with an exit status in place of an exception."""

    @functools.wraps(function)
    def run(**arguments: Any) -> None:
        status = run_job(name, functools.partial(function, **arguments))
        if status:
            raise typer.Exit(status)

    return run


def _paragraphs(text: str) -> str:
    """A docstring as help: paragraphs with indented lines (examples, tables) keep their lines."""
    parts = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(f"\b\n{part}" if part.startswith(" ") or "\n " in part else part for part in parts)


def _load(name: str) -> Any:
    """The command of that name as typer's own object; imports its file."""
    module_name = name.replace("-", "_")
    module = importlib.import_module(f"jobs.{module_name}")
    app = typer.Typer(add_completion=False, rich_markup_mode=None, help=_paragraphs(module.__doc__ or ""))
    settings = {"max_content_width": WIDTH}
    if hasattr(module, "commands"):
        for own, function in module.commands.items():
            help_text = _paragraphs(function.__doc__ or "")
            app.command(own, help=help_text, context_settings=settings)(_ending(module_name, function))
        app.callback()(lambda: None)  # a group also where there is one command
    else:
        app.command(name, help=_paragraphs(module.__doc__ or ""), context_settings=settings)(
            _ending(module_name, module.command)
        )
    return typer.main.get_command(app)


class Commands(TyperGroup):
    """The commands of SECTIONS, which are known by their summaries alone until one is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, replace_old_flag(args[0].replace("_", "-"), args[1:]))
        return name, None if name is None else _load(name), rest

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        formatter.write_paragraph()
        width = max(map(len, SUMMARIES))
        for title, commands in SECTIONS.items():
            if title:
                formatter.write_heading(title)
                with formatter.indentation():
                    formatter.write_dl([(name.ljust(width), text) for name, text in commands.items()])
        formatter.write_heading("Options")
        with formatter.indentation():
            records = [parameter.get_help_record(ctx) for parameter in self.get_params(ctx)]
            formatter.write_dl([(name.ljust(width), text) for name, text in filter(None, records)])
        self.format_epilog(ctx, formatter)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"max_content_width": WIDTH},
    help="Fine-grained AI feedback for vision-language models.",
    epilog="Stages take --config FILE and --set SECTION.KEY=VALUE, skip what is finished and go on where they were "
    "interrupted. Examples: `fgaif COMMAND --help`.",
)
for _name, _summary in SUMMARIES.items():
    app.command(_name, help=_summary, hidden=_name in SECTIONS[""])(lambda: None)  # ``_load`` takes its place


def _show_version(given: bool) -> None:
    if given:
        print(f"fgaif {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="show the version and exit")
    ] = False,
) -> None:
    """Of `fgaif` itself."""


def main(command: str | None = None, arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        command: name of the command; None takes the first of the arguments, as ``fgaif`` does.
        arguments: the command line; None takes the process's own.

    Returns:
        The exit status, see ``run_job``.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if command is not None:
        words.insert(0, command)
    try:
        typer.main.get_command(app).main(words, prog_name="fgaif")
    except SystemExit as end:
        return int(end.code or 0)
    return 0

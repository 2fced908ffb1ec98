"""What every job shares: arguments, configuration, and how a run ends."""

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fgaif_ray.config import load_config
from fgaif_ray.errors import find_user_error

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Mode:
    """An option that makes a job do something else than its work, such as showing what the work would cost.

    Example: ``Mode("--audit", {"type": int, "metavar": "N", "help": "..."}, draw_audit)``
    """

    flag: str
    argument: Mapping[str, Any]
    """Further arguments of ``add_argument``; the default is None, or False for ``action="store_true"``."""
    run: Callable[..., None]
    """Called with the configuration, the value of the option and, by name, the companions."""
    companions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Options that go with this one alone, e.g. ``{"--answers": {"nargs": "+"}}``."""

    @property
    def name(self) -> str:
        """Of the option's value."""
        return _name(self.flag)


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _is_given(value: Any) -> bool:
    return value is not None and value is not False  # 0 is a value


class _Interruption(KeyboardInterrupt):
    """Ctrl-C or SIGTERM.

    A class of its own: once a plain KeyboardInterrupt has left code that Python runs from text (every dataclass and
    named tuple that an import defines), `python -m` ends by SIGINT whatever status the job has chosen.
    """


def _interrupt(_signal_number: int, _frame: Any) -> None:
    raise _Interruption


def main(
    name: str,
    description: str | None,
    run: Callable[..., None],
    arguments: Sequence[str] | None = None,
    modes: Sequence[Mode] = (),
    extra: Mapping[str, Mapping[str, Any]] | None = None,
) -> int:
    """Parse the command line, run the job and turn its end into an exit status.

    Args:
        name: of the job.
        description: shown by ``--help``.
        run: what the job does, called with the configuration.
        arguments: the command line; None takes the process's own.
        modes: options that make the job do something else instead; at most one of them may be given.
        extra: arguments of this job alone, e.g. ``{"--seeds": {"default": "0"}}``; ``run`` and modes are given their
            values by name.

    Returns:
        0 done; 1 failed (with a traceback); 2 the input has to be changed (one sentence says how); 130 interrupted.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m jobs.{name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="YAML file, e.g. configs/shapes.yaml")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change one key of the configuration; may be given several times",
    )
    for flag, argument in (extra or {}).items():
        parser.add_argument(flag, **argument)
    group = parser.add_mutually_exclusive_group() if modes else parser  # argparse cannot show an empty group
    for mode in modes:
        group.add_argument(mode.flag, **mode.argument)
        for flag, argument in mode.companions.items():
            parser.add_argument(flag, **argument)
    options = parser.parse_args(arguments)
    for mode in modes:
        for flag in mode.companions:
            if _is_given(getattr(options, _name(flag))) and not _is_given(getattr(options, mode.name)):
                parser.error(f"{flag} goes with {mode.flag}")
    values = {_name(flag): getattr(options, _name(flag)) for flag in extra or {}}
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started the job ignores Ctrl-C
        signal.signal(signal.SIGINT, _interrupt)
    try:
        config = load_config(options.config, options.set)
        for mode in modes:
            if _is_given(value := getattr(options, mode.name)):
                companions = {_name(flag): getattr(options, _name(flag)) for flag in mode.companions}
                mode.run(config, value, **companions, **values)
                return 0
        run(config, **values)
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

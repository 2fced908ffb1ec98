"""A service that its job starts, and that stays until somebody stops it."""

import signal
import threading
from collections.abc import Callable

from fgaif_ray.progress import say


def serve_until_stopped(name: str, start: Callable[[], None], stop: Callable[[], None]) -> None:
    """Start a service and stay until SIGINT or SIGTERM, then take it down.

    Args:
        name: of the command, for what is printed.
        start: deploys the service and says how to call it.
        stop: takes down what has been deployed, also where ``start`` has failed.
    """
    # Ray has taken SIGTERM for itself; here it means what Ctrl-C means.
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        start()
        threading.Event().wait()
    except KeyboardInterrupt:
        say(f"{name}: stopping")
    finally:
        for number in before:
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave half of it running
        stop()
        for number, handler in before.items():
            signal.signal(number, handler)

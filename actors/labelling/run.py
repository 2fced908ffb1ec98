"""Labelling from responses that are left to counts of what was labelled: endpoint, Ray and the plan put together."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pydantic import SecretStr

from actors.cluster.connect import connect
from actors.engine.openai_server import OpenAIServer, start_openai_server
from actors.labelling.extraction import Endpoint, ask_about, check_endpoint, first_unanswered
from actors.labelling.verification import check_verifiers
from actors.labelling.verifier import Verification
from fgaif_ray import storage
from fgaif_ray.calls.ledger import LedgerTotals, read_ledger
from fgaif_ray.calls.unusable import describe_failures
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError, find_user_error
from fgaif_ray.feedback.pending import Pending
from fgaif_ray.progress import Progress, say

SERVER_LOG: Final = "extraction-server.log"
STOP_GRACE_S: Final = 10.0
"""Added to the time limit of a call when the job stops and calls are under way."""


def start_server(config: Config) -> OpenAIServer | None:
    """Start the server of ``label.extractor.serve_model`` and return at once; None where an endpoint is configured."""
    extractor = config.label.extractor
    if extractor.serve_model is None:
        return None
    folder = config.run.dir.removeprefix("file://") if storage.is_local(config.run.dir) else "logs"
    return start_openai_server(
        extractor.serve_model,
        extractor.model,
        extractor.engine,
        os.path.join(folder, SERVER_LOG),
        extractor.compact_json,
    )


def label_pending(config: Config, verification: Verification, pending: Pending, server: OpenAIServer | None) -> None:
    """Label the pending rows; parts are written as blocks are finished.

    Args:
        config: the configuration.
        verification: what workers are given.
        pending: the responses that are left.
        server: a server from ``start_server``, which is not stopped here; None starts and stops one where it is needed.

    Raises:
        UserError: the endpoint or a model cannot be used, or the budget is spent. What was done so far is kept.
    """
    check_verifiers(config)  # better found wrong before servers and engines start
    first = first_unanswered(config.label.extractor, config.run.dir, pending, config.run.types, config.data.language)
    stopped, give_up = None, float("inf")
    unavailable: list[str] = []
    with (
        _endpoint(config, server, first) as endpoint,
        connect(config),
        Progress("label", pending.total, "responses", initial=pending.total - pending.rows) as progress,
    ):
        from actors.labelling.plan import label_responses

        try:
            for counts in label_responses(config, pending, endpoint, verification):
                if counts.fatal is not None:
                    if stopped is None:
                        # Calls that are under way are paid: the workers have stopped and get the time to end them.
                        stopped = counts.fatal
                        give_up = time.monotonic() + config.label.extractor.timeout_s + STOP_GRACE_S
                    if time.monotonic() > give_up:
                        break
                    continue
                progress.advance(counts.done + counts.rejected)
                unavailable += counts.unavailable
        except Exception as error:
            raise (find_user_error(error) or error) from error
    say(_spent(config, read_ledger(config.run.dir)))
    if stopped is not None:
        raise UserError(stopped)
    if unavailable:
        raise UserError(describe_failures(unavailable, pending.total, config.label.extractor.section))


@contextmanager
def _endpoint(config: Config, server: OpenAIServer | None, first: str | None) -> Iterator[Endpoint]:
    """The endpoint to call; a server that is started here is stopped when the block is left.

    An endpoint that somebody else runs is tried with ``first``, the first response with something to ask.
    """
    extractor = config.label.extractor
    if first is None:
        yield Endpoint(None, None)
        return
    if extractor.serve_model is None:
        key = os.environ.get(extractor.api_key_env)
        endpoint = Endpoint(extractor.base_url, SecretStr(key) if key else None)
        check_endpoint(extractor, endpoint, config.run.types)
        ask_about(first, extractor, endpoint, config.run.dir, config.run.types, config.data.language)
        yield endpoint
        return
    own = start_server(config) if server is None else None
    used = server or own
    assert used is not None
    try:
        say("label: waiting for the extraction server (about 20 s, longer for large models)")
        used.wait_ready()
        yield Endpoint(used.base_url, SecretStr(used.api_key))
    finally:
        if own is not None:
            own.stop()


def _spent(config: Config, ledger: LedgerTotals) -> str:
    """One line about what extraction has taken so far."""
    price = config.label.extractor.price
    text = (
        f"label: extraction has taken {ledger.calls} calls, {ledger.prompt_tokens} prompt and "
        f"{ledger.completion_tokens} completion tokens"
    )
    if price is not None:
        text += f", {ledger.money(price):.4g} {price.currency}"
    return f"{text}; {ledger.cache_hits} answers were there already."

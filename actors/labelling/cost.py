"""What labelling would cost, told before it is paid: nothing is called or written."""

from collections.abc import Iterator
from typing import Final

from fgaif_ray.config import Config
from fgaif_ray.fact_types import extracted
from fgaif_ray.feedback.cost import Cost, estimate_cost
from fgaif_ray.feedback.extraction import ExtractionMode
from fgaif_ray.feedback.pending import Pending
from fgaif_ray.progress import say
from fgaif_ray.tables import table_lines

EXTRACTION_MODES: Final[tuple[ExtractionMode, ...]] = ("segment", "response")
LINES: Final = (
    ("calls", "calls"),
    ("known", "calls saved by the cache"),
    ("prompt_tokens", "prompt tokens"),
    ("completion_tokens", "completion tokens"),
)


def show_cost(config: Config, pending: Pending) -> None:
    """Print rows, calls, tokens and money of the responses that are still to be labelled, for both modes.

    Raises:
        UserError: the prompt cannot be used.
    """
    from actors.labelling.extraction import Endpoint, new_extractor
    from fgaif_ray.calls.answers import AnswerIndex, cache_folder
    from fgaif_ray.calls.tokens import PromptCounter
    from fgaif_ray.feedback.extraction import supports
    from fgaif_ray.feedback.pending import PlaceReader
    from fgaif_ray.feedback.prompts import load_prompt

    extractor_config = config.label.extractor
    counter = PromptCounter(extractor_config.serve_model or extractor_config.model)
    prompt = load_prompt(extractor_config.prompt, extracted(config.run.types))
    index = AnswerIndex(cache_folder(config.run.dir, extractor_config.cache))

    def responses() -> Iterator[str]:
        return (row["response"] for row in PlaceReader(["response"]).read_all(pending.places))

    costs: dict[str, Cost | None] = {}
    for mode in EXTRACTION_MODES:
        if not supports(prompt, mode):
            costs[mode] = None
            continue
        of_mode = extractor_config.model_copy(update={"mode": mode})
        extractor = new_extractor(of_mode, Endpoint(None, None), fact_types=config.run.types)
        costs[mode] = estimate_cost(
            extractor,
            responses(),
            counter,
            extractor_config.max_tokens,
            lambda key: index.find(key) is not None,
            config.data.language,
        )
    index.close()
    say(f"label: {pending.rows} of {pending.total} responses are to be labelled; nothing was called or written.")
    for line in cost_table(config, costs):
        say(line)
    say(f"Prompt tokens are {counter.how}; completion tokens are estimated from the length of the segments.")
    say("Repair tries and repeated calls come on top.")
    if extractor_config.price is None:
        say("Set label.extractor.price to see money.")


def cost_table(config: Config, costs: dict[str, Cost | None]) -> list[str]:
    """The lines of a table with a column for each mode; the configured one is marked."""
    extractor = config.label.extractor
    head = [f"{mode} mode{' *' if mode == extractor.mode else ''}" for mode in costs]
    rows = [("", *head)]
    for name, title in LINES:
        rows.append((title, *("-" if cost is None else f"{getattr(cost, name):,}" for cost in costs.values())))
    if extractor.price is not None:
        price = extractor.price
        money = ("-" if cost is None else f"{cost.money(price):,.4f}" for cost in costs.values())
        rows.append((f"money ({price.currency})", *money))
    return table_lines(rows, right=range(1, len(rows[0])))

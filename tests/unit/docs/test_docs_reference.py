"""Pages that are made from the code: every command, key and field is on them, as the code has it."""

import re

import pytest

from jobs.cli import SUMMARIES
from scripts.docs.commands import commands_page, load_commands, options_of
from scripts.docs.configuration import SHARED, configuration_page, keys_of, walk
from scripts.docs.http_api import describe_service, http_page


@pytest.fixture(scope="module")
def configuration() -> str:
    return configuration_page()


def rows_of(page: str) -> dict[str, list[str]]:
    """First cells of the tables of a page with the others."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in page.splitlines() if line[:1] == "|"]
    return {row[0].strip(" `"): row[1:] for row in rows}


def test_every_key_has_a_meaning() -> None:
    assert [key.path for key in walk() if not key.meaning] == []


def test_every_key_is_on_the_page(configuration: str) -> None:
    shared = [key.path for section in SHARED for key in keys_of(section, "")[0]]
    there = rows_of(configuration)
    below = re.findall(r"Its keys stand below (.+)\.", configuration)
    places = tuple(place.strip("`") for line in below for place in line.split(", "))
    missing = [key.path for key in walk() if key.path not in there and not key.path.startswith(places)]
    assert missing == [] and set(shared) <= there.keys()


@pytest.mark.parametrize(
    ("path", "kind", "default"),
    [
        ("run.dir", "text", "required"),
        ("align.algorithm", "`ppo`, `grpo`, `rloo`, `dpo`, `c-dpo`", "`ppo`"),
        ("align.ppo.gamma", "number, > 0, ≤ 1", "`1.0`"),
        ("align.evaluate_every", "whole number or null, ≥ 1", "`null`"),
        ("data.prompts", "list of text", "`[Describe this image in detail.]`"),
        ("align.reward.weights", "number by text", "`{attribute: 1.0, existence: 1.0, relation: 1.0}`"),
        ("label.noise.TYPE.to_hallucinated", "number, ≥ 0, ≤ 1", "`0`"),
    ],
)
def test_type_and_default_are_those_of_the_code(configuration: str, path: str, kind: str, default: str) -> None:
    assert rows_of(configuration)[path][:2] == [kind, default]


def test_every_command_and_option_is_on_the_page() -> None:
    page = commands_page()
    for name, command in load_commands().items():
        section = page.partition(f" fgaif {name}\n")[2].partition("\n#")[0]
        assert section, name
        assert [names for names, _ in options_of(name, command) if f"`{names}`" not in section] == []
    assert all(f"### fgaif {name}\n" in page for name in SUMMARIES)


def test_every_route_and_field_of_the_service_is_on_the_page() -> None:
    described = describe_service()
    page = http_page(described)
    assert "### POST /v1/rewards" in page and "### GET /v1/models" in page
    for name, schema in described["components"]["schemas"].items():
        section = page.partition(f"### {name}\n")[2].partition("\n###")[0]
        assert [field for field in schema.get("properties", {}) if f"| `{field}` |" not in section] == []


def test_the_service_says_what_its_fields_mean() -> None:
    schemas = describe_service()["components"]["schemas"]
    item, segment = schemas["RewardItem"]["properties"], schemas["SegmentReward"]["properties"]
    assert item["response_token_ids"]["description"].startswith("The sampled ids")
    assert segment["existence"]["description"] == "P(absent), P(consistent), P(hallucinated) of a fact type."

"""Fact types: the file of one's own, the line of configuration, and settings by type."""

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.counting import COUNTING, write_counting
from support.paths import ROOT

from fgaif_ray.config import Config, change_config, dump_config, load_config
from fgaif_ray.errors import UserError
from fgaif_ray.fact_types import DEFAULT, dump_fact_type, label_key, parse_fact_type, style_variables
from fgaif_ray.records import FACT_TYPES

SHAPES = "configs/shapes.yaml"


def types_line(*entries: str) -> str:
    return f"run.fact_types=[{', '.join(entries)}]"


@pytest.fixture
def four(tmp_path: Path) -> Config:
    return load_config(SHAPES, [types_line(*FACT_TYPES, write_counting(tmp_path))])


def test_a_file_and_a_line_of_configuration_add_a_type(four: Config) -> None:
    assert four.run.type_names == (*FACT_TYPES, "counting")


def test_the_configuration_keeps_the_type_and_not_its_path(four: Config, tmp_path: Path) -> None:
    (tmp_path / "counting.yaml").unlink()
    again = Config.model_validate(yaml.safe_load(dump_config(four)))
    assert again == four
    assert change_config(four, ["run.seed=3"]).run.types == four.run.types


def test_a_type_reads_back_from_what_it_is_written_as(four: Config) -> None:
    counting = four.run.types[-1]
    assert parse_fact_type(dump_fact_type(counting)) == counting


def test_settings_by_type_are_completed(four: Config) -> None:
    assert four.align.reward.weights == {"existence": 1, "attribute": 1, "relation": 2, "counting": 1}
    assert four.label.verifier.threshold == dict.fromkeys((*FACT_TYPES, "counting"), 0.5)
    assert four.label.noise.rates("counting").to_hallucinated == 0


def test_settings_by_type_can_be_given(tmp_path: Path) -> None:
    changes = ["align.reward.weights.counting=0.5", "label.noise.counting={to_consistent: 0.1}"]
    config = load_config(SHAPES, [types_line(*FACT_TYPES, write_counting(tmp_path)), *changes])
    assert config.align.reward.weights["counting"] == 0.5
    assert config.label.noise.rates("counting").to_consistent == 0.1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("run.fact_types=[colour]", "no fact type 'colour'"),
        ("run.fact_types=[none.yaml]", "none.yaml"),
        ("run.fact_types=[existence, existence]", "existence twice"),
        ("run.fact_types=[]", "run.fact_types"),
        ("align.reward.weights.colour=1", "align.reward.weights.colour"),
        ("label.verifier.threshold={colour: 0.5}", "label.verifier.threshold.colour"),
        ("label.noise.colour={to_consistent: 0.1}", "label.noise.colour"),
        ("label.human={path: a.json, types: [colour]}", "label.human.types.colour"),
        ("align.critic_from_reward=colour", "align.critic_from_reward"),
    ],
)
def test_a_wrong_setting_is_named(change: str, named: str) -> None:
    with pytest.raises(UserError, match=named.replace(".", r"\.")):
        load_config(SHAPES, [change])


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("name", "Two Words", "name"),
        ("name", "reward", "reward"),
        ("colour", "red", "colour"),
        ("hot_keys", "zz", "hot_keys"),
        ("hot_keys", 1234, "hot_keys"),
        ("examples", "none", "examples"),
        ("examples", [{"segment": "A cat."}], "example"),
        ("labels", "derived", "labels"),  # no code comes out of a file
    ],
)
def test_a_wrong_field_of_a_file_is_named(tmp_path: Path, field: str, value: Any, named: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(COUNTING) | {field: value}))
    with pytest.raises(UserError, match=named) as caught:
        load_config(SHAPES, [types_line(str(path))])
    assert "own.yaml" in str(caught.value)


def test_the_default_types_leave_fingerprints_as_they_were() -> None:
    assert label_key(DEFAULT) == ()


def test_what_decides_labels_is_in_the_key() -> None:
    content = yaml.safe_load(COUNTING)
    keys = [
        label_key([parse_fact_type(content | change)]) for change in ({}, {"definition": "x"}, {"colour": "#000000"})
    ]
    assert keys[0] == keys[2] != keys[1]


def test_every_type_has_a_colour_on_light_and_on_dark_pages(four: Config) -> None:
    light, dark = style_variables(four.run.types).splitlines()
    assert "--type-counting: #0f766e;" in light
    assert "--type-counting: #5eead4;" in dark


def test_only_defaults_and_the_embedded_world_know_the_types_by_name() -> None:
    """Whoever iterates over types takes those of the run: a loop over the constant would leave the others out."""
    looping = []
    for path in sorted((ROOT / "fgaif_ray").rglob("*.py")) + sorted((ROOT / "actors").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            loops = [node.iter] if isinstance(node, ast.For | ast.comprehension) else []
            looping += [path.relative_to(ROOT) for loop in loops if "FACT_TYPES" in ast.unparse(loop)]
    worlds = {"fgaif_ray/shapes", "fgaif_ray/evaluation", "fgaif_ray/report", "fgaif_ray/experiments"}
    assert {str(path.parent) for path in looping} <= {*worlds, "fgaif_ray/fact_types", "fgaif_ray/feedback"}


def test_only_the_configuration_has_the_default_types_for_a_default() -> None:
    """A caller that leaves the types out would work on three types of a run that has four."""
    found = []
    for path in [
        path for package in ("fgaif_ray", "actors", "jobs") for path in sorted((ROOT / package).rglob("*.py"))
    ]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.arguments():
                    defaults = [*node.defaults, *filter(None, node.kw_defaults)]
                case ast.ClassDef():
                    defaults = [one.value for one in node.body if isinstance(one, ast.AnnAssign) and one.value]
                case _:
                    continue
            if any({"FACT_TYPES", "DEFAULT"} & {getattr(name, "id", "") for name in ast.walk(one)} for one in defaults):
                found.append(str(path.relative_to(ROOT)))
    assert found == ["fgaif_ray/config/base.py"]

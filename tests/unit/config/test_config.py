"""The configuration tree: shipped files load, overrides apply, and every mistake is named in one sentence."""

from pathlib import Path

import pytest

from fgaif_ray.config import Config, dump_config, load_config
from fgaif_ray.errors import UserError

SERVE_APPLICATION = "serve-rewards.yaml"  # of Ray Serve's own form, see test_serve_deploy.py
SHIPPED = sorted(path for path in Path("configs").glob("*.yaml") if path.name != SERVE_APPLICATION)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_configuration_loads(path: Path) -> None:
    assert load_config(path).run.dir


def test_a_resolved_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = load_config("configs/shapes.yaml", ["run.seed=7"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_an_override_changes_one_key() -> None:
    config = load_config("configs/shapes.yaml", ["align.ppo.clip=0.3"])
    assert config.align.ppo.clip == 0.3
    assert config.align.steps == load_config("configs/shapes.yaml").align.steps


def test_the_weight_of_one_fact_type_leaves_the_others() -> None:
    weights = load_config("configs/shapes.yaml", ["align.reward.weights.relation=2"]).align.reward.weights
    assert weights == {"existence": 1, "attribute": 1, "relation": 2}


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("align.stepz=3", "align.stepz"),
        ("align.steps=0", "align.steps"),
        ("align.steps=many", "align.steps"),
        ("run.dir.x=1", "dir is a value"),
        ("nonsense", "section.key=value"),
        ("data.source=folder", "data.path"),
        ("align.reward.weights.object=0", "align.reward.weights.object"),
        ("label.extractor.base_url=http://127.0.0.1:1", "exactly one of"),
    ],
)
def test_a_mistake_is_named(override: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        load_config("configs/shapes.yaml", [override])


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run: {dir: x}\n")
    with pytest.raises(UserError, match="the key data is missing"):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("text", ["a: [", "- 1", ""])
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml"):
        load_config(tmp_path / "config.yaml")


def test_a_missing_file_says_so() -> None:
    with pytest.raises(UserError, match="--config"):
        load_config("configs/none.yaml")


def test_the_configuration_cannot_be_changed() -> None:
    config: Config = load_config("configs/shapes.yaml")
    with pytest.raises(Exception, match="frozen"):
        config.run.seed = 3


def test_a_change_of_one_section_leaves_its_aliases_alone(repository: Path) -> None:
    config = load_config(repository / "configs" / "shapes.yaml", ["sample.engine.num_gpus=1"])
    assert (config.sample.engine.num_gpus, config.evaluate.engine.num_gpus) == (1, 0)

"""The configuration tree: shipped files load, overrides apply, and every mistake is named in one sentence."""

from pathlib import Path
from typing import Any, get_args

import pytest

from fgaif_ray.config import Config, Section, dump_config, load_config
from fgaif_ray.config.mistakes import REMOVED_KEYS
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
    assert weights == {"existence": 1, "attribute": 1, "relation": 2, "novelty": 1.5}


def test_the_earlier_name_of_control_items_is_taken() -> None:
    label = load_config("configs/shapes.yaml", ["label.canaries.per_block=2"]).label
    assert label.control_items.per_block == 2


def test_both_names_of_control_items_at_once_are_refused() -> None:
    with pytest.raises(UserError, match="is the earlier name of"):
        load_config("configs/shapes.yaml", ["label.canaries.limit=0.2", "label.control_items.per_block=2"])


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


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.max_pixels=783", "data.max_pixels"),
        ("data.min_pixels=783", "data.min_pixels"),
        ("data.min_pixels=64000001", "data.min_pixels"),
        ("data.prompts=['<image> or <image>?']", "2 places for an image"),
    ],
)
def test_images_and_prompts_that_no_model_could_be_shown_are_refused(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_config("configs/shapes.yaml", [override])


def test_a_budget_of_pixels_is_a_range() -> None:
    limits = load_config("configs/shapes.yaml", ["data.min_pixels=1000", "data.max_pixels=2000"]).data.pixel_budget
    assert (limits.min, limits.max) == (1000, 2000)
    with pytest.raises(UserError, match="at least twice"):
        load_config("configs/shapes.yaml", ["data.min_pixels=1000", "data.max_pixels=1999"])


def test_a_key_that_is_gone_is_told_with_what_holds_instead() -> None:
    with pytest.raises(UserError, match=r"serve\.batch_wait_timeout_s no longer exists: leave it out \(replicas wait"):
        load_config("configs/shapes.yaml", ["serve.batch_wait_timeout_s=0.1"])


def test_no_key_that_is_gone_is_there() -> None:
    for key in REMOVED_KEYS:
        section: Any = Config
        *sections, last = key.split(".")
        for name in sections:
            section = next(
                kind
                for kind in (section.model_fields[name].annotation, *get_args(section.model_fields[name].annotation))
                if isinstance(kind, type) and issubclass(kind, Section)
            )
        assert last not in section.model_fields


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


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("align.stepz=3", "did you mean align.steps"),
        ("sampel.temperature=1", "did you mean sample"),
        ("sample.learning_rat=1", "check its spelling"),
        ("sample.minibatch_size=1", "did you mean align.ppo.minibatch_size"),
        ("run.seed=-1", "run.seed"),
        ("run.seed=9223372036854775808", "run.seed"),
        ("align.ppo.learning_rate=.inf", "align.ppo.learning_rate"),
        ("align.kl.coefficient=.nan", "align.kl.coefficient"),
        ("sample=3", "sample is a section"),
    ],
)
def test_a_mistake_of_an_override_is_blamed_on_it(override: str, named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        load_config("configs/shapes.yaml", ["report.title=x", override])
    assert str(caught.value).startswith(f"--set {override}: ")


def test_a_mistake_of_the_file_is_blamed_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(Path("configs/shapes.yaml").read_text().replace("  seed: 0", "  seed: -2", 1))
    with pytest.raises(UserError) as caught:
        load_config(path, ["sample.temperature=-1"])
    in_file, _, in_override = str(caught.value).partition("; --set ")
    assert in_file.startswith(f"{path}: run.seed")
    assert in_override.startswith("sample.temperature=-1: ")


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"\xff\xfe\x00\x01", "not UTF-8 text"),
        (b"run:\n  dir: caf\xe9\n", r"not UTF-8 text \(line 2\)"),
        (b"run: {dir: \x00}\n", "not a text file"),
        (b"run:\n  dir: x\n\tseed: 1\n", "line 3, column 1 has a tab"),
        (b"run: {dir: x}\ndata: {}\nrun: {dir: y}\n", "gives run twice, in lines 1 and 3"),
        (b"run:\n  dir: x\n  seed: 1\n  dir: y\n", "gives run.dir twice, in lines 2 and 4"),
        (b"run: &a {dir: *a}\n", "alias"),
        (b"run: {dir: 2026-13-45}\n", "quote the value"),
    ],
)
def test_a_file_that_yaml_would_misread_is_refused(tmp_path: Path, data: bytes, named: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(data)
    with pytest.raises(UserError, match=named) as caught:
        load_config(path)
    assert str(caught.value).startswith(str(path))


def test_a_key_may_be_given_again_where_a_section_is_merged(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "run: {dir: x}\npolicy: &model {model: a, dtype: float32}\ndata: {path: y}\n"
        "label: {extractor: {base_url: 'http://a', model: m}, verifier: {model: v}}\n"
        "rewards: {<<: {backbone: b, dtype: auto}, dtype: float32}\n"
    )
    assert load_config(path).rewards.dtype == "float32"


def test_shared_prompts_have_no_more_places_than_a_prompt_may_have_images() -> None:
    prompts = "data.prompts=['Is <image> like <image>?', 'Describe.']"
    assert len(load_config("configs/shapes.yaml", ["data.images_per_prompt=2", prompts]).data.prompts) == 2
    with pytest.raises(UserError, match=r"3 places for an image .* asked with 2 images"):
        load_config("configs/shapes.yaml", ["data.images_per_prompt=2", "data.prompts=['<image> <image> <image>']"])


@pytest.mark.parametrize(
    ("prompt", "images", "said"),
    [
        ("Compare.", 3, r"3 images, more than data\.images_per_prompt \(2\)"),
        ("Is <image> like <image>?", 1, "2 places"),
        ("Is <image> like <image>?", 2, None),
        ("Compare.", 2, None),
    ],
)
def test_a_prompt_is_checked_with_its_images(prompt: str, images: int, said: str | None) -> None:
    data = load_config("configs/shapes.yaml", ["data.images_per_prompt=2"]).data
    assert data.can_ask(prompt, images) == (said is None)
    if said is not None:
        with pytest.raises(ValueError, match=said):
            data.check_prompt(prompt, images)


def test_a_built_in_type_that_a_run_does_not_have_needs_no_settings() -> None:
    plain = load_config("configs/shapes.yaml", ["run.fact_types=[existence, relation]"])
    assert plain.align.reward.weights == {"existence": 1, "relation": 2}

"""Stages are told in one place, and runs made by earlier versions keep their fingerprints."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.paths import ROOT

from benchmarks import PAPER_SETUP
from fgaif_ray import storage
from fgaif_ray.config import Config, load_config
from fgaif_ray.feedback.label_sources import feedback_stages
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rewards.files import published_versions
from fgaif_ray.sources import ImageSets
from fgaif_ray.storage import stages
from fgaif_ray.storage.planned_stages import BEFORE, PLANNED, VERDICTS, planned_keys

THEN = [
    *PAPER_SETUP,
    "rewards.planted_share=0.5",
    "align.steps=30",
    "align.ppo.learning_rate=0.003",
    "align.reward.length_target=46",
]
"""What `configs/shapes.yaml` said when the fingerprints were written down."""
CONFIGURATIONS = {
    "shapes": ("shapes.yaml", THEN),
    "paper": ("paper.yaml", []),
    "changed": (
        "shapes.yaml",
        [
            *THEN,
            "label.noise.relation.to_hallucinated=0.2",
            "rewards.temperature_scaling=true",
            "label.verifier.threshold=0.4",
        ],
    ),
}
IMAGES = {
    "shared": ImageSets([("a.png",)], [("b.png",)], [("c.png",)]),
    "own": ImageSets(
        [("a.png",)],
        [("b.png",)],
        [("c.png",)],
        {("a.png",): ("Why?",), ("b.png",): ("Who?",), ("c.png",): ("How?",)},
        2,
        "k",
    ),
}
# As commit 6b27cc7 computed them.
FINGERPRINTS = {
    ("shapes", "shared"): {
        "responses": "b22e6c522eac19ae",
        "feedback": "0577ed666d8c65d3",
        "rewards": "56395b82b61191e4",
        "policy": "8addef2bcd127a12",
        "evaluation": "3d51298325c81392",
        "before": "a3c5bd321c5e96b6",
        "verdicts": "47d24bd360502c10",
    },
    ("shapes", "own"): {
        "responses": "d8277210536e1b49",
        "feedback": "0577ed666d8c65d3",
        "rewards": "56395b82b61191e4",
        "policy": "3e63e45ffa417dd4",
        "evaluation": "04e5214e7295f8b1",
        "before": "e210e6b871531ef2",
        "verdicts": "47d24bd360502c10",
    },
    ("paper", "shared"): {
        "responses": "f37ed5178031e783",
        "feedback": "28ce4f745042edb4",
        "rewards": "1f50c3feda77232b",
        "policy": "d6121a213a24da87",
        "evaluation": "5b9a67fe158ae96d",
        "before": "45ab46518d0b8568",
        "verdicts": "b9453eba4e3d1091",
    },
    ("paper", "own"): {
        "responses": "b922e63aef244366",
        "feedback": "28ce4f745042edb4",
        "rewards": "1f50c3feda77232b",
        "policy": "ff7426521987ee9d",
        "evaluation": "4c0e9f617cd52984",
        "before": "f706f8829b20a65f",
        "verdicts": "b9453eba4e3d1091",
    },
    ("changed", "shared"): {
        "responses": "b22e6c522eac19ae",
        "feedback": "a80c4e2ab1c6de18",
        "rewards": "56395b82b61191e4",
        "policy": "90559fa58cb177a1",
        "evaluation": "3d51298325c81392",
        "before": "a3c5bd321c5e96b6",
        "verdicts": "47d24bd360502c10",
    },
    ("changed", "own"): {
        "responses": "d8277210536e1b49",
        "feedback": "a80c4e2ab1c6de18",
        "rewards": "56395b82b61191e4",
        "policy": "ad24f2fb2aaff1ef",
        "evaluation": "04e5214e7295f8b1",
        "before": "e210e6b871531ef2",
        "verdicts": "47d24bd360502c10",
    },
}


def finished_run(folder: Path, name: str) -> Config:
    """A run of a configuration whose stages are published with made-up fingerprints."""
    file, overrides = CONFIGURATIONS[name]
    for stage in (stages.RESPONSES, stages.FEEDBACK, stages.REWARDS, stages.POLICY, stages.EVALUATION):
        manifest = {"stage": stage, "fingerprint": f"fp-{stage}"}
        storage.write_json(storage.join(str(folder), stage, storage.MANIFEST), manifest)
    for index, fact_type in enumerate(FACT_TYPES):
        model = folder / stages.REWARDS / fact_type
        model.mkdir(parents=True)
        tensors = {"w": torch.full((2,), float(index))}
        save_file(tensors, model / "adapter_model.safetensors")
        save_file(tensors, model / "head.safetensors", metadata={"granularity": "segment"})
        (model / "adapter_config.json").write_text('{"r": 4}')
    # The paper's configuration names a folder of images, which is not part of any of these.
    path = [f"data.path={folder}"] if name == "paper" else []
    return load_config(ROOT / "configs" / file, [f"run.dir={folder}", *path, *overrides])


@pytest.mark.parametrize(("name", "images"), FINGERPRINTS)
def test_runs_made_before_keep_their_fingerprints(
    name: str, images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config, sets = finished_run(tmp_path, name), IMAGES[images]
    labelled, rejected = feedback_stages(config)
    assert {
        "responses": stages.responses(config, sets).fingerprint,
        "feedback": labelled.fingerprint,
        "rewards": stages.rewards(config).fingerprint,
        "policy": stages.policy(config, sets, published_versions(config)).fingerprint,
        "evaluation": stages.evaluation(config, sets).fingerprint,
        "before": stages.answers_before(config, sets),
        "verdicts": stages.verdicts(config),
    } == FINGERPRINTS[name, images]
    assert rejected.fingerprint == labelled.fingerprint


@pytest.mark.parametrize("limit", ["data.max_pixels=50000", "data.min_pixels=50000"])
def test_stages_that_open_images_depend_on_their_size(
    limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    plain = finished_run(tmp_path, "shapes")
    limited = load_config(ROOT / "configs" / "shapes.yaml", [f"run.dir={tmp_path}", limit])
    images = IMAGES["shared"]

    def keys(config: Config) -> list[str]:
        return [
            stages.responses(config, images).fingerprint,
            stages.calibration(config, stages.CALIBRATION, config.label.verifier, None).fingerprint,
            stages.policy(config, images, []).fingerprint,
            stages.answers_before(config, images),
            stages.evaluation(config, images).fingerprint,
            stages.benchmark(config, "pope", [], "", {}).fingerprint,
        ]

    assert not set(keys(plain)) & set(keys(limited))


def test_a_stage_reads_only_stages_before_it() -> None:
    order = list(stages.STAGES)
    for name, info in stages.STAGES.items():
        assert all(order.index(read) < order.index(name) for read in info.inputs)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ("label.verifier.threshold=0.4", {stages.RESPONSES, VERDICTS, BEFORE}),
        ("rewards.epochs=9", {stages.RESPONSES, VERDICTS, stages.FEEDBACK, BEFORE}),
        ("evaluate.max_tokens=7", set(PLANNED) - {BEFORE, stages.EVALUATION}),
        ("align.num_workers=2", set(PLANNED)),
        ("run.seed=9", set()),
        ("data.max_pixels=50000", set()),
        ("align.dpo.beta=0.3", set(PLANNED)),
    ],
)
def test_what_runs_have_in_common_is_told_before_anything_is_there(change: str, kept: set[str]) -> None:
    file = ROOT / "configs" / "shapes.yaml"
    one, other = planned_keys(load_config(file, [])), planned_keys(load_config(file, [change]))
    assert {name for name in PLANNED if one[name] == other[name]} == kept


def test_stages_depend_on_how_many_images_a_prompt_may_have_and_on_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    plain = finished_run(tmp_path, "shapes")
    two = load_config(ROOT / "configs" / "shapes.yaml", [f"run.dir={tmp_path}", "data.images_per_prompt=2"])
    single = IMAGES["shared"]
    several = ImageSets([("a.png", "x.png")], [("b.png", "y.png")], [("c.png", "z.png")])
    keys = {
        (
            stages.responses(config, images).fingerprint,
            stages.policy(config, images, []).fingerprint,
            stages.evaluation(config, images).fingerprint,
        )
        for config in (plain, two)
        for images in (single, several)
    }
    assert all(len(set(of_stage)) == 4 for of_stage in zip(*keys, strict=True))


def test_verdicts_depend_on_whether_facts_may_be_about_several_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    plain = finished_run(tmp_path, "shapes")
    two = load_config(ROOT / "configs" / "shapes.yaml", [f"run.dir={tmp_path}", "data.images_per_prompt=2"])
    one, several = (
        (
            stages.verdicts(config, "same"),
            feedback_stages(config)[0].fingerprint,
            stages.calibration(config, stages.CALIBRATION, config.label.verifier, None).fingerprint,
        )
        for config in (plain, two)
    )
    assert all(first != second for first, second in zip(one, several, strict=True))


PREFERENCES = ("align.algorithm=dpo", "sample.samples_per_prompt=4")


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        ("align.dpo.beta=0.3", True),
        ("align.algorithm=c-dpo", True),
        ("align.steps=7", True),
        ("align.reward.weights.relation=1", True),
        ("label.verifier.threshold=0.4", True),
        ("align.dpo.micro_batch_size=3", False),
        ("align.ppo.epochs=9", False),
        ("align.kl.coefficient=0.9", False),
        ("rewards.epochs=9", False),
        ("align.reward.value=argmax", False),
    ],
)
def test_a_policy_of_preferences_depends_on_labels_and_not_on_reward_models(change: str, counts: bool) -> None:
    file = ROOT / "configs" / "shapes.yaml"
    one, other = (planned_keys(load_config(file, [*PREFERENCES, *more])) for more in ([], [change]))
    assert (one[stages.POLICY] != other[stages.POLICY]) == counts


def test_the_fingerprint_of_a_policy_of_preferences_is_found_in_one_way(tmp_path: Path) -> None:
    finished_run(tmp_path, "shapes")
    config = load_config(ROOT / "configs" / "shapes.yaml", [f"run.dir={tmp_path}", *PREFERENCES])
    expected = stages.policy_of_preferences(config).fingerprint
    assert stages.policy(config, IMAGES["shared"], ["any"]).fingerprint == expected
    assert stages.policy_of_preferences(config, f"fp-{stages.FEEDBACK}").fingerprint == expected


@pytest.mark.parametrize(("sync", "counts"), [("merged", False), ("adapter", True)])
def test_answers_depend_on_how_the_policy_is_served_where_rollouts_were_served_otherwise(
    sync: str, counts: bool
) -> None:
    def before(*changes: str) -> str:
        config = load_config(ROOT / "configs/shapes.yaml", ["align.rollout.sync=merged", *changes])
        return stages.answers_before(config, ImageSets([("a.png",)], [("b.png",)], [("c.png",)]))

    assert (before() != before(f"evaluate.sync={sync}")) == counts


def test_another_language_is_another_labelling_and_another_alignment(tmp_path: Path) -> None:
    """The responses stay, unless samples of a prompt share their first segments."""

    def fingerprints(*changes: str) -> dict[str, str]:
        config = load_config(
            ROOT / "configs/shapes.yaml", [f"run.dir={tmp_path}", "sample.samples_per_prompt=1", *changes]
        )
        shared = ImageSets([("a.png",)], [("b.png",)], [("c.png",)])
        nothing = stages.LabelSources((), None, None)
        return {
            "responses": stages.responses(config, shared).fingerprint,
            "feedback": stages.feedback(config, nothing, "r").fingerprint,
            "verdicts": stages.verdicts(config, "r"),
            "policy": stages.policy(config, shared, ["1"], "f").fingerprint,
        }

    before, after = fingerprints(), fingerprints("data.language=de")
    assert {name for name in before if before[name] != after[name]} == {"feedback", "verdicts", "policy"}


def test_blind_stages_are_others_and_those_before_them_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plain, images = finished_run(tmp_path, "shapes"), IMAGES["shared"]

    def keys(*overrides: str) -> dict[str, str]:
        config = load_config(ROOT / "configs" / "shapes.yaml", [f"run.dir={tmp_path}", *overrides])
        return {
            "responses": stages.responses(config, images).fingerprint,
            "feedback": feedback_stages(config)[0].fingerprint,
            "rewards": stages.rewards(config).fingerprint,
            "policy": stages.policy(config, images, []).fingerprint,
            "preferences": stages.policy_of_preferences(config).fingerprint,
            "before": stages.answers_before(config, images),
        }

    def changed(*overrides: str) -> set[str]:
        one, other = keys(), keys(*overrides)
        return {name for name in one if one[name] != other[name]}

    assert plain.data.blind.rewards == "none"
    assert changed("data.blind.rewards=blank") == {"rewards", "policy"}
    assert changed("data.blind.policy=blank") == {"policy", "preferences"}

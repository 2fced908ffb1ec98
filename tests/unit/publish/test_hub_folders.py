"""What a dry run of the export to the Hub writes: it loads with datasets, PEFT and the project's own reward models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import load_dataset
from peft import PeftModel
from PIL import Image
from support.published_run import IMAGES, published_config, write_published_run
from support.reward_helpers import CHECKPOINT, offline_model
from transformers import AutoModelForImageTextToText

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.publish import data_set
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.report.formats import show_share
from jobs.cli import main
from jobs.export import export_hub

REPO = "me/aligned"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return write_published_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def folder(run: Config) -> Path:
    """What a dry run has written."""
    export_hub(run, REPO, dry_run=True)
    return Path(run.run.dir, "hub")


def head(folder: Path, stage: str) -> dict[str, Any]:
    text = (folder / stage / "README.md").read_text()
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


def card(folder: Path, stage: str) -> str:
    return (folder / stage / "README.md").read_text().partition("\n---\n")[2]


def load(folder: Path, tmp_path: Path) -> Any:
    return load_dataset(str(folder / "feedback"), cache_dir=str(tmp_path / "cache"))


class TestFeedback:
    def test_datasets_loads_it_with_its_images_and_labels(self, run: Config, folder: Path, tmp_path: Path) -> None:
        loaded = load(folder, tmp_path)
        rows = [row for split in loaded.values() for row in split]
        assert len(rows) == IMAGES
        assert all(isinstance(row["images"][0], Image.Image) for row in rows)
        assert rows[0]["segments"][0]["labels"] == {"existence": 1, "attribute": 2, "relation": 0}

    def test_the_images_that_training_holds_out_are_a_split_of_their_own(self, folder: Path, tmp_path: Path) -> None:
        loaded = load(folder, tmp_path)
        digests = {name: set(split["image_sha256"]) for name, split in loaded.items()}
        assert set(digests) == {"train", "validation"}
        assert not digests["train"] & digests["validation"]
        assert loaded["validation"].num_rows == 1  # 15 % of six

    def test_images_by_reference_are_names(self, run: Config, tmp_path: Path) -> None:
        export_hub(run, REPO, dry_run=True, images="reference")
        loaded = load(Path(run.run.dir, "hub"), tmp_path)
        assert sorted(name for split in loaded.values() for row in split for name in row["images"]) == [
            f"{number}.png" for number in range(IMAGES)
        ]

    def test_many_rows_are_several_files(self, run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(data_set, "ROWS_OF_A_FILE", 2)
        export_hub(run, REPO, dry_run=True)
        hub = Path(run.run.dir, "hub")
        assert len(list((hub / "feedback" / "data").glob("train-*.parquet"))) == 3
        assert sum(split.num_rows for split in load(hub, tmp_path).values()) == IMAGES

    def test_rows_tell_no_path_of_this_machine(self, folder: Path, tmp_path: Path) -> None:
        annotators = {one for split in load(folder, tmp_path).values() for one in split["annotator"]}
        assert annotators == {'{"model": "policy"}'}

    def test_the_card_counts_the_labels(self, folder: Path) -> None:
        assert f"| attribute | {IMAGES} | 0 | {IMAGES} | 0 | 87.5\u202f% |" in card(folder, "feedback")

    def test_images_of_the_embedded_world_show_nobody(self, folder: Path) -> None:
        assert "**Warning.**" not in card(folder, "feedback")

    def test_other_images_are_warned_of(self, run: Config) -> None:
        data = run.data.model_copy(update={"source": "folder", "path": run.run.dir})
        export_hub(run.model_copy(update={"data": data}), REPO, dry_run=True)
        assert "**Warning.** The images come from elsewhere" in card(Path(run.run.dir, "hub"), "feedback")


class TestModels:
    def test_peft_loads_the_adapter(self, run: Config, folder: Path) -> None:
        base = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
        model = PeftModel.from_pretrained(base, folder / "policy")
        changed = [one for name, one in model.named_parameters() if "lora_B" in name]
        assert changed and all(bool(torch.any(one != 0)) for one in changed)

    def test_the_reward_models_load(self, folder: Path) -> None:
        model = offline_model({name: str(folder / "rewards" / name) for name in FACT_TYPES})
        assert set(model.heads) == set(FACT_TYPES)

    def test_the_card_has_the_metrics_of_the_reward_models(self, run: Config, folder: Path) -> None:
        measured = storage.read_json(f"{run.run.dir}/rewards/relation/metrics.json")
        (line,) = [one for one in card(folder, "rewards").splitlines() if one.startswith("| relation ")]
        assert show_share(measured["balanced_accuracy"]) in line and line.endswith("| 300 |")

    def test_the_card_has_what_alignment_changed(self, run: Config, folder: Path) -> None:
        measured = storage.read_json(f"{run.run.dir}/evaluation/metrics.json")
        rate = measured["after"]["greedy"]["hallucination_rate"]["overall"]
        assert show_share(rate) in card(folder, "policy")
        (index,) = head(folder, "policy")["model-index"]
        values = [metric["value"] for one in index["results"] for metric in one["metrics"]]
        assert round(rate, 4) in values

    def test_the_card_says_how_it_was_trained(self, folder: Path) -> None:
        assert card(folder, "policy").startswith("# Policy\n")

    def test_cards_name_each_other(self, folder: Path) -> None:
        assert f"Reward models: `{REPO}-rewards`" in card(folder, "policy")
        assert head(folder, "policy")["datasets"] == [f"{REPO}-feedback"]


@pytest.mark.parametrize("stage", ["policy", "rewards", "feedback"])
def test_no_file_tells_a_path_of_this_machine(run: Config, folder: Path, stage: str) -> None:
    kept = [path for path in (folder / stage).rglob("*") if path.suffix in (".md", ".json")]
    telling = [path.name for path in kept if CHECKPOINT in path.read_text() or run.run.dir in path.read_text()]
    assert kept and telling == []


@pytest.mark.parametrize("stage", ["policy", "rewards", "feedback"])
def test_the_licence_is_that_which_was_given(run: Config, stage: str) -> None:
    export_hub(run, REPO, dry_run=True, licence="cc-by-4.0")
    assert head(Path(run.run.dir, "hub"), stage)["license"] == "cc-by-4.0"


def test_without_a_licence_the_cards_say_so(folder: Path, run: Config) -> None:
    export_hub(run, REPO, dry_run=True)
    assert head(folder, "feedback")["license"] == "other"
    assert "None has been stated" in card(folder, "feedback")


def test_what_the_run_has_not_made_is_left_out(tmp_path: Path) -> None:
    write_published_run(tmp_path)
    storage.remove_folder(str(tmp_path / "policy"))
    export_hub(published_config(tmp_path), REPO, dry_run=True)
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == ["feedback", "rewards"]


def test_a_run_with_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a policy nor rewards nor feedback"):
        export_hub(published_config(tmp_path), REPO, dry_run=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--repo", "a/b/c"), "cannot be the name of a repository"),
        (("--repo", REPO, "--images", "both"), "--images is one of embed, reference"),
        (("--repo", REPO, "--license", "My own!"), "--license is an identifier"),
        (("--repo", REPO), "Set HF_TOKEN"),
    ],
)
def test_mistakes_end_with_one_sentence(
    run: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(run.model_dump(mode="json")))
    assert main("export", ["hub", "--config", str(file), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line

"""The upload to the Hub, against a server on loopback that speaks its endpoints."""

import os
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from datasets import load_dataset
from support.hub_server import HubServer, hub_server
from support.published_run import IMAGES, write_published_run
from support.reward_helpers import offline_model

from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.records import FACT_TYPES
from jobs.export import export_hub

# The client hands large files to its own transport in a way that this calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TOKEN = "hf_a-token-of-the-tests"
REPO = "me/aligned"
NAMES = {"policy": f"models/{REPO}", "rewards": f"models/{REPO}-rewards", "feedback": f"datasets/{REPO}-feedback"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return write_published_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_server(TOKEN) as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)  # as HF_ENDPOINT does before the import
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        # The Hub's own storage is a service of its own; a server that has none is spoken to by Git LFS.
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        yield server


def test_three_repositories_are_made_and_filled(run: Config, server: HubServer) -> None:
    export_hub(run, REPO, dry_run=False)
    assert set(server.repositories) == set(NAMES.values())
    export_hub(run, REPO, dry_run=True)
    for stage, name in NAMES.items():
        folder = Path(run.run.dir, "hub", stage)
        written = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert server.repositories[name] == written


def test_what_was_uploaded_loads(run: Config, server: HubServer, tmp_path: Path) -> None:
    export_hub(run, REPO, dry_run=False)
    feedback = server.write(NAMES["feedback"], tmp_path / "feedback")
    loaded = load_dataset(str(feedback), cache_dir=str(tmp_path / "cache"))
    assert sum(split.num_rows for split in loaded.values()) == IMAGES
    rewards = server.write(NAMES["rewards"], tmp_path / "rewards")
    assert set(offline_model({name: str(rewards / name) for name in FACT_TYPES}).heads) == set(FACT_TYPES)


@pytest.mark.parametrize("private", [True, False])
def test_repositories_are_private_where_asked(run: Config, server: HubServer, private: bool) -> None:
    export_hub(run, REPO, dry_run=False, private=private)
    assert set(server.private.values()) == {private}


def test_a_name_without_owner_is_one_of_the_tokens_owner(run: Config, server: HubServer) -> None:
    export_hub(run, "aligned", dry_run=False)
    assert "models/owner/aligned" in server.repositories
    assert server.repositories["datasets/owner/aligned-feedback"]


def test_a_second_call_uploads_nothing_that_is_there(run: Config, server: HubServer) -> None:
    export_hub(run, REPO, dry_run=False)
    before = list(server.commits)
    export_hub(run, REPO, dry_run=False)
    assert server.commits == before


def test_files_of_an_earlier_data_set_are_removed(run: Config, server: HubServer) -> None:
    server.repositories[NAMES["feedback"]] = {"data/train-00007.parquet": b"old", "notes.txt": b"mine"}
    export_hub(run, REPO, dry_run=False)
    kept = server.repositories[NAMES["feedback"]]
    assert "data/train-00007.parquet" not in kept and kept["notes.txt"] == b"mine"


def test_a_refusal_says_what_is_there_already_and_the_same_call_goes_on(run: Config, server: HubServer) -> None:
    server.refuses = "-rewards"
    with pytest.raises(UserError) as caught:
        export_hub(run, REPO, dry_run=False)
    said = str(caught.value)
    assert f"{REPO}-rewards could not be uploaded (status 403" in said
    assert f"uploaded so far: {server.url}/{REPO}:" in said and "run the same command again" in said
    server.refuses = None
    export_hub(run, REPO, dry_run=False)
    assert server.commits == [NAMES["policy"], NAMES["rewards"], NAMES["feedback"]]


def test_a_wrong_token_is_not_repeated(
    run: Config, server: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="HF_TOKEN may write there") as caught:
        export_hub(run, REPO, dry_run=False)
    assert "hf_wrong" not in str(caught.value) + capsys.readouterr().out
    assert server.repositories == {}


def test_a_server_that_is_not_there_is_one_sentence(
    run: Config, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="nothing was uploaded: run the same command again"):
        export_hub(run, REPO, dry_run=False)


def test_a_token_that_was_kept_by_a_login_is_not_taken(
    run: Config, server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN")
    assert "HF_TOKEN" not in os.environ
    with pytest.raises(UserError, match="Set HF_TOKEN"):
        export_hub(run, REPO, dry_run=False)

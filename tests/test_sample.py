"""Sampling: real Ray Data, a real engine, and a folder of images of which some are no images."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from actors.chat import ImageChat
from actors.sampler import request_seed
from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.shapes.render import render
from fgaif_ray.shapes.scenes import draw_scene
from jobs import sample

POLICY = Path(sample.__file__).parent.parent / "fgaif_ray" / "shapes" / "checkpoints" / "policy"
GOOD_IMAGES = 40
MAX_TOKENS = 48
PROMPTS = ("Describe this image in detail.", "What can you see in this picture?")


def make_config(folder: Path, run: Path, **policy: Any) -> Config:
    engine = {
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_seqs": 32,
        "kv_cache_gib": 0.25,
        "enforce_eager": True,
        "threads": 1,
    }
    return Config.model_validate(
        {
            "run": {"dir": str(run), "seed": 3},
            "data": {"path": str(folder), "sample_images": 100, "evaluate_images": 1, "prompts": PROMPTS},
            "policy": {"model": str(POLICY)} | policy,
            "sample": {"max_tokens": MAX_TOKENS, "batch_size": 24, "engine": engine},
            "label": {"extractor": {"base_url": "http://127.0.0.1:9/v1", "model": "m"}, "verifier": {"model": "v"}},
            "rewards": {"backbone": str(POLICY)},
        }
    )


def write_images(folder: Path) -> None:
    """Images to sample first (poison among them), then as many again for the other sets of a run."""
    folder.mkdir()
    for index in range(GOOD_IMAGES):
        render(draw_scene("train", index)).save(folder / f"a{index:03d}.png")
    whole = (folder / "a000.png").read_bytes()
    (folder / "a900-truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "a901-text.jpg").write_text("not an image")
    (folder / "a902-empty.png").write_bytes(b"")
    shutil.copy(folder / "a000.png", folder / "a9015-repeated.png")  # same prompt: both indices are even
    for index in range(GOOD_IMAGES + 8):
        (folder / f"b{index:03d}.png").write_bytes(whole)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory, ray_cluster: Any) -> tuple[Config, list[dict[str, Any]]]:
    root = tmp_path_factory.mktemp("sample")
    write_images(root / "images")
    config = make_config(root / "images", root / "run")
    config = config.model_copy(update={"data": config.data.model_copy(update={"sample_images": GOOD_IMAGES + 4})})
    sample.run(config)
    return config, list(storage.read_rows(storage.join(config.run.dir, "responses")))


@pytest.fixture(scope="module")
def chat() -> ImageChat:
    return ImageChat(str(POLICY))


@pytest.mark.ray
@pytest.mark.vllm
class TestSample:
    def test_every_readable_image_has_one_response(self, sampled: Any) -> None:
        _, rows = sampled
        assert len({row["sample_id"] for row in rows}) == len(rows) == GOOD_IMAGES

    def test_unreadable_and_repeated_images_are_named_in_the_manifest(self, sampled: Any) -> None:
        manifest = storage.read_manifest(sampled[0].run.dir, "responses")
        names = {Path(row["image"]).name.split(".")[0] for row in manifest["rejected_images"]}
        assert {"a900-truncated", "a901-text", "a902-empty"} < names
        assert manifest["rejected"] == 4
        assert len(names & {"a000", "a9015-repeated"}) == 1

    def test_prompts_take_turns(self, sampled: Any) -> None:
        _, rows = sampled
        asked = {Path(row["image"]).name: row["prompt"] for row in rows}
        assert asked["a001.png"] == PROMPTS[1]
        assert asked["a002.png"] == PROMPTS[0]

    def test_response_is_the_decoded_token_ids(self, sampled: Any, chat: ImageChat) -> None:
        _, rows = sampled
        assert all(row["response"] == chat.decode(row["token_ids"]) for row in rows)

    def test_end_token_is_kept_exactly_where_the_response_ended(self, sampled: Any) -> None:
        _, rows = sampled
        end = 2
        assert {"stop"} <= {row["finish_reason"] for row in rows} <= {"stop", "length"}
        for row in rows:
            if row["finish_reason"] == "stop":
                assert row["token_ids"].index(end) == len(row["token_ids"]) - 1
            else:
                assert end not in row["token_ids"] and len(row["token_ids"]) == MAX_TOKENS

    def test_banned_tokens_are_never_sampled(self, sampled: Any, chat: ImageChat) -> None:
        _, rows = sampled
        assert not {token for row in rows for token in row["token_ids"]} & set(chat.banned)

    def test_interrupted_run_goes_on_with_the_same_responses(self, sampled: Any, tmp_path: Path) -> None:
        config, rows = sampled
        again = config.model_copy(
            update={
                "run": config.run.model_copy(update={"dir": str(tmp_path / "run")}),
                "sample": config.sample.model_copy(update={"batch_size": 9}),  # neighbours must not matter
            }
        )
        manifest = storage.read_manifest(config.run.dir, "responses")
        partial = tmp_path / "run" / "responses.partial"
        shutil.copytree(Path(config.run.dir) / "responses", partial)
        (partial / storage.MANIFEST).unlink()
        (partial / "_fingerprint").write_text(manifest["fingerprint"])
        kept, *lost = sorted(partial.glob("part-*.parquet"), key=lambda path: path.stat().st_size)
        for path in lost:
            path.unlink()
        before = kept.stat().st_mtime_ns
        sample.run(again)
        resumed = list(storage.read_rows(str(tmp_path / "run" / "responses")))
        assert sorted(resumed, key=lambda row: row["sample_id"]) == sorted(rows, key=lambda row: row["sample_id"])
        assert (tmp_path / "run" / "responses" / kept.name).stat().st_mtime_ns == before

    def test_finished_stage_is_left_alone(self, sampled: Any, capsys: pytest.CaptureFixture[str]) -> None:
        sample.run(sampled[0])
        assert "up to date" in capsys.readouterr().out


def test_model_that_is_no_vision_language_model_is_refused_before_anything_starts(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    with pytest.raises(UserError, match="LLaVA checkpoint"):
        sample.run(make_config(tmp_path / "images", tmp_path / "run", model=str(tmp_path)))


def test_chat_agrees_with_the_backbone_that_reads_the_responses_later(chat: ImageChat) -> None:
    from fgaif_ray.models.backbone import banned_token_ids, load_backbone

    backbone = load_backbone(str(POLICY))
    assert list(chat.token_ids(PROMPTS[0])) == backbone.prompt_ids(PROMPTS[0])
    assert chat.banned == banned_token_ids(backbone)
    assert chat.image_tokens == backbone.image_token_count(Image.new("RGB", (60, 60)))


def test_prompt_that_holds_the_image_token_is_refused(chat: ImageChat) -> None:
    with pytest.raises(ValueError, match="image token"):
        chat.token_ids("Compare with <image> please.")


def test_request_seeds_depend_on_run_and_sample() -> None:
    assert len({request_seed(0, "a"), request_seed(1, "a"), request_seed(0, "b")}) == 3

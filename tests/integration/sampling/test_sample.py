"""Sampling: real Ray Data, a real engine, and a folder of images of which some are no images."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.sampling_runs import GOOD_IMAGES, MAX_TOKENS, POLICY, PROMPTS, make_config, write_images

from actors.sampling.sampler import request_seed, shared_prefix
from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.segments import split_segments
from fgaif_ray.vlm.front_end import FrontEnd, load_front_end
from jobs import sample


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory, ray_cluster: Any) -> tuple[Config, list[dict[str, Any]]]:
    root = tmp_path_factory.mktemp("sample")
    write_images(root / "images")
    config = make_config(root / "images", root / "run")
    config = config.model_copy(update={"data": config.data.model_copy(update={"sample_images": GOOD_IMAGES + 4})})
    sample.run(config)
    return config, list(storage.read_rows(storage.join(config.run.dir, "responses")))


@pytest.fixture(scope="module")
def front_end() -> FrontEnd:
    return load_front_end(str(POLICY))


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

    def test_response_is_the_decoded_token_ids(self, sampled: Any, front_end: FrontEnd) -> None:
        _, rows = sampled
        assert all(row["response"] == front_end.decode(row["token_ids"]) for row in rows)

    def test_end_token_is_kept_exactly_where_the_response_ended(self, sampled: Any) -> None:
        _, rows = sampled
        end = 2
        assert {"stop"} <= {row["finish_reason"] for row in rows} <= {"stop", "length"}
        for row in rows:
            if row["finish_reason"] == "stop":
                assert row["token_ids"].index(end) == len(row["token_ids"]) - 1
            else:
                assert end not in row["token_ids"] and len(row["token_ids"]) == MAX_TOKENS

    def test_banned_tokens_are_never_sampled(self, sampled: Any, front_end: FrontEnd) -> None:
        _, rows = sampled
        assert not {token for row in rows for token in row["token_ids"]} & set(front_end.banned_token_ids)

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


@pytest.mark.ray
@pytest.mark.vllm
def test_several_responses_to_a_prompt_share_their_beginnings(
    sampled: Any, front_end: FrontEnd, tmp_path: Path
) -> None:
    """The first response is that of a run with one; the others begin like it and go their own ways."""
    config, before = sampled
    several = {"samples_per_prompt": 4, "shared_prefixes": True, "batch_size": 40}
    again = config.model_copy(
        update={
            "run": config.run.model_copy(update={"dir": str(tmp_path / "run")}),
            "sample": config.sample.model_copy(update=several),
        }
    )
    sample.run(again)
    manifest = storage.read_manifest(again.run.dir, "responses")
    assert manifest is not None
    assert (manifest["rows"], manifest["rejected"]) == (4 * GOOD_IMAGES, 16)  # of three images, and of one repeated
    rows = list(storage.read_rows(storage.join(again.run.dir, "responses")))
    first = {row["sample_id"]: row for row in before}
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["image"], row["prompt"]), []).append(row)
    shared = own = 0
    for group in groups.values():
        [one] = [row for row in group if row["sample_id"] in first]
        assert one["token_ids"] == first[one["sample_id"]]["token_ids"]
        others = [row for row in group if row is not one]
        assert len(others) == 3
        for row in others:
            assert row["response"] == front_end.decode(row["token_ids"]) and len(row["token_ids"]) <= MAX_TOKENS
            spans = split_segments(one["response"])
            shared += any(row["response"].startswith(one["response"][: span.end].rstrip()) for span in spans[:-1])
            kept = shared_prefix(front_end.tokenizer, one["token_ids"], request_seed(again.run.seed, row["sample_id"]))
            assert tuple(row["token_ids"][: len(kept)]) == kept
            differs = row["token_ids"] != one["token_ids"]
            assert differs or kept or len(spans) < 2
            own += differs
    assert own > len(rows) / 2  # of three quarters; the last segment alone may well be drawn as it was
    assert shared > len(rows) / 4  # of three quarters of the rows; the rest begin with another segment


def ask(image: str, prompt: str, response: str | None) -> dict[str, Any]:
    return {"image": image, "prompt": prompt, "response": response}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, ray_cluster: Any) -> tuple[Config, list[dict[str, Any]]]:
    """Rows of which some bring their response."""
    root = tmp_path_factory.mktemp("given")
    write_images(root / "images")
    asked = [
        ask("a000.png", "What is it?", "A red circle."),
        ask("a000.png", "What is it?", "A blue square."),  # of another model, say
        ask("a000.png", "What is it?", "A red circle."),  # once more
        ask("a000.png", "What is it?", None),
        ask("a001.png", "Who is it?", None),
        ask("a001.png", "Why is it?", " "),
        ask("a902-empty.png", "What is it?", "Nothing."),
        ask("a902-empty.png", "Who is it?", None),
        ask("gone.png", "Who is it?", "Nobody."),
        ask("a002.png", "Who is it? " * 200, None),  # leaves no room for an answer
        *(ask(f"b{index:03d}.png", "What is it?", None) for index in range(9)),
    ]
    lines = "".join(json.dumps(row) + "\n" for row in asked)
    (root / "images" / "rows.jsonl").write_text(lines)
    config = make_config(root / "images" / "rows.jsonl", root / "run")
    data = config.data.model_copy(update={"source": "rows", "sample_images": 5, "align_images": 8})
    config = config.model_copy(update={"data": data})
    sample.run(config)
    return config, list(storage.read_rows(storage.join(config.run.dir, "responses")))


@pytest.mark.ray
@pytest.mark.vllm
class TestGivenResponses:
    def test_given_responses_stay_and_only_the_others_are_sampled(self, mixed: Any) -> None:
        _, rows = mixed
        told = {(row["prompt"], row["response"]) for row in rows if row["model"] == "given"}
        assert told == {("What is it?", "A red circle."), ("What is it?", "A blue square.")}
        sampled = {(Path(row["image"]).name, row["prompt"]) for row in rows if row["model"] == str(POLICY)}
        assert sampled == {("a000.png", "What is it?"), ("a001.png", "Who is it?"), ("a001.png", "Why is it?")}
        assert len(rows) == len({row["sample_id"] for row in rows}) == 5

    def test_only_sampled_responses_have_token_ids(self, mixed: Any) -> None:
        for row in mixed[1]:
            assert (row["token_ids"] is None) == (row["finish_reason"] is None) == (row["model"] == "given")

    def test_every_row_is_kept_or_named_with_the_reason(self, mixed: Any) -> None:
        manifest = storage.read_manifest(mixed[0].run.dir, "responses")
        rejected = {(Path(row["image"]).name, row["prompt"][:11]): row["reason"] for row in manifest["rejected_images"]}
        assert (manifest["rows"], manifest["rejected"], len(rejected)) == (5, 5, 5)
        assert manifest["finish_reasons"]["given"] == 2
        assert "same image and prompt and response" in rejected["a000.png", "What is it?"]
        assert "max_model_len" in rejected["a002.png", "Who is it? "]

    def test_an_interrupted_run_goes_on(self, mixed: Any, tmp_path: Path) -> None:
        """The given part is lost, so that no engine is needed."""
        config, rows = mixed
        again = config.model_copy(update={"run": config.run.model_copy(update={"dir": str(tmp_path / "run")})})
        partial = tmp_path / "run" / "responses.partial"
        shutil.copytree(Path(config.run.dir) / "responses", partial)
        manifest = storage.read_manifest(config.run.dir, "responses")
        (partial / storage.MANIFEST).unlink()
        (partial / "_fingerprint").write_text(manifest["fingerprint"])
        [lost] = partial.glob("part-given-*.parquet")
        lost.unlink()
        sample.run(again)
        resumed = list(storage.read_rows(str(tmp_path / "run" / "responses")))
        assert sorted(resumed, key=lambda row: row["sample_id"]) == sorted(rows, key=lambda row: row["sample_id"])

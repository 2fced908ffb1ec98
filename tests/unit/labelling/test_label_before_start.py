"""The labelling job before it starts anything: what it refuses, and what a dry run counts."""

from pathlib import Path

import pytest
from support.label_helpers import ROWS, make_config, write_responses

from actors.labelling import extraction
from actors.labelling.cost import show_cost
from actors.labelling.extraction import new_extractor
from fgaif_ray import storage
from fgaif_ray.calls.answers import AnswerWriter, CallAnswer, cache_folder
from fgaif_ray.errors import UserError
from fgaif_ray.segments import split_segments
from jobs import label


def test_endpoint_that_is_down_is_refused_before_anything_starts(tmp_path: Path) -> None:
    config = make_config(tmp_path, "http://127.0.0.1:9/v1")
    write_responses(config)
    with pytest.raises(UserError, match=r"does not answer: start it or correct label\.extractor\.base_url"):
        label.run(config)
    assert storage.read_manifest(config.run.dir, "feedback") is None


def test_labelling_before_sampling_names_the_job_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"jobs\.sample"):
        label.run(make_config(tmp_path, "http://127.0.0.1:9/v1"))


def test_dry_run_counts_both_modes_calls_nothing_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path, "http://127.0.0.1:9/v1")
    extractor = config.label.extractor.model_copy(update={"prompt": "extract-v1"})
    config = config.model_copy(update={"label": config.label.model_copy(update={"extractor": extractor})})
    rows = write_responses(config)
    capsys.readouterr()
    before = sorted(path for path in tmp_path.rglob("*"))
    show_cost(config, label.pending_responses(config))
    printed = capsys.readouterr().out
    calls = {(row["response"], span.start) for row in rows for span in split_segments(row["response"])}
    responses = {row["response"] for row in rows}
    assert f"{ROWS} of {ROWS} responses are to be labelled; nothing was called or written." in printed
    table = {line.split("  ")[0]: line.split()[-2:] for line in printed.splitlines()}
    assert table["calls"] == [f"{len(calls)}", f"{len(responses)}"]
    tokens = [[int(text.replace(",", "")) for text in table[name]] for name in ("prompt tokens", "completion tokens")]
    assert [float(text) for text in table["money (EUR)"]] == [
        pytest.approx((prompt * 2 + completion * 8) / 1e6, abs=1e-4) for prompt, completion in zip(*tokens)
    ]
    assert "characters / 4" in printed
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_dry_run_leaves_out_what_the_cache_knows_and_a_mode_the_prompt_cannot_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path, "http://127.0.0.1:9/v1")
    rows = write_responses(config)
    extractor = new_extractor(config.label.extractor, extraction.Endpoint(None, None), config.run.types)
    segments = [rows[0]["response"][span.start : span.end] for span in split_segments(rows[0]["response"])]
    writer = AnswerWriter(cache_folder(config.run.dir, None))
    for question in extractor.questions(rows[0]["response"], segments):
        writer.keep(extractor.key(question), CallAnswer([[]], None, None, "", 10, 5))
    show_cost(config, label.pending_responses(config))
    table = {line.split("  ")[0]: line.split()[-2:] for line in capsys.readouterr().out.splitlines()}
    calls = {(row["response"], span.start) for row in rows[1:] for span in split_segments(row["response"])}
    assert table["calls"] == [str(len(calls)), "-"]

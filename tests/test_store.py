"""The run store: keyed by content, appended, resumable, never half a run."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from tiny import build

import ssmax_eval
from ssmax_eval.cli import main
from ssmax_eval.data.needles import Needle
from ssmax_eval.errors import UserError
from ssmax_eval.mechanisms.registry import MECHANISMS
from ssmax_eval.mechanisms.spelling import Attention
from ssmax_eval.models.subjects import RunOptions
from ssmax_eval.position.position import Position
from ssmax_eval.position.rope import RopeSetting
from ssmax_eval.probes.needle.probe import NeedleProbe
from ssmax_eval.readers.answers import UNSCORED
from ssmax_eval.readers.transformers import TransformersReader
from ssmax_eval.results import load_results
from ssmax_eval.run import run_probe
from ssmax_eval.setting import Setting
from ssmax_eval.store import Run, run_id_of

PROBE = NeedleProbe(context_lengths=(96, 128), depth_percents=(0, 100), trials=2)
COLUMNS = set(
    "model attention rope_theta rope_theta_factor task context_length depth_percent realised_depth_percent trial seed "
    "expected predicted correct first_correct answer_nll answer_ranks needle_start needle_end prompt_sha256 error".split()
)


ROW = {"sample": "a", "model": "m", "attention": "softmax", "rope": "as trained", "context_length": 9, "error": None}


def run(checkpoint, tmp_path, probe=PROBE, rope=None, attention=None, **settings):
    asked = None if attention is None else Attention.of(attention)
    setting = Setting(asked, Position(rope or RopeSetting()))
    return run_probe(probe, str(checkpoint), [setting], RunOptions(output_path=tmp_path, **settings))[0]


def test_a_run_has_the_columns_and_the_record_of_the_design(checkpoint, tmp_path):
    done = run(checkpoint, tmp_path, attention="ssmax:s=0.2", rope=RopeSetting(theta_factor=50))
    rows, record = done.rows(), done.record()
    assert set(rows[0]) >= COLUMNS
    assert len(rows) == 8
    assert record["model"]["fingerprint"]
    assert record["attention"]["attention"] == "ssmax:s=0.2"
    assert record["attention"]["learned"]["model.layers.0.self_attn"]["s"] == pytest.approx([0.2] * 4)
    assert record["rope"]["requested"]["theta_factor"] == 50
    assert record["rope"]["effective"]["effective_theta"] == pytest.approx(500_000, rel=1e-4)
    assert {"versions", "device", "threads"} <= set(record["environment"])
    assert record["tokens"] == sum(row["context_length"] for row in rows)
    assert record["failed"] == 0
    assert str(tmp_path) not in done.record_path.read_text()


def test_run_again_adds_nothing_and_does_not_load(checkpoint, tmp_path, monkeypatch):
    first = run(checkpoint, tmp_path)
    before = first.rows_path.read_bytes()
    monkeypatch.setattr(
        "ssmax_eval.models.subjects.load_model", lambda *a, **k: pytest.fail("loaded a model for a finished run")
    )
    assert run(checkpoint, tmp_path).rows_path.read_bytes() == before


def test_fresh_starts_over(checkpoint, tmp_path):
    first = run(checkpoint, tmp_path)
    stamp = first.record_path.stat().st_mtime_ns
    again = run(checkpoint, tmp_path, fresh=True)
    assert again.folder == first.folder
    assert again.record_path.stat().st_mtime_ns > stamp
    assert len(again.rows()) == 8


@pytest.mark.parametrize("cut", [0.0, 0.3, 0.55, 0.9, 1.0])
def test_an_interrupted_run_ends_with_the_same_rows(checkpoint, tmp_path, cut):
    whole = run(checkpoint, tmp_path / "whole")
    text = whole.rows_path.read_bytes()
    part = Run(tmp_path / "part" / "needle" / whole.run_id)
    part.folder.mkdir(parents=True)
    part.rows_path.write_bytes(text[: int(len(text) * cut)])  # mostly in the middle of a line
    finished = run(checkpoint, tmp_path / "part")
    assert finished.rows_path.read_bytes() == text
    assert finished.is_complete


def test_kill_at_a_random_moment_and_run_again(checkpoint, tmp_path):
    words = ["needle", "--model", str(checkpoint), "--context-lengths", "128,256", "--depth-percents", "0,25,50,75,100"]
    words += ["--trials", "8", "--batch-size", "1", "--no-report", "--output-path"]

    def run_here(folder):  # to be killed, a process of its own is needed; to run, it would be seconds of imports
        with pytest.raises(SystemExit) as stop:
            main([*words, str(tmp_path / folder)])
        assert stop.value.code == 0

    run_here("whole")
    process = subprocess.Popen(
        [sys.executable, "-m", "ssmax_eval", *words, str(tmp_path / "killed")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    rows = None
    while process.poll() is None and not (rows and rows[0].stat().st_size > 0):
        rows = list((tmp_path / "killed").rglob("rows.jsonl"))
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "killed").rglob("run.json"))
    run_here("killed")
    one, two = (next((tmp_path / name).rglob("rows.jsonl")).read_bytes() for name in ("whole", "killed"))
    assert one == two


def test_trap_15_every_choice_changes_the_run_id(checkpoint, tmp_path):
    import dataclasses

    ids = {
        run(checkpoint, tmp_path, probe, rope, mechanism).run_id
        for probe, rope, mechanism in [
            (PROBE, None, None),
            (dataclasses.replace(PROBE, seed=1), None, None),
            (dataclasses.replace(PROBE, needle=Needle(value="word")), None, None),
            (dataclasses.replace(PROBE, haystack="noise"), None, None),
            (dataclasses.replace(PROBE, scoring="generate"), None, None),
            (dataclasses.replace(PROBE, trials=1), None, None),
            (PROBE, RopeSetting(theta_factor=10), None),
            (PROBE, RopeSetting(scaling="linear:2"), None),
            (PROBE, None, "ssmax"),
            (PROBE, None, "ssmax:s=0.3"),
        ]
    }
    assert len(ids) == 10


def test_trap_15_other_weights_are_another_run(checkpoint, tmp_path):
    import shutil

    other = tmp_path / "other" / "tiny-llama"
    shutil.copytree(checkpoint, other)
    build("Llama", seed=5, vocab_size=1024, max_position_embeddings=512).save_pretrained(other)
    assert run(other, tmp_path).run_id != run(checkpoint, tmp_path).run_id


def test_trap_15_a_haystack_file_counts_by_its_content(checkpoint, tmp_path):
    import dataclasses

    text = tmp_path / "a.txt"
    text.write_text("It rained all day. Nobody minded. " * 40)
    first = run(checkpoint, tmp_path, dataclasses.replace(PROBE, haystack=str(text))).run_id
    text.write_text("It snowed all day. Nobody minded. " * 40)
    assert run(checkpoint, tmp_path, dataclasses.replace(PROBE, haystack=str(text))).run_id != first


def test_batch_size_and_device_do_not_change_the_run(checkpoint, tmp_path):
    assert run(checkpoint, tmp_path, batch_size=1).run_id == run(checkpoint, tmp_path, device="cpu").run_id


def test_trap_15_failures_are_counted_and_not_zero(checkpoint, tmp_path, monkeypatch):
    from ssmax_eval import statistics

    def no_memory(self, prompts, chunk=None):
        if len(prompts[0].ids) > 100:
            import torch

            raise torch.OutOfMemoryError("CUDA out of memory")
        return [{**UNSCORED, "correct": True, "first_correct": True, "error": None}] * len(prompts)

    monkeypatch.setattr(TransformersReader, "answers", no_memory)
    done = run(checkpoint, tmp_path)
    assert done.record()["failed"] == 4
    cells = statistics.cells(statistics.with_series(load_results(done)))
    long = cells[cells.context_length == 128]
    assert long.accuracy.isna().all()
    assert (long.failed == 2).all()
    assert (cells[cells.context_length == 96].accuracy == 1).all()


def test_two_processes_cannot_write_one_run(tmp_path):
    store = Run(tmp_path / "needle" / "abc")
    with store.writer() as writer:
        writer.append([ROW])
        with pytest.raises(UserError, match="another process"), store.writer():
            pass


def test_broken_rows_are_named(tmp_path):
    store = Run(tmp_path / "needle" / "abc")
    with store.writer() as writer:
        writer.append([ROW])
    store.rows_path.write_text(json.dumps(ROW) + "\nnot json\n{}\n")
    with pytest.raises(UserError, match="line 2"):
        store.rows()


def test_run_id_is_stable():
    assert run_id_of({"b": 1, "a": [1.0, None]}) == run_id_of({"a": [1.0, None], "b": 1}) == "3ac32bb8cd38"


def test_python_api_is_the_command_line(checkpoint, tmp_path):
    grid = {"context_lengths": [96, 128], "depth_percents": [0, 100], "trials": 2, "output_path": tmp_path}
    frame = ssmax_eval.needle(str(checkpoint), rope_theta_factor=[1, 10], attention=["softmax", "ssmax"], **grid)
    assert isinstance(frame, pd.DataFrame)
    assert frame.groupby(["attention", "rope"]).size().tolist() == [8, 8, 8, 8]
    assert run(checkpoint, tmp_path).run_id in set(frame.run_id)
    assert frame.correct.dtype == "boolean"


def test_loaded_models_can_be_given(tokenizer, checkpoint, tmp_path):
    models = {"one": (build("Llama", vocab_size=1024), tokenizer), "two": (build("Qwen3", vocab_size=1024), tokenizer)}
    frame = ssmax_eval.needle(models, context_lengths=[96], depth_percents=[50], trials=3, output_path=tmp_path)
    assert frame.groupby("model").size().to_dict() == {"one": 3, "two": 3}
    # pairing by construction: the same prompts for both
    assert frame[frame.model == "one"].prompt_sha256.tolist() == frame[frame.model == "two"].prompt_sha256.tolist()
    with pytest.raises(UserError, match="two models have this name"):
        ssmax_eval.needle([str(checkpoint), str(checkpoint)], context_lengths=[96])


def test_records_are_plain_json(checkpoint, tmp_path):
    done = run(checkpoint, tmp_path)

    def refuse(name):
        raise AssertionError(name)

    json.loads(done.record_path.read_text(), parse_constant=refuse)
    for line in done.rows_path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_what_failed_is_tried_again(checkpoint, tmp_path, monkeypatch):

    def no_memory(self, prompts, chunk=None):
        return [{**UNSCORED, "error": "out of memory"}] * len(prompts)

    with monkeypatch.context() as patch:
        patch.setattr(TransformersReader, "answers", no_memory)
        failed = run(checkpoint, tmp_path)
        run(checkpoint, tmp_path)  # tried again, and failed again
    assert failed.record()["failed"] == 8
    assert len(failed.rows_path.read_text().splitlines()) == 8
    again = run(checkpoint, tmp_path)
    assert len(again.rows_path.read_text().splitlines()) == 8  # one line a sample, however often it was tried
    assert again.run_id == failed.run_id
    assert again.record()["failed"] == 0
    assert len(again.rows()) == len(load_results(again)) == 8
    assert all(row["error"] is None for row in again.rows())


def test_fresh_loses_nothing_before_the_model_is_there(checkpoint, tmp_path, monkeypatch):
    done = run(checkpoint, tmp_path)

    def fails(*arguments, **options):
        raise UserError("no such device")

    monkeypatch.setattr("ssmax_eval.models.subjects.load_model", fails)
    with pytest.raises(UserError, match="no such device"):
        run(checkpoint, tmp_path, fresh=True)
    assert done.is_complete
    assert len(done.rows()) == 8


def test_a_trained_mechanism_keeps_its_values_and_its_name_swaps_a_fresh_one_in(checkpoint, tmp_path, tokenizer):
    import torch

    from ssmax_eval.mechanisms.attach import attach
    from ssmax_eval.mechanisms.layers import attention_modules

    model = build("Llama", vocab_size=1024, max_position_embeddings=512)
    attach(model, "ssmax:s=0.2")
    for module in attention_modules(model).values():
        module.ssmax.s.data = torch.tensor([0.1, 0.2, 0.3, 0.4])
    folder = tmp_path / "trained"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["ssmax"]["attention"] = "ssmax:s=0.20"  # a spelling that is not the canonical one
    (folder / "config.json").write_text(json.dumps(config))
    native = run(folder, tmp_path).record()["attention"]
    swapped = run(folder, tmp_path, attention="ssmax:s=0.2").record()["attention"]
    assert native["learned"]["model.layers.0.self_attn"]["s"] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert swapped["learned"]["model.layers.0.self_attn"]["s"] == pytest.approx([0.2] * 4)
    assert (native["swapped"], swapped["swapped"]) == (False, True)


def test_a_pair_that_lost_its_mechanism_is_refused(tokenizer, tmp_path):
    model = build("Llama", vocab_size=1024)
    model.config.ssmax = {"attention": "ssmax", "train_length": 256}
    with pytest.raises(UserError, match="its layers carry none"):
        ssmax_eval.needle((model, tokenizer), context_lengths=[96], output_path=tmp_path)


def test_spellings_of_one_request_are_one_run(checkpoint, tmp_path):
    same = [
        run(checkpoint, tmp_path, rope=RopeSetting(scaling=scaling), attention=mechanism, dtype=dtype).run_id
        for scaling, mechanism, dtype in [
            ("linear:4", "ssmax-bias:b=1,s=.2", "auto"),
            ("linear:4.0", "ssmax-bias:s=0.20,b=1.0", "fp32"),
            ("linear:4", "ssmax-bias:s=2e-1,b=1", "float32"),
        ]
    ]
    assert len(set(same)) == 1


def test_edited_code_of_a_users_mechanism_is_another_mechanism(tmp_path):
    from ssmax_eval.models.mechanism_code import code_source

    source = "from ssmax_eval import QueryScale, register\n@register\nclass Mine(QueryScale):\n"
    source += "    'C'\n    name = 'mine'\n    factor = {}\n"
    sources = []
    try:
        for factor in (1, 2):
            path = tmp_path / f"mechanism{factor}.py"
            path.write_text(source.format(factor))
            import importlib.util

            spec = importlib.util.spec_from_file_location(f"mechanism{factor}", path)
            module = importlib.util.module_from_spec(spec)
            import sys as system

            system.modules[f"mechanism{factor}"] = module
            spec.loader.exec_module(module)
            sources.append(code_source(Attention.of("mine").mechanism))
    finally:
        MECHANISMS.pop("mine", None)
    assert None not in sources
    assert sources[0] != sources[1]
    assert code_source(Attention.of("ssmax").mechanism) is None


def test_a_complete_run_that_lost_rows_is_finished(checkpoint, tmp_path):
    done = run(checkpoint, tmp_path)
    text = done.rows_path.read_bytes()
    done.rows_path.write_bytes(text[:-20])
    assert run(checkpoint, tmp_path).rows_path.read_bytes() == text


def test_how_causes_are_told_rewrites_no_record(checkpoint, tmp_path):
    """A threshold belongs to the page that is asked for, whoever asks."""
    from typer.testing import CliRunner

    from ssmax_eval.cli import app

    grid = {"context_lengths": "128", "depth_percents": "0,100", "trials": "1", "output_path": str(tmp_path)}
    options = [part for key, value in grid.items() for part in (f"--{key.replace('_', '-')}", value)]

    def attention(*more):
        result = CliRunner().invoke(app, ["attention", "--model", str(checkpoint), *options, *more])
        assert result.exit_code == 0, result.output
        return next((tmp_path / "reports").glob("*.html")).read_text()

    assert "70% or more on the answer" in attention("--attended", "0.7")
    files = [file for file in (tmp_path / "attention").rglob("*") if file.is_file()]
    assert len(files) == 2
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
    assert "30% or more on the answer" in attention("--attended", "0.3")
    assert "50% or more on the answer" in attention()
    ssmax_eval.attention(
        str(checkpoint), context_lengths=[128], depth_percents=[0, 100], trials=1, output_path=tmp_path
    )
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files} == before
    assert len([*tmp_path.rglob("run.json")]) == 1


def test_fresh_does_not_touch_a_run_that_another_process_writes(checkpoint, tmp_path):
    done = run(checkpoint, tmp_path)
    text = done.rows_path.read_bytes()
    with done.writer(), pytest.raises(UserError, match="another process"):
        run(checkpoint, tmp_path, fresh=True)
    assert done.rows_path.read_bytes() == text


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"model": "x"}', "not json", '{"model": {"label": "x"}}'])
def test_a_damaged_record_is_one_clear_error(checkpoint, tmp_path, text):
    done = run(checkpoint, tmp_path)
    done.record_path.write_text(text)
    with pytest.raises(UserError, match="--fresh"):
        ssmax_eval.report(tmp_path, tmp_path / "x.html")
    assert run(checkpoint, tmp_path, fresh=True).record()["rows"] == 8


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "[]",
        "3",
        "{}",
        '{"sample": "a", "correct": "no", "context_length": 96}',
        '{"sample": "a", "error": 3, "context_length": 96}',
        '{"sample": "a"}',
    ],
)
def test_a_damaged_row_is_one_clear_error(checkpoint, tmp_path, text):
    done = run(checkpoint, tmp_path)
    done.rows_path.write_text(done.rows_path.read_text() + text + "\n")
    with pytest.raises(UserError, match="line 9"):
        load_results(done)


def test_lengths_are_checked_for_every_needle_before_anything_runs(checkpoint, tmp_path):
    import re

    probe = NeedleProbe(context_lengths=(40, 60, 61, 62), depth_percents=(0, 50, 100), trials=6)
    with pytest.raises(UserError, match="give at least") as error:
        run(checkpoint, tmp_path, probe)
    assert not list(tmp_path.rglob("rows.jsonl"))
    least = int(re.search(r"at least (\d+)", str(error.value))[1])
    assert len(run(checkpoint, tmp_path, NeedleProbe(context_lengths=(least,), trials=6)).rows()) == 30

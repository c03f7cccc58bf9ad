"""What somebody could do to a run, a launch or a page: told in a line, and never a wrong number."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from test_cli import call

import ssmax_eval
from ssmax_eval import statistics
from ssmax_eval.data.encoding import Encoder
from ssmax_eval.data.prompts import value_spans
from ssmax_eval.errors import UserError
from ssmax_eval.models.subjects import RunOptions
from ssmax_eval.probes.loss.probe import LossProbe
from ssmax_eval.probes.needle.probe import NeedleProbe
from ssmax_eval.probes.needle.sections import grids, prompts
from ssmax_eval.report import section
from ssmax_eval.results import load_results
from ssmax_eval.run import run_probes
from ssmax_eval.store import Run

GRID = {"context_lengths": (96, 128), "depth_percents": (0, 100), "trials": 2}
ASKED = ("--context-lengths", "96,128", "--depth-percents", "0,100", "--trials", 2)


@pytest.fixture(scope="module")
def runs(checkpoint, tmp_path_factory):
    probes = [NeedleProbe(**GRID), LossProbe(context_length=96, documents=1, window=16)]
    return run_probes(probes, str(checkpoint), options=RunOptions(output_path=tmp_path_factory.mktemp("runs")))


def changed(run, folder, place=0, every=False, **changes):
    """Return a copy of a run, a row or every row of it with other values."""
    copy = Run(shutil.copytree(run.folder, folder / run.folder.parent.name / run.run_id), run.schema)
    rows = [json.loads(line) for line in copy.rows_path.read_text().splitlines()]
    rows = [row | changes if every or i == place else row for i, row in enumerate(rows)]
    copy.rows_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return copy


@pytest.mark.parametrize(
    ("probe", "changes", "says"),
    [
        (0, {"error": "out of memory"}, "a row has one of them"),
        (0, {"correct": None}, "a row has one of them"),
        (1, {"error": "out of memory"}, "a row has one of them"),
        (1, {"nll_sum": None}, "a row has one of them"),
        (0, {"rope": None}, "rope"),
        (0, {"model": None}, "model"),
    ],
)
def test_a_row_that_says_what_cannot_be_is_refused(runs, tmp_path, probe, changes, says):
    with pytest.raises(UserError, match=rf"line 1 of rows\.jsonl is broken \(.*{says}"):
        load_results(changed(runs[probe], tmp_path, **changes).folder)


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("probe", [0, 1])
@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "bfloat16"},
        {"attention_swapped": True},
        {"rope": "theta x 50"},
        {"rope_theta": 5e5},
        {"rope_theta_factor": 50.0},
        {"rope_scaling": "yarn:4"},
        {"seed": 7},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_rows_of_another_setting_are_not_of_the_record(runs, tmp_path, changes, probe, every):
    run = changed(runs[probe], tmp_path, every=every, **changes)
    with pytest.raises(UserError, match=f"it is of {next(iter(changes))} .* not of one run"):
        load_results(run.folder)


@pytest.mark.parametrize("value", [[1, 2], {"a": []}, "0"])
def test_a_record_whose_setting_is_of_another_kind_is_not_of_its_rows(runs, tmp_path, value):
    run = changed(runs[0], tmp_path)
    record = json.loads(run.record_path.read_text())
    record["parameters"]["seed"] = value
    run.record_path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="it is of seed .* not of one run"):
        load_results(run.folder)


def test_rows_of_another_setting_are_not_gone_on_with(runs, checkpoint, tmp_path, capsys):
    for complete in (True, False):
        run = changed(runs[0], tmp_path / str(complete), rope_theta=5e5)
        if not complete:
            run.record_path.unlink()
        asked = ("needle", "--model", checkpoint, *ASKED, "--output-path", tmp_path / str(complete), "--no-report")
        before = run.rows_path.read_bytes()
        code, out, err = call(capsys, *asked)
        assert (code, out) == (2, "")
        assert "it is of rope_theta" in err.splitlines()[-1]
        assert run.rows_path.read_bytes() == before
        assert call(capsys, *asked, "--fresh")[0] == 0
        assert run.rows() == runs[0].rows()


def test_a_renamed_sample_is_made_again(runs, checkpoint, tmp_path, capsys):
    run = changed(runs[0], tmp_path, sample="another")
    asked = ("needle", "--model", checkpoint, *ASKED, "--output-path", tmp_path, "--no-report")
    assert "1 prompt" in call(capsys, *asked, "--dry-run")[1]
    assert call(capsys, *asked)[0] == 0
    assert run.rows() == runs[0].rows()


class Plan(NeedleProbe):
    """A needle probe whose plan or rows are wrong."""

    def plan(self):
        return [] if self.trials == 3 else [*super().plan()] * 2

    def names(self, sample):
        return [sample.name] if self.trials > 1 else [f"{sample.name}/{id(sample)}"]


@pytest.mark.parametrize(("trials", "says"), [(2, "two rows of its plan are named"), (3, "its plan is empty")])
def test_a_plan_that_would_lose_rows_is_refused_before_a_model_is_loaded(checkpoint, tmp_path, trials, says):
    with pytest.raises(UserError, match=says):
        run_probes([Plan(**{**GRID, "trials": trials})], str(checkpoint), options=RunOptions(output_path=tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("change", "says"), [({"mine": 1}, "unknown field `mine`"), ({"trial": None}, "trial")])
def test_a_probes_row_that_is_not_as_it_says_is_one_line(checkpoint, tmp_path, monkeypatch, change, says):
    right = NeedleProbe.row
    monkeypatch.setattr(NeedleProbe, "row", lambda *given: right(*given) | change)
    with pytest.raises(UserError, match=f"probe needle: its row .* is not as its rows.py says .*{says}"):
        run_probes([NeedleProbe(**GRID)], str(checkpoint), options=RunOptions(output_path=tmp_path))


def test_no_models_are_no_empty_table():
    for models in ([], {}, ()):
        with pytest.raises(UserError, match="none; give at least one"):
            ssmax_eval.needle(models, **GRID)


def test_categories_and_no_rows_are_rows_too(runs):
    rows = load_results(runs[0])
    names = ["model", "attention", "attention_swapped", "rope", "context_length", "prompt_sha256", "task"]
    several = pd.concat([rows, rows.assign(model="other")], ignore_index=True)
    categories = statistics.with_series(several.astype(dict.fromkeys(names, "category"))[several["model"] != "other"])
    pd.testing.assert_frame_equal(categories, statistics.with_series(rows))
    assert statistics.with_series(rows.iloc[:0]).empty
    with pytest.raises(UserError, match="no column 'model'"):
        statistics.with_series(pd.DataFrame())


@pytest.mark.parametrize(
    "given",
    [
        ("needle", "--context-lengths", "96", "--context-lengths", "128"),
        ("needle", "--context_lengths", "96", "--context-lengths=96"),
        ("loss", "--no-report", "--report"),
        ("run", "--seed", "1", "--seed", "2"),
        ("train", "cpu", "--out", "x", "--out", "y"),
        ("report", "runs", "--out", "x.html", "--out", "y.html"),
        ("models", "--json", "--json"),
    ],
)
def test_an_option_that_is_given_twice_is_one_line(capsys, given):
    code, out, err = call(capsys, *given)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "is given 2 times: allowed is once" in err


def test_options_that_are_several_are_several(checkpoint, capsys):
    asked = ("--attention", "softmax", "--attention", "ssmax", "--model", checkpoint, "--model", f"b={checkpoint}")
    assert call(capsys, "needle", *asked, *ASKED, "--dry-run")[0] == 0


def broken(*_, **__):
    raise ZeroDivisionError("by <nothing>")


@pytest.mark.parametrize("part", ["numbers", "page", "lead", "data", "tables", "summary"])
def test_a_part_that_fails_takes_no_other_with_it(runs, checkpoint, tmp_path, capsys, monkeypatch, part):
    whole = ssmax_eval.report(runs, tmp_path / "whole.html").read_text()
    monkeypatch.setattr(section, "TOLERATED", (Exception,))
    monkeypatch.setattr(type(grids.SECTION), part, broken)
    page = ssmax_eval.report(runs, tmp_path / "page.html").read_text()
    if part in ("numbers", "page"):
        assert "needle, grids: this part cannot be shown (ZeroDivisionError: by &lt;nothing&gt;)" in page
    assert "Where the numbers come from" in page
    assert page.count("<section") >= whole.count("<section") - 2
    asked = ("needle", "--model", checkpoint, *ASKED, "--output-path", runs[0].folder.parents[1])
    for how in ((), ("--json",)):
        code, out, err = call(capsys, *asked, *how)
        assert code == 0
        assert out.rstrip().endswith(".html") or json.loads(out)["report"].endswith(".html")
        if part == "numbers":
            assert "this part cannot be shown" in err


def test_what_a_user_asks_wrongly_is_still_an_error(runs, tmp_path, monkeypatch):
    def refuses(*_):
        raise UserError("baseline: no")

    monkeypatch.setattr(section, "TOLERATED", (Exception,))
    monkeypatch.setattr(type(grids.SECTION), "numbers", refuses)
    with pytest.raises(UserError, match="baseline: no"):
        ssmax_eval.report(runs, tmp_path / "page.html")


def test_a_record_without_a_theta_has_a_page(runs, tmp_path):
    run = changed(runs[0], tmp_path)
    record = run.record()
    del record["rope"]["effective"]["effective_theta"]
    run.record_path.write_text(json.dumps(record))
    assert ssmax_eval.report(run.folder, tmp_path / "page.html").exists()


@pytest.mark.parametrize("value", [None, np.nan, np.inf, -np.inf, 1e308, -1e308])
def test_a_mass_that_is_no_percent_is_none(value):
    assert prompts.percent(value) == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_stderr_costs_no_run(checkpoint, tmp_path):
    asked = [sys.executable, "-m", "ssmax_eval", "needle", "--model", str(checkpoint), *map(str, ASKED), "--no-report"]
    with open("/dev/full", "w") as full:
        out = subprocess.run(
            [*asked, "--output-path", tmp_path], stdout=subprocess.PIPE, stderr=full, text=True, check=False
        )
        assert out.returncode == 0
        assert "run " in out.stdout
        wrong = subprocess.run([*asked, "--seed", "x"], stdout=subprocess.PIPE, stderr=full, check=False)
        assert wrong.returncode == 2


def test_a_launch_that_does_not_meet_says_what_it_waits_for(caplog, monkeypatch):
    from ssmax_eval import processes, progress

    with progress.said_after(0.05, "waiting for the first process at 10.0.0.1:1"):
        time.sleep(0.5)
    with progress.said_after(5, "too early"):
        pass
    assert [message for message in caplog.messages if "waiting" in message or "early" in message] == [
        "ssmax-eval: note: waiting for the first process at 10.0.0.1:1"
    ]
    monkeypatch.setattr(processes, "said_after", broken)
    processes.connected.cache_clear()
    with pytest.raises(ZeroDivisionError):
        processes.connected()
    processes.connected.cache_clear()


def test_a_rank_that_is_none_says_which_are(monkeypatch):
    from ssmax_eval.launch import launched

    for count, rank, says in (("1", "x", "0 alone, as WORLD_SIZE is 1"), ("3", "3", "0 to 2, below WORLD_SIZE 3")):
        monkeypatch.setenv("WORLD_SIZE", count)
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(UserError, match=f"RANK '{rank}': allowed is {says}"):
            launched()


@pytest.mark.parametrize("text", ["spicy-lamp, icy-lamp", "icy-lamp, spicy-lamp", "12, 2, 112"])
def test_a_value_is_not_found_inside_another(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    spans = value_spans(Encoder(tokenizer, ".", " "), ids, text)
    assert [start for start, _ in spans] == sorted({start for start, _ in spans})
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    found = [tokenizer.decode(ids[start:end]).strip(" ,") for start, end in spans]
    assert found == text.split(", ")


def test_rows_of_a_users_probe_that_were_run_twice_count_once(runs):
    told = ["sample", "model", "attention", "attention_swapped", "rope", "fingerprint", "dtype", "error"]
    own = load_results(runs[1])[told].assign(probe="mine", run_id="a")
    failed = own.iloc[:1].assign(error="out of memory")
    twice = pd.concat([own, own, failed, own.assign(run_id="b")], ignore_index=True)
    found = statistics.with_series(twice)
    assert found.groupby("run_id").size().to_dict() == {"a": len(own), "b": len(own)}
    assert found["error"].isna().all()
    both = pd.concat([load_results(runs[0]), twice], ignore_index=True)
    assert len(statistics.with_series(both)) == 8 + 2 * len(own)


def test_rows_are_told_by_what_their_probe_says(runs):
    rows = load_results(*runs)
    assert set(statistics.of_prompts(rows)["probe"]) == {"needle"}
    assert set(statistics.of_documents(rows)["probe"]) == {"loss"}
    assert statistics.of_prompts(rows.assign(probe="mine")).empty  # of none that is known
    assert len(statistics.of_prompts(rows.drop(columns="probe"))) == 8


def test_training_is_on_a_page_of_any_probe(runs, tmp_path):
    for run in runs:
        copy = changed(run, tmp_path)
        record = copy.record()
        record["model"]["training"] = {"log": [{"tokens": 10 * i, "text_loss": 3.0 - i} for i in range(3)]}
        copy.record_path.write_text(json.dumps(record))
        page = ssmax_eval.report(copy.folder, tmp_path / "page.html").read_text()
        assert page.count("<h2>training</h2>") == 1, run.probe


def test_a_cost_calls_samples_what_their_probe_does(runs, checkpoint, capsys):
    for asked, says in ((("needle", *ASKED), "8 prompts"), (("loss", "--documents", 3), "3 documents")):
        assert f"; {says};" in call(capsys, *asked, "--model", checkpoint, "--dry-run")[1]

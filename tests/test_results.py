"""Stored rows as tables: whose they are, whether they belong to their record, and their details read later."""

import json
import random
import shutil
from itertools import islice

import pytest

import ssmax_eval
from ssmax_eval import report, statistics
from ssmax_eval.data.needles import Needle
from ssmax_eval.data.prose import prose
from ssmax_eval.errors import UserError
from ssmax_eval.models.subjects import RunOptions
from ssmax_eval.probes.loss.probe import LossProbe
from ssmax_eval.probes.needle.probe import NeedleProbe
from ssmax_eval.probes.needle.sections import prompts
from ssmax_eval.results import details_of, find_runs, load_results
from ssmax_eval.run import run_probes
from ssmax_eval.store import Run


@pytest.fixture(scope="module")
def runs(checkpoint, tmp_path_factory):
    """Return a needle run and an attention run of other prompts."""
    grid = {"depth_percents": (0, 100), "trials": 2, "needle": Needle()}
    probes = [
        NeedleProbe(context_lengths=(96, 128), **grid),
        NeedleProbe(context_lengths=(160,), attention_mass=True, **grid),
    ]
    return run_probes(probes, str(checkpoint), options=RunOptions(output_path=tmp_path_factory.mktemp("runs")))


def copied(run, folder):
    return Run(shutil.copytree(run.folder, folder), run.schema)


def test_a_run_is_its_probes_wherever_its_folder_is(runs, tmp_path, monkeypatch):
    copied(runs[0], tmp_path / "kept" / "baseline")
    monkeypatch.chdir(tmp_path / "kept" / "baseline")
    for path in (".", "rows.jsonl", "../baseline", tmp_path):
        assert [run.probe for run in find_runs(path)] == ["needle"]
    assert ssmax_eval.report(".", tmp_path / "page.html").exists()
    copied(runs[0], tmp_path / "needle" / "started").record_path.unlink()
    monkeypatch.chdir(tmp_path / "needle" / "started")
    assert [run.probe for run in find_runs(".")] == ["needle"]


@pytest.mark.parametrize("probe", ["needle", "unknown"])
def test_rows_and_a_record_that_are_not_of_one_run_are_refused(runs, tmp_path, probe):
    other = copied(runs[0], tmp_path / probe / "a")
    record = other.record() | {"probe": probe}

    def refused(match, **changes):
        other.record_path.write_text(json.dumps(record | changes))
        with pytest.raises(UserError, match=match):
            load_results(other.folder)

    refused("of 9 rows", rows=9)
    refused("model 'another'", model=record["model"] | {"label": "another"})
    refused("fingerprint 'f'", model=record["model"] | {"fingerprint": "f"})
    refused("attention 'ssmax'", attention=record["attention"] | {"attention": "ssmax"})
    other.record_path.write_text(json.dumps(record))
    assert len(load_results(other.folder)) == 8
    if probe == "needle":
        line, *rest = other.rows_path.read_text().splitlines(keepends=True)
        told = [json.dumps(json.loads(line) | {"model": model}) + "\n" for model in ("another", None)]
        other.rows_path.write_text("".join([*told, *rest[1:]]))
        with pytest.raises(UserError, match="one run|rows"):
            load_results(other.folder)


def test_a_page_whose_details_are_read_later_is_the_same(runs, tmp_path, monkeypatch):
    """With runs of two probes, one of them there twice, and a sample that was tried again."""
    again = copied(runs[0], tmp_path / "needle" / runs[0].run_id)
    first = json.loads(again.rows_path.read_text().partition("\n")[0])
    failed = first | dict.fromkeys(("correct", "first_correct", "predicted", "answer_ranks"))
    failed |= {"credit": None, "error": "out of memory"}
    again.rows_path.write_text(json.dumps(failed) + "\n" + again.rows_path.read_text())
    data = [*runs, again]
    whole = report.report(data, tmp_path / "whole.html").read_text()
    monkeypatch.setattr(report, "AT_ONCE", 0)
    monkeypatch.setattr(prompts, "BLOCK", 1)  # of some samples, before those of others
    assert report.report(data, tmp_path / "parts.html").read_text() == whole


def test_a_number_that_no_column_can_hold_is_one_line(runs, tmp_path):
    other = copied(runs[0], tmp_path / "needle" / "a")
    line, rest = other.rows_path.read_text().split("\n", 1)
    other.rows_path.write_text(json.dumps(json.loads(line) | {"trial": 10**30}) + "\n" + rest)
    with pytest.raises(UserError, match="a trial is beyond 64 bits"):
        load_results(other.folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"a_column_of_nobody": 1}, "unknown field `a_column_of_nobody`"),
        ({"answer_ranks": [0, "x"]}, r"answer_ranks\[1\]: Expected `int`"),
        ({"credit": 1.5}, "credit: Expected `float` <= 1.0"),
    ],
)
def test_a_row_that_is_not_as_its_schema_says_is_named(runs, tmp_path, change, says):
    other = copied(runs[0], tmp_path / "needle" / "a")
    line, rest = other.rows_path.read_text().split("\n", 1)
    other.rows_path.write_text(json.dumps(json.loads(line) | change) + "\n" + rest)
    with pytest.raises(UserError, match=says):
        load_results(other.folder)


def test_haystacks_of_one_name_are_never_pooled(checkpoint, tmp_path):
    """Two folders have a file of one name, or it is edited between two runs: the prompts are not of one task."""
    options = RunOptions(output_path=tmp_path / "runs")
    for seed in (0, 1):
        text = tmp_path / str(seed) / "hay.txt"
        text.parent.mkdir()
        text.write_text(" ".join(islice(prose(random.Random(seed)), 2000)))
        grid = {"context_lengths": (96,), "depth_percents": (0, 100), "trials": 2, "needle": Needle()}
        run_probes([NeedleProbe(haystack=str(text), **grid)], str(checkpoint), options=options)
    runs = find_runs(tmp_path / "runs")
    assert [load_results(run)["haystack"].unique().tolist() for run in runs] == [["hay.txt"]] * 2
    rows = load_results(*runs)
    shas = sorted(run.record()["parameters"]["haystack_sha256"][:6] for run in runs)
    assert sorted(rows["haystack"].unique()) == [f"hay.txt ({sha})" for sha in shas]
    assert len(statistics.lengths(rows)) == 2
    assert statistics.compare(rows, rows["series"].iloc[0], ()).empty
    read_again = details_of(runs, rows[["run_id", "sample"]])
    assert sorted(read_again["haystack"].unique()) == sorted(rows["haystack"].unique())


@pytest.mark.parametrize("probe", [NeedleProbe, LossProbe])
def test_a_text_of_ones_own_is_never_called_by_the_name_of_one_of_ours(checkpoint, tmp_path, probe):
    """A folder or file called `text` is not prose that is made here: neither pooled with it nor titled as it."""
    written = " ".join(islice(prose(random.Random(1)), 2000))
    (tmp_path / "text").write_text(written)
    options = RunOptions(output_path=tmp_path / "runs")
    for text in ("text", str(tmp_path / "text")):
        if probe is LossProbe:
            made = LossProbe(context_length=64, documents=1, text=text, window=16)
        else:
            made = NeedleProbe((96,), (0, 100), 2, haystack=text)
        run_probes([made], str(checkpoint), options=options)
    column = "text" if probe is LossProbe else "haystack"
    found = load_results(tmp_path / "runs")[column].unique().tolist()
    assert sorted(found) == ["text", "text (own)"]
    assert sorted(map(statistics.where_of, found)) == ["in generated prose", "in text (own)"]


def test_stored_rows_of_a_text_of_ones_own_that_was_called_text(runs, tmp_path):
    """Runs of before it had a name of its own: their record has the text's hash, which prose that is made here never has."""
    ours, own = runs[0], copied(runs[0], tmp_path / "needle" / "own")
    record = json.loads(own.record_path.read_text())
    record["run_id"] = "own"
    record["parameters"]["haystack_sha256"] = "abcdef0123"
    own.record_path.write_text(json.dumps(record))
    assert load_results(own)["haystack"].unique().tolist() == ["text (abcdef)"]
    assert sorted(load_results(ours, own)["haystack"].unique()) == ["text", "text (abcdef)"]

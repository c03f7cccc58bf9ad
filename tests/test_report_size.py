"""Many rows: the page keeps the prompts that tell most within its budget, and says so; blocks and groups count as one by one."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from test_report import data_of, frame, page_of, row
from test_trials import alike, grid

from ssmax_eval import load_results, statistics
from ssmax_eval.probes.needle.sections import prompts
from ssmax_eval.report import figures
from ssmax_eval.statistics import clusters, exact, reach

LENGTHS, DEPTHS, TRIALS = (512, 1024, 2048), (0.0, 50.0), 30


def many(task="single", trials=TRIALS):
    """Return two models' rows; they differ on trials 20 to 22 of each cell, and neither finds 23 to 25."""
    cells = itertools.product(LENGTHS, DEPTHS, range(trials))
    return [
        row(model, length, depth, trial, not (trial in (23, 24, 25) or (model == "b" and trial in (20, 21, 22))), task=task)
        for length, depth, trial in cells for model in "ab"
    ]  # fmt: skip


def test_a_page_has_those_prompts_that_tell_most_evenly_over_the_cells(tmp_path, monkeypatch):
    whole = page_of(many(), tmp_path)
    assert "prompts are on this page" not in whole
    assert "All rows as CSV" in whole
    (task,) = data_of(whole)["tasks"]
    assert len(task["prompts"]) == task["asked"] == 6 * TRIALS
    for each, kept in ((5, {20, 21, 22, 23, 24}), (8, {20, 21, 22, 23, 24, 25, 0, 1})):
        size = sum(prompts.payload("", named(many()), statistics.Thresholds())["bytes"])
        monkeypatch.setattr(
            prompts, "BUDGET", 6 * each * size / 6 / TRIALS * 1.12
        )  # wrong answers take more than right ones
        monkeypatch.setattr(prompts, "BLOCK", 4)
        page = page_of(many(), tmp_path)
        (task,) = data_of(page)["tasks"]
        found = {}
        for length, depth, trial, *_ in task["prompts"]:
            found.setdefault((length, depth), set()).add(trial)
        assert set(found) == set(itertools.product(LENGTHS, DEPTHS))
        sizes = {len(trials) for trials in found.values()}
        assert max(sizes) - min(sizes) <= 1
        assert all(trials <= kept | {2} for trials in found.values())
        assert [prompt[:3] for prompt in task["prompts"]] == sorted(prompt[:3] for prompt in task["prompts"])
        assert all(len(series["answers"]) == len(task["prompts"]) for series in task["series"])
        count = len(task["prompts"])
        assert (
            f"<strong>{count:,} of {6 * TRIALS:,} prompts are on this page; all are in the rows files.</strong>" in page
        )
        assert "Rows on this page as CSV" in page
        assert page == page_of(many(), tmp_path)
        # what is counted is all of it
        assert re.findall(r'aria-label="[^"]*, (\d+) prompts"', page) == ["30"] * 12
        monkeypatch.undo()


def named(rows):
    return statistics.with_series(frame(rows))


def test_a_small_task_stays_whole_beside_a_large_one(tmp_path, monkeypatch):
    size = sum(prompts.payload("", named(many(trials=5)), statistics.Thresholds())["bytes"])
    monkeypatch.setattr(prompts, "BUDGET", 3 * size)
    large, small = data_of(page_of([*many(), *many("multikey", trials=5)], tmp_path))["tasks"]
    assert len(small["prompts"]) == small["asked"] == 30
    assert 40 < len(large["prompts"]) < large["asked"] == 180
    assert sum(len(str(task)) for task in (large, small)) < 4 * size


def test_prompts_come_back_as_they_are_when_packed_in_blocks(tmp_path, monkeypatch):
    rows = [*many(trials=4), row("a", trial=9, correct=None)]
    once = data_of(page_of(rows, tmp_path))
    monkeypatch.setattr(prompts, "BLOCK", 3)
    assert data_of(page_of(rows, tmp_path)) == once


def test_draws_in_blocks_are_those_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    sums, sizes = rng.integers(-3, 4, 40).astype(float), rng.integers(3, 6, 40).astype(float)
    rows = named(grid(rng.random((12, 5, 5)) < 0.7))
    line = statistics.effective_lengths(rows)
    times = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), size=exact.RESAMPLES)
    at_once = exact.bootstrap(sums, sizes, 0)
    assert at_once == tuple(np.quantile((times @ sums) / (times @ sizes), [0.025, 0.975]))
    part = pd.DataFrame({"right": rng.random(60) < 0.5, "region": np.repeat(range(12), 5)}).astype(float)
    drawn = reach.drawn_trials([part, part[:40]], 0)
    for module in (clusters, exact):
        monkeypatch.setattr(module, "BLOCK", 1000)
    assert [*clusters.blocks(10, 300)] == [3, 3, 3, 1]
    assert exact.bootstrap(sums, sizes, 0) == pytest.approx(at_once, rel=1e-12)
    assert reach.drawn_trials([part, part[:40]], 0) == pytest.approx(drawn, rel=1e-12)
    pd.testing.assert_frame_equal(statistics.effective_lengths(rows), line)


def test_trials_of_groups_are_those_of_each_group():
    """Joined by overlap within a group only: against unions of pairs that overlap, one by one."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        rows = pd.DataFrame(grid(alike([1] * 9, 3, 2), lengths=LENGTHS, depths=DEPTHS))
        starts = rng.integers(0, 500, 9).astype(float)
        starts[rng.integers(0, 9)] = np.nan
        rows["haystack_start"], rows["haystack_sentences"] = starts[rows["trial"]], rows["context_length"] // 30
        rows = rows.sample(40, random_state=1)
        found = clusters.trials(rows, rows["context_length"])
        assert found.groupby(rows["context_length"]).nunique().sum() == found.nunique()
        for _, part in rows.groupby("context_length"):
            spans = {
                trial: (each["haystack_start"].min(), (each["haystack_start"] + each["haystack_sentences"]).max())
                for trial, each in part.groupby("trial")
            }
            group = {trial: {trial} for trial in spans}
            for (one, (start, end)), (other, (begin, close)) in itertools.combinations(spans.items(), 2):
                if start < close and begin < end and group[one] is not group[other]:
                    joined = group[one] | group[other]
                    group |= dict.fromkeys(joined, joined)
            told = found[part.index].groupby(part["trial"]).first()
            alike_ = {(a, b) for a, b in itertools.combinations(spans, 2) if told[a] == told[b]}
            assert alike_ == {(a, b) for a, b in itertools.combinations(spans, 2) if b in group[a]}


def test_of_many_prompts_a_figure_draws_some():
    top = pd.DataFrame(
        {"series": "a", "context_length": 512, "mass_answer": np.linspace(0, 1, 1000), "verdict": "right"}
    )
    ax = figures.sorted_trials(Figure().subplots(), top, 512)
    (places,) = [marks.get_offsets()[:, 0] for marks in ax.collections if len(marks.get_offsets())]
    assert (len(places), places.min(), places.max()) == (200, 1, 1000)
    assert ax.get_xlabel() == "prompts, sorted; 200 of a series drawn"
    assert figures.sorted_trials(Figure().subplots(), top[:50], 512).get_xlabel() == "prompts, sorted"


def test_an_interval_at_one_length_alone_is_a_line():
    """A band stands between lengths: of a series read at one length, or of one length with enough trials, it would show nothing."""
    lines = [
        ("a", 512, 0.9, 0.7, 1.0),
        ("a", 1024, 0.5, 0.3, 0.7),
        ("b", 1024, 0.8, 0.6, 0.9),
        ("c", 512, 1.0, 0.0, 1.0),
    ]
    lines += [("c", 1024, 0.7, 0.4, 0.9)]
    table = pd.DataFrame(lines, columns=["series", "context_length", "accuracy", "low", "high"])
    ax = figures.found(Figure().subplots(), table, dict.fromkeys("abc"))
    alone = [
        segment.tolist()
        for each in ax.collections
        if isinstance(each, LineCollection)
        for segment in each.get_segments()
    ]
    assert alone == [[[1024, 0.6], [1024, 0.9]], [[1024, 0.4], [1024, 0.9]]]


def test_the_benchmark_of_many_rows_writes_what_can_be_read(tmp_path):
    """Its made-up rows and records pass the checks that stored ones do, of each kind."""
    import sys
    from pathlib import Path

    folder = Path(__file__).parent.parent / "benchmarks"
    sys.path.insert(0, str(folder))
    try:
        import report_size as benchmark
    finally:
        sys.path.remove(str(folder))
    for kind in ("made", "text", "masses"):
        count = benchmark.write(tmp_path / kind, kind, 1)
        assert len(load_results(tmp_path / kind)) == count > 0

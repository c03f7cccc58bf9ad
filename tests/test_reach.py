"""Reach: the posterior against closed forms, rounds that rows alone decide, and a study on a tiny model."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom
from test_cli import call
from test_processes import torchrun

from ssmax_eval import UserError
from ssmax_eval.results import load_results
from ssmax_eval.statistics import curves
from ssmax_eval.statistics import depth_effects as cells
from ssmax_eval.statistics.crossing import Ladder, crossing
from ssmax_eval.studies.reach import Asked
from ssmax_eval.studies.rounds import fixed_grid, narrowing, scan, settled

DEPTHS = (0.0, 50.0, 100.0)
LADDER = Ladder(256, 4096, DEPTHS, 1.25)


def answering(ladder, chance, seed=0):
    """Return what answers cells as coins, whose chance is a function of length and depth."""
    rng = np.random.default_rng(seed)

    def ask(name, cell, visit):
        place, depths, trials = cell
        chances = [chance(ladder.lengths[place], ladder.depths[depth]) for depth in depths]
        return np.array([rng.binomial(trials, chances), np.full(len(depths), trials)], float)

    return ask


def step(at):
    return lambda length, depth: 0.97 if length <= at else 0.03


def test_a_ladder_is_even_and_fine_enough():
    lengths = np.array(LADDER.lengths)
    assert lengths[0] == 256
    assert lengths[-1] == 4096
    assert (lengths[1:] / lengths[:-1]).max() <= 1.25 * 1.01
    assert Ladder(256, 4096, DEPTHS, 2.0).lengths == (256, 512, 1024, 2048, 4096)
    assert Ladder(256, 4096, DEPTHS, 2.0, kept=3).lengths == (256, 512, 1024)


def test_posteriors_on_two_lengths_are_bayes_theorem():
    """One depth, two lengths: all curves can be written down, and their chances summed by hand."""
    counts = np.array([[[9.0], [4.0]], [[10.0], [8.0]]])
    likely = cells.likelihoods(counts, cells.answers(cells.MEANS, np.zeros(1)))
    octaves, grid = math.log2(1.25), curves.levels()
    step = curves.kernel(octaves)

    def told(accuracy):  # likelihoods are tabulated
        return cells.MEANS[cells.bins(np.clip(accuracy, cells.LEAST, 1 - cells.LEAST))]

    def likelihood(place, accuracy):
        (right,), (asked,) = counts[:, place]
        return binom.pmf(right, asked, told(accuracy)) ** cells.worth(counts[1])[place]

    own = grid.weight * likelihood(0, grid.each)
    weights = own[:, None] * step[-1] * likelihood(1, np.outer(grid.each, curves.SHARES))
    weights /= weights.sum()
    found = curves.AnyShape(octaves, likely, grid).posterior
    assert found.chance == pytest.approx([weights[:, ~curves.HOLDS].sum(), weights[:, curves.HOLDS].sum()], abs=1e-4)
    assert found.accuracy @ cells.MEANS == pytest.approx(
        [weights.sum(1) @ told(grid.each), (weights * told(np.outer(grid.each, curves.SHARES))).sum()], abs=1e-4
    )
    shares, longest = curves.smooth((100, 125))
    weights = own[:, None] * likelihood(1, np.outer(grid.each, shares[1]))
    weights /= weights.sum()
    found = curves.Smooth((100, 125), likely, grid).posterior
    assert found.chance == pytest.approx([weights[:, longest == place].sum() for place in (0, 1)], abs=1e-4)
    assert (shares[0] == 1).all()
    assert ((shares[1] >= 0.85) == (longest == 1)).all()


def test_prompts_of_a_length_count_as_fewer_where_depths_are_asked_unevenly():
    even, uneven = np.full(10, 30.0), np.array([300.0] + [0.0] * 9)
    assert cells.worth(even) == pytest.approx(1 / cells.TOGETHER)
    # of one depth alone they tell no more than its distance from the mean lets them: about SCATTER of ten ninths
    assert 300 * cells.worth(uneven) < (cells.SCATTER + 1) * 10 / 9
    more = cells.gain(np.array([uneven, even]))
    assert more[0].argmin() == 0
    assert more[1] == pytest.approx(301 * cells.worth(even + np.eye(10)[0]) - 300 * cells.worth(even))
    assert 0.9 / cells.TOGETHER < more[1, 0] < 1 / cells.TOGETHER


def test_what_a_prompt_tells_is_the_entropy_of_the_side_that_it_takes_on_the_mean(monkeypatch):
    monkeypatch.setattr(cells, "TOGETHER", 1.0)  # of prompts that stand alone, on one grid
    monkeypatch.setattr(curves.Levels, "closer", lambda self, chance: self)
    ladder = Ladder(100, 200, (50.0,), 1.25)
    counts = ladder.nothing()
    counts[:, 0, 0], counts[:, -1, 0] = (5, 6), (2, 6)
    found = crossing(ladder, counts)

    def entropy(chance):
        return -(chance * np.log(np.maximum(chance, 1e-300))).sum()

    for place in (0, 2, 4):
        right, wrong = counts.copy(), counts.copy()
        right[:, place], wrong[1, place] = right[:, place] + 1, wrong[1, place] + 1
        after = [crossing(ladder, each) for each in (right, wrong)]
        likely = np.linalg.lstsq(np.array([each.chance for each in after]).T, found.chance, rcond=None)[
            0
        ]  # the posterior is the mean of those to come
        before, *then = (entropy(found.sides @ each.chance) for each in (found, *after))
        told = before - sum(p * each for p, each in zip(likely, then, strict=True))
        assert likely.sum() == pytest.approx(1, abs=1e-5)
        assert found.information[place, 0] == pytest.approx(told, rel=1e-4)


def test_the_window_is_the_likeliest_of_those_that_are_narrow_enough():
    ladder = Ladder(100, 400, (50.0,), 1.25)  # of seven steps, two of which are narrow enough
    found = crossing(ladder, ladder.nothing())
    for chance, inside in (
        ([0.1, 0, 0.3, 0.3, 0.2, 0, 0, 0.1], [2, 3]),
        ([0.9, 0, 0, 0, 0, 0, 0, 0.1], [0, 1]),
        ([0, 0, 0.4, 0, 0, 0.1, 0.1, 0.4], [5, 6, 7]),  # what lies beyond the longest widens nothing
    ):
        sides = replace(found, chance=np.array(chance)).sides
        assert np.flatnonzero(sides[1]).tolist() == inside
        assert np.flatnonzero(sides[0]).tolist() == [*range(inside[0])]
        assert sides.sum(0).tolist() == [1.0] * 8


def test_a_kernel_is_of_chances_whatever_the_step():
    for octaves in (0.1, 0.5, 2.0):
        assert curves.kernel(octaves).sum(1) == pytest.approx(1, abs=1e-5)
    # two half steps are a step, but for the width of the grid's cells
    holds = curves.HOLDS
    once, twice = curves.kernel(1.0)[-1], (curves.kernel(0.5) @ curves.kernel(0.5))[-1]
    assert once[holds].sum() == pytest.approx(twice[holds].sum(), abs=0.02)


def test_depths_effects_keep_the_mean():
    effects = np.array([-3.0, 0.5, 4.0])
    mean = np.array([0.1, 0.5, 0.9])
    assert cells.answers(mean, effects).mean(0) == pytest.approx(mean, abs=2e-3)


def test_rounds_narrow_to_the_truth_and_rows_alone_decide_them():
    asked = []

    def noted(ask):
        return lambda *what: (asked.append(what), ask(*what))[1]

    both = [[*narrowing(LADDER, ["m"], noted(answering(LADDER, step(900))), 10**7, 1.5)] for _ in range(2)]
    assert asked[: len(asked) // 2] == asked[len(asked) // 2 :]  # the same answers, the same questions
    end = both[0][-1]
    low, high = end.crossings["m"].interval
    assert low <= 900 < high
    assert high / low <= 1.25**2 * 1.001
    assert end.tokens["m"] < 3 * 11 * sum(LADDER.lengths)
    assert both[0][0].tokens["m"] == sum(LADDER.lengths[place] * 3 for place, _, _ in scan(LADDER))
    tokens, trials = fixed_grid(end.crossings["m"])
    assert tokens > end.tokens["m"]
    assert trials >= 1


def test_what_holds_to_the_end_and_what_finds_nothing():
    holds = [*narrowing(LADDER, ["m"], answering(LADDER, lambda *_: 0.98), 10**7, 1.5)][-1].crossings["m"]
    assert math.isinf(holds.interval[1])
    assert holds.interval[0] >= 4096 / 1.25**2.1
    assert holds.precise
    nothing = [*narrowing(LADDER, ["m"], answering(LADDER, lambda *_: 0.01), 10**7, 1.5)][-1].crossings["m"]
    assert nothing.finds_nothing


def test_two_series_stop_when_the_difference_is_known_or_too_small():
    ladder = Ladder(256, 4096, DEPTHS, 1.25)
    by_name = {"far": answering(ladder, step(3000)), "near": answering(ladder, step(500))}
    *_, end = narrowing(ladder, ["far", "near"], lambda name, *cell: by_name[name](name, *cell), 10**7, 1.5)
    low, high = end.crossings["far"].against(end.crossings["near"])
    assert low >= 1
    assert low <= 6 <= high
    assert end.crossings["near"].against(end.crossings["far"]) == pytest.approx((1 / high, 1 / low))
    assert settled((1.0, 3.0), 1.5)
    assert settled((0.3, 0.9), 1.5)
    assert settled((0.7, 1.4), 1.5)
    assert not settled((0.5, 1.4), 1.5)
    assert not settled((0.0, math.inf), 1.5)


def test_lengths_that_do_not_fit_into_memory_are_left_out():
    holds = answering(LADDER, lambda *_: 0.98)
    lengths, asked = LADDER.lengths, []

    def ask(name, cell, visit):
        asked.append(lengths[cell[0]])
        return holds(name, cell, visit) * (asked[-1] < 2000)

    *_, end = narrowing(LADDER, ["m"], ask, 10**6, 1.5)
    found = end.crossings["m"]
    assert max(found.ladder.lengths) < min(each for each in asked if each >= 2000)
    assert not found.curves.counts[1, np.array(found.ladder.lengths) >= 2000].any()
    assert math.isinf(found.interval[1])
    assert found.precise
    assert end.tokens["m"] == (end.counts["m"][1].sum(1) * found.ladder.lengths).sum()


OPTIONS = ("--context-lengths", "96,192", "--depth-percents", "0,100", "--task", "single", "--device", "cpu")


def test_a_study_on_a_tiny_model_its_page_and_again(capsys, checkpoint, tmp_path):
    out = ("--output-path", str(tmp_path / "runs"), "--page", str(tmp_path / "reach.html"))
    asked = ("reach", "--model", str(checkpoint), *OPTIONS, *out, "--limit-tokens", "6000", "--json")
    code, text, err = call(capsys, *asked)
    assert code == 0, err
    told = json.loads(text)
    (line,) = told["series"]
    assert line["tokens"] <= 6000
    assert line["effective_length"] is None
    assert [each["tokens"] for each in told["rounds"]] == sorted(each["tokens"] for each in told["rounds"])
    page = (tmp_path / "reach.html").read_text()
    assert "How it narrowed" in page
    assert "<h2>Reach</h2>" in page
    rows = load_results(tmp_path / "runs")
    assert sum(rows["context_length"]) == line["tokens"]
    assert not rows.duplicated(["seed", "trial", "context_length", "depth_percent"]).any()
    assert (rows.groupby(["seed", "trial"])["context_length"].nunique() == 1).all()  # a trial is of one round
    # a page of its rows says that they are no grid
    code, _, err = call(capsys, "report", tmp_path / "runs", "--out", tmp_path / "rows.html")
    assert code == 0, err
    assert "no grid: reach chose" in (tmp_path / "rows.html").read_text()
    # what was stopped goes on to the same: half of the runs are lost
    folders = sorted((tmp_path / "runs" / "needle").iterdir())
    for folder in folders[::2]:
        for file in folder.iterdir():
            file.unlink()
    code, text, _ = call(capsys, *asked, "--batch-size", "1")
    again = json.loads(text)
    assert {name: again[name] for name in ("series", "rounds")} == {name: told[name] for name in ("series", "rounds")}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--precision", "1"), "precision 1: allowed are factors from 1.05 to 4"),
        (("--band", "1"), "band 1: allowed are factors above 1"),
        (
            ("--context-lengths", "96,100"),
            "context lengths 96 to 100: the longest has to be more than 1.56 times the shortest",
        ),
        (
            ("--precision", "1.41421356237309515"),
            "context lengths 96 to 192: the longest has to be more than 2 times the shortest",
        ),
        (("--context-lengths", "0,100"), "context length 0: allowed are whole numbers"),
        (("--depth-percents", "101"), "depth percent 101"),
        (("--limit-tokens", "10"), "limit tokens 10: the first look at 1 series takes"),
        (("--batch-size", "many"), "batch size 'many'"),
        (("--task", "singel"), "singel"),
    ],
)
def test_bad_requests_are_one_line(capsys, checkpoint, tmp_path, options, says):
    given = {"--context-lengths": "96,192", "--output-path": str(tmp_path / "runs")} | dict([options])
    code, _, err = call(capsys, "reach", "--model", str(checkpoint), *(part for pair in given.items() for part in pair))
    assert code == 2
    assert says in err.strip().splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_python_takes_what_the_command_takes(checkpoint):
    asked = Asked({"a": str(checkpoint), "b": str(checkpoint)}, lengths=(96, 384), task="single")
    assert [*asked.series] == ["a", "b"]
    with pytest.raises(UserError, match="precision 9"):
        Asked(str(checkpoint), precision=9)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "precision"), [(0.1, 1.25), (0.5, 2.0)])
def test_intervals_cover(width, precision):
    """30 logistic curves, their middles spread over the ladder; benchmarks/reach_simulation.py has more, of worse kinds."""
    rng, covered, ladder = np.random.default_rng(3), 0, Ladder(256, 4096, DEPTHS, precision)
    for number in range(30):
        middle = rng.uniform(0.8, 3.4)

        def chance(length, depth, middle=middle):
            return 0.95 / (1 + np.exp((np.log2(length / 256) - middle) / width))

        *_, end = narrowing(ladder, ["m"], answering(ladder, chance, number), 150_000, 1.5)
        fine = np.geomspace(256, 4096, 2001)
        true = fine[chance(fine, 0) >= 0.85 * chance(256, 0)].max()
        low, high = end.crossings["m"].interval
        covered += low <= true < high
    assert covered >= 25  # of 30 at 95%: fewer by chance once in 300 times


@pytest.mark.slow
def test_two_processes_make_one_processes_rounds(capsys, checkpoint, tmp_path):
    asked = ("reach", "--model", str(checkpoint), *OPTIONS, "--limit-tokens", "2000", "--batch-size", "2", "--json")
    _, alone, _ = call(
        capsys, *asked, "--output-path", str(tmp_path / "one"), "--page", str(tmp_path / "one" / "reach.html")
    )
    code, both, err = torchrun(2, *asked, "--output-path", tmp_path / "two", "--page", tmp_path / "two" / "reach.html")
    assert code == 0, err
    one, two = json.loads(alone), json.loads(both)
    assert {**one, "report": None} == {**two, "report": None}
    rows = [
        {file.parent.name: file.read_bytes() for file in (tmp_path / name).rglob("rows.jsonl")}
        for name in ("one", "two")
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) > 2

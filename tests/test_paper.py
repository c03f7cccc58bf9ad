"""The paper's study: verdicts by closed forms, estimates of made rows, and a whole small study from nothing."""

import json
import math

import pandas as pd
import pytest
from made import made
from scipy import stats
from test_cli import call
from test_report import frame, row

from ssmax_eval import statistics
from ssmax_eval.errors import UserError
from ssmax_eval.probes.loss.rows import LossRow
from ssmax_eval.studies.claims import NOT, REPRODUCED, UNKNOWN, Claim, Estimate, needed, over, paired
from ssmax_eval.studies.paper import NAMES, Paper, study_set
from ssmax_eval.studies.paper_heads import concordance, with_model
from ssmax_eval.studies.paper_numbers import BEYOND, difference, found_far, of_losses, of_p, pooled_cells
from ssmax_eval.training.recipes import RECIPES

SMALL = (
    "layers=1", "hidden=16", "feed_forward=16", "steps=8", "train_length=32", "short_length=32", "text_characters=40000",
    "tokens_per_step=256",
)  # fmt: skip


def estimate(low, high, n=3, units="seeds", sd=1.0):
    return Estimate((low + high) / 2, low, high, n, units, sd)


@pytest.mark.parametrize(
    ("intervals", "signs", "verdict"),
    [
        ([(0.1, 0.2)], (1,), REPRODUCED),
        ([(-0.2, -0.1)], (1,), NOT),
        ([(-0.2, -0.1)], (-1,), REPRODUCED),
        ([(-0.1, 0.2)], (1,), UNKNOWN),
        ([(0.1, 0.2), (-0.3, -0.1)], (1, -1), REPRODUCED),
        ([(0.1, 0.2), (-0.3, 0.1)], (1, -1), UNKNOWN),
        ([(0.1, 0.2), (0.1, 0.3)], (1, -1), NOT),
        ([(math.nan, math.nan)], (1,), UNKNOWN),
    ],
)
def test_a_claim_is_judged_by_its_intervals(intervals, signs, verdict):
    assert Claim("", "", "", tuple(estimate(*each) for each in intervals), signs).verdict == verdict


def test_a_margin_is_what_counts_for_neither():
    cost = [
        Claim("", "", "", (estimate(*each),), (-1,), -0.05).verdict for each in ((0.0, 0.04), (0.06, 0.1), (0.0, 0.1))
    ]
    assert cost == [REPRODUCED, NOT, UNKNOWN]


def test_one_seed_never_reproduces_a_claim():
    within = estimate(0.1, 0.2, n=8, units="trials of 1 seed")
    claim = Claim("", "", "", (within,))
    assert (claim.verdict, claim.would_tell) == (UNKNOWN, "one seed: train two more")


def test_what_would_tell_knows_the_margin_and_equal_seeds():
    cost = Claim("", "", "", (Estimate(0.05, -0.04, 0.14, 3, "seeds", 0.04),), (-1,), -0.05)
    assert cost.would_tell.startswith("no difference at all")
    cost = Claim("", "", "", (Estimate(0.055, 0.01, 0.10, 3, "seeds", 0.02),), (-1,), -0.05)
    assert cost.verdict == UNKNOWN
    assert cost.would_tell
    assert needed(over([-1.0, -1.0, -1.0], "seeds")).startswith("all 3 seeds differ by as much")


def test_estimates_are_students():
    found = over([1.0, 2.0, 4.0], "seeds")
    low, high = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem([1, 2, 4]))
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((7 / 3, low, high, 3))
    assert math.isnan(over([1.0], "seeds").low)
    assert math.isnan(over([1.0, 1.0], "seeds").low)  # equal ones prove nothing


def test_seeds_are_the_unit_where_there_are_some_else_what_is_within_one():
    one = pd.DataFrame([{"seed": s, "unit": u, "x": s + u} for s in (0, 1, 2) for u in range(6)])
    other = one.assign(x=one["x"] - 1 - one["seed"])
    found = paired(one, other, "x", "trials")
    assert (found.mean, found.n, found.units) == (2.0, 3, "seeds")
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 2, loc=2, scale=stats.sem([1, 2, 3])))
    within = paired(one[one["seed"] == 0], one.assign(x=-one["unit"].astype(float)), "x", "trials")
    assert (within.n, within.units) == (6, "trials of 1 seed")
    assert str(within).endswith("6 trials of 1 seed")


def test_it_says_what_would_tell():
    values = [0.5, -0.2, 0.4]
    told = needed(over(values, "seeds"))
    seeds = int(told.removeprefix("if mean and spread stay as they are, ").split()[0])
    sd = pd.Series(values).std()
    mean = sum(values) / 3
    assert (
        stats.t.ppf(0.975, seeds - 1) * sd / seeds**0.5 < mean < stats.t.ppf(0.975, seeds - 2) * sd / (seeds - 1) ** 0.5
    )
    assert needed(over([0.1], "seeds")) == "one seed: train two more"
    assert "no difference at all" in needed(over([0.0, 0.0], "seeds"))
    assert needed(over([], "seeds")) == "this configuration is not among the models, or has no scores"
    assert needed(estimate(0.1, 0.2)) == ""


def test_a_table_that_is_ln_n_says_so():
    n = range(1, 129)
    p = pd.concat(
        [
            pd.DataFrame({"seed": s, "n": n, "p": [0.3 * math.log(k) + 0.1 * s for k in n], "a1": 0.3 + s / 100})
            for s in (0, 1)
        ]
    )
    found = of_p(p)
    assert found["p slope"].mean == pytest.approx(0.305)
    assert found["p ln n"].mean > 0.1


def test_concordance_of_learned_s():
    heads = [{"layer": i, "head": j, "s": i + j / 10} for i in range(3) for j in range(4)]
    same = pd.DataFrame([each | {"seed": seed} for seed in (0, 1, 2) for each in heads])
    assert concordance(same) == pytest.approx(1)
    assert math.isnan(concordance(same[same["seed"] == 0]))


def test_trap_15_missing_and_failed_cells_are_not_zero_over_seeds():
    """A failed prompt counts for nothing, a cell without a score has no share, and one that no seed tested is not there."""
    told = [
        ("a/0", 64, 0.0, True), ("a/0", 64, 0.0, False), ("a/0", 64, 0.0, None),
        ("a/1", 64, 0.0, True),
        ("a/0", 128, 0.0, None), ("a/1", 128, 0.0, None),
        ("a/1", 128, 50.0, True), ("a/0", 128, 50.0, None),
        ("b/0", 64, 0.0, False),
    ]  # fmt: skip
    rows = [row(name, length, depth, trial, correct) for trial, (name, length, depth, correct) in enumerate(told)]
    cells = statistics.cells(statistics.with_series(frame(rows)))
    pooled = pooled_cells(with_model(cells)).set_index(["letter", "context_length", "depth_percent"])
    assert pooled.loc[("a", 64, 0.0), ["scored", "failed"]].tolist() == [3, 1]
    assert pooled.loc[("a", 64, 0.0), "accuracy"] == pytest.approx(
        2 / 3
    )  # of prompts: not the mean of seeds' 1/2 and 1
    assert math.isnan(pooled.loc[("a", 128, 0.0), "accuracy"])
    assert pooled.loc[("a", 128, 0.0), ["scored", "failed"]].tolist() == [0, 2]
    assert pooled.loc[("a", 128, 50.0), "accuracy"] == 1
    assert pooled.loc[("b", 64, 0.0), "accuracy"] == 0
    assert ("b", 128, 0.0) not in pooled.index


def test_trap_16_losses_are_nats_over_tokens_not_means_of_bins():
    """A bin of 4 tokens does not weigh as one of 60; bins without a score are left out of sums and tokens."""
    length = 64

    def document(name, sha, near, far, measure="position"):
        """near, far: (nats, tokens) of each bin."""
        edges = [
            (0, near[0][1]),
            (near[0][1], length),
            *((BEYOND * length + 10 * i, BEYOND * length + 10 * i + 10) for i in range(2)),
        ]
        return [
            {"series": name}
            | made(
                LossRow, document_sha256=sha, measure=measure, position_start=start, position_end=end, nll_sum=nats, tokens=tokens,
                error="out of memory" if nats is None else None,
            )
            for (start, end), (nats, tokens) in zip(edges, [*near, *far], strict=True)
        ]  # fmt: skip

    rows = [
        # (a): 64 tokens of 3 nats; far, 8 of 2 and 2 of 7: 30 nats over 10 tokens
        *document("a/0", "x", [(12.0, 4), (180.0, 60)], [(16.0, 8), (14.0, 2)]),
        # (e): 4 tokens of 9 nats and 60 of 3: 216 / 64 = 3.375, where a mean of bins is 6
        *document("e/0", "x", [(36.0, 4), (180.0, 60)], [(16.0, 8), (14.0, 2)]),
        # (b): far, a bin without a score: 8 tokens of 1 nat alone
        *document("b/0", "x", [(12.0, 4), (180.0, 60)], [(8.0, 8), (None, 2)]),
        *document("e/0", "y", [(400.0, 4), (600.0, 60)], [(1.0, 8), (1.0, 2)]),  # only (e) has it: it is not compared
        *document("e/0", "x", [(9e3, 4), (9e3, 60)], [(9e3, 8), (9e3, 2)], measure="gain"),
    ]
    found = of_losses(pd.DataFrame(rows), length)
    assert found["short loss e-a"].mean == pytest.approx(216 / 64 - 3)
    assert found["far loss b-a"].mean == pytest.approx(1 - 3)
    assert math.isnan(found["far loss b-a"].low)  # one document of one seed gives no interval


def test_the_study_set_is_found_and_bad_requests_are_not():
    paper, models = study_set()
    assert {letter for letter, _ in models} == {*NAMES} - {"e"}
    assert paper.seeds == (0, 1, 2, 3)
    with pytest.raises(UserError, match="recipe encoder: the paper reads texts in order"):
        Paper(RECIPES["encoder"])
    with pytest.raises(UserError, match="seeds 1,1: allowed are different whole numbers"):
        Paper(RECIPES["smoke"], (1, 1))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--seeds", "a"), "seeds 'a': allowed are whole numbers separated by commas"),
        (("--recipe", "smok"), "recipe 'smok': allowed are"),
        (("--jobs", "0"), "jobs 0: allowed are whole numbers from 1"),
        (("--out", "page.pdf"), "allowed are names that end with .html"),
    ],
)
def test_bad_requests_are_one_line(capsys, tmp_path, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, "paper", *options)
    assert code == 2
    assert says in err.strip().splitlines()[-1]
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_a_study_from_nothing_and_again(capsys, tmp_path):
    given = [part for change in SMALL for part in ("--set", change)]
    places = ("--models-path", tmp_path / "models", "--output-path", tmp_path / "runs", "--out", tmp_path / "p.html")
    asked = (
        "paper",
        "--seeds",
        "0,1",
        *given,
        *places,
        "--figures",
        tmp_path / "figures",
        "--trials",
        "5",
        "--device",
        "cpu",
    )
    code, out, err = call(capsys, *asked, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert len(told["claims"]) == 16
    assert {each["verdict"] for each in told["claims"]} <= {REPRODUCED, NOT, UNKNOWN}
    assert all(each["numbers"] for each in told["claims"])
    assert all(bool(each["would_tell"]) == (each["verdict"] == UNKNOWN) for each in told["claims"])
    page = (tmp_path / "p.html").read_text()
    for number in range(1, 9):
        assert f"Figure {number}." in page
        names = {path.suffix for path in (tmp_path / "figures").glob(f"figure-{number}-*")}
        assert names == {".svg", ".png", ".pdf", ".csv"}
    assert len([*(tmp_path / "models").iterdir()]) == 12
    before = {
        path: path.stat().st_mtime_ns
        for path in tmp_path.rglob("*")
        if path.name in ("rows.jsonl", "model.safetensors")
    }
    code, out, err = call(capsys, *asked, "--json")
    assert json.loads(out)["claims"] == told["claims"]
    assert {path: path.stat().st_mtime_ns for path in before} == before  # nothing is read or trained again


def test_what_a_model_could_not_read_does_not_count_for_it():
    """(b) has no score of the harder length: beside it (a) is judged by the other one, too."""
    rows = [
        row(
            f"{letter}/{seed}", length, 50.0, trial, None if letter == "b" and length == 1024 else trial < right,
            prompt_sha256=f"{length}/{trial}",
        )
        for letter in "ab"
        for seed in (0, 1)
        for length, right in ((512, 6), (1024, 2))
        for trial in range(8)
    ]  # fmt: skip
    far = found_far(statistics.with_series(frame(rows)), 64)
    assert far.groupby("letter")["right"].mean().to_dict() == {"a": 0.75, "b": 0.75}
    assert difference(far, "b", "a", "trials").mean == 0
    none = [each for each in rows if not (each["model"].startswith("b") and each["context_length"] == 512)]
    nothing = found_far(statistics.with_series(frame(none)), 64)
    assert not len(nothing[nothing["letter"] == "b"])
    assert math.isnan(difference(nothing, "b", "a", "trials").mean)

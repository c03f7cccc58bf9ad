"""Plan 2: the prompts of a trial share its haystack, so the trial is the unit; against scipy, statsmodels, closed forms and
simulated haystacks with effects of known size."""

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats
from test_report import frame, page_of, row
from test_verdict import store

import ssmax_eval
from ssmax_eval import statistics
from ssmax_eval.errors import UserError
from ssmax_eval.statistics import clusters, paired, reach
from ssmax_eval.verdict import verdict

LENGTHS, DEPTHS = (256, 512, 1024, 2048, 4096), (0.0, 25.0, 50.0, 75.0, 100.0)
EFFECTS = (0.0, 0.1, 0.4, 0.8, 1.0)  # of a haystack: the correlation of two prompts of a trial; 1: all of a trial alike


def grid(right, model="new", lengths=LENGTHS, depths=DEPTHS, plan=2, **changes):
    """Return rows of a model's plan-2 grid; right: an array (trials, lengths, depths) of 0 and 1, nan for no score."""
    right = np.asarray(right, dtype=float)
    return [
        row(model, length, depth, t, None if np.isnan(right[t, i, j]) else bool(right[t, i, j]), plan=plan)
        | {"prompt_sha256": f"{plan}/{changes.get('seed', 0)}/{length}/{depth}/{t}", **changes}
        for t in range(len(right)) for i, length in enumerate(lengths) for j, depth in enumerate(depths)
    ]  # fmt: skip


def alike(trials, lengths=1, depths=5):
    """Return an array in which all prompts of a trial have one answer."""
    return np.broadcast_to(np.reshape(trials, (-1, 1, 1)), (len(trials), lengths, depths))


def named(*parts):
    return statistics.with_series(frame([each for part in parts for each in part]))


def two(own, other, **changes):
    return named(grid(other, "base", **changes), grid(own, "new", **changes))


def said(rows, series="new"):
    found = verdict(rows, "base", statistics.effective_lengths(rows), {})
    return " ".join(next(each["sentences"] for each in found if each["series"] == series))


def drawn_trials(rng, share, effect, trials, prompts):
    """Draw how many prompts of each trial are right: beta-binomial, of mean `share` and correlation `effect`."""
    if effect in (0, 1):
        own = np.full(trials, share) if effect == 0 else (rng.random(trials) < share).astype(float)
    else:
        own = rng.beta(*(each * (1 / effect - 1) + 1e-9 for each in (share, 1 - share)), trials)
    return rng.binomial(prompts, own)


def spread(found, prompts):
    """Return the prompts' answers and trials of so many right ones a trial."""
    right = (np.arange(prompts) < np.asarray(found)[:, None]).astype(float).ravel()
    return right, pd.Series(np.repeat(np.arange(len(found)), prompts))


def test_prompts_count_as_their_design_effect_says():
    """Against statsmodels' cluster-robust error of a mean: p (1 - p) over its square, by (z / t)^2 of the trials."""
    import statsmodels.api as sm

    found = [5, 4, 1, 2, 5, 0, 3, 4]
    right, trial = spread(found, 5)
    error = sm.OLS(right, np.ones(40)).fit(cov_type="cluster", cov_kwds={"groups": trial}).bse[0]
    few = stats.norm.ppf(0.975) / stats.t.ppf(0.975, 7)
    size = clusters.effective_size(right, trial)
    assert size == pytest.approx(0.6 * 0.4 / error**2 * few**2)
    assert 8 < size < 40 * few**2
    unequal, names = right[:-3], trial[:-3]  # the last trial has two prompts
    error = sm.OLS(unequal, np.ones(37)).fit(cov_type="cluster", cov_kwds={"groups": names}).bse[0]
    share = unequal.mean()
    assert clusters.effective_size(unequal, names) == pytest.approx(share * (1 - share) / error**2 * few**2)


def test_trials_of_one_answer_count_as_one_prompt_each():
    """And trials that all agree do so too: they do not show how far apart trials lie. Evenly mixed ones count in full."""
    few = (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 7)) ** 2
    for found, size in (([5] * 5 + [0] * 3, 8), ([5] * 8, 8), ([0] * 8, 8), ([3] * 8, 40 * few)):
        assert clusters.effective_size(*spread(found, 5)) == pytest.approx(size)
    right, trial = spread([5, 5], 5)
    assert clusters.effective_size(right[:6], trial[:6]) == pytest.approx(36 / 26)  # five prompts and one (Kish)


@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("trials", [8, 20])
def test_the_interval_of_a_rate_covers(trials, effect):
    """Five prompts a trial: 93 to 97% where trials are of one answer, as Wilson's own there; conservative for smaller effects.

    Over many true rates, a tenth of them 0 or 1 to within 2%: at any one a discrete interval is off to either side.
    """
    rng = np.random.default_rng(trials)
    truths = np.where(rng.random(600) < 0.9, rng.random(600), rng.choice([0, 0.005, 0.02, 0.98, 0.995, 1], 600))
    cases = [spread(drawn_trials(rng, truth, effect, trials, 5), 5) for truth in truths]
    sizes = np.array([clusters.effective_size(*case) for case in cases])
    low, high = statistics.wilson(np.array([right.mean() for right, _ in cases]) * sizes, sizes)
    held = (low - 1e-9 <= truths) & (truths <= high + 1e-9)
    assert np.mean(held) >= 0.93
    if effect == 1:
        assert np.mean(held) <= 0.97


@pytest.mark.parametrize("effect", EFFECTS)
def test_the_interval_of_a_difference_covers(effect):
    """Eight trials of five pairs, outcomes correlated within a trial: 93% or more, over many true tables."""
    rng = np.random.default_rng(5)
    held = []
    for case in range(400):
        table = rng.dirichlet([1, 1, 1, 1] if case % 2 else [4, 0.5, 0.5, 0.5])  # both, only, only_baseline, neither
        if effect in (0, 1):
            own = np.tile(table, (8, 1)) if effect == 0 else np.eye(4)[rng.choice(4, 8, p=table)]
        else:
            own = rng.gamma(table * (1 / effect - 1) + 1e-3, size=(8, 4))
            own /= own.sum(1, keepdims=True)
        counts = np.array([rng.multinomial(5, each) for each in own])
        differences = np.repeat(np.tile([0.0, 1.0, -1.0, 0.0], 8), counts.ravel())
        trial = pd.Series(np.repeat(np.repeat(np.arange(8), 4), counts.ravel()))
        worth = clusters.effective_size(differences, trial) / 40
        low, high = statistics.paired_interval(*(counts.sum(0) * worth))
        held.append(low - 1e-9 <= table[1] - table[2] <= high + 1e-9)
    assert np.mean(held) >= 0.93


def test_a_lengths_interval_is_over_trials_and_a_cells_is_wilsons():
    rows = named(grid(alike([1] * 5 + [0] * 3), lengths=(256,)))
    line = statistics.lengths(rows).iloc[0]
    expected = stats.binomtest(5, 8).proportion_ci(method="wilson")  # eight answers, not forty
    assert (line["low"], line["high"]) == pytest.approx((expected.low, expected.high))
    assert (line["trials"], line["scored"], line["failed"], line["accuracy"]) == (8, 40, 0, 5 / 8)
    cells = statistics.cells(rows)
    assert cells[["low", "high"]].to_numpy() == pytest.approx(np.tile([expected.low, expected.high], (5, 1)))
    once = statistics.lengths(named(grid(alike([1] * 5 + [0] * 3, 1, 1), lengths=(256,), depths=(50.0,)))).iloc[0]
    assert (once["low"], once["high"]) == (line["low"], line["high"])


def test_few_trials_give_no_interval():
    rows = two(alike([1] * 4, 2), alike([0] * 4, 2), lengths=(256, 512))
    assert statistics.lengths(rows)[["low", "high"]].to_numpy().tolist() == [[0, 1]] * 4
    compared = statistics.compare(rows, "base", ("context_length",))
    assert compared[["low", "high", "p", "trials"]].to_numpy().tolist() == [[-1, 1, 2 / 16, 4]] * 2
    of_new = statistics.effective_lengths(rows).set_index("series").loc["new"]
    assert (of_new["effective_length"], of_new["high"], of_new["high_beyond"]) == (512, 512, True)
    assert np.isnan(of_new["low"])
    ratio = statistics.compare_reach(rows, "base").iloc[0]
    assert (ratio["low"], ratio["high"]) == (0, np.inf)
    words = said(rows)
    assert "+1.00 (no interval, 4 trials are too few), 40 identical prompts over 4 trials" in words
    assert "to at least 512 tokens, the longest tested (no interval, 4 trials are too few)." in words
    assert "No significant difference from 256 to 512 tokens, where so few trials can show none." in words
    # one prompt of each trial is one of each: what a cell says stays
    assert statistics.compare(rows, "base")["low"].min() > -1


def test_failed_prompts_leave_their_trial():
    right = alike([1] * 5 + [0] * 3).astype(float).copy()
    right[0, 0, 1:] = np.nan
    right[7] = np.nan
    line = statistics.lengths(named(grid(right, lengths=(256,)))).iloc[0]
    assert (line["trials"], line["scored"], line["failed"]) == (8, 31, 9)
    size = clusters.effective_size(right[~np.isnan(right)], pd.Series(np.repeat(range(7), [1, 5, 5, 5, 5, 5, 5])))
    assert (line["low"], line["high"]) == pytest.approx(np.ravel(statistics.wilson([21 / 31 * size], [size])))
    none = statistics.lengths(named(grid(right * np.nan, lengths=(256,)))).iloc[0]
    assert np.isnan(none[["low", "high"]].astype(float)).all()


def test_a_comparison_is_over_trials():
    """Sign flips of the trials' sums, against scipy's permutation test; Newcombe's interval of as many as trials at least."""
    rng = np.random.default_rng(0)
    own, other = (rng.random((8, 1, 5)) < share for share in (0.9, 0.4))
    line = statistics.compare(two(own, other, lengths=(256,)), "base", ("context_length",)).iloc[0]
    sums = (own.astype(float) - other).sum((1, 2))
    exact = stats.permutation_test(
        (sums,), lambda x, axis: np.abs(x.sum(axis=axis)), permutation_type="samples", alternative="greater",
        vectorized=True, n_resamples=np.inf,
    )  # fmt: skip
    assert line["p"] == pytest.approx(exact.pvalue)
    assert (line["pairs"], line["trials"], line["test"]) == (40, 8, "exact sign-flip test over trials")
    assert line["smallest"] == pytest.approx(statistics.smallest_difference(8, prompts=5))
    whole = statistics.compare(two(alike([1] * 8), alike([0] * 8), lengths=(256,)), "base", ()).iloc[0]
    assert (whole["low"], whole["high"]) == pytest.approx(statistics.paired_interval(0, 8, 0, 0))
    cells = statistics.compare(two(own, other, lengths=(256,)), "base")
    assert set(cells["test"]) == {"McNemar's exact test"}
    assert set(cells["trials"]) == {8}


def test_the_default_plan_can_show_a_large_difference_after_holm():
    """Eight trials, five depths, five lengths: one length of which all trials differ is enough, at 5 x 2 / 2^8."""
    own, other = np.ones((8, 5, 5)), np.ones((8, 5, 5))
    other[:, 4] = 0
    found = statistics.compare(two(own, other), "base", ("context_length",)).set_index("context_length")
    assert found.loc[4096, "p_holm"] == pytest.approx(5 * 2 / 256)
    words = said(two(own, other))
    assert words.startswith("It finds more than base at 4,096 tokens. Most at 4,096 tokens: 1.00 against 0.00, +1.00")
    assert "40 identical prompts over 8 trials, p = 0.039." in words
    assert (
        "only a difference of about 0.51 or more would show (at best: if every trial that differs favours the same model)."
        in words
    )
    assert "200 identical prompts over 8 trials, p = 0.008. (exact sign-flip test over trials;" in words
    other[:, 2:] = 0
    assert said(two(own, other)).startswith("It finds more than base from 1,024 to 4,096 tokens.")
    seven = statistics.compare(two(own[:7], other[:7]), "base", ("context_length",))
    assert (seven["p_holm"] > 0.05).all()


def test_trials_of_overlapping_text_are_one():
    """Starts 100 sentences apart with haystacks of 150 are a chain; of 100 they only touch; shorter lengths overlap less."""
    rows = pd.DataFrame(grid(alike([1] * 8, 2, 2), lengths=(256, 512), depths=(0.0, 50.0)))
    rows["haystack_start"] = 1000 + 100 * rows["trial"]
    rows["haystack_sentences"] = rows["context_length"].map({256: 100, 512: 150})
    assert clusters.trials(rows).nunique() == 1
    assert clusters.trials(rows[rows["context_length"] == 256]).nunique() == 8
    rows.loc[rows["trial"] > 3, "haystack_start"] += 51
    assert clusters.trials(rows).nunique() == 2
    parts = clusters.clusters(rows).groupby(rows["context_length"]).nunique()
    assert parts.to_dict() == {256: 8, 512: 2}
    rows.loc[rows["trial"] == 7, "haystack_start"] = None  # an older row: its trial alone
    assert clusters.trials(rows).nunique() == 3
    near = pd.DataFrame(grid(alike([1] * 2, 1, 1), lengths=(256,), depths=(0.0,)))
    near = near.assign(haystack_start=[199, 200], haystack_sentences=200)  # in other blocks of 200, all but one alike
    assert clusters.trials(near).nunique() == 1


def test_a_comparison_joins_trials_of_overlapping_text():
    rows = two(alike([1] * 8), alike([0] * 8), lengths=(256,), haystack_sentences=10)
    rows["haystack_start"] = 100 * (rows["trial"] // 2) + 5 * (rows["trial"] % 2)
    line = statistics.compare(rows, "base", ("context_length",)).iloc[0]
    assert (line["trials"], line["p"], line["low"], line["high"]) == (4, 2 / 16, -1, 1)
    assert statistics.lengths(rows)[["trials", "low", "high"]].to_numpy().tolist() == [[4, 0, 1]] * 2
    assert statistics.effective_lengths(rows)["trials"].tolist() == [4, 4]
    (cell,) = statistics.compare(rows[rows["depth_percent"] == 50], "base").to_dict("records")
    assert (cell["trials"], cell["test"]) == (4, "exact sign-flip test over trials")


def test_seeds_are_other_trials_and_series_of_other_prompts_are_paired_by_trial():
    right = alike([1] * 4 + [0] * 4)
    both = named(grid(right, lengths=(256,)), grid(right, lengths=(256,), seed=1))
    assert statistics.lengths(both).iloc[0]["trials"] == 16
    rng = np.random.default_rng(1)
    own, other = rng.random((8, 1, 5)) < 0.9, rng.random((8, 1, 5)) < 0.3
    expected = paired.sign_flip((own.astype(float) - other).sum((1, 2)))
    for changes in ({}, {"seed": 3}):  # other tokens of the same trials; other trials
        rows = named(grid(other, "base", lengths=(256,)), grid(own, "new", lengths=(256,), **changes))
        rows.loc[rows["series"] == "new", "prompt_sha256"] += "'"
        line = statistics.compare(rows, "base", ()).iloc[0]
        assert (line["shared"], line["pairs"], line["trials"], line["p"]) == (False, 40, 8, pytest.approx(expected))
    assert "other prompts for each, paired by trial, over 8 trials" in said(rows)
    far = named(grid(other, "base", lengths=(256,)), grid(own, "new", lengths=(512,)))
    assert statistics.compare(far, "base", ()).empty


def test_one_prompt_a_trial_draws_what_prompts_alone_do():
    """The bootstrap over trials is the one over prompts where a trial has one: the same distribution, by quantiles."""
    part = pd.DataFrame({"right": [1.0] * 5 + [0.0] * 3, "right_baseline": [1.0, 0.0] * 4})
    part["cluster"] = part["region"] = [str(i) for i in range(8)]
    levels = np.linspace(0.02, 0.98, 9)
    for columns in (["right"], ["right", "right_baseline"]):
        shown = [part[[*columns, "cluster", "region"]]]
        one, other = (draw(shown, 0)[:, 0] for draw in (reach.drawn, reach.drawn_trials))
        assert np.quantile(one, levels, axis=0) == pytest.approx(np.quantile(other, levels, axis=0), abs=0.02)


def test_lengths_of_a_trial_are_compared_with_each_other():
    """Of trials all right or all wrong, both lengths have the same: the ratio hardly varies, where apart it would."""
    right = alike([1] * 10 + [0] * 10, 2).astype(float)
    kept = statistics.effective_lengths(named(grid(right, lengths=(256, 512)))).iloc[0]
    assert (kept["low"], kept["effective_length"], kept["trials"], kept["prompts"]) == (512, 512, 20, 200)
    turned = right.copy()
    turned[:, 1] = right[::-1, 1]  # as many at each length, of other trials
    apart = statistics.effective_lengths(named(grid(turned, lengths=(256, 512)))).iloc[0]
    assert (apart["low"], apart["effective_length"]) == (256, 512)


@pytest.mark.parametrize("effect", [0.0, 2.0, 8.0])
def test_the_interval_of_the_effective_length_covers_with_trials(effect):
    """Trials that are easy or hard at every length, by so many logits: 93% or more, it is discrete."""
    rng = np.random.default_rng(6)
    points, weights = np.polynomial.hermite_e.hermegauss(40)
    logits = np.linspace(-30, 30, 1201)
    means = special.expit(logits[:, None] + effect * points) @ weights / weights.sum()
    held = []
    for _ in range(60):
        truth = np.sort(rng.uniform(0.05, 1, 5))[::-1]
        at = np.interp(truth, means, logits)
        true_length = int(np.flatnonzero(truth >= statistics.SHARE * truth[0]).max())
        right = rng.random((8, 5, 5)) < special.expit(at + effect * rng.standard_normal((8, 1)))[:, :, None]
        by_length = [
            pd.DataFrame({"right": right[:, i].ravel().astype(float), "region": np.repeat(range(8), 5)})
            for i in range(5)
        ]
        low, high = reach.bounds(reach.reached(reach.drawn_trials(by_length, 0)[..., 0], statistics.SHARE))
        held.append(low <= true_length <= high)
    assert np.mean(held) >= 0.93


def test_plans_are_kept_apart_and_no_row_is_lost():
    """Rows that tell no plan are of plan 1, beside rows that do too; a plan that is not known is refused."""
    old = [
        {name: value for name, value in each.items() if name != "plan"}
        for each in grid(alike([1] * 8, 1), "base", (256,), plan=1)
    ]
    new = grid(alike([0] * 8, 1), "base", (256,))
    rows = named(old, new, grid(alike([1] * 8, 1), "new", (256,)))
    assert len(rows) == 120
    assert rows["plan"].value_counts().to_dict() == {2: 80, 1: 40}
    lengths = statistics.lengths(rows).set_index(["series", "plan"])
    assert lengths["accuracy"].to_dict() == {("base", 1): 1.0, ("base", 2): 0.0, ("new", 2): 1.0}
    assert lengths["scored"].sum() == statistics.cells(rows)["scored"].sum() == 120
    assert lengths["trials"].to_dict() == {("base", 1): 40, ("base", 2): 8, ("new", 2): 8}
    (line,) = statistics.compare(rows, "base", ()).to_dict("records")
    assert (line["plan"], line["difference"]) == (2, 1.0)
    assert sorted(statistics.effective_lengths(rows)["plan"]) == [1, 2, 2]
    raw = frame(old).assign(series="base", subject="base")  # not named, no plan at all
    assert statistics.cells(raw)["scored"].sum() == 40
    assert (
        statistics.compare(pd.concat([raw, raw.assign(series="new")], ignore_index=True), "base", ())["pairs"][0] == 40
    )
    assert statistics.cause_counts(statistics.with_causes(rows))["prompts"].sum() == 120
    for plan in (3, "2", 1.5):
        with pytest.raises(UserError, match=f"plan {plan!r} in the rows: allowed are 1 and 2"):
            named([{**each, "plan": plan} for each in grid(alike([1]), lengths=(256,))])


def test_plan_1_is_what_it_was_without_the_column():
    right, other = np.random.default_rng(2).random((2, 9, 2, 3)) < [[[[0.7]]], [[[0.4]]]]
    shape = {"lengths": (256, 512), "depths": (0.0, 50.0, 100.0)}
    told = two(right, other, plan=1, **shape)
    untold = named(
        [{k: v for k, v in each.items() if k != "plan"} for name, part in (("base", other), ("new", right))
         for each in grid(part, name, **shape)]
    )  # fmt: skip
    for table in (statistics.cells, statistics.lengths, statistics.effective_lengths):
        pd.testing.assert_frame_equal(table(told), table(untold))
    for by in (("context_length",), ()):
        line = statistics.compare(untold, "base", by).iloc[0]
        pd.testing.assert_series_equal(statistics.compare(told, "base", by).iloc[0], line)
        assert (line["trials"], line["test"]) == (0, "McNemar's exact test")
    line = statistics.lengths(told).iloc[0]
    expected = stats.binomtest(int(other[:, 0].sum()), 27).proportion_ci(method="wilson")
    assert (line["low"], line["high"]) == pytest.approx((expected.low, expected.high))


def heads_of(odds, lengths, plan=2, depths=2):
    """Return attention rows of one head; odds: an array (trials, lengths x depths) of ln(mass / (1 - mass))."""
    rows = []
    for t, line in enumerate(odds):
        for i, value in enumerate(line):
            length, depth = lengths[i // depths], 50.0 * (i % depths)
            mass = [[float(special.expit(value))]]
            masses = dict.fromkeys(statistics.HEAD, mass) | {"log_odds": [[float(value)]], "visible_keys": [length]}
            masses["maximum_at"] = [[0]]
            rows.append(row("m", length, depth, t, plan=plan, **masses))
    return statistics.heads(named(rows))


def test_an_exponents_errors_are_clustered_by_trial():
    """Of a balanced grid: Student's t over the trials' own slopes, but for statsmodels' (N - 1) / (N - 2)."""
    rng = np.random.default_rng(3)
    lengths = (256, 1024, 4096)
    n = np.repeat(np.log(lengths), 2)
    odds = 2 - n + rng.normal(0, 1, (8, 1)) + rng.normal(0, 0.3, (8, 1)) * n + rng.normal(0, 0.5, (8, 6))
    found = statistics.fading(heads_of(odds, lengths)).iloc[0]
    slopes = np.array([np.polyfit(n, line, 1)[0] for line in odds])
    half = stats.t.ppf(0.975, 7) * stats.sem(slopes) * np.sqrt(47 / 46)
    assert found["b"] == pytest.approx(slopes.mean())
    assert (found["low"], found["high"]) == pytest.approx((slopes.mean() - half, slopes.mean() + half))
    alone = statistics.fading(heads_of(odds, lengths, plan=1)).iloc[0]
    assert alone["high"] - alone["low"] != pytest.approx(2 * half, rel=0.05)
    assert np.isnan(statistics.fading(heads_of(odds[:4], lengths)).iloc[0][["low", "high"]].astype(float)).all()


def test_page_and_terminal_name_the_unit(tmp_path, capsys):
    from ssmax_eval.report import figures
    from ssmax_eval.results import find_runs
    from ssmax_eval.terminal import print_runs

    own, other = np.ones((8, 5, 5)), np.ones((8, 5, 5))
    other[:, 3:] = 0
    rows = [*grid(other, "base"), *grid(own, "new")]
    small = {"lengths": (256,), "depths": (0.0, 50.0)}
    page = page_of(rows, tmp_path)
    assert "<h2>single (one number), in generated prose</h2>" in page
    assert "They are of 8 trials." in page
    assert "count once" not in page
    assert 'title="95% interval 0.68 to 1.00, over 8 trials"' in page
    assert "draws the trials again" in page
    assert "<td>200 in 8 trials</td>" in page
    assert "200 identical prompts over 8 trials" in page
    both = page_of([*grid(own[:1], **small), *grid(own[:1], plan=1, **small)], tmp_path)
    assert "<h2>single (one number), in generated prose, each prompt its own haystack</h2>" in both
    few = page_of(grid(own[:2], **small), tmp_path)
    assert 'title="no interval, 2 trials are too few"' in few
    assert "<td>none, too few trials</td>" in few
    texts = [each | {"haystack_start": each["trial"] // 2, "haystack_sentences": 1} for each in grid(own, **small)]
    assert "count trials, not prompts; trials of overlapping text count once." in page_of(texts, tmp_path)
    unlike = [
        each | {"prompt_sha256": name + each["prompt_sha256"]} for name in "ab" for each in grid(own, name, **small)
    ]
    assert "unlike prompts, paired by trial" in page_of(unlike, tmp_path)
    print_runs(find_runs(store(tmp_path / "runs", rows)), tmp_path, False, False, statistics.Thresholds())
    told = capsys.readouterr().out
    assert "new: It finds more than base from 2,048 to 4,096 tokens." in told
    assert "200 identical prompts over 8 trials" in told
    means = pd.Series([0.2, 0.4, 0.6, 0.5, 0.3])
    assert figures.heads.over_trials(means) == pytest.approx(stats.t.interval(0.95, 4, means.mean(), stats.sem(means)))
    assert np.isnan(figures.heads.over_trials(means[:4])).all()


def test_a_page_of_attention_is_over_trials(tmp_path):
    odds = np.random.default_rng(4).normal(0, 1, (8, 4))
    for trials, says in ((8, "b, 95% interval over trials"), (3, "no interval")):
        rows = [
            row("m", length, depth, t, plan=2, visible_keys=[length], answer_ranks=[0], top_mass_answer=[0.5],
                haystack_nll=5.0, **{name: [[float(odds[t, i])]] for name in statistics.HEAD}
                | {"mass_answer": [[float(special.expit(odds[t, i]))]], "maximum_at": [[0]]})
            for t in range(trials)
            for i, (length, depth) in enumerate([(256, 0.0), (256, 50.0), (512, 0.0), (512, 50.0)])
        ]  # fmt: skip
        page = ssmax_eval.report(frame(rows), tmp_path / "p.html").read_text()
        assert says in page
        assert "+nan" not in page

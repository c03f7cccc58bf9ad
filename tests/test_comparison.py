"""Intervals and tests against scipy, statsmodels, published examples and simulated data with known truth."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ssmax_eval import statistics
from ssmax_eval.errors import UserError
from ssmax_eval.statistics import paired

SIMULATED = 1000


def rows_of(right, series="a", length=256, depth=50.0, blocks=None, **changes):
    """Return rows with_series of one series, a prompt for each entry of right."""
    return pd.DataFrame(
        {
            "task": "single", "value": "number", "needles": 1, "haystack": "text", "control": None, "series": series,
            "subject": series, "context_length": length, "depth_percent": depth, "trial": range(len(right)),
            "prompt_sha256": [f"{length}/{depth}/{i}" for i in range(len(right))], "haystack_block": blocks,
            "correct": pd.array([None if r is None else bool(r) for r in right], dtype="boolean"),
            "first_correct": pd.array([None if r is None else bool(r) for r in right], dtype="boolean"), **changes,
        }
    )  # fmt: skip


def two(only, only_baseline, both=0, neither=0, **changes):
    right = [1] * both + [1] * only + [0] * only_baseline + [0] * neither
    other = [1] * both + [0] * only + [1] * only_baseline + [0] * neither
    return pd.concat([rows_of(other, "base", **changes), rows_of(right, "new", **changes)], ignore_index=True)


def test_cells_have_wilsons_interval():
    for right, n in ((0, 5), (3, 5), (5, 5), (17, 200)):
        cell = statistics.cells(rows_of([1] * right + [0] * (n - right))).iloc[0]
        expected = stats.binomtest(right, n).proportion_ci(method="wilson")
        assert (cell["low"], cell["high"]) == pytest.approx((expected.low, expected.high), abs=1e-12)
    failed = statistics.cells(rows_of([None])).iloc[0]
    assert np.isnan(failed[["low", "high"]].astype(float)).all()


def test_wilsons_interval_covers():
    rng = np.random.default_rng(0)
    for n in (20, 200):
        truth = rng.uniform(
            0, 1, 4 * SIMULATED
        )  # over many truths: at any one a discrete interval is off to either side
        right = rng.binomial(n, truth)
        low, high = statistics.wilson(pd.Series(right), pd.Series(np.full(len(right), n)))
        assert 0.93 <= ((low <= truth) & (truth <= high)).mean() <= 0.97


@pytest.mark.parametrize(
    ("table", "interval"),
    [
        ((14, 5, 0, 22), (0.011, 0.226)),  # Altman et al. 2000, Statistics with Confidence, table 6.2
        ((59, 6, 16, 80), (-0.1186, -0.0046)),  # Fagerland et al. 2017, data of Cavo et al. 2012
    ],
)
def test_the_paired_interval_is_newcombes(table, interval):
    assert statistics.paired_interval(*table) == pytest.approx(interval, abs=6e-4 if interval[0] > 0 else 5e-5)


def test_the_paired_interval_covers():
    """Over random tables, correlated or not: the 95% interval of a cell's difference holds the true one in 93 to 97%."""
    rng = np.random.default_rng(1)
    for n in (20, 100):
        held = 0
        for _ in range(SIMULATED):
            shares = rng.dirichlet([1, 1, 1, 1])
            low, high = statistics.paired_interval(*map(int, rng.multinomial(n, shares)))
            held += low <= shares[1] - shares[2] <= high
        assert 0.93 <= held / SIMULATED <= 0.97


def test_mcnemar_is_statsmodels_exact_test():
    from statsmodels.stats.contingency_tables import mcnemar

    for only, only_baseline in ((0, 0), (5, 0), (6, 0), (3, 9), (40, 31)):
        line = statistics.compare(two(only, only_baseline, both=7, neither=2), "base").iloc[0]
        table = [[7, only], [only_baseline, 2]]
        assert line["p"] == pytest.approx(mcnemar(table, exact=True).pvalue)
        assert line[["pairs", "both", "only", "only_baseline", "neither"]].tolist() == [
            only + only_baseline + 9, 7, only, only_baseline, 2,
        ]  # fmt: skip
        assert line["difference"] == pytest.approx((only - only_baseline) / (only + only_baseline + 9))


def test_holm_is_over_the_cells_of_one_series():
    rows = pd.concat(
        [two(only, 0, neither=20 - only, length=length) for length, only in ((1, 8), (2, 6), (3, 5))]
        + [two(only, 0, neither=20, length=9, depth=only).assign(task="multikey") for only in (6, 7)]
    )
    found = statistics.compare(rows, "base")
    single = found[found["task"] == "single"]
    p = single["p"].to_numpy()
    assert single["p_holm"].tolist() == pytest.approx([3 * p[0], 2 * p[1], p[2]])
    other = found[found["task"] == "multikey"]
    assert other["p_holm"].tolist() == pytest.approx([other["p"].iloc[0], 2 * other["p"].iloc[1]])


def test_only_prompts_scored_in_both_are_compared():
    rows = two(3, 1)
    rows.loc[0, "correct"] = pd.NA  # the first prompt of the baseline
    assert statistics.compare(rows, "base").iloc[0]["pairs"] == 3
    rows["control"] = "no-needle"
    assert statistics.compare(rows, "base").empty


def test_series_with_other_prompts_are_compared_as_independent():
    rows = two(3, 1, both=10, neither=6)
    rows.loc[rows["series"] == "new", "prompt_sha256"] += "x"
    line = statistics.compare(rows, "base").iloc[0]
    assert (line["pairs"], line["shared"]) == (0, False)
    assert line["p"] == pytest.approx(stats.fisher_exact([[13, 7], [11, 9]]).pvalue)
    assert line["low"] < line["difference"] < line["high"]


def test_prompts_of_one_haystack_count_less():
    """A hundred prompts that are ten texts ten times over: the interval is wide and nothing is significant."""
    texts = [1] * 7 + [0] * 3
    right = [r for r in texts for _ in range(10)]
    blocks = [i for i in range(10) for _ in range(10)]
    made = statistics.compare(pd.concat([rows_of([0] * 100, "base"), rows_of(right, "new")]), "base").iloc[0]
    shared = pd.concat([rows_of([0] * 100, "base", blocks=blocks), rows_of(right, "new", blocks=blocks)])
    read = statistics.compare(shared, "base").iloc[0]
    assert read["high"] - read["low"] > 1.5 * (made["high"] - made["low"])
    assert made["p"] < 1e-6
    assert read["p"] == pytest.approx(2 / 2**7)  # seven texts differ, all one way: sign flips


def test_the_bootstrap_over_haystacks_covers():
    """Texts with an effect of their own, several prompts each: the interval holds the true mean difference in 93 to 97%."""
    rng = np.random.default_rng(2)
    held = []
    for _ in range(SIMULATED):
        effect = rng.beta(2, 2, 40)  # the share of a text's prompts that only the new model finds
        only = rng.binomial(8, effect)
        low, high = paired.bootstrap(only.astype(float), np.full(40, 8.0), seed=0)
        held.append(low <= 0.5 <= high)
    assert 0.93 <= np.mean(held) <= 0.97


def test_singletons_make_the_sign_flip_mcnemars_test():
    differences = np.array([1.0] * 9 + [-1.0] * 2)
    assert paired.sign_flip(differences, 0) == pytest.approx(stats.binomtest(9, 11).pvalue)


def test_the_smallest_difference_is_found_with_the_power_it_says():
    for pairs in (10, 40, 200):
        share = statistics.smallest_difference(pairs)
        least = next(k for k in range(1, 20) if stats.binomtest(k, k).pvalue <= 0.05)
        assert stats.binom.sf(least - 1, pairs, share) == pytest.approx(0.8)
    assert np.isnan(statistics.smallest_difference(5))


LENGTHS = (256, 512, 1024, 2048)


def curve(accuracies, n=40, series="a"):
    parts = [
        rows_of([1] * round(n * accuracy) + [0] * (n - round(n * accuracy)), series, length=length)
        for length, accuracy in zip(LENGTHS, accuracies, strict=True)
    ]
    return pd.concat(parts, ignore_index=True)


def test_effective_length_is_the_longest_with_85_percent_of_the_short_score():
    found = statistics.effective_lengths(pd.concat([curve([0.8, 0.8, 0.7, 0.6]), curve([1, 1, 1, 1], series="b")]))
    a, b = found.to_dict("records")
    assert (a["effective_length"], a["beyond"]) == (1024, False)  # .7 >= .85 * .8 = .68
    assert (b["effective_length"], b["beyond"], b["low"], b["low_beyond"]) == (2048, True, 2048, True)
    none = statistics.effective_lengths(curve([0, 0.5, 0, 0])).iloc[0]
    assert np.isnan(none["effective_length"])
    assert not none["beyond"]


def test_the_interval_of_the_effective_length_covers():
    """Accuracies known, 40 prompts a length: the interval of tested lengths holds the true one in 93% or more; it is discrete."""
    rng = np.random.default_rng(3)
    held, trials = 0, 300
    for _ in range(trials):
        truth = np.sort(rng.uniform(0.05, 1, 4))[::-1]
        true_length = LENGTHS[int(np.flatnonzero(truth >= 0.85 * truth[0]).max())]
        parts = [rows_of(rng.random(40) < p, length=n) for p, n in zip(truth, LENGTHS, strict=True)]
        line = statistics.effective_lengths(pd.concat(parts)).iloc[0]
        held += line["low"] <= true_length <= line["high"]
    assert held / trials >= 0.93


def test_reach_is_compared_on_the_same_prompts():
    rows = pd.concat([curve([1, 0.5, 0.1, 0], series="base"), curve([1, 1, 1, 1], series="new")])
    line = statistics.compare_reach(rows, "base").iloc[0]
    assert (line["ratio"], line["bound"]) == (8.0, "at least")
    assert line["low"] <= 8 <= line["high"]
    back = statistics.compare_reach(rows, "new").iloc[0]
    assert (back["ratio"], back["bound"]) == (1 / 8, "at most")
    both = pd.concat([curve([1, 1, 1, 1], series="base"), curve([1, 1, 1, 1], series="new")])
    assert statistics.compare_reach(both, "base").iloc[0]["bound"] == "unknown"


def seeded(values):
    """Return rows and configurations of {configuration: accuracies of its seeds}, 100 prompts each."""
    parts, known = [], {}
    for configuration, accuracies in values.items():
        for seed, accuracy in enumerate(accuracies):
            name = f"{configuration}-s{seed}"
            known[name] = (configuration, seed)
            parts.append(rows_of([1] * round(100 * accuracy) + [0] * (100 - round(100 * accuracy)), name))
    return pd.concat(parts, ignore_index=True), known


def test_seeds_are_the_second_level():
    rows, known = seeded({"base": [0.1, 0.5, 0.3], "new": [0.8, 0.9, 0.9]})
    base, new = statistics.over_seeds(rows, known).to_dict("records")
    assert (base["accuracy"], base["seeds"], base["least"], base["most"]) == pytest.approx((0.3, 3, 0.1, 0.5))
    expected = stats.ttest_1samp([0.8, 0.9, 0.9], 0).confidence_interval()
    assert (new["low"], new["high"]) == pytest.approx((expected.low, min(expected.high, 1)))
    line = statistics.compare_seeds(rows, known, "base").iloc[0]
    test = stats.ttest_1samp([0.7, 0.4, 0.6], 0)
    assert (line["difference"], line["p"]) == pytest.approx((0.5667, test.pvalue), abs=1e-4)
    assert line["low"] == pytest.approx(test.confidence_interval().low)


def test_the_interval_over_seeds_covers():
    """Three seeds whose accuracies scatter: the interval holds the mean of all seeds in 93 to 97%."""
    rng = np.random.default_rng(4)
    values = pd.DataFrame({"x": rng.normal(0.5, 0.1, 3 * SIMULATED), "case": np.repeat(range(SIMULATED), 3)})
    from ssmax_eval.statistics.seeds import with_t

    found = with_t(values, "x", ["case"], -9.0)
    assert 0.93 <= ((found["low"] <= 0.5) & (found["high"] >= 0.5)).mean() <= 0.97


def explained(**changes):
    base = {
        "correct": False, "top_mass_answer": [[0.9, 0.2]], "answer_ranks": [[0, 3]], "haystack_nll": 5.0,
        "context_length": 1024,
    }  # fmt: skip
    short = rows_of([1], length=256, haystack_nll=4.8).assign(top_mass_answer=[[0.9, 0.9]], answer_ranks=[[0, 0]])
    long = rows_of([base["correct"] if "correct" not in changes else changes["correct"]], length=1024)
    long = long.assign(**{key: value for key, value in {**base, **changes}.items() if key != "correct"})
    return statistics.with_causes(pd.concat([short, long], ignore_index=True)).iloc[1]


def test_causes_rest_on_the_first_wrong_token():
    assert explained()["cause"] == "not attended"  # .9 on the first token's row does not count: that token was right
    assert explained(answer_ranks=[[2, 3]])["cause"] == "attended, wrong"
    assert explained(top_mass_answer=[[0.9, 0.5]])["cause"] == "attended, wrong"
    assert explained(haystack_nll=5.9)["cause"] == "position blow-up"
    assert explained(haystack_nll=5.8)["haystack_rise"] == pytest.approx(1.0)
    assert explained(correct=True, haystack_nll=9.0)["cause"] == "found"
    assert explained(top_mass_answer=[None])["cause"] == "unknown"


def test_thresholds_of_causes_are_the_users():
    rows = rows_of([0]).assign(top_mass_answer=[[0.3]], answer_ranks=[[4]], haystack_nll=5.0)
    assert statistics.with_causes(rows, statistics.Thresholds(attended=0.25)).iloc[0]["cause"] == "attended, wrong"
    counts = statistics.cause_counts(statistics.with_causes(rows)).iloc[0]
    assert (counts["not attended"], counts["found"], counts["prompts"]) == (1, 0, 1)
    for wrong in ({"attended": 1.5}, {"attended": -0.1}, {"blow_up": 0.0}, {"blow_up": float("nan")}):
        with pytest.raises(UserError, match="allowed are"):
            statistics.Thresholds(**wrong)


def test_the_best_theta_of_each_cell():
    shape = {"rope_scaling": None, "subject": "a"}
    rows = pd.concat(
        [
            rows_of([1] * k + [0] * (4 - k), f"a, theta x{factor:g}" if factor != 1 else "a", length, **shape)
            .assign(rope_theta_factor=factor, rope="as trained" if factor == 1 else f"theta x{factor:g}")
            for (length, factor), k in {(1, 1): 4, (1, 10): 2, (1, 50): 4, (2, 1): 0, (2, 10): 3, (2, 50): 1}.items()
        ]
    )  # fmt: skip
    best = statistics.best_theta(rows)
    assert best.groupby("context_length")["rope_theta_factor"].unique().map(list).to_dict() == {1: [1], 2: [10]}
    assert best["series"].unique().tolist() == ["a, best theta of each cell"]
    table = statistics.theta_lengths(rows).set_index(["rope_theta_factor", "context_length"])["accuracy"]
    assert table[(10, 2)] == 0.75
    assert statistics.best_theta(rows[rows["rope_theta_factor"] == 1]).empty

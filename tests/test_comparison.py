"""Intervals and tests against scipy, statsmodels, published examples and simulated data with known truth."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ssmax_eval import statistics
from ssmax_eval.errors import UserError
from ssmax_eval.report.context import Context
from ssmax_eval.statistics import paired

SIMULATED = 1000


def rows_of(right, series="a", length=256, depth=50.0, starts=None, **changes):
    """Return rows with_series of one series, a prompt for each entry of right."""
    return pd.DataFrame(
        {
            "task": "single", "value": "number", "needles": 1, "haystack": "text", "control": None, "series": series,
            "subject": series, "context_length": length, "depth_percent": depth, "trial": range(len(right)),
            "prompt_sha256": [f"{length}/{depth}/{i}" for i in range(len(right))], "haystack_start": starts,
            "haystack_sentences": 10,
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
    starts = [10 * i + j for i in range(10) for j in range(10)]  # ten stretches as long as a haystack
    made = statistics.compare(pd.concat([rows_of([0] * 100, "base"), rows_of(right, "new")]), "base").iloc[0]
    shared = pd.concat([rows_of([0] * 100, "base", starts=starts), rows_of(right, "new", starts=starts)])
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


def test_the_sign_flip_test_is_scipys_permutation_test():
    for sums in ([3.0, -1.0, 2.0, 2.0], [5.0, 5.0], [1.0, -1.0, 4.0, 0.0]):
        exact = stats.permutation_test(
            (np.array(sums),), lambda x, axis: np.abs(x.sum(axis=axis)), permutation_type="samples", alternative="greater",
            vectorized=True, n_resamples=np.inf,
        )  # fmt: skip
        assert paired.sign_flip(np.array(sums)) == pytest.approx(exact.pvalue)
    assert paired.sign_flip(np.array([4.0])) == 1.0  # one text alone
    assert paired.sign_flip(np.array([0.0])) == 1.0
    assert paired.sign_flip(np.random.default_rng(0).integers(0, 3, 3000).astype(float)) < 1e-9


def test_few_stretches_of_text_say_nothing():
    """However many prompts: from three texts no interval, and one text that differs is one."""
    starts = [100 * (i % 3) for i in range(60)]
    rows = pd.concat(
        [rows_of([0] * 60, "base", starts=starts), rows_of([s == 0 for s in starts], "new", starts=starts)]
    )
    line = statistics.compare(rows, "base").iloc[0]
    assert (line["low"], line["high"], line["p"]) == (-1.0, 1.0, 1.0)
    assert line["test"] == "exact sign-flip test over haystacks"
    swapped = rows.copy()
    swapped.loc[swapped["series"] == "new", ["haystack_start", "haystack_sentences"]] = None  # rows of an older run
    assert statistics.compare(swapped, "base").iloc[0]["p"] == 1.0
    assert statistics.compare(swapped, "new").iloc[0]["p"] == 1.0


def test_strangers_are_compared_in_cells_that_both_have():
    parts = [rows_of([1] * 20, "base", length=n) for n in (256, 512)]
    parts += [rows_of([0] * 20, "base", length=n) for n in (4096, 8192)]
    parts += [rows_of([0] * 20, "base", length=256, depth=0.0)]
    parts += [rows_of([1] * 30, "new", length=n).assign(prompt_sha256="x") for n in (256, 512)]
    line = statistics.compare(pd.concat(parts, ignore_index=True), "base", ()).iloc[0]
    assert (line["difference"], line["shared"]) == (0.0, False)


def test_singletons_make_the_sign_flip_mcnemars_test():
    differences = np.array([1.0] * 9 + [-1.0] * 2)
    assert paired.sign_flip(differences) == pytest.approx(stats.binomtest(9, 11).pvalue)


def test_the_smallest_difference_is_found_with_the_power_it_says():
    for pairs, level in ((10, 0.05), (40, 0.05), (200, 0.05 / 5)):
        share = statistics.smallest_difference(pairs, level)
        least = next(k for k in range(1, 20) if stats.binomtest(k, k).pvalue <= level)
        assert stats.binom.sf(least - 1, pairs, share) == pytest.approx(0.8)
    # trials of five prompts that differ each on its own, simulated: the sign-flip test finds it in 80 of 100
    share = statistics.smallest_difference(8, prompts=5)
    sums = np.random.default_rng(0).binomial(5, share, size=(4000, 8))
    assert np.mean([paired.sign_flip(each.astype(float)) < 0.05 for each in sums]) == pytest.approx(0.8, abs=0.02)
    assert np.isnan(statistics.smallest_difference(5))
    assert statistics.smallest_difference(6) > 0
    three = pd.concat([two(6, 0, length=length) for length in (1, 2, 3)])
    found = statistics.compare(three, "base", ("context_length",))
    assert (found["p_holm"] > 0.05).all()
    assert found["smallest"].isna().all()  # six prompts beside two other lengths can show nothing


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
    dipped = statistics.effective_lengths(curve([1, 0.1, 0.2, 0.9])).iloc[0]
    assert (dipped["effective_length"], dipped["dips"]) == (2048, [512, 1024])
    few = statistics.effective_lengths(curve([1, 1, 0, 0], n=1)).iloc[0]
    assert few["low"] < few["high"]  # one prompt a length is not certain
    depths = pd.concat(
        [rows_of([1] * 9, length=256), rows_of([1] * 9, length=512), rows_of([0] * 9, length=512, depth=0.0)]
    )
    assert statistics.effective_lengths(depths).iloc[0]["effective_length"] == 512  # at the depth that both have
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
    assert 0 < line["low"] <= 8
    assert line["high"] == np.inf  # nobody knows how far beyond
    back = statistics.compare_reach(rows, "new").iloc[0]
    assert (back["ratio"], back["bound"], back["low"]) == (1 / 8, "at most", 0)
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


def test_a_seed_counts_once_and_equal_seeds_are_no_certainty():
    rows, known = seeded({"base": [0.1, 0.5], "new": [0.6, 1.0]})
    assert np.isnan(statistics.compare_seeds(rows, known, "base").iloc[0][["low", "high", "p"]].astype(float)).all()
    copy = rows[rows["series"] == "new-s0"].assign(series="copy")
    more = statistics.over_seeds(pd.concat([rows, copy]), {**known, "copy": ("new", 0)})
    assert more["seeds"].tolist() == [2, 2]


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
    assert explained(haystack_nll=5.8 + 1e-9)["cause"] == "position blow-up"
    assert explained(correct=True, haystack_nll=9.0)["cause"] == "found"
    assert explained(top_mass_answer=[None])["cause"] == "unknown"
    assert explained(out_of_reach=True)["cause"] == "out of reach"
    assert explained(out_of_reach=True, correct=True)["cause"] == "found"


def test_a_needle_is_out_of_reach_beyond_the_windows_of_all_layers():
    rows = rows_of([0, 0, 0]).assign(run_id=["windowed", "windowed", "plain"])
    rows = rows.assign(value_end=[60, 61, 0], question_start=[160, 160, 160])
    records = [{"run_id": "windowed", "attention": {"reach": 100}}, {"run_id": "plain", "attention": {}}]
    assert Context(records).with_reach(rows)["out_of_reach"].tolist() == [True, False, False]
    assert "out_of_reach" not in Context(records[1:]).with_reach(rows)


def test_the_level_is_of_rows_that_have_one_and_of_the_best_theta():
    masses = {"top_mass_answer": [[0.9]], "answer_ranks": [[3]]}
    rows = pd.concat(
        [
            rows_of([1], length=128),  # a needle run: no masses, no nll
            rows_of([1], length=256, haystack_nll=4.0).assign(**masses),
            rows_of([0], length=512, haystack_nll=9.0).assign(**masses),
            rows_of([0], "a, theta x50", 256, haystack_nll=9.0).assign(subject="a", **masses),
        ],
        ignore_index=True,
    )
    assert statistics.with_causes(rows)["cause"].tolist()[2:] == ["position blow-up"] * 2


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
    partly = rows[(rows["context_length"] == 2) & (rows["rope_theta_factor"] > 1)]
    partly.loc[(partly["rope_theta_factor"] == 50) & ~partly["correct"], "correct"] = pd.NA
    assert set(statistics.best_theta(partly)["rope_theta_factor"]) == {10}  # 1 of 1 scored does not win over 3 of 4
    other = rows.assign(rope=rows["rope"].replace("theta x50", "theta x10, theta 500000"))
    assert set(statistics.theta_lengths(other)["rope_theta_factor"]) == {1, 10}


def test_nothing_in_nothing_out():
    """Empty frames, all failed and only controls: empty tables, no exception."""
    failed = rows_of([None, None])
    control = rows_of([1]).assign(control="no-needle")
    alone, known = seeded({"base": [0.5, 0.6]})
    for rows in (failed.iloc[:0], failed, control):
        assert statistics.compare(rows, "a").empty
        assert statistics.effective_lengths(rows).empty
        assert statistics.compare_reach(rows, "a").empty
        assert statistics.with_causes(rows).empty
        assert statistics.over_seeds(rows, known).empty
        assert statistics.top_heads(statistics.heads(rows)).empty
    assert statistics.compare_seeds(alone, known, "base").empty
    assert len(statistics.over_seeds(alone, known)) == 1

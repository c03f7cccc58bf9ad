"""Losses, masses and fading exponents against closed forms."""

import math

import numpy as np
import pandas as pd
import pytest

from ssmax_eval import statistics
from ssmax_eval.errors import UserError
from ssmax_eval.mechanisms.fading import by_lead, by_length, largest_weight, scale_of
from ssmax_eval.mechanisms.registry import mechanisms
from ssmax_eval.mechanisms.scales import QueryScale

COMMON = {
    "model": "m", "fingerprint": "f", "dtype": "float32", "attention": "softmax", "attention_swapped": False, "rope": "as trained",
}  # fmt: skip


def documents(values, text="x"):
    return pd.DataFrame(
        [
            COMMON
            | {"text": "t", "text_sha256": text, "context_length": 8, "window": 4, "seed": 0, "measure": "position"}
            | {"document": str(i), "document_sha256": f"{text}{i}"}
            | {
                "position_start": 1,
                "position_end": 3,
                "tokens": 2,
                "nll_sum": value,
                "nll_sum_near": None,
                "error": None,
            }
            for i, value in enumerate(values)
        ]
    )


def test_loss_is_nats_over_tokens_with_documents_as_clusters():
    """The interval is scipy's own t interval of the documents' means."""
    from scipy import stats

    values = [2.0, 4.0, 9.0, None]
    line = statistics.loss_by_position(statistics.with_series(documents(values))).iloc[0]
    assert line["loss"] == pytest.approx((2 + 4 + 9) / 6)
    per_document = np.array([1.0, 2.0, 4.5])
    low, high = stats.t.interval(0.95, 2, loc=per_document.mean(), scale=stats.sem(per_document))
    assert (line["low"], line["high"]) == pytest.approx((low, high))
    assert (line["documents"], line["failed"]) == (3, 1)


def test_texts_of_one_name_stay_apart_and_windows_drawn_twice_count_once():
    """The content decides: two files called book.txt are two texts; the same window under another seed is the same window."""
    two = pd.concat([documents([1.0, 2.0], "a"), documents([6.0, 8.0], "b")])
    assert statistics.loss_by_position(statistics.with_series(two))["loss"].tolist() == [0.75, 3.5]
    again = pd.concat([documents([1.0, 2.0]), documents([1.0, 2.0]).assign(seed=1)])
    assert statistics.loss_by_position(statistics.with_series(again))["documents"].tolist() == [2]


def prompts(log_odds, lengths, correct=True, series="m"):
    """One prompt a length, two layers of two heads; head 1.0 has the log odds given, the others almost no mass."""
    rows = []
    for i, (value, n) in enumerate(zip(log_odds, lengths, strict=True)):
        odds = [[-9.0, -9.0], [value, -9.0]]
        mass = [[1 / (1 + math.exp(-v)) for v in layer] for layer in odds]
        rows.append(
            COMMON
            | {
                "model": series,
                "task": "single",
                "value": "number",
                "needles": 4,
                "haystack": "text",
                "scoring": "forced",
            }
            | {
                "control": None,
                "context_length": n + 3,
                "depth_percent": 50.0,
                "trial": i,
                "prompt_sha256": f"{i}",
                "error": None,
            }
            | {"correct": correct, "first_correct": True, "visible_keys": [n, n], "log_odds": odds}
            | dict.fromkeys(set(statistics.HEAD) - {"log_odds"}, mass)
        )
    return rows


def test_statistics_know_the_probes_measures():
    """Told twice, since statistics load no torch."""
    from ssmax_eval.probes.attention.masses import MEASURES

    assert statistics.HEAD == MEASURES


@pytest.mark.parametrize("slope", [-1.0, 0.4])
def test_fading_finds_the_exponent(slope):
    rng = np.random.default_rng(0)
    lengths = [128, 512, 2048, 8192] * 10
    noise = rng.normal(0, 0.3, len(lengths))
    rows = prompts([2 + slope * math.log(n) + e for n, e in zip(lengths, noise, strict=True)], lengths)
    frame = pd.DataFrame(rows).astype({"correct": "boolean", "first_correct": "boolean"})
    by_head = statistics.heads(statistics.with_series(frame))
    assert len(by_head) == len(rows) * 4
    assert (by_head["n"] == by_head["context_length"] - 3).all()
    fit = statistics.fading(by_head).set_index(["layer", "head"]).loc[(1, 0)]
    assert fit["low"] < slope < fit["high"]
    assert fit["b"] == pytest.approx(
        np.polyfit(np.log(lengths), by_head.query("layer == 1 and head == 0")["log_odds"], 1)[0]
    )
    assert fit["prompts"] == len(rows)


def test_the_exponents_interval_is_students_with_robust_errors():
    """b plus and minus scipy's t quantile of N - 2 times statsmodels' HC3 error: few prompts make it wide."""
    import statsmodels.api as sm
    from scipy import stats

    rng = np.random.default_rng(2)
    lengths = [256, 256, 1024, 1024, 4096, 4096]
    odds = 1 - np.log(lengths) + rng.normal(0, 0.5, 6)
    by_head = statistics.heads(statistics.with_series(pd.DataFrame(prompts(odds, lengths))))
    found = statistics.fading(by_head).set_index(["layer", "head"]).loc[(1, 0)]
    fit = sm.OLS(odds, sm.add_constant(np.log(lengths))).fit()
    half = stats.t.ppf(0.975, 4) * fit.HC3_se[1]
    assert (found["low"], found["high"]) == pytest.approx((fit.params[1] - half, fit.params[1] + half))


@pytest.mark.parametrize("prompts_a_length", [5, 25])
def test_the_exponents_interval_covers(prompts_a_length):
    """Simulated heads whose scatter grows with n: the 95% interval holds the true exponent in 93 to 97% of 1,000."""
    rng = np.random.default_rng(1)
    lengths = np.repeat([256, 1024, 4096, 16384], prompts_a_length)
    held = 0
    for _ in range(1000):
        odds = 1 - np.log(lengths) + rng.normal(0, 0.2 + 0.1 * np.log(lengths / 256), len(lengths))
        part = pd.DataFrame(
            {"log_odds": odds, "context_length": lengths, "n": lengths, "layer": 0, "head": 0, "series": "m"}
        )
        part[statistics.TASK] = "x"
        fit = statistics.fading(part).iloc[0]
        held += fit["low"] <= -1 <= fit["high"]
    assert 930 <= held <= 970


def test_the_top_head_of_each_prompt_and_its_verdict():
    rows = prompts([3.0, -1.0], [100, 100]) + [
        row | {"trial": 5, "prompt_sha256": "x"} for row in prompts([0.0], [100], False)
    ]
    frame = pd.DataFrame(rows).astype({"correct": "boolean", "first_correct": "boolean"})
    top = statistics.top_heads(statistics.heads(statistics.with_series(frame)))
    assert top[["layer", "head"]].drop_duplicates().to_numpy().tolist() == [[1, 0]]
    assert top["mass_answer"].tolist() == pytest.approx([1 / (1 + math.exp(-v)) for v in (3, -1, 0)])
    assert top["verdict"].tolist() == ["right", "right", "first token"]


def test_of_a_prompt_run_twice_the_row_with_masses_stays():
    with_mass = prompts([1.0], [100])
    without = [{key: value for key, value in with_mass[0].items() if key not in statistics.HEAD}]
    for rows in (with_mass + without, without + with_mass):
        assert len(statistics.heads(statistics.with_series(pd.DataFrame(rows)))) == 4


def test_a_row_with_a_score_stays_before_one_without():
    """A needle run that went well is not replaced by an attention run that ran out of memory, in whatever order."""
    scored = {key: value for key, value in prompts([1.0], [100])[0].items() if key not in statistics.HEAD}
    failed = scored | {"correct": None, "first_correct": None, "error": "out of memory"}
    other = prompts([1.0], [200])[0] | {"prompt_sha256": "other"}
    for rows in ([scored, failed, other], [failed, scored, other]):
        kept = statistics.with_series(pd.DataFrame(rows))
        assert kept["error"].isna().tolist() == [True, True]


def test_rows_of_both_kinds_stay():
    both = pd.concat([pd.DataFrame(prompts([1.0, 2.0], [100, 200])), documents([1.0, 2.0])])
    assert len(statistics.with_series(both)) == 4


def test_fading_says_nothing_where_it_knows_nothing():
    """No interval with one prompt at a length, no exponent where n does not vary or the needle is out of sight."""

    def fit(odds, lengths, **changes):
        rows = [row | changes for row in prompts(odds, lengths)]
        by_head = statistics.heads(statistics.with_series(pd.DataFrame(rows)))
        return statistics.fading(by_head).set_index(["layer", "head"]).loc[(1, 0)]

    single = fit([1.0, 1.5, 1.2, 0.1], [512, 512, 512, 1024])
    assert np.isfinite(single["b"])
    assert np.isnan([single["low"], single["high"]]).all()
    assert np.isnan(fit([1.0, 1.5, 1.2, 0.1], [512, 512, 1024, 1024], visible_keys=[100, 100])["b"])
    hidden = prompts([1.0, 1.5, 1.2, 0.1], [512, 512, 1024, 1024])
    hidden[3]["log_odds"] = [[None, None], [None, None]]
    by_head = statistics.heads(statistics.with_series(pd.DataFrame(hidden)))
    assert statistics.fading(by_head)["b"].isna().all()


def test_rows_without_a_score_or_without_copies_are_no_heads():
    rows = prompts([1.0, 2.0], [100, 100])
    rows[0] |= {"error": "logits are not finite", "correct": None}
    rows[1] |= {"mass_next": None}
    by_head = statistics.heads(statistics.with_series(pd.DataFrame(rows)))
    assert len(by_head) == 4
    assert by_head["mass_next"].isna().all()
    assert statistics.heads(pd.DataFrame([{"error": None}])).empty


def test_names_of_series_do_not_hang_on_hashing():
    rows = [
        row | {"dtype": kind, "scoring": how}
        for kind, how in (("float32", "forced"), ("bfloat16", "generate"))
        for row in prompts([1.0], [100])
    ]
    assert set(statistics.with_series(pd.DataFrame(rows))["series"]) == {"m (float32)", "m (bfloat16)"}


def test_figure_1_of_the_paper():
    """Facts.md: the maximum output for -2 everywhere and one +3, s = .43."""
    table = by_length(["softmax", "ssmax:s=0.43"], 1024, 100_000).pivot(index="n", columns="attention", values="weight")
    assert table["softmax"].round(4).tolist() == [0.9428, 0.5999, 0.1293, 0.0146, 0.0015]
    assert table["ssmax:s=0.43"].round(4).tolist() == [0.9401, 0.9951, 0.9996, 1.0, 1.0]


def test_bounds_of_the_paper():
    """Beyond a lead of 1 / s the weight goes to 1 with n, below it to 0; softmax's goes to 0 whatever the lead."""
    scale = scale_of("ssmax:s=0.5", 1024)
    assert largest_weight(scale, 1e8, 2.5) > 0.99 > largest_weight(scale, 10, 2.5)
    assert largest_weight(scale, 1e8, 1.5) < 0.01
    assert largest_weight(scale_of("softmax", 1024), 1e8, 10) < 0.001
    table = by_lead(["ssmax:s=0.5"], 1024, 1000)
    assert set(table["n"]) == {10, 100, 1000}
    assert table.groupby("n")["weight"].apply(lambda w: w.is_monotonic_increasing).all()


def test_any_scale_fades_or_not():
    scales = [name for name, each in mechanisms().items() if issubclass(each, QueryScale)]
    table = by_length(scales, 512, 1000)
    assert len(table) == len(scales) * 3
    assert table["weight"].between(0, 1).all()
    assert by_length(["ssmax:s=-100"], 512, 1000)["weight"].max() < 1e-9
    with pytest.raises(UserError, match="largest n 1"):
        by_length(["softmax"], 512, 1)


def test_no_rows_of_any_kind_give_tables_of_none():
    nothing = pd.DataFrame({name: [] for name in ("probe", "series", "error")})
    assert statistics.loss_by_position(nothing).empty
    assert statistics.context_gain(nothing).empty

"""Advice: the numbers that rank candidates by closed forms, and a whole race on a tiny model."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from test_cli import call
from test_comparison import rows_of
from tiny import build

from ssmax_eval import UserError, load_model, statistics
from ssmax_eval.models.retrofit import retrofit
from ssmax_eval.models.subjects import RunOptions
from ssmax_eval.position.rope import RopeSetting
from ssmax_eval.setting import Setting
from ssmax_eval.studies.advice import options_of, race_lines, sentences
from ssmax_eval.studies.advise import (
    AS_ADVISED,
    AS_TRAINED,
    CANDIDATES,
    CHECKS,
    NEEDED,
    Advice,
    advise,
    applicable,
    spared,
)
from ssmax_eval.studies.asked import Asked
from ssmax_eval.studies.held_out import advised, at_trained_lengths, deciding, gains, helps, loses
from ssmax_eval.studies.race import ROUNDS, Read, best_of, by_lengths

SHORT = (
    "--context-lengths",
    "192,96",
    "--depth-percents",
    "0,50,100",
    "--trials",
    "12",
    "--task",
    "single",
    "--device",
    "cpu",
)


def found(series, by_length, nll=0.0):
    return pd.concat(
        [rows_of([True] * right + [False] * (10 - right), series, length) for length, right in by_length.items()]
    ).assign(answer_nll=nll, answer_ranks=None)


def test_candidates_are_ranked_at_each_length_by_what_they_find_there_and_then_by_tokens():
    """A setting that is surer of less is none the better, nor is one that is nearly right more often."""
    rows = pd.concat([found("sure", {64: 8, 128: 9}, -np.log(0.9)), found("more", {64: 9, 128: 9}, -np.log(0.5))])
    near = (rows["series"] == "sure") & ~rows["correct"]
    rows["answer_ranks"] = [[0, 0, 3, 0] if each else [0] * 4 for each in near]
    rows.loc[rows["series"] == "more", "answer_ranks"] = None  # they were written
    table = statistics.ranked(rows)
    assert table[["context_length", "series"]].to_numpy().tolist() == [
        [64, "more"],
        [64, "sure"],
        [128, "sure"],
        [128, "more"],
    ]
    assert table["accuracy"].tolist() == pytest.approx([0.9, 0.8, 0.9, 0.9])
    assert table["tokens_right"].tolist() == pytest.approx([0.9, 0.95, 0.975, 0.9])
    assert table[["prompts", "right"]].to_numpy().tolist() == [[10, 9], [10, 8], [10, 9], [10, 9]]


def test_what_has_no_score_at_a_length_is_not_ranked_there():
    """For want of memory, say."""
    rows = pd.concat([found("own", {64: 9, 128: 2}), found("large", {64: 10, 128: 0}), found("none", {256: 0})])
    rows.loc[(rows["series"] != "own") & (rows["context_length"] > 64), "correct"] = pd.NA
    assert statistics.ranked(rows)["series"].tolist() == ["large", "own", "own"]
    left = {64: ["own", "large"], 128: ["own", "large"], 256: ["none"]}
    assert statistics.chosen(rows, left) == {64: "large", 128: "own"}


def test_of_those_left_at_a_length_the_best_is_taken_and_kept_at_shorter_ones_where_it_finds_as_many():
    rows = pd.concat(
        [found("far", {32: 10, 64: 7, 128: 9}), found("near", {32: 10, 64: 10, 128: 2}), found("out", {128: 10})]
    )
    left = {key: ["near", "far"] for key in (32, 64, 128)}
    assert statistics.chosen(rows, left) == {32: "near", 64: "near", 128: "far"}
    assert statistics.chosen(rows, left | {64: ["far"]}) == {32: "far", 64: "far", 128: "far"}
    # of the prompts that both read: what left a length after its first five is compared on these
    gone = (rows["series"] == "far") & (rows["context_length"] == 64)
    few = rows[~gone | (rows["trial"] < 5)]
    assert statistics.chosen(few, left | {64: ["near"]}) == {32: "far", 64: "far", 128: "far"}
    assert statistics.chosen(rows[~gone], left | {64: ["near"]})[64] == "near"


def test_at_trained_lengths_it_is_read_as_beyond_or_as_trained():
    by_length = {"own": {32: 9, 64: 8, 128: 9}, "x8": {32: 9, 64: 9, 128: 9}, "x2": {32: 10, 64: 10, 128: 0}}
    rows = pd.concat([found(name, each) for name, each in by_length.items()])
    taken = {32: "x2", 64: "x2", 128: "x8"}
    assert spared(taken, {"x8"}, "own", rows, 64) == {32: "own", 64: "x8", 128: "x8"}  # as many, at a price; and fewer
    assert spared(taken, {"x2"}, "own", rows, 64) == {32: "x8", 64: "x8", 128: "x8"}  # no price is sure
    assert spared(taken, set(), "own", found("own", {64: 10, 128: 0}), 64)[64] == "own"  # what was not read there
    assert spared(taken | {128: "own"}, set(), "own", rows, 64) == dict.fromkeys(
        taken, "own"
    )  # nothing is gained beyond
    for unknown_or_longer in (0, 128):
        assert spared(taken, {"x8", "x2"}, "own", rows, unknown_or_longer) == taken


def test_the_best_of_each_length_stay_and_what_is_left_at_the_same_lengths_is_read_together():
    a, b, c = (Setting.of(rope_theta_factor=factor) for factor in (2, 3, 4))
    series = {a: "a", b: "b", c: "c"}
    rows = pd.concat([found("a", {64: 9, 128: 5}), found("b", {64: 8, 128: 9}), found("c", {64: 10, 128: 0})])
    rows.loc[(rows["series"] == "c") & (rows["context_length"] == 128), "correct"] = pd.NA  # for want of memory
    left = best_of(statistics.ranked(rows), {64: [c, b, a], 128: [c, b, a]}, series, 2)
    assert left == {64: [c, a], 128: [b, a]}
    assert [*by_lengths({64: [b, c], 128: [b, a]}, [c, b, a])] == [((64,), [c]), ((64, 128), [b]), ((128,), [a])]
    left = best_of(statistics.ranked(rows), {64: [c, a], 128: [b]}, series, 2)  # of those that are left there alone
    assert left == {64: [c, a], 128: [b]}


@pytest.mark.parametrize(("haystack", "other"), [("text", "bible"), ("bible", "text"), ("noise", "bible")])
def test_the_other_haystack_is_another(checkpoint, tmp_path, haystack, other):
    asked = Asked(str(checkpoint), (96, 128), haystack=haystack)
    _, checks = applicable(asked.subject, asked, RunOptions(output_path=tmp_path))
    assert [check.haystack for check in checks][:2] == [haystack, other]


def test_what_is_checked_is_what_was_taken_at_each_length(checkpoint, tmp_path, monkeypatch):
    """As trained at one length, swapped at the other: the series as advised is put together of the two."""
    from ssmax_eval.studies import advise as studies

    monkeypatch.setattr(studies, "CANDIDATES", (AS_TRAINED, Setting.of("ssmax")))

    def half(rows, left):
        own, swapped = (
            next(name for name in rows["series"].unique() if each in name) for each in ("softmax", "ssmax s")
        )
        return {96: own, 128: swapped}

    monkeypatch.setattr(studies.statistics, "chosen", half)
    advice = advise(
        Asked(str(checkpoint), (96, 128), (0, 100), 12, "single"), RunOptions(device="cpu", output_path=tmp_path)
    )
    assert advice.name == AS_ADVISED
    rows = advice.held_out.set_index(["context_length", "prompt_sha256"])
    own, new = (rows[rows["series"] == name] for name in (advice.own, AS_ADVISED))
    assert sorted(own.index) == sorted(new.index)
    assert own.loc[96, "run_id"].sort_index().equals(new.loc[96, "run_id"].sort_index())
    assert set(own.loc[128, "attention"]) == {"softmax"}
    assert set(new.loc[128, "attention"]) == {"ssmax"}
    assert len(advice.price) == 1


def test_a_model_of_which_nothing_can_be_read_is_one_line(checkpoint, tmp_path, monkeypatch):
    from ssmax_eval.studies import advise as studies

    monkeypatch.setattr(studies, "CANDIDATES", (AS_TRAINED, Setting.of("ssmax")))
    monkeypatch.setattr(studies.statistics, "chosen", lambda *_: {})
    real = studies.raced

    def failed(*given):
        race = real(*given)
        return replace(race, rows=race.rows.assign(error="RuntimeError: no memory"))

    monkeypatch.setattr(studies, "raced", failed)
    with pytest.raises(UserError, match="no prompt could be read; the first: RuntimeError: no memory"):
        advise(Asked(str(checkpoint), (96,), (0,), 12, "single"), RunOptions(device="cpu", output_path=tmp_path))


def test_the_price_is_the_mean_difference_over_documents():
    rows = pd.DataFrame(
        [
            {"probe": "loss", "series": series, "document": f"d{i}", "measure": "position", "nll_sum": nll, "tokens": 10}
            for series, nlls in {"own": (20, 30), "other": (21, 33)}.items()
            for i, nll in enumerate(nlls)
            for _ in range(2)
        ]
    )  # fmt: skip
    line = statistics.price(rows, "own").iloc[0]
    assert line[["series", "documents"]].tolist() == ["other", 2]
    assert line["nats"] == pytest.approx(0.2)
    assert line["high"] - line["nats"] == pytest.approx(12.706 * 0.1, rel=1e-3)  # t of one degree of freedom


@pytest.mark.parametrize("refused", [0, 1])  # by p-RoPE, which YaRN does not go with
def test_a_race_takes_under_half_of_a_grid_for_each(refused):
    """Of each but log-n, which is beside what a user would try by hand."""
    asked = Asked("softmax-bible-2m")
    race = sum(prompts(asked.grid(share, 0)) * (keep or len(CANDIDATES) + 1 - refused) for share, keep in ROUNDS)
    race += prompts(asked.grid(NEEDED[0], 0, NEEDED[1]))
    checks = 2 * sum(prompts(asked.grid(share, 0, depths)) for share, depths in CHECKS)
    # of as trained and, at most, another setting at each length; in prompts of every length
    texts = (1 + len(asked.context_lengths)) * asked.documents * min(asked.context_lengths) / sum(asked.context_lengths)
    assert race + checks + texts < asked.trials * len(asked.depths) * (len(CANDIDATES) - 1 - refused) / 2


def prompts(grid):
    return grid.trials * len(grid.depth_percents)


def test_options_are_those_of_the_command_line():
    assert options_of(Setting.of("ssmax:s=0.2")) == "--attention ssmax:s=0.2"
    assert options_of(Setting.of(rope_theta_factor=4)) == "--rope-theta-factor 4"
    assert options_of(Setting.of("log-n", rope_scaling="yarn:2")) == "--attention log-n --rope-scaling yarn:2"


def test_words_name_the_task_and_what_is_not_shown_elsewhere():
    """Beyond training all of 10 prompts against none; in another haystack one more of 10; no nats at all, as C(n) is 1 there."""
    log_n, yarn = Setting.of("log-n"), Setting.of(rope_scaling="yarn:2")
    held_out = pd.concat(
        [found("own", {64: 10, 128: 0}), found("new", {64: 10, 128: 10})]
        + [found(*each).assign(haystack="bible") for each in (("own", {64: 10, 128: 4}), ("new", {64: 10, 128: 5}))]
    ).assign(plan=1)
    price = pd.DataFrame([{"series": "new", "nats": 0.0, "low": 0.0, "high": 0.0, "documents": 16}])
    tokens = {"choosing": 10, "checking": 10, "the whole list": 100}
    refused = {yarn: "rope scaling yarn:2: this model already uses RoPE scaling proportional; change its theta instead"}
    advice = Advice(
        "m",
        {64: log_n, 128: log_n},
        64,
        statistics.ranked(held_out),
        {AS_TRAINED: "own", log_n: "new"},
        held_out,
        price,
        refused,
        tokens,
    )
    said = [*sentences(advice)]
    where = "each prompt its own haystack"
    assert said[0].startswith(
        "Read m with --attention log-n: beyond the 64 tokens it was trained at it finds 100% of what is asked for, as trained 0% "
        "(difference +1.00, 95% interval +"
    )
    assert said[0].endswith(f", on 10 held-out prompts of task single (one number), in generated prose, {where}).")
    assert said[1].startswith("Up to 64 tokens it finds 100%, as trained 100% (0.00, 95% interval -")
    assert said[1].endswith(", 10 prompts, no loss is shown).")
    assert said[2] == "On that task it keeps 85% of its short score to at least 128 tokens, as trained to 64 tokens."
    assert said[3].startswith(
        f"The difference elsewhere, beyond the 64 tokens it was trained at: single (one number), in Bible text, {where}: +0.10, 95% "
        "interval -"
    )
    assert said[3].endswith(", 10 prompts, no gain is shown.")
    assert said[4].startswith("At 64 tokens it costs nothing, by construction: it changes nothing at that length")
    assert said[-1] == "yarn:2 could not be tried: this model already uses RoPE scaling proportional."


def checked(own, new, train_length=64):
    """Return advice on a setting whose check found so many of 10 prompts at each length."""
    x2 = Setting.of(rope_theta_factor=2)
    rows = pd.concat([found("own", own), found("new", new)]).assign(plan=1)
    return advice_of(dict.fromkeys(new, x2), rows, {AS_TRAINED: "own", x2: "new"}, train_length)


def advice_of(settings, rows, series, train_length=64):
    price = pd.DataFrame(columns=["series", "nats", "low", "high", "documents"])
    tokens = {"choosing": 10, "checking": 10, "the whole list": 100}
    return Advice("m", settings, train_length, statistics.ranked(rows), series, rows, price, {}, tokens)


def test_a_gain_beyond_the_training_length_is_not_halved_by_short_prompts():
    """Over both lengths +.15 of 20 is not sure, as two of ten short ones are lost; beyond training +.5 of 10 is."""
    advice = checked({64: 10, 128: 0}, {64: 8, 128: 5})
    assert statistics.compare(advice.held_out, "own", ())["low"].item() <= 0
    assert helps(advice)
    assert not loses(advice)
    assert [advised(advice, length) for length in (64, 128)] == [advice.setting] * 2
    assert "finds 80%, as trained 100% (-0.20, " in [*sentences(advice)][1]


def test_a_sure_loss_at_the_trained_lengths_leaves_these_as_trained():
    advice = checked({64: 10, 128: 0}, {64: 2, 128: 9})
    assert helps(advice)
    assert loses(advice)
    assert [advised(advice, length) for length in (64, 128)] == [AS_TRAINED, advice.setting]
    said = [*sentences(advice)]
    assert said[0].startswith("Read m as it was trained up to 64 tokens, with --rope-theta-factor 2 beyond: ")
    assert said[1].endswith("less is found). Read shorter texts as it was trained.")


def test_no_gain_beyond_the_training_length_is_no_help_whatever_is_gained_before():
    advice = checked({64: 0, 128: 5}, {64: 10, 128: 5})
    assert not helps(advice)
    assert [advised(advice, length) for length in (64, 128)] == [AS_TRAINED] * 2
    assert next(sentences(advice)).startswith("No setting is shown to help: read m as it was trained.")


@pytest.mark.parametrize("train_length", [None, 128, 1000, 63])
def test_all_lengths_decide_where_none_is_longer_than_what_was_trained_or_all_are(train_length):
    advice = checked({64: 5, 128: 5}, {64: 8, 128: 8}, train_length)
    assert gains(advice)["pairs"].item() == 20
    assert at_trained_lengths(advice).empty
    assert not loses(advice)


def test_a_length_without_scores_decides_nothing():
    """Nothing beyond the training length fits into memory: the lengths that were read decide."""
    advice = checked({64: 0, 128: 0}, {64: 10, 128: 0})
    advice.held_out.loc[advice.held_out["context_length"] == 128, "correct"] = pd.NA
    assert gains(advice)["pairs"].item() == 10
    assert helps(advice)


def test_the_same_task_decides_though_another_has_longer_prompts_with_a_score():
    advice = checked({64: 5, 128: 5}, {64: 10, 128: 5})
    rows = advice.held_out
    rows.loc[rows["context_length"] == 128, "correct"] = pd.NA
    other = pd.concat([found("own", {128: 0}), found("new", {128: 10})]).assign(plan=1, haystack="bible")
    advice = replace(advice, held_out=pd.concat([rows, other]))
    assert deciding(gains(advice), advice)["pairs"].item() == 10  # of the same task at 64
    assert "task single (one number), in generated prose" in next(sentences(advice))


def test_a_choice_without_any_score_is_not_advised():
    advice = checked({64: 5, 128: 5}, {64: 10, 128: 10})
    advice.held_out.loc[advice.held_out["series"] == "new", "correct"] = pd.NA
    assert not helps(advice)
    assert not loses(advice)
    assert next(sentences(advice)).startswith(
        "No setting is shown to help: read m as it was trained. No held-out prompt has a"
    )


@pytest.mark.parametrize(
    ("own", "new", "train_length", "says"),
    [
        ({64: 10, 128: 9}, {64: 10, 128: 1}, 64, "It finds less."),
        ({64: 10, 128: 4}, {64: 10, 128: 5}, 64, "More --trials would tell smaller gains."),
        ({64: 10, 128: 10}, {64: 10, 128: 10}, 64, "There is little to gain up to 128 tokens: ask for longer --context-lengths."),
    ],
)  # fmt: skip
def test_what_would_tell_more_is_said_where_it_would(own, new, train_length, says):
    assert next(sentences(checked(own, new, train_length))).endswith(f" {says}")


def test_prompts_of_one_stretch_of_text_are_no_more_for_more_trials():
    advice = checked({64: 10, 128: 0}, {64: 10, 128: 10})
    rows = advice.held_out.assign(plan=2, seed=0, haystack_start=0, haystack_sentences=9)
    rows["trial"] = rows.groupby(["series", "context_length"]).cumcount()
    advice = replace(advice, held_out=rows)
    assert not helps(advice)
    assert next(sentences(advice)).endswith("read overlapping text, so that they count as 1: give a longer --haystack.")


def test_nothing_at_the_shortest_length_and_no_negative_zero():
    advice = checked({64: 0, 128: 0}, {64: 0, 128: 5})
    price = pd.DataFrame([{"series": "new", "nats": -0.0001, "low": -0.001, "high": 0.0002, "documents": 16}])
    said = [*sentences(replace(advice, price=price))]
    assert (
        "On that task it finds nothing at the shortest length, as trained it finds nothing at the shortest length."
        in said
    )
    assert "At 64 tokens it costs +0.000 nats a token (-0.001 to +0.000, 16 documents)." in said


def test_lengths_given_twice_count_once_and_depths_in_any_order(checkpoint):
    asked = Asked(str(checkpoint), (128, 96, 128, 96), (100, 0, 50))
    assert asked.context_lengths == (96, 128)
    assert asked.grid(1, 0).depth_percents == (0, 50, 100)
    assert asked.grid(1, 0, 1).depth_percents == (50,)


def test_a_model_whose_layers_all_have_windows_races_without_scales(tokenizer, tmp_path):
    """What no scale stands on is refused before the race, the scale that would be fitted to it as well."""
    model = build("Mistral", vocab_size=1024, sliding_window=16, max_position_embeddings=128)
    asked = Asked({"m": (model, tokenizer)}, (96, 128), (0, 100), 12, "single")
    advice = advise(asked, RunOptions(device="cpu", output_path=tmp_path))
    assert advice.fitted is None
    assert {str(each) for each in advice.refused} >= {"ssmax", "constant-n", "log-n"}
    assert all(each.attention is None for each in advice.series)


def test_documents_are_read_with_a_scale_on_the_layers_of_the_prompts(tokenizer, tmp_path):
    """A window of 128 holds the documents of 96 tokens and not the prompts of 256: the price is of what was raced."""
    model = build("Gemma3Text", vocab_size=1024, sliding_window=128)
    models = {"m": (model, tokenizer)}
    swapped, options = [Setting.of("ssmax")], RunOptions(device="cpu", output_path=tmp_path, reaches=256)
    asked = Asked(models, (96, 256), (0, 100), 12, "single", documents=1)
    raced, alone = Read(asked, options), Read(asked, replace(options, reaches=0))
    runs = [
        *raced(asked.grid(1 / 12, 0), swapped),
        *raced.probed("loss", asked.texts, swapped),
        *alone.probed("loss", asked.texts, swapped),  # another run
    ]
    assert [run.record()["attention"]["scaled_indices"] for run in runs] == [[1], [1], [0, 1]]
    assert len({run.run_id for run in runs}) == 3
    (one,), (other,) = (each.probed("loss", asked.texts, [AS_TRAINED]) for each in (raced, alone))
    assert one.run_id == other.run_id  # without a scale windows decide nothing


def test_words_say_up_to_which_length_each_setting_is_advised():
    x4, yarn = Setting.of(rope_theta_factor=4), Setting.of(rope_scaling="yarn:2")
    series = {AS_TRAINED: "own", x4: "x4", yarn: "yarn"}
    rows = pd.concat(
        [found("own", {64: 10, 96: 10, 128: 0, 256: 0}), found(AS_ADVISED, {64: 10, 96: 10, 128: 9, 256: 9})]
    ).assign(plan=1)
    advice = advice_of({64: AS_TRAINED, 96: AS_TRAINED, 128: yarn, 256: x4}, rows, series, 96)
    advice = replace(
        advice,
        race=statistics.ranked(pd.concat([found("own", {64: 10, 128: 5}), found("x4", {64: 9, 128: 9})])),
        price=pd.DataFrame(
            [
                {"series": name, "nats": nats, "low": nats, "high": nats, "documents": 16}
                for name, nats in (("x4", 0.06), ("yarn", 0.02))
            ]
        ),
    )
    assert advice.name == AS_ADVISED
    said = [*sentences(advice)]
    assert said[0].startswith(
        "Read m as it was trained up to 96 tokens, with --rope-scaling yarn:2 up to 128 tokens, with --rope-theta-factor 4 beyond: "
        "beyond the 96 tokens it was trained at it finds 90% of what is asked for, as trained 0% "
    )
    assert not any("Up to 96 tokens" in line for line in said)  # where it is read as trained, nothing is compared
    assert at_trained_lengths(advice).empty
    assert said[-3:-1] == [
        "At 64 tokens --rope-theta-factor 4 costs +0.060 nats a token (+0.060 to +0.060, 16 documents). It is not advised there.",
        "At 64 tokens --rope-scaling yarn:2 costs +0.020 nats a token (+0.020 to +0.020, 16 documents). It is not advised there.",
    ]
    # a length between two is read as the longer of them, what is longer than all as the longest
    assert [advised(advice, length) for length in (1, 96, 97, 129, 1000)] == [AS_TRAINED, AS_TRAINED, yarn, x4, x4]
    assert advice.setting == x4  # of the one checkpoint that can be saved
    assert race_lines(advice) == (
        ["setting", "64", "96", "128", "256"],
        [["x4", "9 of 10", "", "9 of 10", ""], ["own", "10 of 10, taken", "", "5 of 10", ""]],
    )


@pytest.mark.parametrize("rival", [None, 0, 5])
def test_words_where_nothing_helps_name_what_found_most_if_anything_did(rival):
    rows = pd.concat([found("own", {64: 10}), *([] if rival is None else [found("x2", {64: rival})])]).assign(plan=1)
    left = found("x8", {64: 10}).head(6) if rival else pd.DataFrame()  # after few prompts, all of which it found
    rows = pd.concat([rows, left])
    advice = advice_of({64: AS_TRAINED}, rows, {AS_TRAINED: "own"})
    said = [*sentences(replace(advice, held_out=rows[rows["series"] == "own"]))]
    assert said[0] == "Nothing helps: read m as it was trained."
    assert [line for line in said if "found most" in line] == (
        ["At 64 tokens x2 found most of the others, 5 of 10 prompts, as trained 10 of 10."] if rival else []
    )


def test_advice_from_nothing_to_the_page_and_again(capsys, checkpoint, tmp_path):
    out = (
        "--output-path",
        str(tmp_path / "runs"),
        "--page",
        str(tmp_path / "a.html"),
        "--out",
        str(tmp_path / "saved"),
    )
    asked = ("advise", "--model", str(checkpoint), *SHORT, *out)
    code, text, err = call(capsys, *asked, "--json")
    assert code == 0, err
    told = json.loads(text)
    (advice,) = told["advice"]
    assert advice["helps"] in (True, False)
    assert (tmp_path / "saved").exists() == advice["helps"]
    assert {line["check"] for line in advice["held_out"]} == {"single, text", "single, bible"}
    assert (
        "not checked on task multikey in haystack text: context length 96: shorter than" in err
    )  # said before the race
    assert err.index("not checked") < err.index("cost:")
    # of 288 tokens at both lengths: needed scale 6 prompts, rounds 3 x 9, 3 x 6, 6 x 3 and 6 x 2, checks of 18 and 6 by two
    # settings; of documents of 96 tokens 16 as trained and by one setting for each length
    asked_for = 288 * (6 + 27 + 18 + 18 + 12 + 48) + 96 * 16 * 3
    assert f"9 settings race, the choice is checked; about {asked_for:,} tokens in all" in err
    assert advice["tokens"]["the whole list"] == 12 * 3 * 9 * 288  # 12 trials, 3 depths, 9 settings
    for length in (96, 192):  # of three depths: one, two, four and six trials
        prompts = sorted(line["prompts"] for line in advice["race"] if line["context_length"] == length)
        assert prompts == [3, 3, 3, 6, 6, 6, 12, 18, 18]
    assert [each["context_length"] for each in advice["by_length"]] == [96, 192]
    losses = [json.loads(path.read_text()) for path in (tmp_path / "runs" / "loss").rglob("run.json")]
    asked_of = {(each["parameters"]["documents"], each["parameters"]["context_length"]) for each in losses}
    assert asked_of == {(16, 96)}
    page = (tmp_path / "a.html").read_text()
    assert page.index("<h2>Advice</h2>") < page.index("<h2>Verdict</h2>")
    before = sorted((tmp_path / "runs").rglob("rows.jsonl"))
    times = [path.stat().st_mtime_ns for path in before]
    code, text, _ = call(capsys, *asked[:-2], "--json")
    assert json.loads(text)["advice"] == told["advice"]  # nothing is read again
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "runs").rglob("rows.jsonl"))] == times


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--trials", "11"), "trials 11: allowed are whole numbers from 12"),
        (("--context-lengths", "many"), "context lengths 'many': allowed are whole numbers"),
        (("--task", "singel"), "singel"),
    ],
)
def test_bad_requests_are_one_line(capsys, checkpoint, tmp_path, options, says):
    code, _, err = call(capsys, "advise", "--model", str(checkpoint), "--output-path", str(tmp_path / "runs"), *options)
    assert code == 2
    assert says in err.strip().splitlines()[-1]


@pytest.mark.parametrize("rope", [RopeSetting(4.0), RopeSetting(scaling="yarn:2"), RopeSetting(scaling="ntk:2")])
def test_a_model_saved_with_another_rope_computes_as_in_that_setting(checkpoint, tmp_path, rope):
    folder = retrofit(str(checkpoint), None, tmp_path / "new", rope=rope)
    model, _ = load_model(str(checkpoint))
    ids = torch.arange(40)[None] % 90
    with torch.inference_mode():
        with Setting.of(rope_theta_factor=rope.theta_factor, rope_scaling=rope.scaling)(model, 96):
            expected = model(input_ids=ids).logits
        assert not torch.allclose(expected, model(input_ids=ids).logits, atol=1e-3)
        saved, _ = load_model(str(folder))
        assert torch.allclose(saved(input_ids=ids).logits, expected, atol=1e-5)


def test_the_price_of_what_could_not_be_read_has_no_line():
    rows = pd.DataFrame(
        [{"probe": "loss", "series": "other", "document": "d", "measure": "position", "nll_sum": 1.0, "tokens": 10}]
    )
    assert statistics.price(rows, "own").empty


def test_advice_on_what_has_no_settings_is_refused(tmp_path):
    with pytest.raises(UserError, match="no function or server"):
        advise(Asked({"mine": lambda context, question: "x"}, lengths=(96,)), RunOptions(output_path=tmp_path))


def test_a_model_in_memory_is_asked_as_its_checkpoint_is(checkpoint):
    from_memory, from_disk = Asked({"mine": load_model(str(checkpoint))}), Asked(str(checkpoint))
    assert from_memory.context_lengths == from_disk.context_lengths
    assert from_memory.own_task == from_disk.own_task

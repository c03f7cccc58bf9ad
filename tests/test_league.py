"""The league: its numbers by closed forms, and one of two mechanisms from nothing to the page."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from own import FILE, forget
from scipy import stats
from test_cli import call
from test_comparison import rows_of

from ssmax_eval import UserError, statistics
from ssmax_eval.mechanisms.registry import mechanisms
from ssmax_eval.position.bias import biases
from ssmax_eval.studies.league import NOT_TRAINED, Entry, League, entries
from ssmax_eval.studies.league_page import end_of, reach_lines, signed
from ssmax_eval.studies.league_words import first_of, rivals, sentences
from ssmax_eval.studies.standings import Standings
from ssmax_eval.training.recipes import recipe

SMALL = (
    "--set", "steps=2", "--set", "train_length=32", "--set", "short_length=32", "--set", "hidden=32", "--set", "heads=2",
    "--set", "feed_forward=16", "--set", "text_characters=60000", "--seeds", "1", "--trials", "1", "--device", "cpu",
)  # fmt: skip


def found(series, by_length):
    """Ten prompts at each length, so many of them found."""
    return pd.concat(
        [rows_of([True] * right + [False] * (10 - right), series, length) for length, right in by_length.items()]
    )


@pytest.fixture
def three():
    """Three configurations of two seeds: a keeps all it has, b fades at a length that the seeds differ in, c never learned."""
    tables = {
        "a0": {64: 10, 128: 10, 256: 10}, "a1": {64: 10, 128: 9, 256: 9},
        "b0": {64: 10, 128: 9, 256: 2}, "b1": {64: 10, 128: 5, 256: 1},
        "c0": {64: 2, 128: 2, 256: 2}, "c1": {64: 0, 128: 1, 256: 0},
    }  # fmt: skip
    known = {name: (name[0], int(name[1])) for name in tables}
    return pd.concat([found(*each) for each in tables.items()], ignore_index=True), known


def test_reach_is_the_geometric_mean_over_seeds_with_students_interval(three):
    table = statistics.standings(*three).set_index("configuration")
    assert [*table.index] == ["a", "b", "c"]  # furthest first, what never learned last
    assert table["effective_length"].tolist() == pytest.approx([256, math.sqrt(128 * 64), math.sqrt(256 * 32)])
    assert table["learned"].tolist() == [True, True, False]
    assert table["beyond"].tolist() == [2, 0, 1]
    assert table["nothing"].tolist() == [0, 0, 1]
    assert np.isnan(table.loc["a", ["low", "high"]].astype(float)).all()  # equal seeds are no proof
    # log2 of 128 and 64, mean 6.5: half a step either way, times t of one degree of freedom, beyond what was tested
    assert table.loc["b", ["low", "high"]].tolist() == [64, 256]
    assert table.loc["c", "low"] == 32  # what finds nothing at the shortest counts as half of it
    assert table.loc["b", ["least", "most"]].tolist() == [64, 128]


def test_shares_and_reach_beside_the_first_have_intervals_over_seeds(three):
    table = statistics.standings(*three).set_index("configuration")
    low, high = stats.t.interval(0.95, 1, loc=np.mean([0.7, 16 / 30]), scale=stats.sem([0.7, 16 / 30]))
    assert table.loc["b", "accuracy"] == pytest.approx(np.mean([0.7, 16 / 30]))
    assert table.loc["b", ["accuracy low", "accuracy high"]].tolist() == pytest.approx([max(low, 0), min(high, 1)])
    assert np.isnan(table.loc["a", "short_accuracy low"])  # equal seeds are no proof
    # doublings: seed 0 256 to 128, seed 1 256 to 64
    assert table["behind"].tolist() == pytest.approx([0, 1.5, 1.5])
    low, high = stats.t.interval(0.95, 1, loc=1.5, scale=stats.sem([1, 2]))
    assert table.loc["b", ["behind low", "behind high"]].tolist() == pytest.approx([low, high])


def test_the_first_sentence_has_the_mean_the_worst_seed_and_the_criterion(three):
    rows, known = three
    table = statistics.standings(rows, known, ("b",))
    renamed = {"a": "ssmax", "b": "softmax", "c": "ssmax (rope)"}
    table["configuration"] = table["configuration"].map(renamed)
    made = {name: Entry(name.partition(" ")[0], "rope", " " not in name) for name in renamed.values()}
    table = table.rename(columns=lambda name: name.replace("vs b", "vs softmax")).assign(family="x")
    table = pd.concat(
        [table, table.filter(like="vs softmax").rename(columns=lambda name: name.replace("softmax", "ssmax"))], axis=1
    )
    found = Standings(table, pd.DataFrame(), made, 1.0, 64, 2, {}, {}, 10, 16)
    learned = [line for line in table.to_dict("records") if line["learned"]]
    assert first_of(learned, found) == (
        "Of 2 attention mechanisms (1 of them with two positions), ssmax reaches furthest: on the mean over 2 seeds it still finds 85% "
        "of the numbers it finds at 64 tokens in prompts at least 4 times as long as it was trained on (every seed); "
        "softmax 1.4 times (single seeds: 1 to 2). By the differences seed by seed 1 other may reach as far."
    )
    assert "in doublings of length; the 95% interval of the difference holds 0." in [*sentences(found)][1]
    assert rivals([line | {"behind low": 0.1} for line in learned]) == []
    columns, lines = reach_lines(found)
    assert lines[1][columns.index("accuracy, all lengths [95%]")].startswith("0.62 [")


def test_an_end_that_rounds_to_zero_says_on_which_side_it_lies():
    assert [end_of(each) for each in (-0.241, -0.0021, 0.0004, -0.00003, 0.0)] == [
        "-0.24",
        "-0.002",
        "+0.0004",
        "0.00",
        "0.00",
    ]
    line = {"d": -0.12, "d low": -0.24, "d high": -0.0021}
    assert signed(line, "d") == "-0.12 [-0.24, -0.002]"


def test_the_interval_is_students(three):
    rows, known = three
    third = found("b2", {64: 10, 128: 9, 256: 2})
    line = statistics.standings(pd.concat([rows, third]), {**known, "b2": ("b", 2)}).set_index("configuration").loc["b"]
    low, high = stats.t.interval(0.95, 2, loc=np.mean([7, 6, 7]), scale=stats.sem([7, 6, 7]))
    assert (line["low"], line["high"]) == (pytest.approx(max(64, 2**low)), pytest.approx(min(256, 2**high)))


def test_places_are_counted_seed_by_seed(three):
    table = statistics.standings(*three).set_index("configuration")
    assert table["rank_least"].to_dict() == {"a": 1, "b": 2, "c": 3}
    assert table["rank_most"].to_dict() == {"a": 1, "b": 2, "c": 3}


def test_differences_are_paired_over_all_lengths(three):
    rows, known = three
    table = statistics.standings(rows, known, ("b",)).set_index("configuration")
    each = [(30 - 21) / 30, (28 - 16) / 30]
    assert table.loc["a", "vs b"] == pytest.approx(np.mean(each))
    low, high = stats.t.interval(0.95, 1, loc=np.mean(each), scale=stats.sem(each))
    assert table.loc["a", ["vs b low", "vs b high"]].tolist() == pytest.approx([max(low, -1), min(high, 1)])
    assert np.isnan(table.loc["b", "vs b"])


def test_concordance_is_kendalls(three):
    rows, known = three
    assert statistics.concordance(rows, known) == pytest.approx(1)
    assert math.isnan(statistics.concordance(rows, {name: key for name, key in known.items() if key[1] == 0}))
    other = [found(f"{name}{seed}", {64: right}) for seed, line in enumerate(([9, 5, 1], [1, 5, 9])) for name, right in
             zip("abc", line, strict=True)]  # fmt: skip
    opposite = {f"{name}{seed}": (name, seed) for name in "abc" for seed in (0, 1)}
    assert statistics.concordance(pd.concat(other), opposite) == pytest.approx(0)


def test_concordance_is_friedmans_statistic():
    """W = chi2 / (seeds (configurations - 1)), with ties, by SciPy."""
    rng = np.random.default_rng(2)
    right = rng.integers(2, 8, size=(4, 6))
    rows = pd.concat([found(f"{c}{s}", {64: int(right[s, c])}) for s in range(4) for c in range(6)])
    known = {f"{c}{s}": (str(c), s) for s in range(4) for c in range(6)}
    chi2 = stats.friedmanchisquare(*right.T).statistic
    assert statistics.concordance(rows, known) == pytest.approx(chi2 / (4 * 5))


def test_every_mechanism_that_training_changes_is_in_it():
    listed = entries(recipe("league"))
    assert [each.name for each in listed[:2]] == ["softmax", "ssmax"]
    names = [each.attention.partition(":")[0] for each in listed]
    assert sorted(names) == sorted({*mechanisms()} - {*NOT_TRAINED})
    assert {each.name for each in listed if not each.of_recipe} == {"hgrn2 (nope)"}
    assert next(each for each in listed if each.name == "dint").family == "differential"


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: entries(recipe("league"), ["softmaxx"]), "unknown attention mechanism 'softmaxx'"),
        (lambda: entries(recipe("league").changed({"position": "rope"}), (), ["ssmax"]), "leave it out"),
        (lambda: League(recipe("league"), [], (1, 1)), "seeds 1,1: allowed are different whole numbers"),
        (lambda: League(recipe("encoder"), []), "recipe encoder: the league reads texts in order"),
    ],
)
def test_what_cannot_be_is_said(make, line):
    with pytest.raises(UserError, match=line):
        make()


def test_a_league_from_nothing_goes_on_and_takes_one_more(tmp_path, monkeypatch, capsys):
    """softmax, SSMax and a mechanism of a user's own file; the second time nothing is trained or read again."""
    monkeypatch.chdir(tmp_path)
    before = dict(mechanisms()), dict(biases())
    (tmp_path / "own.py").write_text(FILE)
    try:
        arguments = ("league", *SMALL, "--attention", "ssmax")
        code, out, _ = call(capsys, *arguments)
        assert code == 0
        page = (tmp_path / out.splitlines()[-1]).read_text()
        assert "The league of attention mechanisms" in page
        assert "own-sigmoid" not in page
        weights = tmp_path / "results/models/league-ssmax-s1/model.safetensors"
        made = weights.stat().st_mtime_ns
        more = ("--attention", "own-sigmoid:factor=2", "--import", "own.py", "--attention", "mswa", "--json")
        code, out, err = call(capsys, *arguments, *more)
        assert code == 0, err
        said = json.loads(out)
        assert "mswa is left out: attention mswa: 2 heads are not four groups" in err  # and the others are there
        assert {line["configuration"] for line in said["league"]} == {"softmax", "ssmax", "own-sigmoid:factor=2"}
        own = next(line for line in said["league"] if line["configuration"].startswith("own"))
        assert (own["family"], own["seeds"], own["parameters"]) == ("yours", 1, 8)
        assert own["step"] > 0
        assert own["mass_short"] is not None
        assert weights.stat().st_mtime_ns == made
        assert "own-sigmoid:factor=2" in (tmp_path / said["report"]).read_text()
    finally:
        forget(before)


def test_the_figure_has_a_line_for_each(three):
    from ssmax_eval.report.figures import league_figure

    rows, known = three
    table = statistics.standings(rows, known)
    figure = league_figure(table, statistics.over_seeds(rows, known), {"a": "x", "b": "x", "c": "y"}, 64)
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["a", "b", "c"]
    colours = [bar.get_facecolor() for bar in left.patches]
    assert colours[0] == colours[1] != colours[2]
    assert len({line.get_color() for line in right.lines if line.get_marker() in "o>"}) == 2
    assert len(left.texts) == 9


def test_who_has_no_score_of_the_longest_length_does_not_reach_furthest(three):
    """Its windows or memory end there: it holds to the longest length that it read, which is not the league's."""
    rows, known = three
    short = pd.concat([found(f"d{seed}", {64: 10, 128: 10, 256: 0}) for seed in (0, 1)])
    short.loc[short["context_length"] == 256, "correct"] = pd.NA
    known = known | {"d0": ("d", 0), "d1": ("d", 1)}
    table = statistics.standings(pd.concat([rows, short]), known, ("a", "d")).set_index("configuration")
    assert [*table.index] == ["a", "d", "b", "c"]
    assert table["vs a"].isna().to_dict() == {"a": True, "d": True, "b": False, "c": False}
    assert table[["vs d", "vs d low"]].isna().all(axis=None)
    assert table.loc["d", ["beyond", "scored", "effective_length"]].tolist() == [2, 128, 128]
    assert table.loc["a", ["scored", "longest"]].tolist() == [256, 256]
    assert math.isnan(table.loc["d", "accuracy"])  # of two lengths it would be another number than that of three
    lines = table.reset_index().assign(family="x")
    for name in ("softmax", "ssmax"):
        lines[[f"vs {name}", f"vs {name} low", f"vs {name} high"]] = math.nan
    made = {name: Entry(name, "rope", True) for name in "abcd"}
    told = [*sentences(Standings(lines, pd.DataFrame(), made, math.nan, 64, 2, {}, {}, 10, 16))]
    assert told[0].startswith("Of 4 attention mechanisms, a reaches furthest")
    assert (
        "d has no score beyond 128 tokens, others have to 256: how far it reaches beyond is not known, and no mean over all lengths is "
        "told of it."
    ) in told
    assert not math.isnan(statistics.concordance(pd.concat([rows, short]), known))
    fewer = short[short["context_length"] < 256]  # that it was not asked is the same
    asked = statistics.standings(pd.concat([rows, fewer]), known).set_index("configuration")
    assert asked["accuracy"].isna().to_dict() == {"a": False, "b": False, "c": False, "d": True}

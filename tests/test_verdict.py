"""The verdict's words against the rows, counted again by hand with pandas; and the parts of the page that rest on run records."""

import json
import re

import pandas as pd
import pytest
from scipy import stats
from test_report import frame, row

import ssmax_eval
from ssmax_eval import statistics
from ssmax_eval.errors import UserError
from ssmax_eval.headline import headline
from ssmax_eval.verdict import verdict, where

FOUND = {"base": {256: 20, 1024: 6, 4096: 0}, "new": {256: 20, 1024: 18, 4096: 17}}  # of 20


def grid(found=FOUND, **changes):
    return [
        row(model, length, 50.0, trial, trial < right, prompt_sha256=f"{length}/{trial}", **changes)
        for model, lengths in found.items()
        for length, right in lengths.items()
        for trial in range(20)
    ]


def words(rows, baseline="base", train_lengths=None):
    named = statistics.with_series(frame(rows))
    found = verdict(named, baseline, statistics.effective_lengths(named), train_lengths or {})
    return {each["series"]: " ".join(each["sentences"]) for each in found}


def test_the_verdict_matches_the_rows_counted_by_hand():
    rows = pd.DataFrame(grid())
    said = words(grid(), train_lengths={"new": 256})["new"]
    wide = rows.pivot(index="prompt_sha256", columns="model", values="correct").astype(bool)
    by_length = rows.drop_duplicates("prompt_sha256").set_index("prompt_sha256")["context_length"]
    p = {}
    for length, part in wide.groupby(by_length):
        only, lost = (part["new"] & ~part["base"]).sum(), (~part["new"] & part["base"]).sum()
        p[length] = stats.binomtest(int(only), int(only + lost)).pvalue if only + lost else 1.0
    ordered = sorted(p, key=p.get)
    adjusted = {length: p[length] * (3 - i) for i, length in enumerate(ordered)}
    assert [length for length in sorted(p) if adjusted[length] < 0.05] == [1024, 4096]
    assert "It finds more than base from 1,024 to 4,096 tokens." in said
    at = rows[rows["context_length"] == 4096].groupby("model")["correct"].mean()
    assert (
        f"Most at 4,096 tokens (16 times its training length): {at['new']:.2f} against {at['base']:.2f}, +0.85" in said
    )
    assert "20 identical prompts, p < 0.001." in said
    assert "No significant difference at 256 tokens. With so few prompts only a difference of about 0." in said
    everything = rows.groupby("model")["correct"].mean()
    assert f"Over all lengths: {everything['new']:.2f} against {everything['base']:.2f}, +0.48" in said
    assert "60 identical prompts" in said
    # 85% of 1.00: new holds .85 at 4,096, base holds at 256 alone
    assert "It keeps 85% of its short score (1.00 at 256 tokens; trained at 256) to at least 4,096" in said
    assert "That is at least 16 times as far" in said


def test_less_is_said_too_and_nothing_where_nothing_was_seen():
    turned = words(grid(), "new")["base"]
    assert "It finds less than new from 1,024 to 4,096 tokens." in turned
    assert "It finds more" not in turned
    same = words(grid({"base": {256: 9}, "new": {256: 10}}))["new"]
    # one prompt of 20: k of n with n - k the other way; .05 needs 6 that differ, all one way, and at 80% power 157 pairs
    assert same.startswith(
        "Too few prompts to say whether it differs from base: a difference as large as here, +0.05 at 256 tokens, would show at best "
        "with about 157 prompts of that length (more --trials). No significant difference at 256 tokens"
    )
    equal = words(grid({"base": {256: 9}, "new": {256: 9}}))["new"]
    assert equal.startswith("It finds about as much as base at every length. No significant difference at 256 tokens")
    nothing = words(grid({"base": {256: 0, 512: 3}}))["base"]
    assert "It finds nothing at its shortest length" in nothing
    many = {256 * k: 10 for k in range(1, 9)}
    over_all = words(grid({"base": many, "new": dict.fromkeys(many, 14)}))["new"]
    assert over_all.startswith(
        "At no single length is its difference from base certain, but over all lengths it finds more."
    )
    failed = [{**each, "correct": None, "error": "out of memory"} for each in grid({"base": {256: 0}})]
    said = words([*failed, *grid({"new": {256: 20}})])
    assert said["base"] == "None of its prompts has a score."
    assert said["new"].startswith("It has no scores at a length and depth at which base has some.")


def in_short(rows, baseline="base", train_length=256):
    named = statistics.with_series(frame(rows))
    compared = statistics.compare(named, baseline, ("context_length",))
    trained = dict.fromkeys(named["series"], train_length)
    pooled = statistics.compare(named, baseline, ())
    return headline(statistics.lengths(named), compared, pooled, baseline, trained, "numbers")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            FOUND,  # the longest of the lengths that differ most
            "new finds 17 of 20 numbers in prompts 16 times as long as it was trained on (4,096 tokens); base finds 0 of 20.",
        ),
        (
            {"base": {256: 20, 512: 19}, "new": {256: 20, 512: 2}},
            "base finds 19 of 20 numbers in prompts 2 times as long as it was trained on (512 tokens); new finds 2 of 20.",
        ),
        (
            {"base": {128: 9}, "new": {128: 10}},
            "There are too few prompts to say which finds more: new finds 10 of 20 numbers in prompts of 128 tokens (it was trained "
            "on 256), base finds 9 of 20.",
        ),
        (
            {"base": {256: 20}, "new": {256: 20}},
            "new and base find the same: 20 of 20 numbers in prompts as long as it was trained on (256 tokens).",
        ),
        (
            {"base": {256: 20, 1024: 6}},
            "base finds 20 of 20 numbers in prompts as long as it was trained on (256 tokens), and 6 of 20 in prompts 4 times as "
            "long as it was trained on (1,024 tokens).",
        ),
        (
            {"base": {256 * k: 10 for k in range(1, 9)}, "new": {256 * k: 14 for k in range(1, 9)}},
            "From 256 to 2,048 tokens new finds 112 of 160 numbers; base finds 80.",  # which no single length shows
        ),
        ({"base": {256: 0, 512: 0}}, "base finds none of the 40 numbers, at any length."),
        ({"base": {256: 0}, "new": {256: 0}}, "None of the 2 models finds any of the 20 numbers, at any length."),
        ({"base": {256: 3}}, "base finds 3 of 20 numbers in prompts as long as it was trained on (256 tokens)."),
    ],
)
def test_the_headline_counts(rows, says):
    assert in_short(grid(rows)) == says


def test_the_headline_of_three_is_of_the_two_that_differ_most():
    said = in_short(grid({"base": {512: 2}, "mid": {512: 12}, "top": {512: 18}}), train_length=None)
    assert said == "top finds 18 of 20 numbers in prompts of 512 tokens; base finds 2 of 20."


def test_the_headline_of_three_with_too_few_prompts_is_of_the_two_that_differ_most():
    few = [row for row in grid({"base": {512: 0}, "top": {512: 20}, "same": {512: 0}}) if row["trial"] < 3]
    said = in_short(few, train_length=None)
    assert said == (
        "There are too few prompts to say which finds more: top finds 3 of 3 numbers in prompts of 512 tokens, base finds 0 of 3."
    )
    said = in_short(
        [row for row in grid({"a": {512: 20}, "b": {512: 20}, "c": {512: 20}}) if row["trial"] < 3], "a", None
    )
    assert said == "All 3 find the same share: c 3 of 3 numbers in prompts of 512 tokens."


def test_the_headline_without_scores():
    failed = [{**each, "correct": None, "error": "out of memory"} for each in grid({"base": {256: 0}})]
    assert in_short(failed) == "No prompt has a score."


def test_lengths_in_words():
    tested = [1, 2, 4, 8]
    assert where([2], tested) == "at 2 tokens"
    assert where([2, 4, 8], tested) == "from 2 to 8 tokens"
    assert where([1, 4, 8], tested) == "at 1, 4 and 8 tokens"


def store(tmp_path, rows, training=None, **record):
    """Write rows as complete runs, one a model, and return their folder."""
    for model in dict.fromkeys(each["model"] for each in rows):
        own = [{**each, "sample": str(i)} for i, each in enumerate(rows) if each["model"] == model]
        for each in own:
            del each["run_id"]
        folder = tmp_path / ("attention" if any("mass_answer" in each for each in own) else "needle") / model
        folder.mkdir(parents=True)
        (folder / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in own))
        described = {"label": model, "architecture": "X", "parameters": 1, "train_length": 256, "fingerprint": "f" * 16}
        described |= {"dtype": "float32", "training": (training or {}).get(model)}
        known = {
            "parameters": {},
            "model": described,
            "attention": {"attention": "softmax", "unscaled_layers": []},
            "rope": {"effective": {"requested": "as trained", "rope_type": "default", "rope_theta": 10000.0}},
        }
        known |= {"environment": {"device": "cpu"}, "rows": len(own), "tokens": 1, "seconds": 1, "command": "made up"}
        (folder / "run.json").write_text(json.dumps(known | record))
    return tmp_path


def test_the_baseline_is_the_users(tmp_path):
    folder = store(tmp_path, grid())
    page = ssmax_eval.report(folder, tmp_path / "p.html", baseline="new").read_text()
    assert "base minus new" in page
    with pytest.raises(UserError, match="baseline 'x': no such series; allowed are base; new"):
        ssmax_eval.report(folder, tmp_path / "q.html", baseline="x")
    assert not (tmp_path / "q.html").exists()


def test_seeds_and_training_curves_come_from_the_records(tmp_path):
    found = {
        f"{kind}-s{seed}": {256: 20, 1024: right + seed} for kind, right in (("a", 2), ("b", 15)) for seed in (0, 1)
    }
    log = [{"tokens": t, "text_loss": 5.0, "recall": t / 10} for t in (1, 5)]
    training = {
        name: {
            "configuration": f"smoke, {name[0]}",
            "key": name[0],
            "attention": "softmax",
            "seed": int(name[-1]),
            "log": log,
        }
        for name in found
    }
    page = ssmax_eval.report(store(tmp_path, grid(found), training), tmp_path / "p.html").read_text()
    assert "<h2>training</h2>" in page
    assert "training seeds: single" in page
    line = re.search(r"smoke, b</th><td>minus smoke, a</td>(.*?)</tr>", page, re.S)[1]
    assert "+0.65" in line  # 15 of 20 minus 2 of 20, both seeds
    assert "2 seeds" in line
    assert (
        "2 training seeds are too few to say whether b finds more than a: they find 78% and 12% of the numbers in prompts 4 times as "
        "long as they were trained on (1,024 tokens)."
    ) in page  # both seeds differ by as much, which gives no interval
    alone = store(tmp_path / "one", grid({"a-s0": found["a-s0"]}), training)
    assert "training seeds" not in ssmax_eval.report(alone, tmp_path / "q.html").read_text()


def test_the_headline_over_seeds_is_of_means_whose_interval_leaves_0_out():
    from ssmax_eval.headline import seeds_headline, seeds_sure

    base = {512: 0.9, 1024: 0.2}

    def line(name, length, difference, low, high):
        at = {"accuracy": base[length] + difference, "accuracy_baseline": base[length]}  # on the seeds that both have
        head = {"configuration": name, "context_length": length, "difference": difference}
        return head | {"low": low, "high": high, "seeds": 3} | at

    compared = pd.DataFrame(
        [line("new", 512, 0.1, -0.1, 0.3), line("new", 1024, 0.6, 0.2, 1), line("wild", 1024, 0.7, -0.2, 1)]
    )
    said = seeds_headline(compared, "base", 256, "numbers")
    assert said == (
        "new finds 80% of the numbers in prompts 4 times as long as they were trained on (1,024 tokens), base 20% "
        "(means over 3 training seeds)."
    )
    assert seeds_headline(compared.assign(seeds=1), "base", 256, "numbers") == ""
    # who finds as much is named, whatever its interval
    both = pd.DataFrame([line("new", 1024, 0.6, 0.2, 1), line("twin", 1024, 0.6, -0.2, 1)])
    said = seeds_headline(both, "base", 256, "numbers")
    assert said.startswith("Of 3 configurations new and twin find most: 80% of the numbers in prompts 4 times")
    first, _ = seeds_sure(compared, "base")
    assert first == (
        "new minus base, mean over 3 training seeds, Student's t: +0.10 at 512 tokens (95% interval -0.10 to +0.30); "
        "+0.60 at 1,024 tokens (95% interval +0.20 to +1.00)."
    )


def test_many_series_share_the_colours_of_their_groups():
    from ssmax_eval.report.figures.style import colours, groups

    few = [f"m{i} (ssmax)" for i in range(7)]
    assert groups(few) == {name: name for name in few}
    seeds = [f"{kind}-s{seed} ({kind})" for kind in ("softmax", "ssmax") for seed in range(9)]
    assert set(groups(seeds).values()) == {"softmax (softmax)", "ssmax (ssmax)"}
    many = [f"m{i} ({kind}, theta x4)" for i in range(12) for kind in ("softmax", "ssmax")]
    assert set(groups(many).values()) == {"softmax, theta x4", "ssmax, theta x4"}
    assert len(set(colours(many).values())) == 2
    unlike = [f"m{i}" for i in range(12)]
    assert len(set(colours(unlike).values())) == 12


def test_theta_as_an_axis_has_its_panel(tmp_path):
    rows = grid() + [
        {**each, "rope": "theta x10", "rope_theta_factor": 10.0, "correct": each["trial"] < 13}
        for each in grid({"base": FOUND["base"]})
    ]
    page = ssmax_eval.report(frame(rows), tmp_path / "p.html").read_text()
    assert "each cell has its best factor" in page
    best = re.search(r"<td>best of each cell</td>(.*?)</tr>", page)[1]
    assert re.findall(r"<td>([\d.]+)</td>", best) == ["1.00", "0.65", "0.65"]
    other = grid({"new": FOUND["new"]})
    both = ssmax_eval.report(frame([*rows, *other]), tmp_path / "b.html").read_text()
    assert (
        "With the RoPE theta that finds most in each cell, chosen on these prompts: from 256 to 4,096 tokens new finds"
        in both
    )
    assert (
        "<p>new: At no single length is its difference from base, best theta of each cell certain" in both
    )  # how sure that is
    fair = both[both.index("each cell has its best factor") :]
    said = re.search(r"<strong>new\.</strong> (.*?)</p>", fair)[1]
    # at 4,096 tokens base has 0 of 20 as trained and 13 at ten times theta, new 17: too few prompts to tell
    assert (
        "At no single length is its difference from base, best theta of each cell certain, but over all lengths it finds more."
        in said
    )
    assert "Over all lengths: 0.92 against 0.77" in said
    assert "each cell has its best factor" not in ssmax_eval.report(frame(grid()), tmp_path / "q.html").read_text()


def test_figures_are_saved_as_svg_png_and_pdf(tmp_path):
    ssmax_eval.report(frame(grid()), tmp_path / "p.html", figures_folder=tmp_path / "figures")
    kinds = {file.suffix: file.read_bytes()[:4] for file in (tmp_path / "figures").iterdir()}
    assert kinds[".png"] == b"\x89PNG"
    assert kinds[".pdf"] == b"%PDF"
    assert b"<" in kinds[".svg"]


def test_thresholds_of_the_page(tmp_path):
    masses = {"mass_answer": [[0.3]], "top_mass_answer": [0.3, 0.3], "answer_ranks": [0, 2], "haystack_nll": 5.0}
    zeros = {key: [[0.1]] for key in ("mass_needle", "mass_first", "mass_question", "log_odds", "entropy", "maximum")}
    zeros |= {"mass_answer_mean": [[0.1]], "mass_next": [[0.1]], "maximum_at": [[0]], "visible_keys": [9]}
    rows = [row("m", length, correct=length == 512, **masses, **zeros) for length in (512, 1024)]
    folder = store(tmp_path, rows, thresholds={"attended": 0.2, "blow_up": 1.0})
    said = lambda **given: ssmax_eval.report(folder, tmp_path / "p.html", **given).read_text()  # noqa: E731
    assert "20% or more on the answer" in said()
    assert "50% or more on the answer" in said(attended=0.5)
    with pytest.raises(UserError, match="attended 2"):
        said(attended=2)


def test_a_report_takes_no_place_but_its_own(tmp_path):
    folder = store(tmp_path, grid())
    rows = folder / "needle" / "base" / "rows.jsonl"
    before = rows.read_bytes()
    with pytest.raises(UserError, match="names that end with .html"):
        ssmax_eval.report(folder, rows)
    assert rows.read_bytes() == before
    (tmp_path / "p.html.tmp").write_text("mine")
    ssmax_eval.report(folder, tmp_path / "p.html")
    assert (tmp_path / "p.html.tmp").read_text() == "mine"
    (tmp_path / "d.html").mkdir()
    with pytest.raises(UserError, match="d.html.*give another path"):
        ssmax_eval.report(folder, tmp_path / "d.html", figures_folder=tmp_path / "figures")
    assert not (tmp_path / "figures").exists()
    assert {file.name for file in tmp_path.iterdir()} == {"needle", "p.html", "p.html.tmp", "d.html"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"thresholds": {"foo": 1}}, "thresholds"),
        ({"thresholds": {"attended": "a"}}, "thresholds"),
        ({"thresholds": [1]}, "thresholds"),
        ({"attention": {}}, "attention.attention"),
        ({"tokens": "many"}, "tokens"),
        ({"rope": {"effective": "x"}}, "rope.effective"),
        ({"environment": {}}, "environment.device"),
        ({"command": ["a"]}, "command"),
    ],
)
def test_a_damaged_record_is_one_line(tmp_path, change, says):
    with pytest.raises(UserError, match=says):
        ssmax_eval.report(store(tmp_path, grid(), **change), tmp_path / "p.html")


def test_damaged_rows_are_one_line_and_damaged_logs_are_left_out(tmp_path):
    for number, change in enumerate(({"depth_percent": "x"}, {"answer_nll": "x"}, {"rope": 5}, {"mass_answer": 1})):
        broken = store(tmp_path / str(number), [{**row("m"), **change}])
        with pytest.raises(UserError, match="line 1 of rows.jsonl"):
            ssmax_eval.report(broken, tmp_path / "p.html")
    for number, log in enumerate(([{"tokens": 1}], [{"tokens": [1]}], [], [{"tokens": 1, "recall": "x"}])):
        training = {"base": {"configuration": "c", "key": "k", "seed": 0, "log": log, "attention": "softmax"}}
        folder = store(tmp_path / f"log{number}", grid({"base": FOUND["base"]}), training)
        assert "Verdict" in ssmax_eval.report(folder, tmp_path / "p.html").read_text()


def test_a_renamed_run_keeps_what_its_record_tells(tmp_path):
    folder = store(tmp_path, grid(), run_id="another")
    assert "trained at 256" in ssmax_eval.report(folder, tmp_path / "p.html").read_text()


def test_labels_are_never_mathematics(tmp_path):
    log = [{"tokens": t, "recall": 0.5} for t in (1, 2)]
    label = "$\\frac{a$ \x00_x"
    training = {label: {"configuration": "c", "key": "k", "seed": 0, "log": log, "attention": "softmax"}}
    rows = [row(label, correct=True)]
    folder = tmp_path / "needle" / "run"
    named = store(tmp_path / "made", [{**each, "model": "m"} for each in rows], {"m": training[label]})
    folder.parent.mkdir()
    (named / "needle" / "m").rename(folder)
    for file in folder.iterdir():
        file.write_text(file.read_text().replace('"m"', json.dumps(label)))
    page = ssmax_eval.report(folder, tmp_path / "p.html").read_text()
    assert "<h2>training</h2>" in page
    assert all("\x00" not in svg for svg in re.findall(r"<svg.*?</svg>", page, re.S))


def test_an_interval_and_a_test_that_disagree_are_explained():
    from ssmax_eval.verdict import at_odds

    def line(length, low, high, p, p_holm):
        return {"context_length": length, "low": low, "high": high, "p": p, "p_holm": p_holm}

    agree = [line(256, -0.1, 0.2, 0.6, 1.0), line(512, 0.1, 0.4, 0.001, 0.002)]
    assert at_odds(agree, [256, 512]) == []
    [said] = at_odds([line(256, 0.01, 0.3, 0.03, 0.06), *agree[1:]], [256, 512])
    assert "at 256 tokens" in said
    assert "the test allows for 2 lengths" in said
    [said] = at_odds([line(256, 0.01, 0.3, 0.07, 0.07)], [256])
    assert "take it as undecided" in said
    [said] = at_odds([line(256, -0.01, 0.3, 0.01, 0.02), *agree[1:]], [256, 512])
    assert "but the interval holds 0" in said


def test_three_series_have_a_table_before_their_grids(tmp_path):
    """A line each, those that find most on top; two have none."""
    rows = [*grid(), *grid({"third": FOUND["new"]})]
    page = ssmax_eval.report(frame(rows), tmp_path / "p.html").read_text()
    table = page[page.index("<h2>Overview</h2>") :]
    names = re.findall(r'<th scope="row"><span class="swatch"[^>]*></span> (\w+)', table)
    assert names == ["new", "third", "base"]
    assert page.index("<h2>Overview</h2>") < page.index('<div class="grids')
    assert "<h2>Overview</h2>" not in ssmax_eval.report(frame(grid()), tmp_path / "q.html").read_text()

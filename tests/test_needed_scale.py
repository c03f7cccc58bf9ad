"""The needed scale: readings against float64 and against weights changed by hand; best factors and laws against closed forms."""

import copy
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from made import made
from test_cli import call
from tiny import build

import ssmax_eval
from ssmax_eval import statistics
from ssmax_eval.errors import UserError
from ssmax_eval.mechanisms.attach import attach
from ssmax_eval.mechanisms.layers import attention_modules
from ssmax_eval.probes.needed_scale.probe import NeededScaleProbe
from ssmax_eval.probes.needed_scale.readings import ALIKE, READINGS, best_of, factor_of
from ssmax_eval.probes.needed_scale.rows import NeededScaleRow
from ssmax_eval.probes.needed_scale.sections.needed import SECTION, best_by_accuracy, interval, law_lines
from ssmax_eval.probes.needed_scale.words import grows, in_short, in_words
from ssmax_eval.probes.needle.probe import NeedleProbe
from ssmax_eval.readers.answers import forced
from ssmax_eval.readers.transformers import TransformersReader
from ssmax_eval.report.context import Context
from ssmax_eval.statistics.laws import of_laws
from ssmax_eval.statistics.needed import KEY, STEP, Needed, lowest, middle_of_highest

GRID = {"context_lengths": (96, 128), "depth_percents": (0, 100), "trials": 2}
MORE = {"layers": (0, 1), "heads": ("0.1", "1.2"), "scale_random_heads": True, "scale_whole_prompt": True}
ASKED = ("--context-lengths", "96,128", "--depth-percents", "0,100", "--trials", "5")


def rows_of(model, tokenizer, done=(), batch_size=None, claim=lambda: True, **given):
    probe = NeededScaleProbe(**{**GRID, **given})
    found = probe(TransformersReader(model, tokenizer), done, batch_size, claim)
    return [row for batch in found for row in batch]


def llama(**changes):
    return build("Llama", vocab_size=1024, **changes)


def by_target(rows):
    return {
        name: [row for row in rows if row["scaled"] == name] for name in dict.fromkeys(row["scaled"] for row in rows)
    }


def test_rows_are_the_needles_with_the_factors_beside(tokenizer):
    model = llama()
    rows = rows_of(model, tokenizer, **MORE, controls=("no-needle", "needle-only"))
    probe = NeededScaleProbe(**GRID, **MORE, controls=("no-needle", "needle-only"))
    assert sorted(row["sample"] for row in rows) == sorted(probe.rows_planned())
    own = NeedleProbe(**GRID, controls=("no-needle", "needle-only"))
    needles = {row["sample"]: row for batch in own(TransformersReader(model, tokenizer)) for row in batch}
    for row in rows:
        needle = needles[row["sample"].rsplit("/", 1)[0]]
        same = ("correct", "prompt_sha256", "answer_ranks", "depth_percent", "question_start", "control", "credit")
        assert {name: row[name] for name in same} == {name: needle[name] for name in same}
        assert row["answer_nll"] == pytest.approx(needle["answer_nll"], abs=1e-4)
        assert row["factors"] == sorted(set(row["factors"]))
        assert len(row["factors"]) <= READINGS
        assert (row["factors"][0], row["factors"][-1]) == (0.5, 4.0)
        at_one = row["factors"].index(1.0)
        assert row["nlls"][at_one] == pytest.approx(row["answer_nll"], abs=1e-4)
        assert row["verdicts"][at_one] == row["correct"]


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "GPTNeoX"])
def test_a_whole_prompts_factor_is_a_larger_query_projection(family, tokenizer):
    """The unmodified model with its query weights times C; where queries are normed, the norm's weights."""
    model = build(family, vocab_size=1024)
    [row] = by_target(
        rows_of(model, tokenizer, scale_whole_prompt=True, **{**GRID, "context_lengths": (96,)}, limit=1)
    )["whole-prompt"]
    prompt = NeededScaleProbe(**{**GRID, "context_lengths": (96,)}, limit=1)
    prompt = prompt.prompt(tokenizer, prompt.plan()[0])
    for factor, nll in zip(row["factors"], row["nlls"], strict=True):
        changed = copy.deepcopy(model)
        for module in attention_modules(changed).values():
            with torch.no_grad():
                if family == "Qwen3":
                    module.q_norm.weight *= factor
                elif family == "Llama":
                    module.q_proj.weight *= factor
                else:  # queries, keys and values of a head follow each other
                    width = model.config.hidden_size // model.config.num_attention_heads
                    parts = module.query_key_value.weight.view(-1, 3, width, model.config.hidden_size)
                    parts[:, 0] *= factor
                    module.query_key_value.bias.view(-1, 3, width)[:, 0] *= factor
        assert forced(changed, tokenizer, [prompt])[0]["answer_nll"] == pytest.approx(nll, rel=1e-3, abs=1e-3)


def test_the_answers_rows_alone_are_float64s(tokenizer):
    """tiny.float64_attention with C where a row sees more than the context: the rows of question and answer."""
    model = llama()
    rows = by_target(rows_of(model, tokenizer, layers=(1,), heads=("0.1", "1.2")))
    probe = NeededScaleProbe(**GRID)
    reference = copy.deepcopy(model).double()
    reference.set_attn_implementation("float64_reference")
    modules = [*attention_modules(reference).values()]
    chosen = {"all": [[0, 1, 2, 3], [0, 1, 2, 3]], "layer-1": [[], [0, 1, 2, 3]], "heads": [[1], [2]]}
    for name, heads in chosen.items():
        for sample, row in [*zip(probe.plan(), rows[name], strict=True)][::3]:
            prompt = probe.prompt(tokenizer, sample)
            ids = torch.tensor([prompt.ids[:-1]])
            for factor, nll in [*zip(row["factors"], row["nlls"], strict=True)][::4]:
                for module, own in zip(modules, heads, strict=True):

                    def scale(n, own=own, factor=factor, start=prompt.question_start):
                        return [factor if head in own and n > start else 1.0 for head in range(4)]

                    module.reference_scale = scale
                with torch.no_grad():
                    logits = reference(input_ids=ids, use_cache=False).logits[:, -prompt.answer_length :]
                own_nll = -logits.log_softmax(-1).gather(
                    2, torch.tensor([prompt.ids[-prompt.answer_length :]])[..., None]
                )
                assert float(own_nll.sum()) == pytest.approx(nll, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    ("family", "attention", "changes"),
    [
        ("Gemma3Text", None, {}),
        ("GPT2", None, {}),
        ("Llama", "entmax-1.5", {}),
        ("Llama", "differential", {}),
        ("Llama", "cca:g=4,s=8", {}),  # reads whole sequences only
        ("Llama", "ssmax", {}),
    ],
)
def test_other_models_and_mechanisms_are_read_too(family, attention, changes, tokenizer):
    model = build(family, vocab_size=1024, **changes)
    if attention:
        attach(model, attention)
    rows = rows_of(model, tokenizer, limit=1, scale_whole_prompt=True, **{**GRID, "context_lengths": (96,)})
    own, whole = rows
    at_one = own["factors"].index(1.0)
    assert own["nlls"][at_one] == pytest.approx(own["answer_nll"], abs=1e-4)
    assert max(own["nlls"]) - min(own["nlls"]) > 1e-3
    assert own["nlls"] != whole["nlls"]


def test_bfloat16_is_near_float32(tokenizer):
    model = llama()
    rows, rounded = rows_of(model, tokenizer, limit=2), rows_of(copy.deepcopy(model).bfloat16(), tokenizer, limit=2)
    for one, other in zip(rows, rounded, strict=True):
        a, b = (
            dict(zip(one["factors"], one["nlls"], strict=True)),
            dict(zip(other["factors"], other["nlls"], strict=True)),
        )
        assert max(abs(a[c] - b[c]) / a[c] for c in set(a) & set(b)) < 0.1


def test_rows_do_not_depend_on_batch_size_resume_or_processes(tokenizer):
    model = llama()
    whole = rows_of(model, tokenizer, batch_size=1, **MORE)
    together = rows_of(model, tokenizer, batch_size=4, **MORE)
    for one, other in zip(whole, together, strict=True):
        assert (one["sample"], one["factors"], one["verdicts"], one["scaled_heads"]) == (
            other["sample"],
            other["factors"],
            other["verdicts"],
            other["scaled_heads"],
        )
        assert one["nlls"] == pytest.approx(other["nlls"], rel=1e-4, abs=1e-4)
    # stopped in the middle of a prompt's rows
    done = {row["sample"] for row in whole[:8]}
    assert rows_of(model, tokenizer, done, batch_size=1, **MORE) == whole[8:]
    turns = [iter([True, False] * 9), iter([False, True] * 9)]
    shared = [
        row
        for turn in turns
        for row in rows_of(model, tokenizer, batch_size=1, claim=lambda turn=turn: next(turn), **MORE)
    ]
    assert sorted(shared, key=lambda row: row["sample"]) == sorted(whole, key=lambda row: row["sample"])


def test_drawn_heads_are_as_many_others(tokenizer):
    rows = by_target(rows_of(llama(), tokenizer, **MORE))
    assert {tuple(row["scaled_heads"]) for row in rows["heads"]} == {("0.1", "1.2")}
    drawn = [row["scaled_heads"] for row in rows["random-heads"]]
    assert all(len(each) == 2 and not {"0.1", "1.2"} & {*each} for each in drawn)
    assert len({tuple(each) for each in drawn}) > 1
    half = by_target(rows_of(llama(), tokenizer, scale_random_heads=True))["random-heads"]
    assert {len(row["scaled_heads"]) for row in half} == {4}
    assert all(row["scaled_heads"] is None for row in rows["all"])


def test_the_best_is_the_nearest_to_one_of_those_alike():
    assert best_of({-4: (1.0, True), 0: (0.5, True), 4: (0.2, True)}) == 4
    assert best_of({-4: (0.5, True), 0: (0.5 + ALIKE / 2, True), 4: (0.5, True)}) == 0
    assert best_of({-4: (0.5, True), 4: (0.5, True)}) == -4
    assert best_of({0: (None, None), 4: (0.2, True)}) == 4
    assert best_of({0: (None, None)}) == 0


def test_rows_read_again_that_are_not_finite_are_a_failure(tokenizer):
    model = llama()
    model.lm_head.weight.data[3] = math.inf
    rows = rows_of(model, tokenizer, limit=1)
    assert [row["error"] for row in rows] == ["logits are not finite"]
    assert "factors" not in rows[0]


# --- best factors and laws ---

LAWS = {
    "1": (lambda n: 1 + 0 * n, {}),
    "max(1, ln n / ln L)": (lambda n: np.maximum(1, np.log(n) / math.log(512)), {}),
    "a": (lambda n: 1.3 + 0 * n, {"a": 1.3}),
    "s ln n": (lambda n: 0.2 * np.log(n), {"s": 0.2}),
    "a (ln n)^1/2": (lambda n: 0.5 * np.sqrt(np.log(n)), {"a": 0.5}),
    "a max(1, ln n / ln L)": (lambda n: 1.2 * np.maximum(1, np.log(n) / math.log(512)), {"a": 1.2}),
    "a + b ln n": (lambda n: 0.2 + 0.15 * np.log(n), {"a": 0.2, "b": 0.15}),
    "a n^g": (lambda n: 0.5 * n**0.15, {"a": 0.5, "g": 0.15}),
}
LENGTHS = (256, 512, 1024, 2048, 4096)


def table_of(needed, trials=6, noise=0.0, lengths=LENGTHS, **told):
    """Return rows whose nll is 3 (ln C - ln C(n))^2 + .1, right within a fifth of C(n)."""
    rng = np.random.default_rng(0)
    rows = []
    for n in lengths:
        for trial in range(trials):
            best = math.log(needed(np.array([float(n)]))[0]) + noise * rng.standard_normal()
            coarse = [*range(-16, 33, 4)]
            nearest = min(coarse, key=lambda step: abs(STEP * step - best))
            steps = sorted({*coarse, *(nearest + k for k in (-3, -2, -1, 1, 2, 3))} & {*range(-16, 33)})
            away = [STEP * step - best for step in steps]
            rows.append(
                made(
                    NeededScaleRow, sample=f"{n}/{trial}", model="m", attention="softmax", attention_swapped=False,
                    rope="as trained", task="single",
                    value="number", needles=1, haystack="text", context_length=n, depth_percent=50.0, trial=trial, plan=2,
                    seed=0, correct=True, scaled="all", prompt_sha256=f"{n}/{trial}", factors=[factor_of(s) for s in steps],
                    nlls=[3 * x**2 + 0.1 for x in away], verdicts=[abs(x) < 0.2 for x in away], **told,
                )
            )  # fmt: skip
    return statistics.with_series(pd.DataFrame(rows).assign(probe="needed-scale", run_id="r"))


@pytest.mark.parametrize("name", LAWS)
def test_data_of_a_law_are_given_back_to_it(name):
    needed, coefficients = LAWS[name]
    rows = table_of(needed)
    found = statistics.best_factors(rows)
    assert found[0].best == pytest.approx(needed(np.array(LENGTHS, dtype=float)), rel=2e-3)
    laws = statistics.scale_laws(found, {"m": 512}).set_index("law")
    assert laws["error"].idxmin() == name
    assert laws.loc[name, "error"] < 3e-3
    assert {each: laws.loc[name, each] for each in coefficients} == pytest.approx(coefficients, rel=0.03)
    assert laws.loc[name, "weight"] == laws["weight"].max() == 1
    n = np.array([300.0, 5000.0])
    assert statistics.law_values({"law": name, **laws.loc[name]}, n, 512) == pytest.approx(needed(n), rel=0.01)


@pytest.mark.parametrize("power", [0, 0.5, 1])
def test_growth_is_the_power_of_ln_n(power):
    """A constant has the power 0, s ln n 1; with noise the interval holds it, and says what it agrees with."""

    def needed(n):
        return 1.2 * (np.log(n) / math.log(256)) ** power

    exact = statistics.scale_growth(statistics.best_factors(table_of(needed))).iloc[0]
    assert exact["power"] == pytest.approx(power, abs=0.02)
    found = statistics.best_factors(table_of(needed, 40, noise=0.1))
    laws = statistics.scale_laws(found)
    [line] = statistics.growth_told_twice(statistics.scale_growth(found), laws).to_dict("records")
    assert line["low"] < power < line["high"]
    assert line["high"] - line["low"] < 0.5
    assert (line["agree"], line["direction"]) == (True, float(power > 0))
    assert laws.set_index("law")["power"][["1", "a", "s ln n", "a (ln n)^1/2"]].to_list() == pytest.approx(
        [0, 0, 1, 0.5]
    )
    said = grows(line)
    assert said.endswith("is within the interval: it fits.")
    assert {
        0: "a constant factor (power 0) is within the interval, a ln n (power 1) is outside it.",
        0.5: "a constant factor (power 0) is outside the interval, a ln n (power 1) too.",
        1: "a constant factor (power 0) is outside the interval, a ln n (power 1) is within it.",
    }[power] in said


def test_best_factors_up_and_down_are_no_growth_though_their_interval_says_so():
    """Lengths that are known well rise, those known badly fall: the power's interval lies above 0, and lengths left out say a constant."""
    best, spread = np.array([1.31, 1.67, 1.17, 1.74, 1.01]), np.array([0.015, 0.05, 0.16, 0.03, 0.18])
    draws = best * np.exp(spread * np.random.default_rng(0).standard_normal((400, 5)))
    key = dict.fromkeys(KEY) | {"series": "m", "scaled": "all"}
    found = [Needed(key, pd.DataFrame({"context_length": LENGTHS, "best": best}), draws)]
    [line] = statistics.growth_told_twice(statistics.scale_growth(found), statistics.scale_laws(found)).to_dict(
        "records"
    )
    assert line["low"] > 0
    assert (line["law"], line["agree"], math.isnan(line["direction"])) == ("a", False, True)
    assert "(power 1) is within it. At lengths left out C = a errs least" in grows(line)
    assert grows(line).endswith("Its power is outside the interval: the two ways disagree, no law is shown to fit.")


def test_the_first_screen_counts_readings_and_directions():
    """Softmax that needs s ln n; the same model with another theta, of which less and less is needed."""

    def falls(n):
        return 1.5 / np.log(n) * math.log(256)

    rows = pd.concat(
        [table_of(LAWS["s ln n"][0], 8, 0.05), table_of(falls, 8, 0.05).assign(rope="theta x4", run_id="q")]
    )
    rows = statistics.with_series(rows.drop(columns=["series", "subject"]))
    [found] = SECTION.numbers(rows, Context(records=[{"run_id": "r", "attention": {"attention": "softmax"}}]))
    first, _, reverse, last = in_short(found)
    assert first.endswith("Yes for 1 of 2 readings with softmax.")
    assert reverse == "The reverse, the best C falls, for 1: m (theta x4)."
    assert last == "These are 2 readings of 1 model, each read at 5 lengths with 8 prompts of 8 trials at each."
    line = found.laws[(found.laws["series"] == "m") & (found.laws["law"] == "s ln n")].iloc[0]
    assert line["low"] < 0.2 < line["high"]
    # ends of the interval of the mean of five lengths' best: sd .05 / sqrt(8 trials 5 lengths)
    assert math.log(line["high"] / line["low"]) / 2 == pytest.approx(1.96 * 0.05 / math.sqrt(40), rel=0.3)
    said = f"m: of laws s ln n, the one nearest to what its answers need has s = {line['s']:.3f} (95% interval {line['low']:.3f} to"
    assert any(each.startswith(said) for each in in_words(found))
    assert law_lines(found.laws[found.laws["law"] == "s ln n"])[0][:2] == [
        "C = a ln n",
        f"a {line['s']:.3g} [{line['low']:.3g}, {line['high']:.3g}]",
    ]


def test_best_factors_at_the_end_of_what_was_tried_are_said_to_be_bounds():
    """All lengths need more than 4, the most that was tried: growth is hidden, and no two ways disagree on nothing."""
    rows = table_of(lambda n: 0.8 * np.log(n), 8, 0.02).assign(attention="softmax")
    [found] = SECTION.numbers(rows, Context(records=[{"run_id": "r", "attention": {"attention": "softmax"}}]))
    assert found.growth["low"].item() == found.growth["high"].item() == 0
    said = in_words(found)
    assert "a constant factor (power 0) is within the interval" in said[0]
    assert said[0].endswith("is within the interval: it fits.")
    assert said[1].startswith("m: at 256 to 4,096 tokens the best C is the first or last factor that was tried")
    assert any("so that growth may be hidden, for 1: m." in each for each in in_short(found))
    [inside] = SECTION.numbers(
        table_of(LAWS["s ln n"][0], 8, 0.05), Context(records=[{"run_id": "r", "attention": {"attention": "softmax"}}])
    )
    assert not any("was tried" in each for each in [*in_words(inside), *in_short(inside)])


def test_the_error_is_that_of_lengths_left_out():
    """Of exact numbers, by a loop apart from the product's: fit without one, predict it."""
    lengths, best = np.array(LENGTHS, dtype=float), np.array([1.0, 1.2, 1.2, 1.35, 1.5])
    lines = {line["law"]: line for line in of_laws(list(statistics.LAWS), lengths, best, np.empty((0, 5)), 512)}
    off = []
    for i in range(5):
        x, y = np.delete(np.log(lengths), i), np.delete(best, i)
        b, a = np.polyfit(x, y, 1, w=1 / y)  # alike in ln C
        off.append(math.log((a + b * math.log(lengths[i])) / best[i]))
    assert lines["a + b ln n"]["error"] == pytest.approx(math.sqrt(np.mean(np.square(off))), rel=1e-6)
    assert lines["1"]["error"] == pytest.approx(math.sqrt(np.mean(np.log(best) ** 2)))
    g, a = np.polyfit(np.log(lengths), np.log(best), 1)
    assert (lines["a n^g"]["g"], lines["a n^g"]["a"]) == pytest.approx((g, math.exp(a)))
    assert all(math.isnan(line["weight"]) for line in lines.values())


def test_too_few_lengths_and_trials_say_nothing():
    found = statistics.best_factors(table_of(LAWS["a"][0], trials=4, lengths=(256, 512)))
    assert found[0].lines["low"].isna().all()
    laws = statistics.scale_laws(found, {"m": 512}).set_index("law")
    assert laws.loc["a", "error"] < 1e-3
    assert math.isnan(laws.loc["a + b ln n", "error"])
    one = statistics.scale_laws(statistics.best_factors(table_of(LAWS["a"][0], lengths=(256,)))).set_index("law")
    assert math.isnan(one.loc["a", "error"])
    assert math.isnan(
        statistics.scale_growth(statistics.best_factors(table_of(LAWS["a"][0], lengths=(256,)))).loc[0, "power"]
    )
    assert "no interval with fewer than 5 trials" in grows(statistics.scale_growth(found).to_dict("records")[0])


def test_the_interval_holds_the_truth_and_narrows_with_trials():
    needed = LAWS["a + b ln n"][0]
    wide, narrow = (statistics.needed_scale(table_of(needed, trials, noise=0.1)) for trials in (8, 40))
    truth = needed(np.array(LENGTHS, dtype=float))
    for found in (wide, narrow):
        assert ((found["low"] < truth) & (truth < found["high"])).mean() >= 0.8
    assert (narrow["high"] - narrow["low"]).mean() < 0.7 * (wide["high"] - wide["low"]).mean()
    # the mean of parabolas is lowest at the mean of their lowest points: sd .1 / sqrt(trials)
    half = (narrow["high"] / narrow["low"]).map(math.log) / 2
    assert half.mean() == pytest.approx(1.96 * 0.1 / math.sqrt(40), rel=0.3)


def test_accuracy_has_the_middle_of_the_best():
    found = statistics.needed_scale(table_of(LAWS["a"][0]))
    assert found["best_by_accuracy"].to_numpy() == pytest.approx(1.3, rel=STEP)
    assert found["accuracy"].eq(1).all()
    assert found["accuracy_as_is"].eq(0).all()
    assert not found["at_an_end"].any()
    assert statistics.needed_scale(table_of(lambda n: 6 + 0 * n))["at_an_end"].all()
    assert interval(found) == "with its 95% interval over 6 trials"
    # all right or all wrong with every factor: none is the best
    rows = table_of(LAWS["a"][0], trials=2)
    for right in (True, False):
        alike = rows.assign(verdicts=[[right] * len(each) for each in rows["verdicts"]])
        lines = statistics.needed_scale(alike)
        assert {best_by_accuracy(line) for line in lines.to_dict("records")} == {"–"}
        assert lines["accuracy"].eq(right).all()
        assert interval(lines) == "without an interval: 2 trials are too few, 5 or more give one"


def test_lowest_is_a_parabolas_vertex_and_a_plateau_has_its_middle():
    grid = STEP * np.arange(-16, 33)
    for at in (-0.3, 0.013, 0.7):
        assert lowest((grid - at) ** 2, grid) == pytest.approx(at)
    assert lowest(grid, grid) == grid[0]
    assert np.isnan(lowest(np.full((2, 49), np.nan), grid)).all()
    assert middle_of_highest(np.where(abs(grid - grid[20]) < 3.5 * STEP, 1.0, 0.5), grid) == pytest.approx(grid[20])


def test_a_prompt_that_two_runs_read_counts_once():
    rows = table_of(LAWS["a"][0])
    twice = pd.concat([rows, rows.assign(run_id="other")], ignore_index=True)
    pd.testing.assert_frame_equal(statistics.needed_scale(twice), statistics.needed_scale(rows))


# --- as a user meets it ---


def test_the_command_prints_resumes_and_writes_a_page(capsys, checkpoint, tmp_path):
    arguments = ("needed-scale", "--model", checkpoint, *ASKED, "--layers", "all", "--attention", "softmax", "--attention", "ssmax",
                 "--controls", "no-needle,needle-only", "--output-path", tmp_path)  # fmt: skip
    code, out, err = call(capsys, *arguments)
    assert code == 0, err
    assert "needed scale: best factor C on the answer's scores, by nll" in out
    assert "C = a ln n" in out
    page = (tmp_path / "reports" / out.strip().splitlines()[-1].rsplit("/", 1)[-1]).read_text()
    assert "<h1>Needed scale</h1>" in page
    assert "C = a + b ln n" in page
    assert ">nan<" not in page
    assert page.count("<figure") == 1
    runs = sorted((tmp_path / "needed-scale").iterdir())
    assert len(runs) == 2
    before = [(run / "rows.jsonl").read_bytes() for run in runs]
    # stopped in the middle of a prompt's rows
    for run, rows in zip(runs, before, strict=True):
        (run / "run.json").unlink()
        (run / "rows.jsonl").write_bytes(rows[: len(rows) // 2])
    assert call(capsys, *arguments)[0] == 0
    for run, rows in zip(runs, before, strict=True):
        again = [json.loads(line) for line in (run / "rows.jsonl").read_bytes().splitlines()]
        assert {row["sample"]: row for row in again} == {
            row["sample"]: row for row in map(json.loads, rows.splitlines())
        }


def test_python_and_json_give_the_best_factors(capsys, checkpoint, tmp_path):
    given = {"context_lengths": [96, 128], "depth_percents": [0, 100], "trials": 5, "output_path": tmp_path}
    table = ssmax_eval.needed_scale(str(checkpoint), **given, layers=[1])
    assert [*zip(table["scaled"], table["context_length"], strict=True)] == [
        ("all", 96),
        ("all", 128),
        ("layer-1", 96),
        ("layer-1", 128),
    ]
    assert ((table["low"] <= table["best"] + 1e-9) & (table["best"] <= table["high"] + 1e-9)).mean() > 0.5
    arguments = ("needed-scale", "--model", checkpoint, *ASKED, "--layers", "1", "--output-path", tmp_path)
    code, out, _ = call(capsys, *arguments, "--json", "--no-report")
    assert code == 0
    found = json.loads(out)
    assert [line["best"] for line in found["needed_scale"]] == pytest.approx(table["best"])
    assert {line["law"] for line in found["scale_laws"]} >= {"1", "a", "s ln n", "a n^g"}
    assert [line["series"] for line in found["needed_s"]] == [table["series"].iloc[0]]


def test_a_learned_s_stands_beside_the_needed_one(capsys, tokenizer, tmp_path):
    model = llama()
    attach(model, "ssmax:s=0.2")
    ssmax_eval.needed_scale(
        {"m": (model, tokenizer)}, context_lengths=(96, 128), depth_percents=(0,), trials=5, output_path=tmp_path
    )
    from ssmax_eval.report import context_of, found_in
    from ssmax_eval.results import find_runs

    runs = find_runs(tmp_path)
    [found] = found_in(runs, context_of(runs)).found
    [line] = found.summary()["needed_s"]
    constant = next(line["a"] for line in found.summary()["scale_laws"] if line["law"] == "a")
    assert line["s_learned"] == pytest.approx(0.2)
    assert line["s_needed"] == pytest.approx(0.2 * constant)
    assert line["low"] <= line["s_needed"] <= line["high"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--layers", "7"), "layer 7: LlamaForCausalLM attends in layers 0, 1; choose among them"),
        (("--layers", "-1"), "layer -1: allowed are whole numbers from 0"),
        (("--layers", "every"), "layers 'every': allowed are whole numbers separated by commas"),
        (("--heads", "1"), "head '1': allowed are LAYER.HEAD, counted from 0"),
        (("--heads", "1.9"), "head 1.9: LlamaForCausalLM has none; allowed are 1.0 to 1.3"),
        (("--heads", "5.0"), "head 5.0: LlamaForCausalLM has none; allowed are layers 0, 1"),
        (("--controls", "random-heads"), "control 'random-heads': allowed are no-needle, needle-only"),
    ],
)
def test_wrong_input_is_one_clear_line(capsys, checkpoint, tmp_path, arguments, says):
    code, out, err = call(capsys, "needed-scale", "--model", checkpoint, *ASKED, *arguments, "--output-path", tmp_path)
    assert code == 2
    assert says in err
    assert len([line for line in err.splitlines() if "cost:" not in line]) == 1
    assert not out


def test_a_function_lacks_it_with_one_line(tmp_path):
    with pytest.raises(UserError, match="needed-scale: model .*: a function gives text alone; ask another probe of it"):
        ssmax_eval.needed_scale({"f": lambda context, question: context}, context_lengths=(96,), output_path=tmp_path)

"""Attention given back: masses in closed form, heads chosen on other prompts, verdicts that follow from weights, and runs as any other."""

import json
import math

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
from ssmax_eval.mechanisms.edit import Edit
from ssmax_eval.mechanisms.mass import Wanted, towards
from ssmax_eval.mechanisms.recorder import Recorder
from ssmax_eval.probes.attention import restore
from ssmax_eval.probes.attention.axes import AXES, NOTHING, OTHERS, TOGETHER
from ssmax_eval.probes.attention.probe import RestoreProbe
from ssmax_eval.probes.attention.restore import Chosen, choose, edits_of, nothing, outcomes, sharpened, tail_masses
from ssmax_eval.probes.attention.rows import AttentionRow
from ssmax_eval.probes.attention.sections.restored import in_short
from ssmax_eval.probes.attention.tail import SPANS, Curves, Tail
from ssmax_eval.readers import tolerance
from ssmax_eval.readers.again import Again
from ssmax_eval.readers.transformers import TransformersReader
from ssmax_eval.results import find_runs
from ssmax_eval.store import line_of

BY_NAME = {axis.name: axis for axis in AXES}
GRID = {"context_lengths": (96, 160), "depth_percents": (0.0, 60.0), "trials": 2}
COMMAND = "--context-lengths 96,160 --depth-percents 0,60 --trials 2 --restore --no-report".split()


@pytest.fixture
def low(monkeypatch):
    """Let heads of a random model count as holding something."""
    monkeypatch.setattr(restore, "HOLDS", 0.03)


@pytest.fixture(scope="session")
def short(tmp_path_factory, tokenizer):
    """Return a checkpoint that was trained at 100 tokens."""
    folder = tmp_path_factory.mktemp("models") / "short-llama"
    build("Llama", vocab_size=1024, max_position_embeddings=100).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def read(model, tokenizer, length=160, **changes):
    """Return a reader of a model, the prompts of one length and what heads are chosen for them."""
    probe = RestoreProbe(**{**GRID, **changes}, attention_mass=True)
    reader = TransformersReader(model, tokenizer)
    prompts = [probe.prompt(tokenizer, sample) for sample in probe.plan() if sample.context_length == length]
    return probe, reader, prompts


def curves(axis, layer, heads, mass, offsets=range(-200, 40)):
    """Return masses that are the same in every row, of some heads of a layer; others have none."""
    table = torch.zeros(4, len(offsets), dtype=torch.float64)
    table[list(heads)] = mass
    return Curves(offsets[0], {axis.span: {layer: table}})


# closed form


def test_a_shift_gives_at_least_and_takes_to_at_most():
    """Against weights in plain loops: one key set after the other, rows without a wish and heads that see nothing untouched."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 4, 9, generator=generator, dtype=torch.float64)
    scores[1, 2, 3, :6] = -math.inf  # sees none of the keys below
    keys = torch.zeros(2, 4, 9, dtype=torch.bool)
    keys[0, :, 1:3] = keys[1, :, 4:6] = True
    inner = torch.zeros_like(keys)
    inner[:, :, 4] = inner[:, :, 2] = True
    mass = torch.rand(2, 2, 4, generator=generator, dtype=torch.float64)
    mass[0, 0, 1] = torch.nan
    wanted = [Wanted([0, 2], keys, mass), Wanted([2], inner, torch.full((2, 1, 4), 0.6, dtype=torch.float64))]

    def on(weights, where):
        return sum(float(weights[key]) for key in range(9) if where[key])

    for give in (True, False):
        after = scores + towards(wanted, give)(scores, None)
        for b in range(2):
            for row in range(4):
                for head in range(3):
                    was, now = scores[b, head, row].softmax(-1), after[b, head, row].softmax(-1)
                    had, has = on(was, keys[b, row]), on(now, keys[b, row])
                    wish = None if head == 1 else float(mass[b, [0, 2].index(head), row])
                    if head == 1 or not had or (head == 0 and math.isnan(wish)):
                        assert torch.equal(was, now) or (head == 2 and not had)
                    elif head == 0:
                        assert has == pytest.approx(max(had, wish) if give else min(had, wish), abs=1e-12)
                        if (had < wish) == give:  # in proportion: inside the keys, and outside of them
                            share = now[keys[b, row]] / has
                            assert torch.allclose(share, was[keys[b, row]] / had)
                            assert torch.allclose(now[~keys[b, row]] / (1 - has), was[~keys[b, row]] / (1 - had))
                    elif give:
                        assert on(now, inner[b, row]) >= 0.6 - 1e-12
                    else:
                        assert on(now, inner[b, row]) <= 0.6 + 1e-12
    assert torch.isfinite(towards(wanted, True)(scores, None)).all()


@pytest.mark.parametrize("name", ["softmax", "ssmax", "scale-invariant"])
@pytest.mark.parametrize(("family", "dtype"), [("Llama", "float32"), ("Qwen3", "bfloat16"), ("Gemma3Text", "float32")])
def test_heads_have_what_they_are_to_have(tokenizer, name, family, dtype):
    """Recorded in the very forward: two query heads on each key head, over a cache, prompts of unlike questions in one batch."""
    window = {"sliding_window": 400} if family == "Gemma3Text" else {}
    model = build(family, vocab_size=1024, max_position_embeddings=512, **window).to(getattr(torch, dtype))
    if name != "softmax":
        attach(model, f"{name}:train_length=96", longest=160)
    _, reader, prompts = read(model, tokenizer)
    tail = Tail(prompts, reader.inputs(prompts[0]))
    ids = torch.tensor([prompt.ids[:-1] for prompt in prompts])
    again = Again(model, ids, tail.start)
    assert (again.whole is None, len({p.question_start for p in prompts}) > 1) == (True, True)
    wanted = {"value": ([(0, 1), (1, 3)], 0.8), "place": ([(1, 0)], 0.7), "question": ([(0, 2)], 0.55)}
    axes, mass = [], {span: {} for span in SPANS}
    for axis, (heads, at) in wanted.items():
        for layer, head in heads:
            table = mass[BY_NAME[axis].span].setdefault(layer, torch.zeros(4, 240, dtype=torch.float64))
            table[head] = at
        axes.append((BY_NAME[axis], heads, heads))
    edits = edits_of(axes, tail, Curves(-200, mass), True)

    def masses(edits):
        recorder = Recorder(
            torch.arange(tail.rows).expand(len(prompts), -1),
            lambda recorded: {span: (recorded.weights * keys[:, None]).sum(-1) for span, keys in tail.keys.items()},
        )
        again.logits(3, edits, recorder)
        return recorder.kept

    before, after = masses({}), masses(edits)
    near = 0.02 if dtype == "bfloat16" else 1e-5  # the shift is added in the queries' dtype
    for axis, (heads, at) in wanted.items():
        rows, span = tail.of(BY_NAME[axis]), BY_NAME[axis].span
        for layer, head in heads:
            now = after[layer][span][:, head]
            if layer == 0:  # what it sees is as it was
                had = before[layer][span][:, head]
                assert torch.allclose(now[rows].float(), had[rows].clamp(min=at).float(), atol=near)
                assert torch.allclose(now[~rows].float(), had[~rows].float(), atol=near)
            assert (now[rows] >= at - near).all()
    still = [head for head in range(4) if head not in (1, 2)]
    for span in SPANS:
        assert torch.allclose(after[0][span][:, still].float(), before[0][span][:, still].float(), atol=near)


@pytest.mark.parametrize("family", ["Llama", "GPTNeoX", "Gemma3Text"])
def test_a_shift_of_nothing_is_the_original_rows(tokenizer, family, monkeypatch):
    """To 1e-6 of the whole forward, in float64: in float32 a cache and the whole round otherwise."""
    for allowed in (tolerance.NATS, tolerance.MEAN_NATS):
        monkeypatch.setitem(allowed, torch.float64, 1e-9)
    model = build(family, vocab_size=1024, max_position_embeddings=512).double()
    _, reader, prompts = read(model, tokenizer)
    tail = Tail(prompts, reader.inputs(prompts[0]))
    ids = torch.tensor([prompt.ids[:-1] for prompt in prompts])
    edits = dict.fromkeys(range(2), Edit(tail.rows, shift=nothing))
    with torch.inference_mode():
        whole = model(input_ids=ids, use_cache=False).logits[:, -tail.rows :]
    assert torch.allclose(Again(model, ids, tail.start).logits(tail.rows, edits), whole, atol=1e-6, rtol=0)
    # and in the rows that are stored
    chosen = Chosen(96, {}, {}, Curves(0, {}), None)
    scores = reader.answers(prompts)
    for one, two in zip(scores, outcomes(reader, prompts, chosen), strict=True):
        assert two["restored"] == {
            NOTHING: one["correct"],
            **{k: v for k, v in two["restored"].items() if k != NOTHING},
        }
        assert two["restored_nll"][NOTHING] == pytest.approx(one["answer_nll"], rel=1e-5)


def counting(size=1024):
    """Return a model of one head whose every row predicts the token that has the most weight in it, all keys alike."""
    model = build(
        "Llama", vocab_size=size, hidden_size=2 * size, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=size, intermediate_size=8, max_position_embeddings=512,
    )  # fmt: skip
    layer, eye = model.model.layers[0], torch.eye(size)
    for parameter in model.parameters():
        parameter.data.zero_()
    for norm in (layer.input_layernorm, layer.post_attention_layernorm, model.model.norm):
        norm.weight.data.fill_(1.0)
    model.model.embed_tokens.weight.data[:, :size] = eye
    layer.self_attn.v_proj.weight.data[:, :size] = eye
    layer.self_attn.o_proj.weight.data[size:] = eye
    model.lm_head.weight.data[:, size:] = eye
    return model


def test_verdicts_follow_from_the_weights(tokenizer):
    """A row is right where the token to write has more weight than any other: by hand from the counts of the prompt's tokens."""
    model = counting()
    _, reader, prompts = read(model, tokenizer, depth_percents=(50.0,), trials=3)
    seen = set()
    for mass in (0.02, 0.05, 0.1, 0.3, 0.9):
        axis = BY_NAME["next"]
        given = curves(axis, 0, [0], mass)
        chosen = Chosen(96, {axis: [(0, 0)]}, {axis: []}, given, None)
        for prompt, found in zip(prompts, outcomes(reader, prompts, chosen), strict=True):
            right = True
            for j in range(prompt.answer_length):
                keys = prompt.ids[: len(prompt.ids) - prompt.answer_length + j]
                at, token = prompt.value_start + j, prompt.ids[len(prompt.ids) - prompt.answer_length + j]
                w = max(mass, 1 / len(keys))
                weight = dict.fromkeys(keys, 0.0)
                for k, each in enumerate(keys):
                    weight[each] += w if k == at else (1 - w) / (len(keys) - 1)
                right &= max(weight, key=weight.get) == token
            assert (found["restored"]["next"], found["restored"][TOGETHER]) == (right, right)
            assert found["restored"][NOTHING] is False
            seen.add(right)
    assert seen == {True, False}


def test_the_haystacks_rows_are_sharpened_and_no_other(tokenizer):
    """Rows of the haystack that see more than L keys: queries times ln n / ln L, by a model changed by hand, row by row."""
    model = build("Llama", vocab_size=1024, max_position_embeddings=512)
    _, reader, prompts = read(model, tokenizer, trials=1)
    tail = Tail(prompts, reader.inputs(prompts[0]))
    ids = torch.tensor([prompt.ids[:-1] for prompt in prompts])
    scaled = dict.fromkeys(range(2), Edit(tail.start, factor=sharpened(96)))
    for chunk in (None, 40):
        found = Again(model, ids, tail.start, chunk, before=scaled).logits(7)
        hooks = []
        for layer in model.model.layers:
            factor = torch.tensor([max(1.0, math.log(n) / math.log(96)) for n in range(1, ids.shape[1] + 1)])
            factor[tail.start :] = 1.0
            hooks.append(
                layer.self_attn.q_proj.register_forward_hook(lambda m, a, out, f=factor: out * f[: out.shape[1], None])
            )
        with torch.inference_mode():
            expected = model(input_ids=ids, use_cache=False).logits[:, -7:]
            for hook in hooks:
                hook.remove()
            plain = model(input_ids=ids, use_cache=False).logits[:, -7:]
        assert torch.allclose(found, expected, atol=1e-5)
        assert not torch.allclose(found, plain, atol=1e-3)


def test_prompts_with_other_questions_beside_one_change_none_of_its_readings(tokenizer, low):
    """A longer question elsewhere in the batch leaves no haystack row of a prompt unsharpened."""
    model = build("Llama", vocab_size=1024, max_position_embeddings=100)
    probe, reader, prompts = read(model, tokenizer)
    assert len({prompt.question_start for prompt in prompts}) > 1
    chosen = probe.chosen(reader)
    beside = restore.outcomes(reader, prompts, chosen)
    alone = [restore.outcomes(reader, [prompt], chosen)[0] for prompt in prompts]
    for one, other in zip(beside, alone, strict=True):
        assert one["restored_nll"] == pytest.approx(other["restored_nll"], abs=1e-3)
    assert any(each["restored_nll"]["haystack"] != each["restored_nll"]["nothing"] for each in alone)


# what is chosen


def test_spans_and_rows_of_question_and_answer(tokenizer):
    model = build("Llama", vocab_size=1024, max_position_embeddings=512)
    _, reader, prompts = read(model, tokenizer)
    inputs = reader.inputs(prompts[0])
    tail = Tail(prompts, inputs)
    assert tail.start == min(p.question_start for p in prompts)
    for i, p in enumerate(prompts):
        for r, position in enumerate(range(tail.start, inputs)):
            offset = position - (inputs - p.answer_length)
            assert tail.offset[i, r] == offset
            value = set(range(p.value_start, p.value_end))
            expected = {
                "value": value,
                "next": {p.value_start + offset} if offset >= 0 else set(),
                "sentence": set(range(p.needle_start, p.needle_end)) - value,
                "tail": set(range(p.question_start, inputs)),
            }
            assert {name: set(keys[i, r].nonzero()[:, 0].tolist()) for name, keys in tail.keys.items()} == expected
            assert tail.of(BY_NAME["place"])[i, r] == (offset >= 0)
            assert tail.of(BY_NAME["question"])[i, r] == (offset < 0 and position >= p.question_start)


def test_heads_and_masses_are_means_over_prompts_of_their_own(tokenizer, low, monkeypatch):
    """By plain loops over the recorded masses; the prompts are none of those that are judged, by trial and by their text."""
    model = build("Llama", vocab_size=1024, max_position_embeddings=100)
    probe, reader, _ = read(model, tokenizer)
    used = []
    own = RestoreProbe.prompt

    def prompt(self, tokenizer, sample):
        used.append((sample, own(self, tokenizer, sample)))
        return used[-1][1]

    monkeypatch.setattr(RestoreProbe, "prompt", prompt)
    chosen = probe.chosen(reader)
    judged = [own(probe, tokenizer, sample) for sample in probe.plan()]
    assert not {p.sha256 for _, p in used} & {p.sha256 for p in judged}
    assert min(sample.trial for sample, _ in used) > max(sample.trial for sample in probe.plan())
    assert (chosen.length, chosen.taken is None) == (96, False)
    short = [p for sample, p in used if sample.context_length == 96]
    assert len(short) == 16
    told = [one["tail"] for p in short for one in tail_masses(reader)([p])]
    for axis in AXES:
        for head in range(4):
            by_offset = {}
            for offsets, by_span in told:
                for j, offset in enumerate(offsets.tolist()):
                    if (offset >= 0) == (axis.rows == "answer"):
                        by_offset.setdefault(offset, []).append(float(by_span[axis.span][1][head, j]))
            means = {offset: sum(each) / len(each) for offset, each in by_offset.items()}
            mean = sum(means.values()) / len(means)
            assert chosen.given.on(axis)[1, head] == pytest.approx(mean, abs=1e-5)
            assert ((1, head) in chosen.heads.get(axis, [])) == (mean >= 0.03)
    for axis, heads in chosen.heads.items():
        others = chosen.others[axis]
        assert len(others) == min(len(heads), 8 - len(heads))
        assert not {*others} & {*heads}
    again = probe.chosen(reader)
    assert (again.heads, again.others, again.told()) == (chosen.heads, chosen.others, chosen.told())


def test_only_prompts_that_were_answered_right_tell_what_is_to_be_given_back(caplog):
    def score(correct, mass):
        told = {span: {0: torch.full((2, 3), mass)} for span in SPANS}
        return {"correct": correct, "error": None, "tail": (torch.tensor([-1, 0, 1]), told)}

    found = choose(96, {96: [score(True, 0.6), score(False, 0.1), score(True, 0.8)], 200: [score(False, 0.2)]}, 0)
    assert found.given.on(AXES[0])[0, 0] == pytest.approx(0.7)
    assert found.taken.on(AXES[0])[0, 0] == pytest.approx(0.2)
    assert not caplog.text
    assert choose(96, {96: [score(False, 0.6)]}, 0).given.on(AXES[0])[0, 1] == pytest.approx(0.6)
    assert "1 prompts of 96 tokens that choose heads none is answered right" in caplog.text
    with pytest.raises(UserError, match="out of memory"):
        choose(96, {96: [{"correct": None, "error": "out of memory"}]}, 0)


def test_the_length_is_one_that_the_model_was_trained_for(tokenizer):
    model = build("Llama", vocab_size=1024, max_position_embeddings=130)
    for lengths, length in (((96, 120, 160), 120), ((160, 200), 160)):  # where none is, the shortest
        probe, reader, _ = read(model, tokenizer, context_lengths=lengths)
        assert probe.chosen(reader).length == length


# runs


def test_rows_tell_it_and_a_stopped_run_is_the_whole_one(capsys, short, tmp_path, low):
    arguments = ("attention", "--model", short, *COMMAND, "--output-path", tmp_path)
    code, out, _ = call(capsys, *arguments)
    assert (code, "repaired of those that failed" in out, "restored attention repairs" in out) == (0, True, True)
    run = find_runs(tmp_path / "attention")[0]
    whole = {row["sample"]: row for row in run.rows()}
    for row in whole.values():
        assert {"nothing", "together", "haystack", "all"} <= set(row["restored"]) == set(row["restored_nll"])
        assert ("taken" not in row) == (row["context_length"] == 160 or not row["restored"]["nothing"])
        assert row["restored"]["nothing"] == row["correct"]
        for axis in set(row["restored_heads"]) & set(BY_NAME):
            assert {f"{axis}{OTHERS}", axis} <= set(row["restored_heads"])
    lines = run.rows_path.read_bytes().splitlines(keepends=True)
    run.record_path.unlink()
    run.rows_path.write_bytes(b"".join(lines[:3]) + lines[3][:50])
    found = json.loads(call(capsys, *arguments, "--json")[1])
    assert {row["sample"]: row for row in run.rows()} == whole
    assert {line["axis"] for line in found["restored"]} >= {"nothing", "tail", "together", "haystack"}
    assert found["restored_heads"][0].keys() == {"series", "length", "axis", "heads"}
    failed = sum(line["prompts"] - line["found"] for line in found["causes"])
    assert sum(line["prompts"] for line in found["causes_repaired"]) == failed
    # beside a run without, which stays as it was, and whose rows are the same in all else
    plain = ("attention", "--model", short, *[word for word in COMMAND if word != "--restore"])
    assert call(capsys, *plain, "--output-path", tmp_path)[0] == 0
    runs = {"restore" in each.record()["parameters"]: each for each in find_runs(tmp_path / "attention")}
    assert {key: runs[True].record()["parameters"].get(key) for key in ("restore", "trials")} == {
        "restore": 2,
        "trials": 2,
    }
    mine = ("restored", "restored_nll", "taken", "taken_nll", "restored_length", "restored_heads")
    for one, two in zip(runs[True].rows(), runs[False].rows(), strict=True):
        assert {k: v for k, v in one.items() if k not in mine} == {k: v for k, v in two.items() if k not in mine}
    # of the same prompts with and without, those are shown that tell it
    table = statistics.with_series(ssmax_eval.load_results(tmp_path))
    assert (len(table), table["restored"].notna().all()) == (8, True)


def test_processes_share_the_batches_and_rows_stay_one_processes(tokenizer, low):
    model = build("Llama", vocab_size=1024, max_position_embeddings=512)
    probe, _, _ = read(model, tokenizer)

    def rows(claim):
        parts = probe(TransformersReader(model, tokenizer), (), 2, claim)
        return {row["sample"]: line_of(row) for part in parts for row in part}

    def every_other(first):
        turn = iter(range(100))
        return lambda: next(turn) % 2 == first

    parts = rows(every_other(0)) | rows(every_other(1))
    assert parts == rows(lambda: True)
    assert len(parts) == 8


@pytest.mark.parametrize("name", ["entmax-1.5", "sigmoid", "differential"])
def test_weights_that_are_no_softmax_are_refused_in_one_line(capsys, checkpoint, tmp_path, name):
    arguments = ("attention", "--model", checkpoint, *COMMAND, "--attention", f"{name}:train_length=96")
    code, out, err = call(capsys, *arguments, "--output-path", tmp_path)
    last = err.strip().splitlines()[-1]
    assert (code, out) == (2, "")
    assert "no softmax" in last or "from scratch" in last
    assert "restore" in last or "from scratch" in last
    assert not list(tmp_path.rglob("rows.jsonl"))


def test_a_function_has_no_heads_to_give_back_to(tokenizer):
    probe = RestoreProbe(**GRID, attention_mass=True)
    assert probe.given(frozenset({"generate"})) is None
    assert probe.given(TransformersReader.gives) is probe


# what is told


def row(trial, length, correct, verdicts, taken=None, mass=0.1):
    ranks, mass = ([0], [0.9]) if correct else ([3], [mass])
    return made(
        AttentionRow, sample=f"{length}/{trial}", model="m", attention="softmax", attention_swapped=False, rope="as trained",
        task="single", value="number", needles=4, haystack="text", trial=trial, plan=1, context_length=length, depth_percent=50.0,
        correct=correct, first_correct=correct, predicted="7", answer_ranks=ranks, top_mass_answer=mass, haystack_nll=2.0,
        prompt_sha256=f"{length}/{trial}", restored=verdicts, restored_length=256,
        restored_heads={"value": [[1, 0, 0.9, 0.2]]}, taken=taken, error=None,
    )  # fmt: skip


def some_rows():
    short = [row(i, 256, True, {"value": True, "value/others": i > 0}, {"value": i > 1}) for i in range(4)]
    long = [
        row(
            i,
            1024,
            i > 5,
            {"nothing": i > 5, "value": i > 2, "value/others": i > 4, "together": i > 0},
            mass=0.1 if i < 4 else 0.7,
        )
        for i in range(8)
    ]
    return pd.DataFrame([*short, *long])


def test_repaired_and_broken_are_counts_of_verdicts_that_turned():
    lines = statistics.restored(statistics.with_series(some_rows())).set_index(
        ["context_length", "done", "axis", "was"]
    )
    value = lines.loc[(1024, "given", "value", "wrong")]
    assert (value["turned"], value["prompts"], value["share"]) == (3, 6, 0.5)
    assert (value["others_turned"], value["others_share"]) == (1, pytest.approx(1 / 6))
    low, high = statistics.wilson([3], [6])
    assert (value["low"], value["high"]) == (pytest.approx(low[0]), pytest.approx(high[0]))
    assert lines.loc[(1024, "given", "together", "wrong")]["turned"] == 5
    assert lines.loc[(1024, "given", "nothing", "wrong")]["turned"] == 0
    assert lines.loc[(1024, "given", "value", "right")]["turned"] == 0
    assert lines.loc[(256, "given", "value", "right")]["others_turned"] == 1
    assert lines.loc[(256, "taken", "value", "right")]["turned"] == 2
    assert statistics.restored(statistics.with_series(some_rows().drop(columns=["restored", "taken"]))).empty


def test_the_first_screen_says_what_the_control_breaks():
    """Of 8 failed prompts 7 are repaired, by other heads 1; of 6 that were right other heads break all."""
    given = [
        row(i, 1024, i > 7, {"nothing": i > 7, "next": i > 2, "value": i > 5, "together": i > 0, "together/others": i == 7})
        for i in range(14)
    ]  # fmt: skip
    pooled = statistics.restored(statistics.with_series(pd.DataFrame(given)), ())
    ends = {right: [float(each[0]) for each in statistics.wilson([right], [8])] for right in (7, 5)}
    first, second, third = in_short(pooled)
    assert first == (
        "When we give each head back the attention it has in short prompts, 7 of 8 failed prompts are answered (95% interval "
        f"{ends[7][0]:.0%} to {ends[7][1]:.0%}). Given to as many other heads: 1. Changing nothing: 0."
    )
    assert second.startswith(
        "Of 6 prompts that were right, it breaks 0; given to as many other heads, it breaks 6. So this control does harm"
    )
    assert third.startswith(
        f"Of single kinds of attention, that on the one token to write next repairs most: 5 of 8 (95% interval "
        f"{ends[5][0]:.0%}"
    )


def test_trials_are_pooled_over_series_as_one():
    """Two models that read the same trials tell no more of them than the trials are many; few trials give no interval."""
    once = pd.DataFrame([row(i, 1024, False, {"together": i > 3}) for i in range(8)]).assign(plan=2)
    both = pd.concat([once, once.assign(model="other")])
    one, two = (statistics.restored(statistics.with_series(rows), ()).iloc[0] for rows in (once, both))
    assert (two["turned"], two["prompts"]) == (8, 16)
    assert two["low"] < one["share"] < two["high"]
    assert two["high"] - two["low"] >= one["high"] - one["low"] - 1e-9
    few = statistics.restored(statistics.with_series(both[both["trial"] < 4]), ()).iloc[0]
    assert (few["low"], few["high"]) == (0, 1)


def test_causes_say_how_many_restored_attention_repairs(tmp_path):
    rows = some_rows()
    explained = statistics.with_causes(statistics.with_series(rows))
    assert statistics.restored_causes(explained) == {("m", "not attended"): (3, 4), ("m", "attended, wrong"): (2, 2)}
    page = ssmax_eval.report(rows, tmp_path / "page.html").read_text()
    assert "not attended (fading: restored attention repairs 3 of 4)" in page
    assert "attention given back" in page
    assert "on the answer in the text" in page
    assert 'data-name="restored-01"' in page

"""Attention masses equal eager's maps, whatever the mechanism, the grouping and the mask; nothing looks at what comes later."""

import math

import pandas as pd
import pytest
import torch
from tiny import build

from ssmax_eval.data.needles import Needle
from ssmax_eval.mechanisms.attach import attach
from ssmax_eval.mechanisms.interface import recording
from ssmax_eval.mechanisms.layers import attention_modules
from ssmax_eval.mechanisms.recorder import Recorder
from ssmax_eval.models.subjects import RunOptions
from ssmax_eval.probes.attention.masses import HAYSTACK_TOKENS, MEASURES
from ssmax_eval.probes.attention.sections import causes, heads
from ssmax_eval.probes.attention.sections.heads import counted, table
from ssmax_eval.probes.needle.probe import NeedleProbe, masses_of
from ssmax_eval.readers.attention_proof import mechanisms_off
from ssmax_eval.readers.transformers import TransformersReader
from ssmax_eval.report import context_of
from ssmax_eval.results import load_results
from ssmax_eval.run import run_probes
from ssmax_eval.setting import Setting

LENGTH = 300  # beyond 256, where sdpa's mask and the row's own position first came apart for others
LAWS = ("softmax", "ssmax", "ssmax-bias:b=0.3", "ssmax-fixed:s=0.2", "constant-n", "learned-p")


def eager_maps(model, ids, attention):
    """Return transformers' own maps (layer, batch, heads, rows, keys), each query scaled by C(n) in front of eager attention.

    The scale is put on q by a hook of the test's: eager knows no mechanism.
    """
    from transformers.models.llama.modeling_llama import eager_attention_forward

    scales = {id(module): getattr(module, "ssmax", None) for module in attention_modules(model).values()}

    def scaled(module, query, key, value, attention_mask, **kwargs):
        scale = scales[id(module)]
        if scale is not None:
            n = torch.arange(1, query.shape[2] + 1, dtype=torch.float32)[None, None]
            query = query * scale(n)[..., None]
        return eager_attention_forward(module, query, key, value, attention_mask, **kwargs)

    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register("scaled_eager", scaled)
    AttentionMaskInterface.register("scaled_eager", eager_mask)
    before = model.config._attn_implementation
    with (
        mechanisms_off(model),
        torch.no_grad(),
    ):  # a layer refuses to run without its mechanism, which the hook applies here
        model.set_attn_implementation("scaled_eager")
        maps = model(input_ids=ids, output_attentions=True).attentions
        model.set_attn_implementation(before)
    return torch.stack(maps)


@pytest.mark.parametrize("attention", LAWS)
@pytest.mark.parametrize("name", ["Llama", "Qwen3"])
def test_masses_equal_eagers_maps(name, attention, tokenizer):
    """Every measure of every head, four query heads on two key heads, to 1e-6; batches of prompts with answers of unlike lengths."""
    model = build(name, vocab_size=1024, max_position_embeddings=512)
    probe = NeedleProbe(context_lengths=(LENGTH,), depth_percents=(0, 40, 100), trials=1)
    prompts = [probe.prompt(tokenizer, sample) for sample in probe.plan()]
    attach(model, attention)
    scores = masses_of(TransformersReader(model, tokenizer))(prompts)
    ids = torch.tensor([prompt.ids[:-1] for prompt in prompts])
    maps = eager_maps(model, ids, attention)
    assert maps.shape[-2:] == (LENGTH - 1, LENGTH - 1)
    for i, (prompt, score) in enumerate(zip(prompts, scores, strict=True)):
        rows = maps[:, i, :, LENGTH - 1 - prompt.answer_length :]
        value, needle = (prompt.value_start, prompt.value_end), (prompt.needle_start, prompt.needle_end)
        first = rows[:, :, 0].double()
        on_value = first[..., slice(*value)].sum(-1)
        expected = {
            "mass_answer": on_value,
            "mass_needle": first[..., slice(*needle)].sum(-1),
            "log_odds": (on_value / (1 - on_value)).log(),
            "entropy": torch.special.entr(first).sum(-1),
            "mass_first": first[..., 0],
            "mass_question": first[..., prompt.question_start :].sum(-1),
            "maximum": first.amax(-1),
            "maximum_at": first.argmax(-1),
            "mass_next": torch.stack(
                [rows[:, :, j, prompt.value_start + j].double() for j in range(prompt.answer_length)]
            ).mean(0),
            "mass_answer_mean": rows[..., slice(*value)].double().sum(-1).mean(-1),
        }
        assert score["row_sum"] is None  # 1 by definition
        for measure in expected:
            found = torch.tensor(score[measure], dtype=torch.float64)
            expected[measure] = expected[measure].double()
            tolerance = 1e-6 if measure.startswith(("mass", "max")) else 2e-5
            torch.testing.assert_close(found, expected[measure], atol=tolerance, rtol=tolerance, msg=measure)
        on_next = [rows[:, :, j, prompt.value_start + j].max().item() for j in range(prompt.answer_length)]
        assert score["top_mass_next"] == pytest.approx(on_next, abs=1e-6)
        on_answer = rows[..., slice(*value)].sum(-1).amax((0, 1)).tolist()
        assert score["top_mass_answer"] == pytest.approx(on_answer, abs=1e-6)
        with torch.no_grad():
            logits = model(input_ids=ids[i : i + 1]).logits[0].double()
        nll = torch.nn.functional.cross_entropy(logits[:-1], ids[i, 1:], reduction="none")
        ends = [at for at in range(1, prompt.question_start) if not prompt.needle_start <= at < prompt.needle_end]
        assert score["haystack_nll"] == pytest.approx(nll[[at - 1 for at in ends[-128:]]].mean().item(), abs=1e-4)


def test_trap_13_of_the_haystack_few_rows_reach_lm_head(tokenizer):
    """The answers' rows, then no more than the haystack's last ones, however long the prompt."""
    model = build("Llama", vocab_size=1024, max_position_embeddings=1024)
    probe = NeedleProbe(context_lengths=(700,), depth_percents=(0, 50, 100), trials=1)
    prompts = [probe.prompt(tokenizer, sample) for sample in probe.plan()]
    attach(model, "softmax")
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    masses_of(TransformersReader(model, tokenizer))(prompts)
    assert seen == [(3, max(p.answer_length for p in prompts), 1024), (3, HAYSTACK_TOKENS, 1024)]


def test_the_forward_is_not_changed(tokenizer):
    model = build("Llama", vocab_size=1024, max_position_embeddings=512)
    attach(model, "ssmax")
    probe = NeedleProbe(context_lengths=(128,), depth_percents=(50,), trials=2)
    prompts = [probe.prompt(tokenizer, sample) for sample in probe.plan()]
    reader = TransformersReader(model, tokenizer)
    plain, recorded = reader.answers(prompts), masses_of(reader)(prompts)
    assert plain == [{key: score[key] for key in plain[0]} for score in recorded]
    assert all(set(MEASURES) < set(score) for score in recorded)
    assert not any("watched" in vars(module) for module in attention_modules(model).values())


@pytest.mark.parametrize("rows", [[0], [7, 3], [LENGTH - 1], list(range(LENGTH))])
def test_rows_sum_to_one_and_see_nothing_later(rows):
    """Masked by absolute position: row r sees r + 1 keys, wherever it stands among the rows asked for."""
    model = build("Llama", max_position_embeddings=512)
    ids = torch.randint(3, 128, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    recorder = Recorder(torch.tensor([rows, rows]), lambda recorded: recorded.scores)
    with Setting()(model), recording(model, recorder), torch.no_grad():
        model(input_ids=ids)
    for scores in recorder.kept.values():
        weights = scores.softmax(-1)
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        for i, row in enumerate(rows):
            assert (weights[:, :, i, row + 1 :] == 0).all()
            assert (scores[:, :, i, : row + 1] > -math.inf).all()


def test_cached_rows_equal_one_shot():
    """A prefill in two parts, and one decoded token: row i of a part stands behind all keys of the parts before."""
    model = build("Llama", max_position_embeddings=512)
    ids = torch.randint(3, 128, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    whole = Recorder(torch.tensor([[LENGTH - 2, LENGTH - 1]]), lambda recorded: recorded.weights)
    part = Recorder(torch.tensor([[98, 99]]), lambda recorded: recorded.weights)
    token = Recorder(torch.tensor([[0]]), lambda recorded: recorded.weights)
    with Setting.of("ssmax")(model), torch.no_grad():
        with recording(model, whole):
            model(input_ids=ids)
        cache = model(input_ids=ids[:, :-100], use_cache=True).past_key_values
        with recording(model, part):
            model(input_ids=ids[:, -100:], past_key_values=cache, use_cache=True)
        cache = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
        with recording(model, token):
            model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
    for name in whole.kept:
        torch.testing.assert_close(part.kept[name], whole.kept[name], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(token.kept[name], whole.kept[name][:, :, 1:], atol=1e-6, rtol=1e-5)


def test_padding_and_windows_are_seen_as_the_layer_sees_them():
    model = build("Gemma3Text", max_position_embeddings=512)
    ids = torch.randint(3, 128, (1, 64), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[:, :5] = 0
    recorder = Recorder(torch.tensor([[40, 63]]), lambda recorded: recorded.weights)
    with Setting()(model), recording(model, recorder), torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    windowed, full = recorder.kept.values()
    assert (windowed[0, :, 1] > 0).sum(-1).unique().tolist() == [16]
    assert (full[0, :, 1] > 0).sum(-1).unique().tolist() == [59]
    assert (full[..., :5] == 0).all()


def test_a_prompt_without_a_needle_has_no_mass(tokenizer):
    model = build("Llama", vocab_size=1024, max_position_embeddings=512)
    attach(model)
    probe = NeedleProbe(
        context_lengths=(128,), depth_percents=(50,), trials=1, controls=("no-needle",), attention_mass=True
    )
    grid, control = (row for rows in probe(TransformersReader(model, tokenizer)) for row in rows)
    assert grid["mass_answer"] is not None
    assert control["mass_answer"] is control["log_odds"] is control["mass_needle"] is control["mass_next"] is None
    assert len(control["entropy"]) == 2


def test_the_table_of_heads_says_over_how_many_prompts_and_which_s_was_learned():
    heads = [(layer, head) for layer in (0, 1) for head in (0, 1)]
    places = [(length, depth, trial) for length in (64, 128) for depth in (0.0, 50.0) for trial in range(5)]
    by_head = pd.DataFrame(
        [
            {"series": "m", "plan": 2, "context_length": length, "depth_percent": depth, "trial": trial, "cluster": trial,
             "prompt_sha256": f"{length}/{depth}/{trial}", "layer": layer, "head": head, "mass_answer": 0.5}
            for length, depth, trial in places
            for layer, head in heads
        ]
    )  # fmt: skip
    scores = by_head.groupby(["series", "context_length", "layer", "head"])["mass_answer"].mean().reset_index()
    fits = pd.DataFrame(heads, columns=["layer", "head"]).assign(mass_answer=0.5, b=math.nan)
    assert counted(by_head) == "mean over 10 prompts (5 trials) at each length"
    assert counted(by_head[by_head["cluster"] < 4].assign(plan=1)) == "mean over 8 prompts at each length"
    softmax, swapped, learned = (
        table(fits.assign(s=s), scores, "", "m") for s in (0.0, 0.2, pd.Series([0.1, 0.2, 0.3, 0.4]))
    )
    assert [line["s"] for line in softmax["heads"]] == [None] * 4
    assert (softmax["one_s"], swapped["one_s"], learned["one_s"]) == (None, 0.2, None)
    assert {line["s"] for line in learned["heads"]} == {0.1, 0.2, 0.3, 0.4}


def test_tables_of_two_tasks_say_which_they_are_of(checkpoint, tmp_path):
    grid = {"context_lengths": (128,), "depth_percents": (50,), "trials": 1, "attention_mass": True}
    probes = [NeedleProbe(needle=Needle(task), **grid) for task in ("single", "multikey")]
    runs = run_probes(probes, str(checkpoint), options=RunOptions(output_path=tmp_path))
    rows, context = load_results(*runs), context_of(runs)
    for section in (causes.SECTION, heads.SECTION):
        titles = [table.title for table in section.tables(section.numbers(rows, context))]
        assert len({*titles}) == len(titles)
        assert [sum(f": {task} (" in title for title in titles) for task in ("single", "multikey")] == [
            len(titles) / 2
        ] * 2
        alone = rows[rows["task"] == "single"]
        assert not any("single" in table.title for table in section.tables(section.numbers(alone, context)))

"""Scoring: the forced verdict is greedy decoding's, only answer rows reach lm_head, failures are not zeros."""

import copy
import dataclasses
import math

import pytest
import torch
from tiny import build

from ssmax_eval.data.needles import Needle
from ssmax_eval.data.prompts import Prompt
from ssmax_eval.errors import UserError
from ssmax_eval.probes.needle.credit import credit
from ssmax_eval.probes.needle.probe import NeedleProbe, Sample
from ssmax_eval.readers.answers import forced, generate, score_rows
from ssmax_eval.readers.transformers import TransformersReader

VOCABULARY = 1024


def prompt_of(ids, answer_length, expected=""):
    return Prompt(list(ids), answer_length, expected, "", "", None, None, None, None, None, 0, None, 0)


def greedy(model, ids, length):
    return model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=length,
        min_new_tokens=length,
        do_sample=False,
        pad_token_id=0,
    )[0, len(ids) :].tolist()


@pytest.mark.parametrize("name", ["Llama", "Qwen3"])
def test_forced_verdict_is_greedy_generates(name, tokenizer):
    """200 prompts over two models: true greedy continuations are correct, one changed token is wrong from there on."""
    model = build(name, vocab_size=VOCABULARY, max_position_embeddings=512)
    model.generation_config.eos_token_id = None
    probe = NeedleProbe(context_lengths=(96,), trials=20)
    generator = torch.Generator().manual_seed(0)
    checked = {True: 0, False: 0}
    for sample in probe.plan():
        question = probe.prompt(tokenizer, sample)
        context = question.ids[: -question.answer_length]
        written = greedy(model, context, 6)
        changed = int(torch.randint(0, 6, (1,), generator=generator))
        other = [*written]
        other[changed] = (other[changed] + 1) % VOCABULARY
        scores = forced(model, tokenizer, [prompt_of(context + answer, 6) for answer in (written, other)])
        assert scores[0]["correct"]
        assert scores[0]["predicted"] == tokenizer.decode(written)
        assert scores[0]["answer_ranks"] == [0] * 6
        assert scores[0]["margin"] > 0
        assert not scores[1]["correct"]
        assert scores[1]["first_correct"] == (changed > 0)
        assert scores[1]["answer_ranks"][changed] > 0
        for score in scores:
            checked[score["correct"]] += 1
        # the needle's own answer, which a random model does not know: the verdict must be greedy decoding's too
        own = forced(model, tokenizer, [question])[0]
        assert own["correct"] == (
            greedy(model, context, question.answer_length) == question.ids[-question.answer_length :]
        )
    assert checked == {True: 100, False: 100}


@pytest.mark.slow
def test_forced_verdict_is_greedy_generates_on_smollm2(smollm2):
    """In float32: bfloat16 logits near 20 lie .125 apart, and a cached step rounds otherwise than one pass, so ties fall either way."""
    model, tokenizer = smollm2
    model = copy.deepcopy(model).float()
    model.generation_config.eos_token_id = None
    probe = NeedleProbe(context_lengths=(256, 512), depth_percents=(0, 50, 100), trials=10, needle=Needle("multikey"))
    verdicts = []
    for sample in probe.plan():
        prompt = probe.prompt(tokenizer, sample)
        score = forced(model, tokenizer, [prompt])[0]
        written = greedy(model, prompt.ids[: -prompt.answer_length], prompt.answer_length)
        assert score["correct"] == (written == prompt.ids[-prompt.answer_length :]), sample
        verdicts.append(score["correct"])
    assert len(verdicts) == 60
    assert any(verdicts)


def test_scores_equal_the_full_logits_in_float64(tokenizer):
    model = build("Llama", vocab_size=VOCABULARY).double()
    prompt = NeedleProbe(context_lengths=(128,)).prompt(tokenizer, Sample(128, 50, 0))
    score = forced(model, tokenizer, [prompt])[0]
    with torch.no_grad():
        rows = model(torch.tensor([prompt.ids])).logits[0].log_softmax(-1)
    k = prompt.answer_length
    answer = torch.tensor(prompt.ids[-k:])
    own = rows[-k - 1 : -1].gather(1, answer[:, None])[:, 0]
    assert score["answer_nll"] == pytest.approx(-own.sum().item(), abs=1e-4)
    assert score["answer_ranks"] == (rows[-k - 1 : -1] > own[:, None]).sum(1).tolist()


def test_a_uniform_model_gives_ln_v(tokenizer):
    model = build("Llama", vocab_size=VOCABULARY)
    model.lm_head.weight.data.zero_()
    prompt = NeedleProbe(context_lengths=(128,)).prompt(tokenizer, Sample(128, 50, 0))
    score = forced(model, tokenizer, [prompt])[0]
    assert score["answer_nll"] == pytest.approx(prompt.answer_length * math.log(VOCABULARY), rel=1e-5)


@pytest.mark.parametrize("name", ["Llama", "GPT2", "OPT", "GPTNeoX", "Gemma3Text", "Phi3", "DeepseekV3"])
def test_trap_12_and_13_only_the_answers_rows_reach_lm_head(name, tokenizer):
    model = build(name, vocab_size=VOCABULARY)
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    probe = NeedleProbe(context_lengths=(120,), depth_percents=(0, 100))
    prompts = [probe.prompt(tokenizer, sample) for sample in probe.plan()[:3]]
    forced(model, tokenizer, prompts)
    assert seen == [(3, max(p.answer_length for p in prompts), VOCABULARY)]


def test_batches_of_answers_with_different_lengths(tokenizer):
    model = build("Llama", vocab_size=VOCABULARY)
    probe = NeedleProbe(context_lengths=(160,), needle=Needle(value="word"), trials=3)
    prompts = [probe.prompt(tokenizer, sample) for sample in probe.plan()]
    assert len({p.answer_length for p in prompts}) > 1
    together = forced(model, tokenizer, prompts)
    for prompt, score in zip(prompts, together, strict=True):
        alone = forced(model, tokenizer, [prompt])[0]
        assert alone["answer_nll"] == pytest.approx(score["answer_nll"], rel=1e-5)
        assert {**alone, "answer_nll": 0, "margin": 0} == {**score, "answer_nll": 0, "margin": 0}


def test_rows_do_not_depend_on_batch_size_or_resume_point(tokenizer):
    model = build("Llama", vocab_size=VOCABULARY)
    probe = NeedleProbe(context_lengths=(96, 128), depth_percents=(0, 100), trials=3)

    def rows(done=(), size=None):
        return [row for batch in probe(TransformersReader(model, tokenizer), done, size) for row in batch]

    whole = rows()
    strip = ("answer_nll", "margin")
    for size in (1, 2, 5):
        other = rows(size=size)
        assert [{k: v for k, v in r.items() if k not in strip} for r in other] == [
            {k: v for k, v in r.items() if k not in strip} for r in whole
        ]
        for a, b in zip(whole, other, strict=True):
            assert a["answer_nll"] == pytest.approx(b["answer_nll"], rel=1e-5)
    done = {row["sample"] for row in whole[:5]}
    assert rows(done) == whole[5:]


def test_generate_scoring(tokenizer, monkeypatch):
    model = build("Llama", vocab_size=VOCABULARY)
    model.generation_config.eos_token_id = None
    probe = NeedleProbe(context_lengths=(96,), depth_percents=(0,), trials=1)
    question = probe.prompt(tokenizer, probe.plan()[0])
    context = question.ids[: -question.answer_length]
    written = greedy(model, context, 5)
    right = prompt_of(context + written, 5, tokenizer.decode(written))
    wrong = dataclasses.replace(right, expected="8106422")
    scores = generate(model, tokenizer, [right, wrong])
    assert [score["correct"] for score in scores] == [True, False]
    assert scores[0]["predicted"].startswith(tokenizer.decode(written))
    assert scores[0]["answer_nll"] is None


def test_trap_15_logits_that_are_not_finite_are_a_failure(tokenizer):
    model = build("Llama", vocab_size=VOCABULARY)
    model.model.norm.weight.data[:] = float("nan")
    score = forced(model, tokenizer, [prompt_of(range(3, 40), 4)])[0]
    assert score["correct"] is None
    assert score["error"] == "logits are not finite"


def test_learned_positions_are_a_limit(tokenizer):
    model = build("GPT2", vocab_size=VOCABULARY, max_position_embeddings=128)
    with pytest.raises(UserError, match="positions for 128 tokens"):
        list(NeedleProbe(context_lengths=(256,))(TransformersReader(model, tokenizer)))


def test_plan_is_a_grid_and_limit_spreads(tokenizer):
    probe = NeedleProbe(
        context_lengths=(64, 32), depth_percents=(0, 50, 100), trials=3, controls=("no-needle", "needle-only")
    )
    assert len(probe.plan()) == 2 * 3 * 3 + 2 * 3 + 3
    limited = dataclasses.replace(probe, limit=6).plan()
    assert sorted(limited) == sorted(Sample(length, depth, 0) for length in (32, 64) for depth in (0.0, 50.0, 100.0))
    rows = [
        row
        for batch in dataclasses.replace(probe, context_lengths=(96,))(
            TransformersReader(build("Llama", vocab_size=VOCABULARY), tokenizer)
        )
        for row in batch
    ]
    again = dataclasses.replace(probe, context_lengths=(96,)).plan()
    assert [row["sample"] for row in rows] == [sample.name for sample in again]


def test_generation_config_of_a_checkpoint_does_not_bend_greedy_decoding(tokenizer):
    model = build("Llama", vocab_size=VOCABULARY)
    probe = NeedleProbe(context_lengths=(96,), depth_percents=(0,), trials=1)
    question = probe.prompt(tokenizer, probe.plan()[0])
    model.generation_config.eos_token_id = None
    plain = generate(model, tokenizer, [question])[0]["predicted"]
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.no_repeat_ngram_size = 1
    own = model.generation_config
    assert generate(model, tokenizer, [question])[0]["predicted"] == plain
    assert model.generation_config is own


def test_generate_leaves_room_below_learned_positions(tokenizer):
    model = build("GPT2", vocab_size=VOCABULARY, max_position_embeddings=128)
    with pytest.raises(UserError, match="give at most 112"):
        list(NeedleProbe(context_lengths=(128,), scoring="generate")(TransformersReader(model, tokenizer)))


def test_ties_have_the_rank_that_the_verdict_says(tokenizer):
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0]])
    first = score_rows(tokenizer, prompt_of([9, 1], 1), logits)
    second = score_rows(tokenizer, prompt_of([9, 2], 1), logits)
    assert (first["correct"], first["answer_ranks"]) == (True, [0])
    assert (second["correct"], second["answer_ranks"]) == (False, [1])


@pytest.mark.parametrize("task", ["multivalue", "multiquery", "multikey", "single"])
def test_credit_is_the_share_of_the_asked_values(any_tokenizer, task):
    """Forced: a value counts if all its tokens are right, and a wrong separator is no wrong value; generated: if it is written."""

    probe = NeedleProbe(context_lengths=(700,), trials=1, needle=Needle(task, "number", 3))
    prompt = probe.prompt(any_tokenizer, probe.plan()[0])
    answer = prompt.ids[-prompt.answer_length :]
    values = prompt.expected.split(", ")
    assert len(prompt.values) == len(values) == (3 if task in ("multivalue", "multiquery") else 1)
    for value, (start, end) in zip(values, prompt.values, strict=True):
        assert value in any_tokenizer.decode(answer[start:end])
    spans = [range(*span) for span in prompt.values]
    inside = {at for span in spans for at in span}

    def forced(wrong):
        ranks = [int(at in wrong) for at in range(len(answer))]
        return credit(prompt, {"correct": not any(ranks), "answer_ranks": ranks})

    assert forced(set()) == 1.0
    assert forced(set(range(len(answer)))) == 0.0
    for span in spans:
        assert forced({span[-1]}) == pytest.approx(1 - sum(span[-1] in each for each in spans) / len(values))
    for at in set(range(len(answer))) - inside:
        assert forced({at}) == 1.0
    assert credit(prompt, {"correct": None}) is None
    said = {"correct": False, "answer_ranks": None, "predicted": f"I think {values[-1]} and 12."}
    assert credit(prompt, said) == pytest.approx(1 / len(values))
    assert credit(prompt, {**said, "correct": True}) == 1.0

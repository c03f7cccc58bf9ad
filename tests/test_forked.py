"""Prompts read as branches of one trunk: the scores, masses and rows of whole reading, fewer tokens, whoever reads them."""

import gc
import itertools
import json
import re
import weakref

import pytest
import torch
from architectures import build_small
from test_prefill import JAMBA, close
from tiny import build, needed_by
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ssmax_eval import api
from ssmax_eval.data.needles import Needle
from ssmax_eval.errors import UserError
from ssmax_eval.mechanisms.attach import attach
from ssmax_eval.mechanisms.behind import behind
from ssmax_eval.position.rope import rope_scaled
from ssmax_eval.probes.attention import restore
from ssmax_eval.probes.attention.masses import AttentionMass, branch_masses_of, masses_of
from ssmax_eval.probes.attention.probe import RestoreProbe
from ssmax_eval.probes.needed_scale.probe import NeededScaleProbe
from ssmax_eval.probes.needle.branches import branches, latest
from ssmax_eval.probes.needle.probe import NeedleProbe
from ssmax_eval.readers import forked_proof, snapshots
from ssmax_eval.readers.forked import PACK_ROWS, Trunk, tokens_of, walks
from ssmax_eval.readers.forked_proof import FOUND, forking, unlike_forked
from ssmax_eval.readers.reader import AGAIN, ANSWERS, WEIGHTS
from ssmax_eval.readers.transformers import TransformersReader
from ssmax_eval.results import find_runs
from ssmax_eval.setting import Setting

LENGTHS, DEPTHS = (160, 300), (0, 25, 50, 75, 100)
GRID = {"context_lengths": LENGTHS, "depth_percents": DEPTHS, "trials": 2}
WINDOW = {"sliding_window": 32}


def model_of(family, attention="softmax", **changes):
    model = build(family, **{"vocab_size": 1024, "max_position_embeddings": 1024} | needed_by(attention) | changes)
    if attention != "softmax":
        attach(model, attention)
    return model


def trial(tokenizer, **changes):
    probe = NeedleProbe(**GRID | {"trials": 1} | changes)
    return probe, [probe.prompt(tokenizer, sample) for sample in probe.plan()]


def both_ways(model, tokenizer, prompts, latest):
    """Return the scores of whole reading and of branches, with masses, prompt by prompt."""
    reader = TransformersReader(model, tokenizer)
    whole, branches = [], [None] * len(prompts)
    for prompt in prompts:
        whole += masses_of(reader)([prompt])
    for walk in walks(prompts, latest):
        for pack in walk.packs(prompts, 500):
            own, starts = [prompts[each.index] for each in pack], [each.start for each in pack]
            masses = [AttentionMass([prompt], len(prompt.ids) - 1) for prompt in own]
            for each, watch, score in zip(pack, masses, reader.forked(own, starts, walk.trunk, masses), strict=True):
                branches[each.index] = score | watch.of(0)
    return whole, branches


@pytest.mark.parametrize(
    ("family", "attention", "changes"),
    [
        ("Llama", "softmax", {}),
        ("Llama", "ssmax", {}),
        ("Llama", "entmax-1.5", {}),
        ("Llama", "lssa", {}),
        ("Qwen3", "ssmax", {}),
        ("Gemma3Text", "softmax", WINDOW),
        ("Gemma3Text", "ssmax", WINDOW),
        ("Mistral", "softmax", WINDOW),
        ("GPTNeoX", "learned-p", {}),
        ("GPT2", "softmax", {}),
        ("DeepseekV3", "softmax", {}),
        ("Qwen3Moe", "softmax", {}),
    ],
)
def test_branches_score_as_whole_prompts(family, attention, changes, tokenizer):
    model = model_of(family, attention, **changes)
    _, prompts = trial(tokenizer)
    with Setting()(model):
        assert unlike_forked(model, max(LENGTHS)) is None
        whole, branches = both_ways(model, tokenizer, prompts, [latest(prompt, True) for prompt in prompts])
    close(branches, whole)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("apart", [True, False])
def test_rows_behind_keys_are_softmax_attention(groups, dtype, apart):
    """Of float64 with its mask written out: joined by logsumexp, and with sdpa's own mask where a gradient is wanted."""
    drawn = torch.Generator().manual_seed(0)
    query, *pairs = (
        torch.randn(1, heads, length, 16, generator=drawn)
        for heads, length in [(6, 7), *[(6 // groups, 20)] * 2, *[(6 // groups, 7)] * 2]
    )
    front, own = pairs[:2], pairs[2:]
    mask = torch.ones(7, 27).tril(20).bool()
    key, value = (torch.cat(each, 2).repeat_interleave(groups, 1).double() for each in zip(front, own, strict=True))
    wanted = ((query.double() @ key.mT * 0.3).masked_fill(~mask, -torch.inf).softmax(-1)) @ value
    with torch.set_grad_enabled(not apart):
        found = behind(query.to(dtype), [x.to(dtype) for x in front], [x.to(dtype) for x in own], 0.3)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), wanted, atol=1e-6 if dtype == torch.float32 else 2e-2, rtol=0)


@pytest.mark.parametrize(
    ("family", "attention", "changes", "why"),
    [
        ("Llama", "cca:g=4,s=8", {}, "it reads whole sequences only"),
        ("Jamba", "softmax", JAMBA, "its numbers in branches differ"),
    ],
)
def test_what_reads_whole_texts_only_is_read_whole(family, attention, changes, why, tokenizer, tmp_path):
    model = model_of(family, **changes)
    rows, record = run(tmp_path / "forked", model, tokenizer, attention=attention)
    assert why in record["preflight"]["forked"]
    plain, _ = run(tmp_path / "whole", model, tokenizer, attention=attention, chunk=max(LENGTHS))
    assert rows == plain


def test_rope_that_turns_is_read_whole(tokenizer):
    model = model_of("Llama")
    with rope_scaled(model, 1.0, None, "dynamic:4", longest=2000):
        assert unlike_forked(model, 300) == "its RoPE (dynamic) turns by the length of each forward"


def run(folder, model, tokenizer, batch_size=None, done=(), claims=None, **changes):
    """Return the rows of a grid's run by name, as they are stored, and its record."""
    api.needle(
        {"tiny": (model, tokenizer)},
        output_path=folder,
        device="cpu",
        dtype="float32",
        batch_size=batch_size,
        **GRID | changes,
    )
    (found,) = find_runs(folder)
    # a model in memory has another one after its first recording
    lines = re.sub('"fingerprint": "[0-9a-f]+", ', "", found.rows_path.read_text()).splitlines()
    return {json.loads(line)["sample"]: line for line in lines}, found.record()


@pytest.mark.parametrize("masses", [False, True])
def test_rows_are_whole_readings_whatever_was_done_before(masses, tokenizer, tmp_path, monkeypatch):
    """Stopped in the middle of a trial, with another batch size, by one process or two: the same bytes; whole reading's to rounding."""
    model = model_of("Llama")
    given = {"controls": ("no-needle", "needle-only"), "attention_mass": masses, "attention": "ssmax"}
    given |= {"context_lengths": (300, 600)} if masses else {}
    monkeypatch.setitem(PACK_ROWS, "cpu", 500)  # several packs a trial
    rows, record = run(tmp_path / "once", model, tokenizer, **given)
    assert record["preflight"]["forked"] == "as whole"
    assert len(rows) == 2 * (10 + 2 + 1)
    assert record["tokens"] == sum(json.loads(row)["context_length"] for row in rows.values())
    assert run(tmp_path / "small", model, tokenizer, batch_size=1, **given)[0] == rows
    # stopped: half of the lines of one trial's middle pack are there
    (started,) = find_runs(tmp_path / "small")
    started.record_path.unlink()
    lines = started.rows_path.read_text().splitlines(keepends=True)
    started.rows_path.write_text("".join(lines[3:9]))
    assert run(tmp_path / "small", model, tokenizer, **given)[0] == rows
    whole, _ = run(tmp_path / "whole", model, tokenizer, chunk=max(LENGTHS), **given)
    assert whole.keys() == rows.keys()
    close([json.loads(rows[name]) for name in whole], [json.loads(row) for row in whole.values()])


def alike(one, other):
    """Tell whether two rows are the same: their numbers within rounding."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return other == (pytest.approx(one, rel=2e-4, abs=2e-4, nan_ok=True) if isinstance(one, float) else one)


@pytest.mark.parametrize(
    ("family", "kind", "changes"),
    [
        ("Llama", NeededScaleProbe, {"layers": (1,), "scale_random_heads": True}),
        ("Gemma3Text", NeededScaleProbe, {"scale_whole_prompt": True, "controls": ("no-needle", "needle-only")}),
        ("Llama", RestoreProbe, {"attention_mass": True, "context_lengths": (256, 512), "controls": ("no-needle",)}),
        ("Qwen3", NeededScaleProbe, {"needle": Needle("multikey", ask="all"), "context_lengths": (400, 800)}),
        ("qwen3_next", NeededScaleProbe, {"scale_random_heads": True}),
        ("lfm3", RestoreProbe, {"attention_mass": True, "context_lengths": (256, 512)}),  # with windows
    ],
)
def test_rows_read_again_fork_from_the_same_walk(family, kind, changes, tokenizer, monkeypatch):
    """Needed scale and restored attention: the rows of whole reading, and less of the prompts read."""
    monkeypatch.setattr(restore, "HOLDS", 0.03)  # let heads of a random model count as holding something
    hybrid = family.islower()  # read from snapshots
    model = build_small(family) if hybrid else model_of(family, **(WINDOW if family == "Gemma3Text" else {}))
    given = GRID | {"trials": 1} | changes
    if kind is RestoreProbe:
        model.config.max_position_embeddings = 256  # chosen on the shorter prompts, from which it is taken away too
    read, found = [], []
    for forks in (True, False):
        probe = type("Some", (kind,), {"forks": forks})(**given)
        assert bool(probe.wants) == forks
        tokens = []
        hook = model.register_forward_pre_hook(
            lambda m, given, options, tokens=tokens: tokens.append(options["input_ids"].numel()), with_kwargs=True
        )
        with Setting()(model):
            reader = TransformersReader(model, tokenizer)
            if forks:
                how = forking(model, max(probe.context_lengths), probe.needs)
                assert (how.why, how.by_snapshots) == (None, hybrid)
            tokens.clear()
            found.append({row["sample"]: row for batch in probe(reader) for row in batch})
        hook.remove()
        read.append(sum(tokens))
    forked, whole = found
    assert forked.keys() == whole.keys()
    assert [name for name in whole if not alike(whole[name], forked[name])] == []
    assert read[0] < read[1]


def test_processes_share_trials(tokenizer):
    model, probe = model_of("Llama"), NeedleProbe(**GRID | {"controls": ("needle-only",)})
    reader = TransformersReader(model, tokenizer)
    with Setting()(model):
        alone = [row for batch in probe(reader) for row in batch]
        shares = []
        for mine in (True, False):
            turns = itertools.cycle([mine, not mine])
            shares.append([row for batch in probe(reader, claim=turns.__next__) for row in batch])
    assert len(shares[0]) == len(shares[1]) == len(alone) / 2
    by_name = {row["sample"]: row for row in alone}
    assert all(by_name[row["sample"]] == row for row in itertools.chain(*shares))


@pytest.mark.parametrize("kind", ["llama", "mamba2"])
def test_what_is_shared_is_read_once_and_foretold(kind, tokenizer, capsys, tmp_path, caplog):
    """The tokens that forwards read are those that walks count, and about those that are said beforehand."""
    model, read = model_of("Llama") if kind == "llama" else build_small(kind), []
    lengths = {"context_lengths": (256, 512, 1024), "depth_percents": range(0, 101, 10), "trials": 1}
    probe, prompts = trial(tokenizer, **lengths)
    found = walks(prompts, [latest(prompt, False) for prompt in prompts])
    counted = sum(tokens_of(walk, prompts) for walk in found)
    assert len(found) == 1
    assert counted < 0.66 * sum(probe.reads(sample)[0] for sample in probe.plan())
    hook = model.register_forward_pre_hook(
        lambda m, given, options: read.append(options["input_ids"].numel()), with_kwargs=True
    )
    with Setting()(model):
        reader = TransformersReader(model, tokenizer)
        forking(model, 1024)
        read.clear()
        list(probe(reader))
    hook.remove()
    assert sum(read) == counted
    run(tmp_path, model, tokenizer, **lengths)
    (said,) = re.findall(r"cost: .*; ([\d,]+) tokens, 1,024 in the longest", caplog.text + capsys.readouterr().err)
    assert int(said.replace(",", "")) == pytest.approx(counted, rel=0.1)


def test_prompts_with_facts_of_their_length_share_by_length(tokenizer):
    """Of multikey the other cities' facts stand at shares of the haystack: elsewhere at each length."""
    probe, prompts = trial(tokenizer, needle=Needle("multikey"), context_lengths=(300, 400))
    found = walks(prompts, [latest(prompt, False) for prompt in prompts])
    assert len(found) == 2
    assert sorted(each.index for walk in found for each in walk.branches) == list(range(len(prompts)))
    for walk in found:
        for each in walk.branches:
            assert prompts[each.index].ids[: each.start] == walk.trunk.ids[: each.start]
    assert probe.wants


@pytest.mark.parametrize(
    "changes",
    [
        {"depth_percents": (0,)},
        {"scoring": "generate"},
        {"plan_version": 1},
        {"chunk": 100},
        {"needle": Needle("multiquery")},
    ],
)
def test_grids_that_share_little_are_read_whole(changes):
    assert NeedleProbe(**GRID).wants
    assert not NeedleProbe(**GRID | changes).wants


def test_out_of_memory_reads_fewer_branches_then_whole_prompts(tokenizer):
    model, sizes = model_of("Llama"), []
    _, prompts = trial(tokenizer)
    reader = TransformersReader(model, tokenizer)

    def full(*given):
        sizes.append(len(given[0]))
        raise torch.OutOfMemoryError("CUDA out of memory")

    score = reader.in_memory(reader.answers, True)
    pack = prompts[:2]
    trunk = Trunk(prompts[1].ids[:10])
    found = score.branches(full, pack, [0, 10], trunk)
    assert sizes == [2, 1]  # the second one is as long
    whole = [reader.answers([prompt])[0] for prompt in pack]
    assert found == whole
    assert score.branches(full, pack, [0, 10], trunk) == whole
    assert sizes == [2, 1]


def test_a_function_of_a_users_own_is_not_stood_in_for(tokenizer):
    AttentionInterface.register("of_a_user", sdpa_attention_forward)
    AttentionMaskInterface.register("of_a_user", sdpa_mask)
    model = model_of("Llama", attn_implementation="of_a_user")
    assert unlike_forked(model, 300) == "it attends with a function of a user's own (of_a_user)"


def test_all_questions_of_one_haystack(tokenizer, tmp_path):
    """A fact at each depth, the same in every prompt of a trial and length; each is asked once, from one reading."""
    probe, prompts = trial(tokenizer, needle=Needle("multikey", ask="all"), context_lengths=(400, 800))
    assert probe.needle.needles == len(DEPTHS)
    for length in (400, 800):
        own = [prompt for prompt in prompts if len(prompt.ids) == length]
        texts = [tokenizer.decode(prompt.ids) for prompt in own]
        assert len({prompt.needle for prompt in own}) == len({prompt.question for prompt in own}) == len(DEPTHS)
        for prompt, text, depth in zip(own, texts, DEPTHS, strict=True):
            assert all(other.needle in text for other in own)
            assert tokenizer.decode(prompt.ids[prompt.needle_start : prompt.needle_end]).strip() == prompt.needle
            assert prompt.expected in prompt.needle
            assert abs(prompt.realised_depth_percent - depth) < 8
            assert text.endswith(f"{prompt.question} {prompt.expected}")
    found = walks(prompts, [latest(prompt, False) for prompt in prompts])
    assert len(found) == 2
    for each in (
        branch for walk in found for branch in walk.branches
    ):  # all but the last fact and what fills up, whatever a question's words
        assert each.start > prompts[each.index].question_start - 64
    model = model_of("Llama", "ssmax")
    with Setting()(model):
        whole, branches = both_ways(model, tokenizer, prompts, [latest(prompt, True) for prompt in prompts])
    close(branches, whole)
    rows, record = run(tmp_path, model_of("Llama"), tokenizer, task="multikey", ask="all", context_lengths=(400, 800))
    assert {json.loads(row)["task"] for row in rows.values()} == {"multikey-all"}
    assert record["parameters"]["needle"]["ask"] == "all"
    assert "ask" not in NeedleProbe(**GRID).parameters()["needle"]


@pytest.mark.parametrize(
    "changes", [{"task": "single"}, {"controls": ("no-needle",)}, {"plan_version": 1}, {"depth_percents": (50,)}]
)
def test_what_cannot_be_asked_for_all_facts_is_refused(changes):
    with pytest.raises(UserError, match="all"):
        NeedleProbe(**GRID | {"needle": Needle(changes.pop("task", "multikey"), ask="all")} | changes)


def test_a_mask_of_the_models_own_is_read_whole(tokenizer, monkeypatch):
    """Whatever its config calls it, and however far it is from the proof: chunks of 256 tokens, of prompts of 600."""
    from transformers.models.llama import modeling_llama

    plain = modeling_llama.create_causal_mask

    def chunked(*given, **options):
        return plain(*given, **options, and_mask_function=lambda batch, head, row, key: row // 256 == key // 256)

    model = build("Llama", vocab_size=1024)
    assert unlike_forked(model, 600) is None
    FOUND.pop(model, None)
    monkeypatch.setattr(modeling_llama, "create_causal_mask", chunked)
    assert "hides more than what comes later" in unlike_forked(model, 600)


def test_what_lies_beyond_a_threshold_that_cannot_be_lowered_is_not_proved(monkeypatch):
    model = build("Mistral", vocab_size=1024, sliding_window=200)
    monkeypatch.setattr(forked_proof, "proof_length", lambda *given: 64)
    assert unlike_forked(model, 600) is None
    FOUND.pop(model, None)
    whole, calls = forked_proof.whole_and_forked, []

    def fails_lowered(*given):
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("shape")
        return whole(*given)

    monkeypatch.setattr(forked_proof, "whole_and_forked", fails_lowered)
    assert "sliding_window could not be proved" in unlike_forked(model, 600)


# the model types that carry a state from token to token, whose prompts are read from snapshots
STATEFUL = (
    "bailing_hybrid",
    "falcon_h1",
    "granitemoehybrid",
    "inkling_text",
    "kimi_linear",
    "lfm2_moe",
    "lfm3",
    "mamba2",
    "minimax",
    "nemotron_h",
    "olmo_hybrid",
    "qwen3_5_text",
    "qwen3_next",
    "rwkv",
    "xlstm",
    "zaya",
)
# whose own code begins each part of several tokens with an empty state, keeps the state in its layers, or reads one token otherwise
FORGETFUL = ("bamba", "falcon_mamba", "jamba", "mamba", "recurrent_gemma", "zamba", "zamba2")
# whose heads are seen: of hybrids, and of a model with windows and nothing that keeps it from packs
ATTENDING = (
    "bailing_hybrid",
    "falcon_h1",
    "gemma3_text",
    "granitemoehybrid",
    "inkling_text",
    "kimi_linear",
    "lfm2_moe",
    "lfm3",
    "nemotron_h",
    "olmo_hybrid",
    "qwen3_5_text",
    "qwen3_next",
    "zaya",
)
# that carry keys and values alone, off the interface or with scores that our function cannot express
OTHERS = ("bloom", "deepseek_v4", "gemma2", "gpt_oss")


@pytest.fixture(autouse=True)
def short_prompts_are_worth_it(monkeypatch):
    monkeypatch.setitem(snapshots.LEAST, "cpu", 100)


def test_short_prompts_are_not_read_from_snapshots(monkeypatch):
    monkeypatch.setitem(snapshots.LEAST, "cpu", 301)
    assert "prompts of fewer than 301 tokens are read sooner whole" in str(forking(build_small("mamba2"), 300))
    assert forking(build_small("mamba2"), 301).by_snapshots


def snapshots_of(model, tokenizer, prompts, masses=False):
    """Return the scores of prompts that are read from snapshots, and how many tokens forwards read for them."""
    reader, read, found = TransformersReader(model, tokenizer), [], {}
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda m, given: read.append(given[0].numel()))
    score = reader.in_memory(masses_of(reader) if masses else reader.answers, True)
    read_so = branch_masses_of(reader) if masses else reader.forked
    for (index,), call in branches(reader, score, read_so, prompts, masses, by_snapshots=True):
        found[index] = call()[0]
    hook.remove()
    return [found[i] for i in range(len(prompts))], sum(read)


@pytest.mark.parametrize("kind", STATEFUL + OTHERS)
def test_snapshots_score_as_whole_prompts(kind, tokenizer):
    """Verdicts are the same, nll to 1e-4, a prompt's tokens are read once from where it leaves the others."""
    model = build_small(kind)
    _, prompts = trial(tokenizer)
    with Setting()(model):
        assert str(forking(model, max(LENGTHS))) == "as whole, by snapshots"
        reader = TransformersReader(model, tokenizer)
        whole = [reader.answers([prompt])[0] for prompt in prompts]
        found, read = snapshots_of(model, tokenizer, prompts)
    for one, other in zip(whole, found, strict=True):
        assert one["predicted_tokens"] == other["predicted_tokens"]
        assert one["correct"] == other["correct"]
        assert one["answer_nll"] == pytest.approx(other["answer_nll"], abs=1e-4)
    assert read == sum(tokens_of(walk, prompts) for walk in walks(prompts, [latest(each, False) for each in prompts]))


@pytest.mark.parametrize("kind", ATTENDING)
def test_masses_from_snapshots_are_those_of_whole_prompts(kind, tokenizer):
    """What every head does in the answer's rows, and the haystack's nll; a prompt's tokens are read once."""
    model = build_small(kind)
    _, prompts = trial(tokenizer)
    with Setting()(model):
        how = forking(model, max(LENGTHS), frozenset({WEIGHTS}))
        # Gemma 3 is read in packs, and can be read so
        assert (how.why, how.by_snapshots) == (None, kind != "gemma3_text")
        score = masses_of(TransformersReader(model, tokenizer))
        found, read = snapshots_of(model, tokenizer, prompts, masses=True)
        close(found, [score([prompt])[0] for prompt in prompts])
    assert read == sum(tokens_of(walk, prompts) for walk in walks(prompts, [latest(each, True) for each in prompts]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", FORGETFUL)
def test_what_forgets_its_state_is_read_whole(kind, dtype):
    how = forking(build_small(kind).to(dtype), max(LENGTHS))
    assert "by snapshots: its numbers in branches differ" in str(how)


@pytest.mark.parametrize("kind", ["mamba2", "qwen3_next", "xlstm"])
def test_rows_from_snapshots_hang_on_no_other_row(kind, tokenizer, tmp_path):
    """Stopped anywhere, with another batch size, run again: the same bytes; whole reading's to rounding."""
    model = build_small(kind)
    rows, record = run(tmp_path / "once", model, tokenizer)
    assert record["preflight"]["forked"] == "as whole, by snapshots"
    assert run(tmp_path / "small", model, tokenizer, batch_size=1)[0] == rows
    (started,) = find_runs(tmp_path / "small")
    started.record_path.unlink()
    lines = started.rows_path.read_text().splitlines(keepends=True)
    started.rows_path.write_text("".join([*lines[:1], *lines[3:6], *lines[12:]]))
    assert run(tmp_path / "small", model, tokenizer)[0] == rows
    whole, _ = run(tmp_path / "whole", model, tokenizer, chunk=max(LENGTHS))
    close([json.loads(rows[name]) for name in whole], [json.loads(row) for row in whole.values()])


def test_a_state_that_branches_share_or_lose_is_seen(monkeypatch):
    """The proof refuses a copy that is none, a cache that comes back empty, and one that is of the tokens before the last."""
    plain = snapshots.read_on

    def loses(model, ids, start, state, rows):
        return plain(model, ids, start, {}, rows)

    def lags(model, ids, start, state, rows):
        logits, after = plain(model, ids, start, snapshots.copied(state), rows)
        return logits, state or after

    for name, wrong in (("copied", lambda state: state), ("read_on", loses), ("read_on", lags)):
        with monkeypatch.context() as patch:
            patch.setattr(snapshots, name, wrong)
            assert "by snapshots: its numbers in branches differ" in str(forking(build_small("mamba2"), 300))
    assert forking(build_small("mamba2"), 300).by_snapshots


def test_the_proof_reads_on_behind_a_window_that_is_full(monkeypatch):
    """Keys that are spoilt only once a window has lost some, of 100 tokens as well as of few."""
    model = build_small("gemma2")
    model.config.sliding_window = 100
    for module in model.modules():
        if getattr(module, "sliding_window", None):
            module.sliding_window = 100
    assert forking(model, 600).by_snapshots
    FOUND.pop(model)
    plain = DynamicSlidingWindowLayer.update

    def spoils(layer, keys, values, *rest):
        if layer.cumulative_length >= layer.sliding_window:
            layer.keys = layer.keys / 2
        return plain(layer, keys, values, *rest)

    monkeypatch.setattr(DynamicSlidingWindowLayer, "update", spoils)
    assert "by snapshots: its numbers in branches differ" in str(forking(model, 600))


@pytest.mark.parametrize("needs", [AGAIN, WEIGHTS])
@pytest.mark.parametrize(
    ("kind", "why"),
    [("minimax", "(ValueError)"), ("mamba2", "its state (cache_params) is no cache of keys and values")],
)
def test_rows_that_are_looked_at_need_caches_of_transformers_own(kind, why, needs):
    """A model whose code takes only a cache of its own, in which windows forget, is read whole for these."""
    model = build_small(kind)
    assert forking(model, 300, frozenset({ANSWERS})).by_snapshots
    if kind != "mamba2" or needs == AGAIN:  # masses of what has no attention are refused elsewhere
        assert why in str(forking(model, 300, frozenset({needs})))


def test_a_mechanism_of_whole_sequences_has_no_snapshots():
    model = model_of("Llama")
    with Setting.of("cca:g=4,s=8")(model):
        assert "by snapshots: attention cca: it reads whole sequences only" in str(forking(model, 300))


def test_a_mask_of_all_keys_is_cut(monkeypatch, tokenizer):
    """Behind others, tokens are read a part at a time, so that rows times keys stay few; the numbers stay."""
    monkeypatch.setattr(snapshots, "MASK_ENTRIES", 300 * 20)
    model = build_small("bloom")
    _, prompts = trial(tokenizer)
    parts = []
    hook = model.register_forward_pre_hook(
        lambda m, given, options: parts.append((options["input_ids"].numel(), bool(options.get("past_key_values")))),
        with_kwargs=True,
    )
    found, _ = snapshots_of(model, tokenizer, prompts)
    hook.remove()
    assert max(length for length, behind in parts if behind) <= 300 * 20 // 100
    reader = TransformersReader(model, tokenizer)
    for prompt, score in zip(prompts, found, strict=True):
        assert score["answer_nll"] == pytest.approx(reader.answers([prompt])[0]["answer_nll"], abs=1e-4)


def trail_of(tokenizer):
    """Return a branch's own tokens, two rows of them, and a trail that branches leave at 20 and at 60."""
    ids = tokenizer("a b c d e f g h " * 20).input_ids[:100]
    return ids[:30], torch.tensor([0, 29]), snapshots.Trail(ids, [20, 60])


def logits_at(trail, model, own, start, rows):
    return trail.logits(model, [own], [start], [rows])[0]


@pytest.mark.parametrize("in_trunk", [True, False])
def test_out_of_memory_on_the_way_begins_the_trunk_anew(in_trunk, tokenizer, monkeypatch):
    """What a forward left half written is not read on from."""
    model = build_small("mamba2")
    own, rows, trail = trail_of(tokenizer)
    right = [logits_at(trail, model, own, start, rows) for start in (20, 60)]
    plain, read, failed = snapshots.read_on, [], []

    def full(model, ids, start, state, rows):
        found = plain(model, ids, start, state, rows)
        read.append((start, len(rows)))
        if start and not failed and in_trunk is not bool(len(rows)):
            failed.append(start)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    _, _, trail = trail_of(tokenizer)
    logits_at(trail, model, own, 20, rows)
    monkeypatch.setattr(snapshots, "read_on", full)
    with pytest.raises(torch.OutOfMemoryError):
        logits_at(trail, model, own, 60, rows)
    read.clear()
    assert torch.equal(logits_at(trail, model, own, 60, rows), right[1])
    assert read == [(0, 0), (20, 0), (60, 2)]


def test_prompts_as_long_as_one_that_did_not_fit_are_read_whole(tokenizer, monkeypatch):
    """And not the trunk anew for each of them; the others are read from snapshots as before."""
    model = build_small("mamba2")
    _, prompts = trial(tokenizer)
    right, _ = snapshots_of(model, tokenizer, prompts)
    score, answers, tried, whole, trails = snapshots.Trail.score, TransformersReader.answers, [], [], []

    def full(trail, model, tokenizer, prompts, *rest):
        trails.append(trail)
        tried.append(len(prompts[0].ids))
        if tried[-1] == max(LENGTHS):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return score(trail, model, tokenizer, prompts, *rest)

    def read_whole(reader, prompts, *rest):
        assert not trails[-1].state  # which has the memory
        whole.extend(prompts)
        return answers(reader, prompts, *rest)

    monkeypatch.setattr(snapshots.Trail, "score", full)
    monkeypatch.setattr(TransformersReader, "answers", read_whole)
    found, _ = snapshots_of(model, tokenizer, prompts)
    assert tried.count(max(LENGTHS)) == 1
    close(found, right)
    assert whole == [prompt for prompt in prompts if len(prompt.ids) == max(LENGTHS)]
    assert [one for one, prompt in zip(found, prompts, strict=True) if prompt not in whole] == [
        one for one, prompt in zip(right, prompts, strict=True) if prompt not in whole
    ]


def test_no_state_is_left_of_a_walk_whose_prompts_are_read(tokenizer):
    model = build_small("mamba2")
    _, prompts = trial(tokenizer)
    reader, states = TransformersReader(model, tokenizer), []
    score = reader.in_memory(reader.answers, True)
    calls = []
    for _, call in branches(reader, score, reader.forked, prompts, False, by_snapshots=True):
        calls.append(call)  # as one who reads them might keep them
        call()
        states += [weakref.ref(kept) for kept in call.args[-1].state.values()]
    gc.collect()
    assert states
    assert not [state for state in states if state() is not None]


def test_a_branch_that_leaves_before_the_last_one_is_read_anew(tokenizer):
    """Asked for out of order, a trail gives the logits that it gives in order."""
    model, (own, rows, trail) = build_small("mamba2"), trail_of(tokenizer)
    first, second = (logits_at(trail, model, own, start, rows) for start in (20, 60))
    assert not torch.equal(first, second)
    assert torch.equal(logits_at(trail, model, own, 20, rows), first)
    assert torch.equal(logits_at(trail, model, own, 60, rows), second)


def test_a_mask_is_judged_though_the_model_cannot_be_read_so(monkeypatch):
    """What was masked before an error is seen, whichever way of reading is proved."""
    from transformers.models.llama import modeling_llama

    model, plain = build("Llama", vocab_size=1024), modeling_llama.create_causal_mask

    def chunked(*given, **options):
        return plain(*given, **options, and_mask_function=lambda batch, head, row, key: row // 256 == key // 256)

    def fails(module, given):
        raise RuntimeError("not so")

    monkeypatch.setattr(modeling_llama, "create_causal_mask", chunked)
    model.model.layers[0].register_forward_pre_hook(fails)
    assert not forked_proof.hides_the_future_alone(model, 600)

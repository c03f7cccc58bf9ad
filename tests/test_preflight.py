"""What we read of a model is what the unmodified model computes, whatever its family does; or it is refused in one line."""

import copy
import math
import types
from contextlib import ExitStack

import pytest
import torch
import transformers
from architectures import MODEL_TYPES, build_small
from tiny import MLA, MOE, build, tokens
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    GenerationConfig,
    LlamaConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb

import ssmax_eval.api as api
from ssmax_eval import UserError
from ssmax_eval.data.needles import Needle
from ssmax_eval.mechanisms.attach import attach, detach
from ssmax_eval.mechanisms.implementation import implementations, native_mechanism
from ssmax_eval.mechanisms.seen import Forward, Seen
from ssmax_eval.models.shape import work_of
from ssmax_eval.position.rotary import rope_switch
from ssmax_eval.probes.needle.probe import NeedleProbe, masses_of
from ssmax_eval.readers import thresholds as proof
from ssmax_eval.readers.answers import forced, generate
from ssmax_eval.readers.head import READS_MORE
from ssmax_eval.readers.inference import inference
from ssmax_eval.readers.nll import token_nll
from ssmax_eval.readers.parts import smaller_chunk
from ssmax_eval.readers.preflight import preflight
from ssmax_eval.readers.transformers import TransformersReader
from ssmax_eval.results import find_runs
from ssmax_eval.setting import Setting

LENGTH = 160
GEMMA4 = {
    "head_dim": 8, "global_head_dim": 16, "num_hidden_layers": 6, "sliding_window": 16, "vocab_size_per_layer_input": 1024,
    "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 3,
}  # fmt: skip
SPARSE = {
    **MLA, **MOE, "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "index_topk": 32, "index_n_heads": 2, "index_head_dim": 16,
}  # fmt: skip
HYBRID = {
    "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
    "num_experts": 2, "num_experts_per_tok": 1, "use_mamba_kernels": False, "mamba_d_state": 8, "mamba_dt_rank": 4,
}  # fmt: skip
KINDS = {  # what is odd about each, and the model
    "decoder leaves rows out": ("Gemma4Text", GEMMA4),
    "indexer asks for the implementation's name": ("DeepseekV32", SPARSE),
    "recurrent layers beside attention": ("Jamba", HYBRID),
    "window wider than the positions": ("Phi3", {"sliding_window": 262_144}),
    "bias on the scores": ("InklingText", {}),
    "capped scores, eager alone": ("Gemma2", {"head_dim": 8}),
    "sinks, eager alone": ("GptOss", {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}),
    "off the interface": ("GPTJ", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 256}),
    "ALiBi": ("Bloom", {"n_layer": 2, "n_head": 4}),
    "recurrent": ("Mamba", {"state_size": 8}),
    "a state of its own": ("Rwkv", {"attention_hidden_size": 32}),
}


def odd(kind: str, **changes):
    name, settings = KINDS[kind]
    if not hasattr(transformers, f"{name}Config"):
        pytest.skip(f"this transformers has no {name}")
    return build(name, vocab_size=1024, **settings, **changes)


def grid(**changes) -> NeedleProbe:
    return NeedleProbe(**{"context_lengths": (LENGTH,), "depth_percents": (50,), "trials": 2, **changes})


def run(probe: str, model, tokenizer, folder, **options):
    options = {"context_lengths": [LENGTH], "depth_percents": [50], "trials": 2} | options
    return getattr(api, probe)((model, tokenizer), output_path=folder, **options)


def right_answers(model, tokenizer, probe: NeedleProbe) -> list[tuple[float, bool]]:
    """Each prompt's answer nll and verdict, from the model's own forward over all rows that predict something."""
    found = []
    for sample in probe.plan():
        prompt = probe.prompt(tokenizer, sample)
        ids, answer = torch.tensor([prompt.ids]), prompt.answer_length
        with torch.no_grad():
            logits = model(input_ids=ids[:, :-1]).logits[0, -answer:].float()
        own = logits.log_softmax(-1).gather(1, ids[0, -answer:, None])
        found.append((-float(own.sum()), logits.argmax(-1).tolist() == prompt.ids[-answer:]))
    return found


def right_nll(model, ids):
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1]).logits.float()
    return -logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]


@pytest.mark.parametrize("kind", KINDS)
def test_needle_and_loss_are_the_unmodified_models(kind, tokenizer, tmp_path):
    model = odd(kind)
    rows = run("needle", model, tokenizer, tmp_path)
    for (nll, verdict), row in zip(right_answers(model, tokenizer, grid()), rows.to_dict("records"), strict=True):
        assert row["answer_nll"] == pytest.approx(nll, abs=1e-3)
        assert row["correct"] == verdict
    ids = tokens(2, LENGTH)
    assert torch.allclose(token_nll(model, ids), right_nll(model, ids), atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("indexer asks for the implementation's name", "chooses which of its 64 keys it attends to"),
        ("capped scores, eager alone", "sdpa cannot express"),
        ("sinks, eager alone", "sdpa cannot express"),
        ("off the interface", "does not use transformers' attention interface"),
        ("recurrent", "not applicable: it has no attention layers"),
    ],
)
def test_what_our_function_cannot_stand_in_for_is_refused_for_mechanisms_and_masses(kind, reason, tokenizer, tmp_path):
    model = odd(kind)
    with pytest.raises(UserError, match=reason):
        run("attention", model, tokenizer, tmp_path)
    with pytest.raises(UserError, match="not use|cannot express|our attention function|not applicable"):
        run("needle", model, tokenizer, tmp_path, attention="ssmax")
    assert not list(tmp_path.rglob("run.json"))


@pytest.mark.parametrize("kind", ["decoder leaves rows out", "recurrent layers beside attention", "bias on the scores"])
def test_masses_are_those_of_eager_maps_under_true_layer_numbers(kind, tokenizer, tmp_path):
    model = odd(kind)
    probe = grid()
    found = run("attention", model, tokenizer, tmp_path)
    needle = run("needle", model, tokenizer, tmp_path)
    assert needle["answer_nll"].tolist() == find_rows(tmp_path, "attention", "answer_nll")
    prompt = probe.prompt(tokenizer, probe.plan()[0])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(input_ids=torch.tensor([prompt.ids]), output_attentions=True).attentions
    maps = [each for each in maps if each is not None]
    layers = [1, 3] if kind.startswith("recurrent") else list(range(len(maps)))
    assert sorted(found["layer"].unique()) == layers
    first = found[found["trial"] == 0]
    at = len(prompt.ids) - 1 - prompt.answer_length
    for layer, own in zip(layers, maps, strict=True):
        mass = own[0, :, at, prompt.value_start : prompt.value_end].sum(-1)
        ours = first[first["layer"] == layer].sort_values("head")["mass_answer"]
        assert ours.tolist() == pytest.approx(mass.tolist(), abs=1e-5)


def find_rows(folder, probe, column):
    (found,) = find_runs(folder / probe)
    return [row[column] for row in found.rows()]


def test_a_users_own_attention_is_the_models_native_mechanism(tokenizer, tmp_path):
    def nothing(module, query, key, value, attention_mask, **kwargs):
        return torch.zeros_like(query).transpose(1, 2), None

    AttentionInterface.register("nothing", nothing)
    AttentionMaskInterface.register("nothing", sdpa_mask)
    stock, own = build("Llama", vocab_size=1024), build("Llama", vocab_size=1024)
    own.set_attn_implementation("nothing")
    assert native_mechanism(own) == "nothing"
    rows = run("needle", own, tokenizer, tmp_path)
    assert rows["attention"].unique() == ["nothing"]
    assert rows["answer_nll"].tolist() == pytest.approx(
        [nll for nll, _ in right_answers(own, tokenizer, grid())], abs=1e-3
    )
    stocks = run("needle", stock, tokenizer, tmp_path)
    assert set(stocks["run_id"]).isdisjoint(rows["run_id"])
    assert not (stocks["answer_nll"] == rows["answer_nll"]).any()
    with pytest.raises(UserError, match="softmax through our attention function differs from its own"):
        run("attention", own, tokenizer, tmp_path)
    assert own.config._attn_implementation == "nothing"


@pytest.mark.parametrize("chunk", [1, 7, 33])
def test_models_that_are_not_the_same_in_parts_are_refused(chunk, tokenizer, tmp_path):
    """Of this hybrid a part of several tokens, as the one that holds the answer, starts from an empty state."""
    model = odd("recurrent layers beside attention")
    for probe, options in (("needle", {}), ("attention", {}), ("needle", {"scoring": "generate"})):
        with pytest.raises(UserError, match=f"chunk {chunk}: JambaForCausalLM cannot be read in parts"):
            run(probe, model, tokenizer, tmp_path, chunk=chunk, **options)
    with pytest.raises(UserError, match=f"chunk {chunk}: JambaForCausalLM cannot be read in parts"):
        api.loss((model, tokenizer), context_length=LENGTH, documents=1, window=16, chunk=chunk, output_path=tmp_path)
    assert smaller_chunk(model, None, 16_384) is None


@pytest.mark.parametrize("probe", ["needle", "attention"])
def test_every_chunk_up_to_a_short_prompts_length(probe, tokenizer):
    model = build("Llama", vocab_size=1024, max_position_embeddings=512)
    needle = NeedleProbe(
        context_lengths=(128,), depth_percents=(0, 100), trials=1, controls=("no-needle", "needle-only"),
        attention_mass=probe == "attention",
    )  # fmt: skip
    score = needle.scorer(TransformersReader(model, tokenizer))
    for sample in needle.plan():
        prompt = needle.prompt(tokenizer, sample)
        whole = score([prompt])[0]
        for chunk in (1, 2, 3, 17, 64, len(prompt.ids) - 1, len(prompt.ids), 500):
            part = score([prompt], chunk)[0]
            assert part["answer_nll"] == pytest.approx(whole["answer_nll"], abs=1e-3), (sample.name, chunk)
            assert part["correct"] == whole["correct"]


def keys_seen(mask: torch.Tensor) -> torch.Tensor:
    """Return how many keys each row sees under a mask (1, heads, rows, keys)."""
    return Seen(Forward(*mask.shape[2:], mask, True, mask.device, 1.0)).n[0, 0]


@pytest.mark.parametrize("blocked", [-1e4, -1e9, torch.finfo(torch.float32).min, -math.inf])
def test_trap_23_blocked_is_what_gets_no_weight(blocked):
    """Whatever number a float mask blocks with: n, and so the logits, are those of the bool mask."""
    seen = torch.ones(20, 20).tril().bool()
    seen[:, 3] = False  # as padding would
    mask = torch.zeros(1, 1, 20, 20).masked_fill(~seen, blocked)
    assert keys_seen(mask).tolist() == seen.sum(-1).clamp(min=1).tolist()
    model, ids = build("Llama"), tokens(1, 20)
    with Setting.of("ssmax")(model), torch.no_grad():
        right = model(input_ids=ids, attention_mask=seen[None, None]).logits
        assert torch.allclose(model(input_ids=ids, attention_mask=mask).logits[:, 4:], right[:, 4:], atol=1e-4)


def test_a_bias_is_not_a_block():
    bias = -torch.arange(20.0).flip(0).expand(1, 2, 20, 20) * torch.tensor([0.5, 0.1])[:, None, None]
    causal = bias.masked_fill(~torch.ones(20, 20).tril().bool(), -math.inf)
    assert keys_seen(causal).tolist() == list(range(1, 21))


def test_a_window_that_holds_every_length_is_none():
    model = odd("window wider than the positions")
    with Setting.of("ssmax")(model) as effective:
        assert len(effective.attached.scaled_layers) == 2
    model = build("Mistral", sliding_window=64)
    with pytest.raises(UserError, match="every attention layer .* windowed.*sliding_window to null"):
        attach(model, "ssmax")
    with Setting.of("ssmax")(model, longest=64) as effective:
        assert len(effective.attached.scaled_layers) == 2
        model(tokens(1, 64))
        with pytest.raises(UserError, match="window of 64 tokens: 65 tokens no longer fit"):
            model(tokens(1, 65))


@pytest.mark.parametrize("length", [128, 129, 131, 135, 140])
def test_longrope_is_read_as_greedy_decoding_reads_it(length, tokenizer):
    """Up to the switch each answer token is predicted with the frequencies of short contexts, beyond it with the others."""
    half = build("Phi3").config.hidden_size // 4 // 2
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0] * half, "long_factor": [8.0] * half}
    model = build(
        "Phi3", vocab_size=1024, rope_parameters=rope | {"original_max_position_embeddings": 128},
        original_max_position_embeddings=128, max_position_embeddings=512,
    )  # fmt: skip
    assert rope_switch(model) == 128
    probe = grid(context_lengths=(length,), trials=1)
    prompt = probe.prompt(tokenizer, probe.plan()[0])
    nll = 0.0
    for i in range(len(prompt.ids) - prompt.answer_length, len(prompt.ids)):
        with torch.no_grad():
            nll -= float(model(torch.tensor([prompt.ids[:i]])).logits[0, -1].log_softmax(-1)[prompt.ids[i]])
    assert forced(model, tokenizer, [prompt])[0]["answer_nll"] == pytest.approx(nll, abs=1e-3)
    if 129 < length < 129 + prompt.answer_length:
        with pytest.raises(UserError, match="above 128 tokens, which is inside the answer"):
            masses_of(TransformersReader(model, tokenizer))([prompt])


def test_logits_that_are_not_finite_are_no_verdict(tokenizer, tmp_path):
    model = build("Llama", vocab_size=1024)
    model.lm_head.weight.data[5] = math.nan
    for scoring in ("forced", "generate"):
        rows = run("needle", model, tokenizer, tmp_path, scoring=scoring)
        assert rows["correct"].isna().all()
        assert set(rows["error"]) == {"logits are not finite"}


def test_generate_is_the_models_own_greedy_decoding(tokenizer):
    for kind in ("decoder leaves rows out", "recurrent layers beside attention", "recurrent"):
        model, probe = odd(kind), grid(trials=1)
        prompt = probe.prompt(tokenizer, probe.plan()[0])
        ids = torch.tensor([prompt.ids[: -prompt.answer_length]])
        written = model.generate(ids, max_new_tokens=prompt.answer_length + 16, do_sample=False)[0, ids.shape[1] :]
        (score,) = generate(model, tokenizer, [prompt])
        assert score["predicted"] == tokenizer.decode(written, skip_special_tokens=True)


def test_a_model_that_sees_what_comes_is_refused(tokenizer, tmp_path):
    model = build("Bert", vocab_size=1024, is_decoder=False)
    for probe in ("needle", "attention"):
        with pytest.raises(
            UserError, match="not a causal .decoder-only. language model: its rows see what comes after them"
        ):
            run(probe, model, tokenizer, tmp_path)
    assert not list(tmp_path.rglob("run.json"))


def made_deeper(copied):
    """Return a model of four layers of which two are copies of the others: deep ones, or with the model's own config."""
    model = build("Llama", vocab_size=1024, max_position_embeddings=512)
    model.model.layers.extend([copy.deepcopy(layer) for layer in model.model.layers])
    model.config.num_hidden_layers = 4
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = index
        layer.self_attn.config = layer.self_attn.config if copied else model.config
    return model


def test_layers_with_a_config_of_their_own_attend_as_they_are_told(tokenizer, tmp_path):
    """As in models that were made deeper by copies of their layers (SOLAR, LLaMA-Pro)."""
    models = {copied: made_deeper(copied) for copied in (True, False)}
    for options in ({"attention": "ssmax"}, {"position": "alibi"}):
        rows = [run("needle", model, tokenizer, tmp_path / str(copied), **options) for copied, model in models.items()]
        assert rows[0].answer_nll.tolist() == rows[1].answer_nll.tolist()
    rows = [run("attention", model, tokenizer, tmp_path / str(copied)) for copied, model in models.items()]
    assert {*rows[0].layer} == {0, 1, 2, 3}
    assert rows[0].mass_needle.tolist() == rows[1].mass_needle.tolist()
    scales = [run("needed_scale", model, tokenizer, tmp_path / str(copied)) for copied, model in models.items()]
    assert scales[0].best.tolist() == scales[1].best.tolist()
    assert {each._attn_implementation for each, _ in implementations(models[True])} == {"sdpa"}


class Gated(LlamaAttention):
    """transformers' own attention, and a gate around it, as users write it."""

    def forward(self, *arguments, **options):
        out, weights = super().forward(*arguments, **options)
        return out * 0.9, weights


def test_an_attention_class_around_transformers_own_is_found(tokenizer, tmp_path):
    model = build("Llama", vocab_size=1024, max_position_embeddings=512)
    model.model.layers[1].self_attn.__class__ = Gated
    assert {*run("attention", model, tokenizer, tmp_path).layer} == {0, 1}
    ids = tokens()
    with torch.no_grad(), Setting.of("ssmax:s=0.5")(model) as effective:
        assert effective.attached.scaled_indices == [0, 1]
        found = model(ids).logits
    # the same gate as a hook on transformers' class
    other = build("Llama", vocab_size=1024, max_position_embeddings=512)
    other.model.layers[1].self_attn.register_forward_hook(lambda _, __, out: (out[0] * 0.9, *out[1:]))
    with torch.no_grad(), Setting.of("ssmax:s=0.5")(other):
        assert torch.equal(other(ids).logits, found)


def attends_by_itself(self, hidden_states, position_embeddings=None, attention_mask=None, past_key_values=None, **_):
    """Attend by torch's function, as patches for long contexts are written."""
    shape = (*hidden_states.shape[:-1], -1, self.head_dim)
    q, k, v = (part(hidden_states).view(shape).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj))
    q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
    k, v = (each.repeat_interleave(self.num_key_value_groups, 1) for each in (k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return self.o_proj(out.transpose(1, 2).flatten(2)), None


@pytest.mark.parametrize("patched", [(0, 1), (1,)])
def test_layers_that_never_call_the_attention_interface_are_refused(patched, tokenizer, tmp_path):
    model = build("Llama", vocab_size=1024, max_position_embeddings=512)
    plain = model(tokens()).logits
    for index in patched:
        module = model.model.layers[index].self_attn
        module.forward = types.MethodType(attends_by_itself, module)
    assert torch.allclose(model(tokens()).logits, plain, atol=1e-5)
    asked = [
        ("needle", {"attention": "ssmax"}),
        ("needle", {"position": "alibi"}),
        ("attention", {}),
        ("needed_scale", {}),
    ]
    for probe, options in asked:
        with pytest.raises(UserError, match="attends by code of its own"):
            run(probe, model, tokenizer, tmp_path, **options)
    assert run("needle", model, tokenizer, tmp_path).error.isna().all()
    attach(model, "ssmax")  # by hand, without a proof of it
    with pytest.raises(UserError, match=r"attends by code of its own \(LlamaAttention\), which leaves it out"):
        model(tokens())
    detach(model)
    model(tokens())


def test_a_function_that_one_layer_alone_attends_with_is_told(tokenizer, tmp_path):
    def sharp(module, query, *arguments, **options):
        return sdpa_attention_forward(module, query * 2, *arguments, **options)

    model = build("Llama", vocab_size=1024, max_position_embeddings=512)
    plain = run("needle", model, tokenizer, tmp_path / "plain")
    AttentionInterface.register("sharp", sharp)
    AttentionMaskInterface.register("sharp", sdpa_mask)
    try:
        module = model.model.layers[1].self_attn
        module.config = copy.deepcopy(module.config)
        module.config._attn_implementation = "sharp"
        own = run("needle", model, tokenizer, tmp_path / "own")
        swapped = run("needle", model, tokenizer, tmp_path / "own", attention="softmax")
    finally:
        del AttentionInterface._global_mapping["sharp"], AttentionMaskInterface._global_mapping["sharp"]
    assert {*own.attention} == {"sharp"}
    assert own.answer_nll.tolist() != plain.answer_nll.tolist()
    assert swapped.answer_nll.tolist() == pytest.approx(plain.answer_nll.tolist(), abs=1e-4)


def test_layers_that_never_run_are_not_counted_as_scaled(tokenizer, tmp_path):
    """Cross-attention of a text-only run."""
    model = build("GPT2", vocab_size=1024, add_cross_attention=True, n_positions=512)
    run("needle", model, tokenizer, tmp_path, attention="ssmax")
    (found,) = find_runs(tmp_path)
    assert found.record()["attention"]["scaled_layers"] == ["transformer.h.0.attn", "transformer.h.1.attn"]


def test_a_head_that_reads_more_than_its_rows_gets_full_logits(tokenizer):
    """As one that normalises over the whole sequence would: the shortcut is seen to differ, and left."""
    model, ids = build("Llama", vocab_size=1024), tokens(1, 50)
    head = model.lm_head.forward
    model.lm_head.forward = lambda hidden: head(hidden - hidden[:, :1])
    found = preflight(model, tokenizer, 100)
    assert found["head"] == "full logits"
    assert model in READS_MORE
    assert torch.allclose(token_nll(model, ids), right_nll(model, ids), atol=1e-4)
    del model.lm_head.forward
    assert preflight(model, tokenizer, 100)["head"] == "rows"


def test_the_input_passes_the_thresholds_that_the_run_passes():
    model = build("Mistral", sliding_window=100)
    assert proof.proof_length(model, 90) == proof.SHORTEST
    assert proof.proof_length(model, 4096) == 141
    assert proof.proof_length(model, 110) == 110


def test_a_run_leaves_the_model_as_it_was(tokenizer, tmp_path):
    model = build("Llama", vocab_size=1024)
    model.set_attn_implementation("eager")
    model.config.return_dict = False
    model.train()
    model.model.layers[0].eval()
    before = implementations(model)
    run("attention", model, tokenizer, tmp_path, attention="ssmax")
    assert implementations(model) == before
    assert model.training
    assert not model.model.layers[0].training
    assert model.config.return_dict is False
    with inference(model), Setting()(model) as effective:
        assert effective.attached.attention == "softmax"
        assert not model.training


def test_needles_of_several_values_go_the_same_way(tokenizer, tmp_path):
    model = odd("decoder leaves rows out")
    probe = grid(needle=Needle("multiquery", "number", 2), context_lengths=(256,))
    rows = run("needle", model, tokenizer, tmp_path, task="multiquery", needles=2, context_lengths=[256])
    assert rows["answer_nll"].tolist() == pytest.approx(
        [nll for nll, _ in right_answers(model, tokenizer, probe)], abs=1e-3
    )


def test_thresholds_that_a_proof_cannot_reach_are_lowered_for_it(tokenizer, tmp_path, monkeypatch):
    """As of a model too large to read so far: what it does beyond a sparse indexer's or a window's threshold is seen all the same."""
    monkeypatch.setattr(proof, "WORK", 1.0)
    model = build("DeepseekV32", vocab_size=1024, **{**SPARSE, "index_topk": 100})
    for attention in ({}, {"attention": "ssmax"}):
        probe = "needle" if attention else "attention"
        with pytest.raises(UserError, match="chooses which of its 64 keys it attends to"):
            run(probe, model, tokenizer, tmp_path, **attention)
    windowed = build("Gemma3Text", vocab_size=1024, sliding_window=100)
    before = [vars(module).get("sliding_window") for module in windowed.modules()]
    found = preflight(windowed, tokenizer, 160, masses=True)
    assert found["thresholds_lowered"] == ["sliding_window"]
    assert [vars(module).get("sliding_window") for module in windowed.modules()] == before
    assert windowed.config.sliding_window == 100


def test_a_proof_that_is_not_finite_proves_nothing(tokenizer, tmp_path):
    model = odd("window wider than the positions")
    with torch.no_grad():
        model.get_input_embeddings().weight[700:] = math.inf  # of tokens that the prompts do not hold
    with pytest.raises(UserError, match="not finite on"):
        run("needle", model, tokenizer, tmp_path, attention="ssmax")


@pytest.mark.parametrize("name", ["nothing", "sdpa"])
def test_softmax_asked_of_a_model_with_its_own_attention_is_softmax(name, tokenizer, tmp_path, monkeypatch):
    def nothing(module, query, key, value, attention_mask, **kwargs):
        return torch.zeros_like(query).transpose(1, 2), None

    monkeypatch.setitem(AttentionInterface._global_mapping, name, nothing)
    AttentionMaskInterface.register("nothing", sdpa_mask)
    stock, own = build("Llama", vocab_size=1024), build("Llama", vocab_size=1024)
    own.set_attn_implementation(name)
    label = "nothing" if name == "nothing" else "own-sdpa"
    mine = run("needle", own, tokenizer, tmp_path)
    assert set(mine["attention"]) == {label}
    softmax = run("needle", own, tokenizer, tmp_path, attention="softmax")
    assert set(softmax["attention"]) == {"softmax"}
    assert own.config._attn_implementation == name
    monkeypatch.undo()
    right = [nll for nll, _ in right_answers(stock, tokenizer, grid())]
    assert softmax["answer_nll"].tolist() == pytest.approx(right, abs=1e-3)
    assert mine["answer_nll"].tolist() != pytest.approx(right, abs=1e-3)


def test_haystack_nll_of_a_head_that_reads_more(tokenizer):
    """In parts too it comes from the forward's own rows."""
    model = build("Llama", vocab_size=1024, max_position_embeddings=512)
    probe = grid(context_lengths=(300,), trials=1, attention_mass=True)
    prompt = probe.prompt(tokenizer, probe.plan()[0])
    right = masses_of(TransformersReader(model, tokenizer))([prompt])[0]["haystack_nll"]
    READS_MORE.add(model)
    for chunk in (None, 50):
        found = masses_of(TransformersReader(model, tokenizer))([prompt], chunk)[0]["haystack_nll"]
        assert found == pytest.approx(right, rel=1e-4)
    READS_MORE.discard(model)


@pytest.mark.parametrize("attention", [None, "ssmax", "entmax-1.5"])
def test_a_model_in_float64_gives_the_numbers_of_float32(attention, tokenizer, tmp_path):
    for probe, column in (("needle", "answer_nll"), ("attention", "mass_needle")):
        of = [
            run(probe, build("Llama", vocab_size=1024).to(dtype), tokenizer, tmp_path, attention=attention)[column]
            for dtype in (torch.float32, torch.float64)
        ]
        assert of[1].tolist() == pytest.approx(of[0].tolist(), abs=1e-3)


def test_a_checkpoint_in_float64_is_read_as_it_is(tokenizer, tmp_path):
    build("Llama", vocab_size=1024).double().save_pretrained(tmp_path / "double")
    tokenizer.save_pretrained(tmp_path / "double")
    options = {"context_lengths": [LENGTH], "depth_percents": [50], "trials": 2, "output_path": tmp_path}
    rows = api.needle(str(tmp_path / "double"), **options)
    assert set(rows["dtype"]) == {"float64"}
    right = right_answers(build("Llama", vocab_size=1024), tokenizer, grid())
    assert rows["answer_nll"].tolist() == pytest.approx([nll for nll, _ in right], abs=1e-3)


def compiled_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")


COMPILED = {
    "model.compile()": lambda model: model.compile(backend="eager"),
    "a layer's compile()": lambda model: model.model.layers[0].compile(backend="eager"),
    "model.forward = torch.compile(model.forward)": compiled_forward,
    "torch.compile(model)": lambda model: torch.compile(model, backend="eager"),
}


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("way", COMPILED)
def test_a_compiled_model_is_read_as_it_is_written(way, tokenizer, tmp_path):
    for options in ({}, {"attention": "ssmax"}):
        model = build("Llama", vocab_size=1024)
        plain = run("needle", build("Llama", vocab_size=1024), tokenizer, tmp_path / "plain", fresh=True, **options)
        wrapped = COMPILED[way](model)
        given = model if wrapped is None else wrapped
        before = {name: dict(vars(module)) for name, module in model.named_modules()}
        rows = run("needle", given, tokenizer, tmp_path / "compiled", fresh=True, **options)
        assert rows["answer_nll"].tolist() == plain["answer_nll"].tolist()
        for name, module in model.named_modules():
            for attribute in ("forward", "_compiled_call_impl"):
                assert vars(module).get(attribute) is before[name].get(attribute)


def test_rows_that_cannot_be_kept_cost_no_record(tokenizer, tmp_path, monkeypatch):
    """What differs without end is no number of JSON: the run would end after its last prompt, and without a record."""

    def fails(*_):
        raise TypeError("no hidden states")

    monkeypatch.setattr("ssmax_eval.readers.preflight.token_nll", fails)
    model = build("Llama", vocab_size=1024)
    rows = run("needle", model, tokenizer, tmp_path)
    right = right_answers(model, tokenizer, grid())
    assert rows["answer_nll"].tolist() == pytest.approx([nll for nll, _ in right], abs=1e-3)
    proof = find_runs(tmp_path)[0].record()["preflight"]
    assert (proof["head"], proof["kept_rows"]) == ("full logits", None)


@pytest.mark.parametrize(
    "head", ["LlamaForTokenClassification", "LlamaForSequenceClassification", "BertForTokenClassification"]
)
def test_a_model_without_a_vocabularys_logits_is_refused_in_one_line(head, tokenizer, tmp_path):
    config = build(head.partition("For")[0], vocab_size=1024).config
    model = getattr(transformers, head)(config).eval()
    with pytest.raises(UserError, match="are not of a vocabulary, as a classifier's are not"):
        run("needle", model, tokenizer, tmp_path)


def with_virtual_tokens(kind):
    peft = pytest.importorskip("peft")
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=8)
    return peft.get_peft_model(build("Llama", vocab_size=1024), config).eval()


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # peft's
@pytest.mark.parametrize("probe", ["needle", "loss"])
def test_logits_of_more_rows_than_the_text_has_are_refused(probe, tokenizer, tmp_path):
    """Both sides of the proof would be shifted alike by a prompt's virtual tokens."""
    model = with_virtual_tokens("PromptTuningConfig")
    asked = {"context_lengths": [LENGTH]} if probe == "needle" else {"context_length": LENGTH, "documents": 1}
    with pytest.raises(UserError, match="its logits have 72 rows for a text of 64 tokens"):
        getattr(api, probe)((model, tokenizer), output_path=tmp_path, **asked)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # peft's
def test_keys_that_are_no_tokens_of_the_text_are_refused_for_masses_alone(tokenizer, tmp_path):
    model = with_virtual_tokens("PrefixTuningConfig")
    rows = run("needle", model, tokenizer, tmp_path)
    right = right_answers(model, tokenizer, grid())
    assert rows["answer_nll"].tolist() == pytest.approx([nll for nll, _ in right], abs=1e-3)
    with pytest.raises(UserError, match="its layers see 72 keys where it is given 64 tokens"):
        run("attention", model, tokenizer, tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("by_hand", ["Setting", "attach"])
def test_a_layer_that_chooses_its_keys_is_refused_without_a_proof_too(by_hand):
    """By hand nothing compares first: its indices, which our function does not know, may not be dropped without a word."""
    model = odd("indexer asks for the implementation's name")
    once = "yarn-factor:factor=1,train_length=512"  # C(n) = 1: softmax as it is
    with ExitStack() as stack:
        if by_hand == "Setting":
            stack.enter_context(Setting.of(once)(model, LENGTH))
        else:
            attach(model, once, LENGTH)
        short = model(input_ids=tokens(1, SPARSE["index_topk"])).logits
        with pytest.raises(UserError, match=f"chooses which of its {LENGTH} keys it attends to"):
            model(input_ids=tokens(1, LENGTH))
    detach(model)
    own = model(input_ids=tokens(1, SPARSE["index_topk"])).logits  # where it chooses all
    assert torch.allclose(short, own, atol=1e-4)


SCALED = {
    "ministral3": True,
    "llama4_text": True,
    "mistral4": True,
    "beam": True,
    "hunyuan_v1_dense": False,
    "llama": False,
}


@pytest.mark.parametrize("kind", SCALED)
def test_a_scale_that_a_model_has_of_its_own_is_said_beside_a_mechanism(kind, tokenizer, caplog):
    """Ministral 3 and Llama 4 multiply their queries by position, and a mechanism's scale multiplies that."""
    if kind not in MODEL_TYPES:
        pytest.skip(f"this transformers has no {kind}")
    model = build_small(kind)
    for longest in (LENGTH, 20_000):
        with Setting.of("ssmax:s=0.2,train_length=512")(model, longest):
            found = preflight(model, tokenizer, longest, mechanism=True)
        beyond = longest > 512 or kind == "beam"  # whose scale begins with the first token
        assert bool(found["scaled_twice"]) == (SCALED[kind] and beyond)
        assert ("scale their queries by position themselves" in caplog.text) == bool(found["scaled_twice"])
        caplog.clear()
    assert "scaled_twice" not in preflight(model, tokenizer, LENGTH)


def test_a_position_is_refused_where_layers_add_one_of_their_own(tokenizer, tmp_path):
    with pytest.raises(UserError, match="adds a position of its own to its scores, which stays on"):
        run("needle", odd("bias on the scores"), tokenizer, tmp_path, position="alibi")


class OfItsOwn(PreTrainedModel):
    """A model as users write one: its forward takes ids and labels alone, and it cannot generate."""

    config_class = LlamaConfig

    def __init__(self, config):
        super().__init__(config)
        self.words = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.mix = torch.nn.GRU(config.hidden_size, config.hidden_size, batch_first=True)
        self.head = torch.nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(self, input_ids, labels=None):
        return CausalLMOutput(logits=self.head(self.mix(self.words(input_ids))[0]))


class ThatTellsItsWords(OfItsOwn):
    def get_input_embeddings(self):
        return self.words


def of_its_own(kind):
    torch.manual_seed(0)
    return kind(LlamaConfig(vocab_size=1024, hidden_size=32, num_attention_heads=4)).eval()


def test_a_forward_that_knows_no_cache_is_read(tokenizer, tmp_path):
    model = of_its_own(ThatTellsItsWords)
    rows = run("needle", model, tokenizer, tmp_path)
    expected = right_answers(model, tokenizer, grid())
    assert rows["answer_nll"].tolist() == pytest.approx([nats for nats, _ in expected], abs=1e-3)
    assert rows["correct"].tolist() == [hit for _, hit in expected]
    assert len(api.loss((model, tokenizer), output_path=tmp_path, context_length=96, documents=1))
    assert not model._forward_pre_hooks
    with pytest.raises(UserError, match=r"ThatTellsItsWords: it cannot generate .* use --scoring forced"):
        run("needle", model, tokenizer, tmp_path, scoring="generate")


def test_a_model_that_does_not_tell_its_words_is_refused_in_one_line(tokenizer, tmp_path):
    with pytest.raises(UserError, match="OfItsOwn: it does not tell the table of its words; give its class a method"):
        run("needle", of_its_own(OfItsOwn), tokenizer, tmp_path)


def distributed(model):
    """Return a model in the wrapper of a training in several processes, without them."""
    wrapper = DistributedDataParallel.__new__(DistributedDataParallel)
    torch.nn.Module.__init__(wrapper)
    wrapper.module = model
    return wrapper


WRAPPERS = {
    "DistributedDataParallel": distributed,
    "DataParallel": torch.nn.DataParallel,
    "of a compiled model": lambda model: torch.nn.DataParallel(torch.compile(model, backend="eager")),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_for_training_is_taken_off(wrapper, tokenizer, tmp_path):
    plain = run("needle", build("Llama", vocab_size=1024), tokenizer, tmp_path / "plain")
    wrapped = WRAPPERS[wrapper](build("Llama", vocab_size=1024))
    for name, models in {"a": (wrapped, tokenizer), "b": {"own": (wrapped, tokenizer)}}.items():
        rows = api.needle(models, output_path=tmp_path / name, context_lengths=[LENGTH], depth_percents=[50], trials=2)
        assert rows["answer_nll"].tolist() == plain["answer_nll"].tolist()


class Wrapper(torch.nn.Module):
    """What holds a model and its config, and is none."""

    def __init__(self, model):
        super().__init__()
        self.held, self.config = model, model.config


def test_a_module_that_is_no_model_is_refused_in_one_line(tokenizer, tmp_path):
    for module, lacks in ((Wrapper(build("Llama")), "dtype"), (torch.nn.Linear(2, 2), "config")):
        with pytest.raises(
            UserError, match=rf"a {type(module).__name__} is no model of transformers \(it has no {lacks}\)"
        ):
            run("needle", module, tokenizer, tmp_path)


def test_beams_of_a_generation_config_are_not_taken_for_another_decoding(tokenizer, caplog):
    """A checkpoint that searches with beams, and returns several texts, decodes greedily as its forward does."""
    model = build("Llama", vocab_size=1024)
    own = model.generation_config = GenerationConfig(
        num_beams=4, num_return_sequences=2, eos_token_id=1, pad_token_id=1
    )
    found = preflight(model, tokenizer, LENGTH)
    assert found["own_decoding"] == pytest.approx(0, abs=1e-3)
    assert "its own generate differs" not in caplog.text
    assert model.generation_config is own


class OfBuffers(torch.nn.Module):
    """A linear layer whose weights are buffers of whole numbers, as GPTQ's and AWQ's are."""

    def __init__(self, linear):
        super().__init__()
        scales = linear.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("whole", (linear.weight / scales).round().to(torch.int8))
        self.register_buffer("scales", scales)

    def forward(self, x):
        return torch.nn.functional.linear(x, self.whole * self.scales)


class OfNothing(OfBuffers):
    """And one whose weights torch does not see, as those of its own quantization."""

    def __init__(self, linear):
        super().__init__(linear)
        packed = self.whole, self.scales
        del self.whole, self.scales
        self.whole, self.scales = packed


@pytest.mark.parametrize("kind", [OfBuffers, OfNothing])
def test_layers_without_parameters_take_mechanisms(kind, tokenizer, tmp_path):
    """As the same model does whose weights are the numbers that these stand for."""
    model, plain = (build("Llama", vocab_size=1024) for _ in range(2))
    with torch.no_grad():
        for name, linear in list(model.named_modules()):
            if isinstance(linear, torch.nn.Linear) and name != "lm_head":
                made = kind(linear)
                plain.get_submodule(name).weight.copy_(made.whole * made.scales)
                model.set_submodule(name, made)
    for i, options in enumerate(({}, {"attention": "ssmax"}, {"position": "alibi"})):
        expected = run("needle", plain, tokenizer, tmp_path / f"{i}-plain", **options)["answer_nll"].tolist()
        found = run("needle", model, tokenizer, tmp_path / f"{i}", **options)["answer_nll"].tolist()
        assert found == pytest.approx(expected, abs=1e-3)


class Halved(torch.nn.Module):
    """What a user wraps a head in."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, x):
        return 0.5 * self.head(x)


class WithAMethod(Halved):
    def weight(self):
        return self.head.weight


@pytest.mark.parametrize("kind", [Halved, WithAMethod])
def test_a_head_without_a_weight_of_its_own_is_read_and_its_cost_estimated(kind, tokenizer, tmp_path):
    model = build("Llama", vocab_size=1024)
    plain = work_of(model)
    model.lm_head = kind(model.lm_head)
    rows = run("needle", model, tokenizer, tmp_path)
    expected = [nats for nats, _ in right_answers(model, tokenizer, grid())]
    assert rows["answer_nll"].tolist() == pytest.approx(expected, abs=1e-3)
    assert work_of(model) == plain

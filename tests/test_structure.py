"""Mechanisms that change more than rows of a map, beyond what test_mechanisms.py asks of every one: their own laws and refusals."""

import copy

import pytest
import structure_references
import torch
from tiny import build, needed_by, tokens
from transformers import AttentionInterface, AutoModelForCausalLM

import ssmax_eval.api as api
from ssmax_eval import Setting, UserError, load_model, save_model
from ssmax_eval.mechanisms import mechanism as module_of_mechanism
from ssmax_eval.mechanisms.attach import attach, detach, mechanisms_of, reach_of
from ssmax_eval.mechanisms.implementation import IMPLEMENTATION
from ssmax_eval.mechanisms.interface import recording
from ssmax_eval.mechanisms.layers import attention_modules
from ssmax_eval.mechanisms.projections import Changed
from ssmax_eval.mechanisms.recorder import Recorder
from ssmax_eval.mechanisms.recurrent import scan
from ssmax_eval.training.job import Job
from ssmax_eval.training.recipes import recipe
from ssmax_eval.training.train import train

OURS = [*structure_references.TABLE, "hgrn2"]
LENGTH = 70


def attached(name, architecture="Llama", **changes):
    """Return a tiny model with a mechanism whose learned values are no first values."""
    model = build(architecture, **(needed_by(name) | changes))
    attach(model, structure_references.TABLE.get(name, (name,))[0])
    generator = torch.Generator().manual_seed(3)
    for mechanism in mechanisms_of(model).values():
        for parameter in mechanism.parameters():
            parameter.data += 0.2 * torch.rand(parameter.shape, generator=generator)
    return model


def drawn(batch=2, heads=4, key_heads=2, rows=LENGTH, width=8, spread=1.0):
    generator = torch.Generator().manual_seed(5)
    return [
        spread * torch.randn(batch, each, rows, width, generator=generator) for each in (heads, key_heads, key_heads)
    ]


def causal(rows=LENGTH, batch=2):
    return torch.ones(rows, rows).tril().bool()[None, None].repeat(batch, 1, 1, 1)


def rows_of(model, ids, rows, **options):
    """Return the weights of some rows, by layer."""
    recorder = Recorder(torch.tensor([rows] * len(ids)), lambda recorded: recorded.weights)
    with recording(model, recorder), torch.no_grad():
        model(input_ids=ids, **options)
    return recorder.kept


# HGRN2


@pytest.mark.parametrize("spread", [1.0, 20.0])  # the second closes and opens gates entirely
@pytest.mark.parametrize("index", [0, 1])
def test_hgrn2_is_the_recurrence(spread, index):
    """In float32, in chunks, against one row after the other in float64; a row that is padding, on either side, is skipped."""
    model = attached("hgrn2")
    module = attention_modules(model)[f"model.layers.{index}.self_attn"]
    q, k, v = drawn(spread=spread)
    seen = causal()
    seen[1, :, :, :5] = False
    seen[1, :, :, -7:] = False
    output, _ = AttentionInterface()[IMPLEMENTATION](module, q, k, v, seen, scaling=0.3)
    right = structure_references.hgrn2(module.ssmax, q.double(), k.double(), v.double(), seen)
    assert (output - right).abs().max() < 1e-5 * max(1, right.abs().max())
    assert not output[1, :5].any()


def test_hgrn2_in_chunks_is_its_recurrence_in_float64():
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(2, 2, 3, 100, 8, generator=generator, dtype=torch.float64)
    k, f, v = (torch.rand(2, 2, 100, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    state, right = torch.zeros(2, 2, 8, 8, dtype=torch.float64), []
    for i in range(100):
        state = f[:, :, i, :, None] * state + k[:, :, i, :, None] * v[:, :, i, None]
        right.append(q[:, :, :, i] @ state)
    assert (scan(q, k, v, f.log()) - torch.stack(right, 3)).abs().max() < 1e-12


def test_hgrn2s_gradients_are_the_float64_ones():
    model = attached("hgrn2")
    mechanism = attention_modules(model)["model.layers.1.self_attn"].ssmax
    tensors = [each.requires_grad_() for each in drawn()]
    seen = causal()
    seen[0, :, :, :3] = False
    output, _ = AttentionInterface()[IMPLEMENTATION](
        attention_modules(model)["model.layers.1.self_attn"], *tensors, seen, scaling=1.0
    )
    along = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    (output * along).sum().backward()
    ours = [each.grad for each in (*tensors, mechanism.bounds)]
    mechanism.bounds.grad = None
    doubles = [each.detach().double().requires_grad_() for each in tensors]
    (structure_references.hgrn2(mechanism, *doubles, seen) * along.double()).sum().backward()
    for one, other in zip(ours, [*(each.grad for each in doubles), mechanism.bounds.grad], strict=True):
        assert (one - other).abs().max() < 1e-4 * max(1e-2, other.abs().max())


def test_hgrn2s_lower_bound_rises_with_depth_from_0():
    model = build("Llama", num_hidden_layers=4)
    attach(model, "hgrn2")
    bounds = [mechanism.lower for mechanism in mechanisms_of(model).values()]
    for i, bound in enumerate(bounds):
        torch.testing.assert_close(bound, torch.full_like(bound, i / 4))
    assert len({id(mechanism.bounds) for mechanism in mechanisms_of(model).values()}) == 1


def test_a_model_without_maps_goes_through_needle_and_loss_and_has_no_masses(tokenizer, tmp_path):
    model = build("Llama", vocab_size=1024)
    asked = {"context_lengths": [120], "depth_percents": [50], "trials": 2, "output_path": tmp_path}
    assert api.needle((model, tokenizer), attention="hgrn2", **asked)["error"].isna().all()
    rows = api.loss((model, tokenizer), attention="hgrn2", context_length=96, documents=2, output_path=tmp_path)
    assert rows["error"].isna().all()
    with pytest.raises(UserError, match="attention hgrn2: attention masses are not applicable: it weighs no keys"):
        api.attention((model, tokenizer), attention="hgrn2", **asked)


def test_hgrn2_is_trained_without_rope(tmp_path, tokenizer):
    tiny = recipe("cpu").changed(TINY)
    with pytest.raises(UserError, match="it is trained with position nope, not p-rope; add --set position=nope"):
        Job(tiny, "hgrn2")
    with pytest.raises(UserError, match="it is trained with position nope, not alibi"):
        Job(tiny.changed({"position": "alibi"}), "hgrn2")
    save_model(build("Llama", vocab_size=1024), tokenizer, tmp_path / "turns")
    with pytest.raises(UserError, match="it is trained with position nope, not rope"):
        train(Job(tiny, "hgrn2", start=str(tmp_path / "turns")), tmp_path / "never", "cpu")
    assert not (tmp_path / "never").exists() or not any((tmp_path / "never").glob("*.safetensors"))


# a run of seconds
TINY = {
    "layers": "4", "hidden": "16", "heads": "4", "feed_forward": "16", "vocabulary": "400", "steps": "4", "text": "generated",
    "tokens_per_step": "256", "train_length": "64", "short_length": "32", "text_characters": "20000", "warmup_steps": "1",
}  # fmt: skip


@pytest.mark.parametrize("name", OURS)
def test_each_is_trained_saved_and_opened(name, tmp_path):
    """By the package and by transformers, and what it learned has moved."""
    spelled = {"cca": "cca:g=4,s=8", "lssar": "lssar:p=3"}.get(name, name)
    changes = TINY | ({"position": "nope"} if name == "hgrn2" else {})
    folder = train(Job(recipe("cpu").changed(changes), spelled), tmp_path / "out", "cpu")
    model, _ = load_model(str(folder))
    assert model.config.ssmax["attention"] == spelled
    again = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(model(tokens()).logits, again(tokens()).logits)
        assert torch.isfinite(model(tokens()).logits).all()
    fresh = build("Llama", num_hidden_layers=4, hidden_size=16, head_dim=4, num_key_value_heads=4)
    attach(fresh, spelled)
    first = {key: value for each in mechanisms_of(fresh).values() for key, value in each.state_dict().items()}
    last = {key: value for each in mechanisms_of(model).values() for key, value in each.state_dict().items()}
    assert first.keys() == last.keys()
    assert not any(torch.equal(first[key], last[key]) for key in first)


# what padding, dtypes and blocks of rows leave as it is


@pytest.mark.parametrize("name", OURS)
def test_padding_on_either_side_changes_nothing(name):
    model, ids = attached(name), tokens(1, 41)
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        for left, right in ((6, 0), (0, 6), (7, 5)):
            sides = (torch.zeros(1, left, dtype=torch.long), torch.zeros(1, right, dtype=torch.long))
            mask = torch.cat([sides[0], torch.ones_like(ids), sides[1]], 1)
            padded = torch.cat([sides[0], ids, sides[1]], 1)
            position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
            found = model(input_ids=padded, attention_mask=mask, position_ids=position_ids).logits
            assert torch.isfinite(found).all()
            torch.testing.assert_close(found[:, left : left + 41], plain, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", OURS)
def test_rows_that_see_nothing_give_0(name):
    model = attached(name)
    module = attention_modules(model)["model.layers.1.self_attn"]
    seen = causal()
    seen[1, :, :, :4] = False
    vars(module)["layer_input"] = torch.randn(2, LENGTH, 32, generator=torch.Generator().manual_seed(1))
    output, _ = AttentionInterface()[IMPLEMENTATION](module, *drawn(), seen, scaling=0.3)
    assert not output[1, :4].any()
    assert output[0, :4].any()
    assert torch.isfinite(output).all()


@pytest.mark.parametrize("name", OURS)
def test_models_in_bfloat16_keep_what_is_learned_in_float32(name, tokenizer, tmp_path):
    model, ids = attached(name, vocab_size=1024), tokens(1, 41)
    with torch.no_grad():
        right = model(ids).logits
    save_model(model, tokenizer, tmp_path / "saved")
    made, _ = load_model(str(tmp_path / "saved"), dtype="bfloat16")
    assert made.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for each in mechanisms_of(made).values() for p in each.parameters())
    with torch.no_grad():
        found = made(ids).logits
    assert found.dtype == torch.bfloat16
    assert (found.float() - right).abs().mean() < 0.1 * right.std()


@pytest.mark.parametrize("name", OURS)
def test_what_comes_after_a_row_changes_nothing_in_it(name):
    model, ids = attached(name), tokens(1, LENGTH)
    with torch.no_grad():
        whole = model(ids).logits
        torch.testing.assert_close(model(ids[:, :33]).logits, whole[:, :33], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", OURS)
def test_one_token_is_read(name):
    with torch.no_grad():
        assert torch.isfinite(attached(name)(tokens(2, 1)).logits).all()


@pytest.mark.parametrize("name", ["cca", "hgrn2"])
def test_packed_sequences_are_refused(name):
    module = attention_modules(attached(name))["model.layers.0.self_attn"]
    seen = causal()
    seen[:, :, 30:, :30] = False
    with pytest.raises(UserError, match="packed sequences are refused"):
        AttentionInterface()[IMPLEMENTATION](module, *drawn(), seen, scaling=0.3)


def test_dints_rows_sum_to_1_and_packed_ones_know_their_own_text_alone(monkeypatch):
    model = attached("dint")
    for weights in rows_of(model, tokens(2, LENGTH), [0, 1, 30, 69]).values():
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), atol=1e-5, rtol=0)
        assert (weights < 0).any()
    module = attention_modules(model)["model.layers.1.self_attn"]
    q, k, v = drawn()
    seen = causal()
    seen[:, :, 30:, :30] = False
    monkeypatch.setattr(module_of_mechanism, "BLOCK_ENTRIES", 2 * 4 * LENGTH * 7)
    output, _ = AttentionInterface()[IMPLEMENTATION](module, q, k, v, seen, scaling=0.3)
    alone, _ = AttentionInterface()[IMPLEMENTATION](module, q[:, :, 30:], k[:, :, 30:], v[:, :, 30:], None, scaling=0.3)
    torch.testing.assert_close(output[:, 30:], alone, atol=1e-5, rtol=1e-4)


# Shared DIFF


@pytest.mark.parametrize("architecture", ["Llama", "Qwen3", "GPTNeoX", "GPT2", "Phi3", "OPT"])
def test_shared_queries_and_keys_are_base_and_updates(architecture):
    """A model whose own weights hold W + A B is, under differential, what Shared DIFF makes of the base; caches hold its keys."""
    ids = tokens(2, 30)
    # that of others is in no use of theirs
    grouped = {"num_key_value_heads": 2 if architecture in ("Llama", "Qwen3", "Phi3") else 4}
    model = attached("shared-differential", architecture, **grouped)
    plain = build(architecture, **grouped)
    attach(plain, "differential")
    model, plain = model.double(), plain.double()  # how float32 rounds differs between processors
    for name, module in attention_modules(plain).items():
        mechanism = model.get_submodule(name).ssmax
        module.ssmax.load_state_dict({k: v for k, v in mechanism.state_dict().items() if k.startswith("lambda")})
        write(module, mechanism)
    with torch.no_grad():
        logits = model(ids, use_cache=True)
        torch.testing.assert_close(logits.logits, plain(ids).logits, atol=2e-5, rtol=1e-4)
        cache = model(ids[:, :20], use_cache=True).past_key_values
        rest = model(ids[:, 20:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(rest, logits.logits[:, 20:], atol=2e-5, rtol=1e-4)


def write(module, mechanism):
    """Write W + A B into the projections of an attention module; a linear's weight is (outputs, inputs), GPT-2's the other way."""
    layer = mechanism.layer
    query, key = layer.heads * layer.head_dim, layer.key_heads * layer.head_dim

    def changed(weight, bias, a, b):
        half = len(weight) // 2
        weight = torch.cat([weight[:half] + (a[j] @ b[j]).T for j in (0, 1)])
        return weight, None if bias is None else torch.cat([bias[:half]] * 2)

    updates = ((mechanism.a_query, mechanism.b_query), (mechanism.a_key, mechanism.b_key))
    with torch.no_grad():
        if hasattr(module, "q_proj"):
            for part, (a, b) in zip((module.q_proj, module.k_proj), updates, strict=True):
                weight, bias = changed(part.weight, part.bias, a, b)
                part.weight.copy_(weight)
                if bias is not None:
                    part.bias.copy_(bias)
            return
        fused = next(
            part for name, part in module.named_children() if name in ("c_attn", "qkv_proj", "query_key_value")
        )
        weight = fused.weight.T if hasattr(module, "c_attn") else fused.weight
        bias = fused.bias
        index = torch.arange(len(weight))
        if hasattr(module, "query_key_value"):
            q, k = (index.view(layer.heads, 3, layer.head_dim)[:, part].flatten() for part in (0, 1))
        else:
            q, k = index[:query], index[query : query + key]
        made, offsets = weight.clone(), None if bias is None else bias.clone()
        for rows, (a, b) in zip((q, k), updates, strict=True):
            made[rows], added = changed(weight[rows], None if bias is None else bias[rows], a, b)
            if added is not None:
                offsets[rows] = added
        fused.weight.copy_(made.T if hasattr(module, "c_attn") else made)
        if offsets is not None:
            fused.bias.copy_(offsets)


def test_projections_are_hooked_and_left_as_they_were():
    model, ids = build("Llama"), tokens(1, 20)
    with torch.no_grad():
        before = model(ids).logits
        with Setting.of("shared-differential")(model):
            assert not torch.allclose(model(ids).logits, before)
            twin = copy.deepcopy(model)
            same = model(ids).logits
        assert torch.equal(model(ids).logits, before)
        assert torch.equal(twin(ids).logits, same)
        for mechanism in mechanisms_of(twin).values():
            mechanism.active = False
        torch.testing.assert_close(twin(ids).logits, before, atol=2e-5, rtol=1e-4)
        detach(twin)
        assert torch.equal(twin(ids).logits, before)
    assert not any(isinstance(each, Changed) for part in model.modules() for each in part._forward_hooks.values())


def test_shared_differential_refuses_what_it_cannot_tell_apart():
    model = build("DeepseekV3")
    with pytest.raises(UserError, match="has no projections to queries and keys that can be told apart"):
        attach(model, "shared-differential")
    assert not mechanisms_of(model)
    with pytest.raises(UserError, match="1 heads of keys has no pairs"):
        attach(build("Llama", num_key_value_heads=1), "shared-differential")
    with pytest.raises(UserError, match="rank=0"):
        Setting.of("shared-differential:rank=0")


# MSWA


def test_windows_of_four_groups_and_how_far_they_carry():
    model = build("Llama", num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4)
    attach(model, "mswa:window=32")
    sizes = [mechanism.sizes for mechanism in mechanisms_of(model).values()]
    assert sizes[0] == sizes[1] == [2, 2, 4, 4, 8, 8, 16, 16]
    assert sizes[7] == [16, 16, 32, 32, 64, 64, 128, 128]
    mean = sum(map(sum, sizes)) / 64
    assert mean == pytest.approx((15 / 16) ** 2 * 32)
    assert reach_of(model) == 2 * (15 + 31 + 63 + 127)


@pytest.mark.parametrize("distance", [-1, 0, 1])
def test_what_is_out_of_reach_of_the_sum_of_windows_has_no_effect(distance):
    """A token that far before the last row changes its logits up to the reach, and not one token beyond."""
    model = build("Llama", num_hidden_layers=4)
    attach(model, "mswa:window=8")
    reach = reach_of(model)
    assert reach == 3 + 7 + 15 + 31
    ids = tokens(1, 100)
    other = ids.clone()
    other[0, 99 - reach - distance] = ids[0, 99 - reach - distance] % 100 + 4
    with torch.no_grad():
        same = torch.equal(model(ids).logits[0, -1], model(other).logits[0, -1])
    assert same == (distance == 1)


def test_mswa_needs_four_groups():
    with pytest.raises(UserError, match="2 layers are not four groups"):
        attach(build("Llama"), "mswa")
    with pytest.raises(UserError, match="2 heads are not four groups"):
        attach(build("Llama", num_hidden_layers=4, num_attention_heads=2), "mswa")
    model = build("Llama", num_hidden_layers=4)
    attach(model, "mswa")
    assert mechanisms_of(model)["model.layers.3.self_attn"].sizes == [
        128,
        256,
        512,
        1024,
    ]  # of a training length of 256
    with Setting.of("softmax1")(model):
        assert reach_of(model) is None


# LSSA and LSSAR


def test_lssars_power_of_15_is_finite_and_near_float64():
    """What would overflow or vanish without the row's maximum; float32's error grows with the power."""
    module = attention_modules(attached("lssar"))["model.layers.0.self_attn"]
    module.ssmax.p = 15.0
    tensors = [each.requires_grad_() for each in drawn(rows=200)]
    seen = causal(200)
    output, _ = AttentionInterface()[IMPLEMENTATION](module, *tensors, seen, scaling=0.3)
    right, _ = structure_references.lssar(module.ssmax, *(each.double() for each in tensors), 0.3, seen, None)
    assert (output - right).abs().max() < 1e-4 * right.abs().max()
    output.sum().backward()
    assert all(torch.isfinite(each.grad).all() for each in tensors)


def test_lssars_rows_of_equal_keys_and_of_few_keys_keep_weight():
    module = attention_modules(attached("lssar"))["model.layers.0.self_attn"]
    q, _, v = drawn(rows=20)
    same = torch.ones(2, 2, 20, 8)
    output, _ = AttentionInterface()[IMPLEMENTATION](module, q, same, v, None, scaling=0.3)
    mean = v.cumsum(2) / torch.arange(1, 21)[:, None]
    torch.testing.assert_close(output.transpose(1, 2), mean.repeat_interleave(2, 1), atol=1e-5, rtol=1e-4)


def test_lssa_knows_no_lengths_of_queries_and_keys():
    module = attention_modules(attached("lssa"))["model.layers.0.self_attn"]
    q, k, v = drawn()
    one, _ = AttentionInterface()[IMPLEMENTATION](module, q, k, v, None, scaling=0.3)
    other, _ = AttentionInterface()[IMPLEMENTATION](module, 7 * q, 0.1 * k, v, None, scaling=2.0)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


# CCA


def test_cca_is_softmax_within_s_and_weighs_every_token_beyond():
    model, ids = build("Llama"), tokens(2, LENGTH)
    with torch.no_grad():
        plain = model(ids).logits
        with Setting.of(f"cca:g=4,s={LENGTH}")(model):
            torch.testing.assert_close(model(ids).logits, plain, atol=2e-5, rtol=1e-4)
        attach(model, "cca:g=1,s=8")  # groups of one token are the tokens
        torch.testing.assert_close(model(ids).logits, plain, atol=2e-5, rtol=1e-4)
    attach(model, "cca:g=16,s=8")
    for weights in rows_of(model, ids, [LENGTH - 1]).values():
        assert (weights > 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("spelled", ["cca:g=0", "cca:s=0", "lssar:p=0.5", "mswa:window=-1"])
def test_options_out_of_range_are_one_line(spelled):
    with pytest.raises(UserError, match=r"attention option \w+=-?[\d.]+"):
        Setting.of(spelled)

"""Every mechanism with every position: the position is in the scores before the mechanism makes anything of them."""

import pytest
import references
import torch
from tiny import build, tokens
from transformers import AttentionInterface
from transformers.models.t5.modeling_t5 import T5Attention, T5Config

from ssmax_eval import UserError, load_model, save_model
from ssmax_eval.mechanisms.attach import attach, detach, learned_of, mechanisms_of
from ssmax_eval.mechanisms.implementation import IMPLEMENTATION
from ssmax_eval.mechanisms.registry import mechanisms
from ssmax_eval.position.bias import T5, register_bias
from ssmax_eval.setting import Setting
from ssmax_eval.training.trainer import WeightedTrainer

LENGTH, HEADS, LAYERS = 70, 4, 4
BIASES = ("alibi", "t5")
# share of the pairs of channels that turn
ROTATIONS = {"rope": 1.0, "p-rope": 0.5, "nope": 0.0}
# four heads, four key heads, four layers: what any mechanism asks for
SHAPE = {"num_hidden_layers": LAYERS, "num_key_value_heads": HEADS}


def model_with(mechanism, rotation, bias=None):
    """Return a tiny Llama with a mechanism whose learned values, and its bias's, are no first values; the same for each position."""
    rope = {"rope_type": "proportional", "rope_theta": 10_000.0, "partial_rotary_factor": ROTATIONS[rotation]}
    model = build("Llama", rope_parameters=rope, **SHAPE)
    attach(model, mechanism, bias=bias)
    generator = torch.Generator().manual_seed(3)
    for each in mechanisms_of(model).values():
        for name, parameter in each.named_parameters():
            if not name.startswith("position_bias."):
                parameter.data += 0.1 * torch.rand(parameter.shape, generator=generator)
        if bias == "t5":
            each.position_bias.table.data = table()
    return model


def table():
    return torch.randn(32, HEADS, generator=torch.Generator().manual_seed(5))


def reference_bias(name):
    """Return what a position adds, float64 (heads, rows, keys), of loops and of transformers' T5."""
    if name == "alibi":
        return references.alibi_bias(HEADS, LENGTH, LENGTH)
    return peer(32, 128, table()).compute_bias(LENGTH, LENGTH)[0].detach().double()


def peer(buckets, furthest, values):
    """Return the self-attention of T5's decoder, its table given."""
    config = T5Config(
        d_model=16, d_kv=4, num_heads=values.shape[1], is_decoder=True,
        relative_attention_num_buckets=buckets, relative_attention_max_distance=furthest,
    )  # fmt: skip
    attention = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    attention.relative_attention_bias.weight.data = values.clone()
    return attention


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("mechanism", mechanisms())
def test_a_bias_is_added_to_the_scores_of_every_mechanism(mechanism, bias):
    """As a mask that transformers adds to the scores adds the same numbers."""
    model, plain = model_with(mechanism, "nope", bias), model_with(mechanism, "nope")
    hidden = torch.ones(LENGTH, LENGTH).triu(1).bool()
    mask = reference_bias(bias).float().masked_fill(hidden, torch.finfo(torch.float32).min)[None]
    with torch.no_grad():
        ours, added = (each(**given).logits for each, given in ((model, asked()), (plain, asked(mask))))
        torch.testing.assert_close(ours, added, atol=1e-4, rtol=1e-4)
        if mechanisms()[mechanism].has_map:
            assert (ours - plain(**asked()).logits).abs().max() > 0.01


def asked(mask=None):
    return {"input_ids": tokens(1, LENGTH), "use_cache": False} | ({} if mask is None else {"attention_mask": mask})


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("mechanism", mechanisms())
def test_queries_and_keys_are_turned_before_every_mechanism(mechanism, rotation, monkeypatch):
    """A model whose RoPE stands still, its q and k turned by complex numbers in float64 in front of our function."""
    expected = model_with(mechanism, rotation)(**asked()).logits
    still, ours = model_with(mechanism, "nope"), AttentionInterface()[IMPLEMENTATION]

    def turned(each):
        pairs = each.shape[-1] // 2
        turning = round(pairs * ROTATIONS[rotation])
        speeds = [10_000.0 ** (-i / pairs) if i < turning else 0.0 for i in range(pairs)]
        angles = torch.arange(LENGTH, dtype=torch.float64)[:, None] * torch.tensor(speeds, dtype=torch.float64)
        number = torch.complex(each[..., :pairs].double(), each[..., pairs:].double()) * torch.polar(
            torch.ones_like(angles), angles
        )
        return torch.cat([number.real, number.imag], -1).float()

    def attend(module, query, key, *rest, **options):
        return ours(module, turned(query), turned(key), *rest, **options)

    monkeypatch.setitem(AttentionInterface._global_mapping, IMPLEMENTATION, attend)
    if mechanism == "softmax":  # which needs none of our functions
        still.set_attn_implementation(IMPLEMENTATION)
    torch.testing.assert_close(still(**asked()).logits, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (32, 20), (8, 64), (6, 1000), (64, 128)])
def test_t5s_buckets_and_bias_are_transformers(buckets, furthest):
    kind = type("Other", (T5,), {"buckets": buckets, "furthest": furthest})
    bias, values = kind(3), torch.randn(buckets, 3, generator=torch.Generator().manual_seed(1))
    bias.table.data = values
    distance = torch.arange(5000.0)
    assert torch.equal(
        bias.bucket(distance),
        T5Attention._relative_position_bucket(-distance.long(), False, buckets, furthest),
    )
    rows = torch.arange(300)
    ours = bias((rows[:, None] - rows).clamp(min=0)[None, None].float())
    right = peer(buckets, furthest, values).compute_bias(300, 300)
    assert torch.equal(ours, right)


def test_what_t5_learns_follows_the_model(tmp_path, tokenizer):
    """Into a checkpoint and out of it, under another mechanism, and not into weight decay."""
    model = build("Llama", vocab_size=1024)
    attach(model, "ssmax", bias="t5")
    model(tokens(1, 60)).logits.logsumexp(-1).sum().backward()
    generator = torch.Generator().manual_seed(2)
    for mechanism in mechanisms_of(model).values():
        own = mechanism.position_bias
        assert own.table.grad[:20].abs().min() > 0
        assert not own.table.any()  # at first there is no position
        own.table.data = torch.randn(own.table.shape, generator=generator)
    assert not [name for name in WeightedTrainer.get_decay_parameter_names(None, model) if "ssmax" in name]
    told = learned_of(model)["model.layers.1.self_attn"]
    assert told.keys() == {"s", "position_bias.nearest", "position_bias.furthest"}
    assert told["position_bias.furthest"] == own.table[-1].tolist()
    ids = tokens(2, 200)
    with torch.no_grad():
        logits = model(ids).logits
        cached = model(ids[:, :120], use_cache=True)
        parts = model(ids[:, 120:], past_key_values=cached.past_key_values).logits
        torch.testing.assert_close(torch.cat([cached.logits, parts], 1), logits, atol=1e-5, rtol=1e-5)
        save_model(model, tokenizer, tmp_path / "model")
        made, _ = load_model(str(tmp_path / "model"), dtype="float32", device="cpu")
        assert torch.equal(made(ids).logits, logits)
        with Setting.of("softmax-sink")(made) as effective:
            assert effective.bias == "t5"
            kept = [mechanism.position_bias.table for mechanism in mechanisms_of(made).values()]
        assert all(
            torch.equal(m.position_bias.table, t) for m, t in zip(mechanisms_of(model).values(), kept, strict=True)
        )
        assert torch.equal(made(ids).logits, logits)
        attach(made, "entmax-1.5")
        assert torch.equal(mechanisms_of(made)["model.layers.1.self_attn"].position_bias.table, own.table)
        detach(made)
        assert not mechanisms_of(made)


def test_a_position_that_has_to_be_trained_says_so(caplog):
    with Setting.of(position="t5")(build("Llama")):
        assert "note: position t5: it is made to be trained from scratch" in caplog.text
    caplog.clear()
    with Setting.of(position="alibi")(build("Llama")):
        assert not caplog.text


@pytest.mark.parametrize("name", ["rope", "learned", "nope", "p-rope", "t5"])
def test_a_positions_name_is_its_own(name):
    with pytest.raises(UserError, match="is none, or taken"):
        register_bias(type("Mine", (T5,), {"name": name, "__module__": "mine"}))

"""The attention function against transformers' own eager and sdpa, and against a float64 reference written here."""

import math

import pytest
import torch
from tiny import ARCHITECTURES, build, tokens
from transformers import AttentionInterface, DynamicCache, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import ssmax_eval
from ssmax_eval.errors import UserError
from ssmax_eval.mechanisms import interface
from ssmax_eval.mechanisms.attach import attach
from ssmax_eval.mechanisms.layers import attention_modules
from ssmax_eval.mechanisms.mechanism import Layer
from ssmax_eval.setting import Setting

L = 256


def randomise(model, seed=1):
    """Give every layer and head its own s and b, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for module in attention_modules(model).values():
        if hasattr(module, "ssmax"):
            for parameter in module.ssmax.parameters():
                parameter.data = torch.rand(parameter.shape, generator=generator) * 0.6 + 0.1


def reference_logits(model, scale_of, ids, **kwargs):
    """Run the model with float64 attention, scale_of(module) -> (n -> per-head scales) on its unwindowed layers."""
    modules = attention_modules(model)
    for module in modules.values():
        if hasattr(module, "ssmax"):
            module.reference_scale = scale_of(module.ssmax)
            module.ssmax.active = False  # the reference applies it; left on, the model refuses to run without it
    implementation = model.config._attn_implementation
    model.set_attn_implementation("float64_reference")
    try:
        return model(ids, **kwargs).logits
    finally:
        model.set_attn_implementation(implementation)
        for module in modules.values():
            if vars(module).pop("reference_scale", None):
                module.ssmax.active = True


def ssmax_scale(law):
    return lambda n: [s * math.log(n) if n else 0.0 for s in law.s.tolist()]


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_softmax_is_sdpa_bit_for_bit_and_eager_to_1e5(name):
    model, ids = build(name), tokens()
    model.set_attn_implementation("sdpa")
    sdpa = model(ids).logits
    with Setting.of("softmax")(model):
        ours = model(ids).logits
    model.set_attn_implementation("eager")
    assert torch.equal(ours, sdpa)
    torch.testing.assert_close(ours, model(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ssmax_equals_float64_reference(name):
    model, ids = build(name), tokens()
    plain = model(ids).logits
    with Setting.of("ssmax")(model):
        randomise(model)
        ours = model(ids).logits
        expected = reference_logits(model, ssmax_scale, ids)
    assert (ours - plain).abs().max() > 1e-3
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ssmax_in_bfloat16_within_2e2_of_the_reference(name):
    # smaller weights: what is tested is the law's rounding, not that of 2 layers of large random matrices
    model, ids = build(name, initializer_range=0.05).bfloat16(), tokens()
    with Setting.of("ssmax")(model):
        randomise(model)
        ours = model(ids).logits
        expected = reference_logits(model, ssmax_scale, ids)
    assert (ours - expected).float().abs().max() <= 2e-2 * expected.float().abs().max().clamp(min=1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_trap_2_cached_decode_equals_full_forward(name):
    model, ids = build(name), tokens()
    with Setting.of("ssmax")(model):
        randomise(model)
        full = model(ids, use_cache=False).logits
        cache = DynamicCache(config=model.config)
        pieces = [
            model(ids[:, a:b], past_key_values=cache).logits
            for a, b in ((0, 17), (17, 30), *((i, i + 1) for i in range(30, 40)))
        ]
    torch.testing.assert_close(torch.cat(pieces, 1), full, atol=2e-5, rtol=1e-4)


def test_trap_1_chunked_prefill_equals_one_shot():
    model, ids = build("Llama"), tokens(1, 120)
    with Setting.of("ssmax:s=0.8")(model):
        full = model(ids, use_cache=False).logits
        cache = DynamicCache(config=model.config)
        chunks = torch.cat([model(part, past_key_values=cache).logits for part in ids.split(50, 1)], 1)
    torch.testing.assert_close(chunks, full, atol=2e-5, rtol=1e-4)


def test_static_cache_equals_full_forward():
    model, ids = build("Llama"), tokens(1, 40)
    with Setting.of("ssmax:s=0.8")(model):
        full = model(ids, use_cache=False).logits
        cache = StaticCache(config=model.config, max_cache_len=64)
        parts = [model(part, past_key_values=cache).logits for part in (ids[:, :30], *ids[:, 30:].split(1, 1))]
    torch.testing.assert_close(torch.cat(parts, 1), full, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["Llama", "GPT2", "OPT", "Gemma3Text", "GPTNeoX"])
def test_left_padding_does_not_count_as_visible(name):
    model, ids = build(name), tokens(1, 24)
    padded = torch.cat([torch.zeros(1, 9, dtype=torch.long), ids], 1)
    mask = (torch.arange(33) >= 9).long()[None]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with Setting.of("ssmax:s=0.8")(model):
        alone = model(ids).logits
        together = model(padded, attention_mask=mask, position_ids=positions).logits[:, 9:]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_packed_documents_restart_n():
    model = build("Llama")
    one, two = tokens(1, 15, 1), tokens(1, 22, 2)
    positions = torch.cat([torch.arange(15), torch.arange(22)])[None]
    with Setting.of("ssmax:s=0.8")(model):
        packed = model(torch.cat([one, two], 1), position_ids=positions, use_cache=False).logits
        apart = torch.cat([model(one).logits, model(two).logits], 1)
    torch.testing.assert_close(packed, apart, atol=1e-5, rtol=1e-4)


def test_trap_3_left_padding_needs_the_mask_function(monkeypatch):
    """A same-named mask function is registered: without it, left-padded logits would be those of no mask."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    assert interface.IMPLEMENTATION in ALL_MASK_ATTENTION_FUNCTIONS
    model, ids = build("Llama"), tokens(1, 24)
    mask = (torch.arange(24) >= 5).long()[None]
    with Setting.of("softmax")(model):
        ours = model(ids, attention_mask=mask).logits[:, 5:]
    model.set_attn_implementation("eager")
    torch.testing.assert_close(ours, model(ids, attention_mask=mask).logits[:, 5:], atol=1e-5, rtol=1e-4)


def test_trap_4_name_and_delegate():
    assert "flash" not in interface.IMPLEMENTATION
    assert interface.sdpa_attention_forward is sdpa_attention_forward
    assert AttentionInterface()[interface.IMPLEMENTATION] is interface.attention_forward


def test_trap_5_query_keeps_its_dtype_and_is_rounded_once(monkeypatch):
    seen = {}

    def spy(module, query, *args, **kwargs):
        seen["query"] = query
        return sdpa_attention_forward(module, query, *args, **kwargs)

    model = build("Llama").bfloat16()
    attach(model, "ssmax:s=0.173")
    monkeypatch.setattr(interface, "sdpa_attention_forward", spy)
    module = attention_modules(model)["model.layers.0.self_attn"]
    module.ssmax.s.data = module.ssmax.s.data.float()
    q = torch.randn(1, 4, 30, 8).bfloat16()
    kv = torch.randn(1, 2, 30, 8).bfloat16()
    interface.attention_forward(module, q, kv, kv, None, scaling=1.0)
    n = torch.arange(1, 31, dtype=torch.float64)
    exact = q.double() * (torch.tensor(0.173).double() * n.log())[:, None]
    assert seen["query"].dtype == torch.bfloat16
    assert (seen["query"].double() - exact).abs().max() <= (exact.abs() * 2**-8).max()
    assert torch.equal(seen["query"], exact.float().bfloat16())


def test_trap_5_scale_comes_after_qk_norm():
    """Qwen3 normalises q; a scale in front of the norm would vanish, so s must change the logits."""
    model, ids = build("Qwen3"), tokens()
    with Setting.of("ssmax:s=0.1")(model):
        low = model(ids).logits
    with Setting.of("ssmax:s=0.9")(model):
        high = model(ids).logits
    assert (low - high).abs().max() > 1e-2


def test_trap_6_windowed_layers_stay_unscaled_and_are_reported():
    model = build("Gemma3Text")
    with Setting.of("ssmax")(model) as effective:
        assert effective.attached.scaled_layers == ["model.layers.1.self_attn"]
        assert effective.attached.unscaled_layers == ["model.layers.0.self_attn"]
    with pytest.raises(UserError, match="windowed"):
        attach(build("Mistral", sliding_window=16), "ssmax")


def test_trap_7_the_distribution_changes_with_n():
    """The maximum of softmax falls with n, that of SSMax does not (Figure 1); subtracting s ln n would do nothing."""
    law = ssmax_eval.mechanisms.scales.SSMax(Layer(1, L), s=0.43)
    for n, softmax, ssmax in (
        (10, 0.9428, 0.9401),
        (100, 0.5999, 0.9951),
        (1000, 0.1293, 0.9996),
        (10000, 0.0146, 1.0),
    ):
        z = torch.full((n,), -2.0)
        z[-1] = 3.0
        scale = law(torch.tensor([[[float(n)]]])).item()
        assert z.softmax(0)[-1].item() == pytest.approx(softmax, abs=1e-4)
        assert (scale * z).softmax(0)[-1].item() == pytest.approx(ssmax, abs=1e-4)


def test_trap_2_models_off_the_interface_are_refused():
    for name, changes in (
        ("GPTJ", {"n_positions": 64, "rotary_dim": 4}),
        ("Bloom", {}),
        ("Mpt", {}),
        ("Falcon", {}),
    ):
        config = getattr(ssmax_eval_transformers(), f"{name}Config")(
            vocab_size=64,
            hidden_size=32,
            n_embd=32,
            d_model=32,
            n_layer=1,
            n_head=4,
            num_hidden_layers=1,
            num_attention_heads=4,
            **changes,
        )
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(config)
        with pytest.raises(UserError, match="does not use transformers' attention interface"):
            attach(model, "ssmax")


def ssmax_eval_transformers():
    import transformers

    return transformers


def test_models_that_sdpa_cannot_run_are_refused():
    model = build("Gemma2", head_dim=8, layer_types=["full_attention"] * 2)
    with pytest.raises(UserError, match="soft-capping"):
        attach(model, "ssmax")


def test_a_mechanism_restores_everything():
    model, ids = build("Llama"), tokens()
    model.set_attn_implementation("eager")
    before, config = model(ids).logits, model.config.to_dict()
    with pytest.raises(RuntimeError, match="inside"), Setting.of("ssmax-bias")(model):
        raise RuntimeError("inside")
    assert model.config._attn_implementation == "eager"
    assert model.config.to_dict() == config
    assert not [name for name, _ in model.named_parameters() if "ssmax" in name]
    assert torch.equal(model(ids).logits, before)


def test_a_mechanism_gives_trained_values_back():
    model, ids = build("Llama"), tokens()
    attach(model, "ssmax")
    randomise(model)
    before = model(ids).logits
    with Setting.of("softmax")(model):
        assert not torch.equal(model(ids).logits, before)
    with Setting.of("ssmax")(model):  # the same name is a fresh law here, at its initial s
        assert not torch.equal(model(ids).logits, before)
    assert torch.equal(model(ids).logits, before)
    assert model.config.ssmax["attention"] == "ssmax"


def test_learned_values_are_parameters_of_the_model():
    model = build("Llama")
    attach(model, "ssmax-bias:s=0.3,b=0.5")
    names = [name for name, _ in model.named_parameters() if "ssmax" in name]
    assert names == [f"model.layers.{i}.self_attn.ssmax.{p}" for i in (0, 1) for p in ("s", "b")]
    model(tokens())
    with torch.enable_grad():
        model(tokens()).logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for name, p in model.named_parameters() if "ssmax" in name)


def test_learned_p_shares_one_table_and_starts_as_softmax():
    model, ids = build("Llama"), tokens(1, 40)
    plain = model(ids).logits
    with Setting.of("learned-p:train_length=16")(model):
        modules = list(attention_modules(model).values())
        assert modules[1].ssmax.p is modules[0].ssmax.p
        assert [name for name, _ in model.named_parameters() if name.endswith("ssmax.p")] == [
            "model.layers.0.self_attn.ssmax.p"
        ]
        torch.testing.assert_close(model(ids).logits, plain, atol=1e-5, rtol=1e-4)
        # beyond the table it continues as a1 ln n + a2
        modules[0].ssmax.p.data = 0.3 * torch.arange(1, 17).float().log() + 0.7
        beyond = modules[0].ssmax(torch.tensor([[[8.0, 40.0]]]))[0, 0]
    torch.testing.assert_close(beyond, 0.3 * torch.tensor([8.0, 40.0]).log() + 0.7)


def test_a_multimodal_models_vision_tower_is_left_alone():
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = dict(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    vision = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, image_size=28, patch_size=14
    )
    config = Gemma3Config(text_config=text, vision_config=vision)
    model = Gemma3ForConditionalGeneration(config).eval()
    attached = attach(model, "ssmax")
    assert attached.scaled_layers == ["model.language_model.layers.1.self_attn"]
    assert attached.unscaled_layers == ["model.language_model.layers.0.self_attn"]


def test_a_refused_swap_leaves_the_old_mechanism_in_place():
    model = build("Llama")
    attach(model, "ssmax:s=0.3")
    with pytest.raises(UserError):
        attach(model, "yarn-factor:factor=-1")
    assert model.config.ssmax["attention"] == "ssmax:s=0.3"
    assert attention_modules(model)["model.layers.0.self_attn"].ssmax.s[0] == pytest.approx(0.3)


def test_a_train_length_given_for_one_mechanism_is_not_the_models():
    model = build("Llama")
    attach(model, "ssmax:train_length=64")
    assert model.config.ssmax == {"attention": "ssmax:train_length=64", "train_length": 256}
    with Setting.of("log-n")(model) as effective:
        assert effective.attached.train_length == 256

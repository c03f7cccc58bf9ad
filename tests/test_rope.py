"""RoPE settings against models that transformers builds with the same setting."""

import copy
import importlib
import inspect
import math

import pytest
import torch
from architectures import build_small
from tiny import build, tokens
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ssmax_eval.errors import UserError
from ssmax_eval.position.rope import RopeSetting, rope_scaled
from ssmax_eval.position.rotary import effective_theta, unturned
from ssmax_eval.setting import Setting

ROTARY = [
    "Llama",
    "Qwen2",
    "Qwen3",
    "Mistral",
    "GPTNeoX",
    "Olmo2",
    "Phi3",
    "Granite",
    "Starcoder2",
    "DeepseekV3",
    "Qwen3Moe",
]


def rebuilt(model, **changes):
    """Return a model that transformers builds from a config with changed rope_parameters, weights copied over."""
    config = copy.deepcopy(model.config)
    config.rope_parameters = {**config.rope_parameters, **changes}
    new = type(model)(config).eval()
    new.load_state_dict(model.state_dict())
    return new


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


SETTINGS = {
    "factor": ({"theta_factor": 50}, {"rope_theta": 500_000.0}),
    "theta": ({"theta": 123_456.0}, {"rope_theta": 123_456.0}),
    "linear": ({"scaling": "linear:4"}, {"rope_type": "linear", "factor": 4.0}),
    "dynamic": ({"scaling": "dynamic:4"}, {"rope_type": "dynamic", "factor": 4.0}),
    "yarn": ({"scaling": "yarn:4"}, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}),
    "ntk-by-parts": (
        {"scaling": "ntk-by-parts:4"},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256, "attention_factor": 1.0},
    ),
    "both": (
        {"scaling": "linear:2", "theta_factor": 10},
        {"rope_type": "linear", "factor": 2.0, "rope_theta": 100_000.0},
    ),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ROTARY)
def test_trap_9_equal_bit_for_bit_to_a_model_built_with_the_setting(name, setting):
    request, parameters = SETTINGS[setting]
    model, ids = build(name), tokens(1, 300)
    native = model(ids).logits
    theirs = rebuilt(model, **parameters)(ids).logits
    with rope_scaled(model, **request):
        ours = model(ids).logits
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, native)
    assert torch.equal(model(ids).logits, native)


def test_static_ntk_divides_the_slowest_frequency_by_the_factor():
    model = build("Llama", head_dim=16)
    slowest = model.model.rotary_emb.inv_freq[-1].item()
    fastest = model.model.rotary_emb.inv_freq[0].item()
    with rope_scaled(model, scaling="ntk:8") as record:
        scaled = model.model.rotary_emb.inv_freq
        assert scaled[-1].item() == pytest.approx(slowest / 8, rel=1e-5)
        assert scaled[0].item() == fastest
    assert record.effective_theta == pytest.approx(10_000 * 8 ** (16 / 14), rel=1e-5)


def test_trap_9_record_names_requested_and_effective_theta():
    model = build("Llama")
    with rope_scaled(model) as native:
        assert (native.requested, native.rope_theta) == ("as trained", 10_000)
    with rope_scaled(model, theta_factor=50) as record:
        assert record.requested == "theta x50"
        assert record.rope_theta == 500_000
        assert record.effective_theta == pytest.approx(500_000, rel=1e-5)
        assert record.inv_freq_sha256 != native.inv_freq_sha256
    with rope_scaled(model, scaling="linear:4") as record:
        assert record.effective_theta == pytest.approx(10_000, rel=1e-5)  # linear changes positions, not theta


def test_trap_9_a_setting_without_effect_is_an_error():
    model = build("Llama")
    before = model.model.rotary_emb
    for request in ({"theta": 10_000.0}, {"scaling": "dynamic:4", "longest": 200}):
        with pytest.raises(UserError, match="no effect"), rope_scaled(model, **request):
            pass
        assert model.model.rotary_emb is before
    # proportional RoPE that rotates nothing is NoPE: theta is in the config but does nothing
    nope = rebuilt(model, rope_type="proportional", partial_rotary_factor=0.0)
    with pytest.raises(UserError, match="no effect"), rope_scaled(nope, theta_factor=50):
        pass


def test_trap_9_setting_config_alone_does_nothing():
    """Why rotary modules are rebuilt: transformers reads the config only when it builds them."""
    model, ids = build("Llama"), tokens()
    before = model(ids).logits
    model.config.rope_parameters["rope_theta"] = 500_000.0
    assert torch.equal(model(ids).logits, before)


def test_trap_10_dynamic_does_not_remember_a_longer_prompt():
    model = build("Llama")
    short, long = tokens(1, 300, 1), tokens(1, 700, 2)
    with rope_scaled(model, scaling="dynamic:4"):
        first = model(short).logits
        model(long)
        again = model(short).logits
    assert torch.equal(first, again)


def test_trap_10_transformers_dynamic_does_remember():
    """The fault that restart_dynamic mends is there: without it the same prompt gives other logits."""
    model = rebuilt(build("Llama"), rope_type="dynamic", factor=4.0)
    short, long = tokens(1, 300, 1), tokens(1, 700, 2)
    first = model(short).logits
    model(long)
    assert (model(short).logits - first).abs().max() > 1e-3
    with rope_scaled(model):  # a model that is dynamic by itself is restarted too
        native = model(short).logits
        model(long)
        assert torch.equal(model(short).logits, native)


@pytest.mark.parametrize("name", ["GPT2", "OPT"])
def test_models_without_rope_refuse_by_name(name):
    model = build(name)
    with rope_scaled(model) as record:
        assert record is None
    with pytest.raises(UserError, match=f"{type(model).__name__} has no rotary"), rope_scaled(model, theta_factor=2):
        pass


def test_windowed_models_change_their_full_attention_layers_only():
    model = build("Gemma3Text")
    rotary = model.model.rotary_emb
    with rope_scaled(model, theta_factor=10) as record:
        new = model.model.rotary_emb
        assert torch.equal(new.sliding_attention_inv_freq, rotary.sliding_attention_inv_freq)
        assert not torch.equal(new.full_attention_inv_freq, rotary.full_attention_inv_freq)
    assert record.rope_theta == 10_000_000


@pytest.mark.parametrize(
    ("name", "kind"),
    [("modernbert-decoder", "full_attention"), ("deepseek_v4(wide)", "compress"), ("deepseek_v4(windows)", "compress")],
)
def test_the_layers_without_a_window_are_changed_whatever_their_frequencies_are_called(name, kind):
    """ModernBERT's decoder calls its head get_decoder; DeepSeek V4 names its frequencies otherwise than its layers."""
    model, ids = build_small(name), tokens(1, 96)
    native = model(ids).logits
    own = model.config.rope_parameters[kind]
    theirs = rebuilt(model, **{kind: {**own, "rope_theta": 4 * own["rope_theta"]}})(ids).logits
    with rope_scaled(model, theta_factor=4, longest=96):
        ours = model(ids).logits
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, native)
    assert torch.equal(model(ids).logits, native)


@pytest.mark.parametrize("name", ["llama", "modernbert-decoder", "phimoe", "phimoe(longrope)", "deepseek_v32"])
def test_nope_leaves_no_rotation(name, monkeypatch):
    """Also of a model that computes its frequencies anew in each forward (PhiMoE); the reference rotates nothing by itself."""
    model, ids = build_small(name), tokens(1, 96)
    with Setting.of(position="nope")(model, 96):
        ours = model(ids).logits
    native = model(ids).logits
    code = importlib.import_module(type(model).__module__)
    for function in [each for each in vars(code) if each.startswith("apply_rotary")]:
        pairs = "k" in inspect.signature(getattr(code, function)).parameters
        monkeypatch.setattr(code, function, (lambda q, k, *_, **__: (q, k)) if pairs else (lambda x, *_, **__: x))
    right = model(ids).logits
    assert (ours - right).abs().max() < 2e-3 < (native - right).abs().max()


@pytest.mark.parametrize("asked", [{"rope_theta_factor": 10}, {"rope_scaling": "yarn:4"}, {"position": "nope"}])
def test_rotations_that_nothing_is_turned_by_are_no_rope(asked):
    model = build_small("falcon(alibi)")
    with pytest.raises(UserError, match="turns nothing by them"), Setting.of(**asked)(model, 96):
        pass


def test_what_a_model_gives_its_rotary_module_beside_the_config_stays():
    """As Molmo2 does for layers that its scaling leaves out."""

    class Partly(LlamaRotaryEmbedding):
        def __init__(self, config, scaled=True):
            config = copy.deepcopy(config)
            if not scaled:
                config.rope_parameters = {"rope_type": "default", "rope_theta": config.rope_parameters["rope_theta"]}
            super().__init__(config)

    class Model(LlamaForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            self.model.rotary_emb = Partly(config, scaled=False)

    model, ids = Model(build("Llama").config).eval(), tokens()
    with rope_scaled(model, theta_factor=4):
        ours = model(ids).logits
    assert torch.equal(ours, rebuilt(model, rope_theta=40_000.0)(ids).logits)
    with pytest.raises(UserError, match="no effect"), rope_scaled(model, scaling="linear:4"):
        pass


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("granite_swa", {"theta_factor": 4}),
        ("granitemoe_swa", {"theta": 5.0}),
        ("recurrent_gemma", {"scaling": "linear:4"}),
        ("phimoe", {"scaling": "yarn:4"}),
        ("mimo_v2_flash", {"scaling": "yarn:4"}),
    ],
)
def test_what_a_models_own_code_does_not_run_with_is_one_line(name, asked):
    model, ids = build_small(name), tokens()
    native = model(ids).logits
    with pytest.raises(UserError, match=r"^rope .*does not run with it \(") as raised, rope_scaled(model, **asked):
        pass
    assert "\n" not in str(raised.value)
    assert torch.equal(model(ids).logits, native)


def test_frequencies_that_were_set_by_hand_are_not_lost():
    """A setting is made of the config's: interpolation by hand, as some wrote it, would be gone under it."""
    model = build("Llama")
    with torch.no_grad():
        model.model.rotary_emb.inv_freq.div_(8)
    own = model(tokens()).logits
    with Setting.of(None)(model):
        assert torch.equal(model(tokens()).logits, own)
    for asked in ({"theta_factor": 4}, {"scaling": "yarn:4"}):
        with pytest.raises(UserError, match="other frequencies than its config gives"), rope_scaled(model, **asked):
            pass


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_frequencies_that_were_rounded_are_the_configs(dtype):
    parameters = {"rope_type": "default", "rope_theta": 1e7}
    model = build("Llama", hidden_size=256, num_attention_heads=2, head_dim=128, rope_parameters=parameters).to(dtype)
    assert model.model.rotary_emb.inv_freq.dtype == dtype
    with rope_scaled(model, theta_factor=4):
        pass


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_frequencies_that_a_long_forward_moved_are_the_configs(kind):
    factors = {"long_factor": [4.0] * 4, "short_factor": [1.0] * 4, "original_max_position_embeddings": 32}
    parameters = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **(factors if kind == "longrope" else {})}
    model = build("Llama", max_position_embeddings=32, rope_parameters=parameters)
    before = model.model.rotary_emb.inv_freq.clone()
    model(tokens(length=100))
    assert not torch.equal(model.model.rotary_emb.inv_freq, before)
    with rope_scaled(model, theta_factor=4) as record:
        assert record.rope_theta == 40000


def test_p_rope_keeps_its_unrotated_half():
    model = rebuilt(build("Llama", head_dim=16), rope_type="proportional", partial_rotary_factor=0.5)
    with rope_scaled(model, theta_factor=50) as record:
        assert (model.model.rotary_emb.inv_freq[4:] == 0).all()
        assert record.effective_theta == pytest.approx(500_000, rel=1e-4)
    with rope_scaled(model, scaling="linear:4"):
        assert (model.model.rotary_emb.inv_freq[4:] == 0).all()
    with pytest.raises(UserError, match="already uses RoPE scaling proportional"), rope_scaled(model, scaling="yarn:4"):
        pass


def test_effective_theta_of_known_frequencies():
    frequencies = 1 / 777.0 ** (torch.arange(0, 32, 2) / 32)
    assert effective_theta(frequencies) == pytest.approx(777, rel=1e-4)
    assert math.isnan(effective_theta(torch.zeros(4)))


@pytest.mark.parametrize(
    "request_",
    [
        {"theta_factor": -1.0},
        {"theta_factor": 0.0},
        {"theta_factor": math.nan},
        {"theta": -1.0},
        {"theta": math.inf},
        {"theta": 5.0, "theta_factor": 2.0},
        {"scaling": "yarn"},
        {"scaling": "yarn:1"},
        {"scaling": "yarn:x"},
        {"scaling": "spiral:4"},
    ],
)
def test_wrong_settings(request_):
    with pytest.raises(UserError):
        RopeSetting(**request_)


def test_restores_after_an_error():
    model = build("Llama")
    before = model.model.rotary_emb
    with pytest.raises(RuntimeError), rope_scaled(model, theta_factor=3):
        raise RuntimeError
    assert model.model.rotary_emb is before


class OfAWidthAndABase(torch.nn.Module):
    """A rotary module as checkpoints' own code has it from before transformers made them from a config."""

    def __init__(self, width, base):
        super().__init__()
        self.register_buffer("inv_freq", 1 / base ** (torch.arange(0, width, 2).float() / width), persistent=False)

    def forward(self, x, position_ids):
        angles = (position_ids[..., None].float() * self.inv_freq).repeat(1, 1, 2)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


class OfTables(OfAWidthAndABase):
    """It gives its tables for a length, as the first code of Llama did, and takes no positions."""

    def forward(self, x, *, seq_len):
        return super().forward(x, torch.arange(seq_len)[None])


def without_a_config(kind=OfAWidthAndABase):
    model = build("Llama")
    model.model.rotary_emb = kind(8, model.config.rope_parameters["rope_theta"])
    return model


@pytest.mark.parametrize("kind", [OfAWidthAndABase, OfTables])
def test_a_rotary_module_without_a_config_is_recorded_by_its_frequencies(kind):
    with rope_scaled(without_a_config(kind), longest=512) as found, rope_scaled(build("Llama")) as of_transformers:
        assert found.rope_type == "unknown"
        assert found.rope_theta == pytest.approx(10_000)
        assert found.inv_freq_sha256 == of_transformers.inv_freq_sha256


@pytest.mark.parametrize("left", [[0.0] * 4, [1.0, 0.0, 0.0, 0.5], [2.0, -3.0, 1.0, 1.0], [1.0, -1.0, -1.0, 1.0]])
def test_frequencies_that_are_what_the_memory_held_tell_no_theta(left):
    """transformers leaves a buffer so that code of others computes; that code may make its own in each forward."""
    model = without_a_config()
    model.model.rotary_emb.inv_freq = torch.tensor(left)
    with rope_scaled(model, longest=512) as found:
        assert (found.rope_type, found.rope_theta) == ("unknown", None)


@pytest.mark.parametrize("asked", [{"rope_theta_factor": 4}, {"rope_theta": 1e5}, {"rope_scaling": "yarn:4"}])
def test_a_rotary_module_without_a_config_is_not_changed(asked):
    refusal = "rope .*: OfAWidthAndABase of LlamaForCausalLM is not made from a config, so it cannot be made anew"
    with pytest.raises(UserError, match=refusal), Setting.of(**asked)(without_a_config(), longest=200):
        pass


def test_a_rotary_module_without_a_config_is_taken_off():
    model, ids = without_a_config(), tokens()
    trained = model(ids).logits
    assert torch.equal(trained, build("Llama")(ids).logits)
    with Setting.of(position="nope")(model):
        torch.testing.assert_close(model(ids).logits, build("Llama")(ids, position_ids=torch.zeros_like(ids)).logits)
    assert torch.equal(model(ids).logits, trained)


def test_queries_and_keys_that_a_module_turned_are_no_cosines():
    """ESM's rotary module of before gave them: ones and zeros in their place would be another model."""
    turned = torch.randn(1, 4, 9, 8), torch.randn(1, 4, 9, 8)
    assert unturned(None, torch.nn.Identity(), (), {}, turned) is turned
    cos, sin = unturned(
        None, torch.nn.Identity(), (), {}, OfAWidthAndABase(8, 1e4)(torch.ones(1), torch.arange(9)[None])
    )
    assert cos.unique().tolist() == [1.0]
    assert sin.unique().tolist() == [0.0]

"""A setting: one spelling, one way to put it on and take it off, one record; ALiBi and no position in RoPE's place."""

import subprocess
import sys

import pytest
import references
import torch
from tiny import build, tokens
from transformers import LlamaConfig, LlamaForCausalLM

import ssmax_eval.api as api
from ssmax_eval import Setting, UserError, load_model, retrofit, save_model
from ssmax_eval.mechanisms.attach import attach, mechanisms_of
from ssmax_eval.mechanisms.layers import attention_modules
from ssmax_eval.models.subjects import subjects
from ssmax_eval.plans import as_it_is
from ssmax_eval.position.bias import slopes
from ssmax_eval.position.rotary import rotary_modules
from ssmax_eval.results import find_runs
from ssmax_eval.setting import settings_of

SETTINGS = {
    "as trained": {},
    "ssmax": {"attention": "ssmax"},
    "ssmax, theta x8": {"attention": "ssmax", "rope_theta_factor": 8},
    "entmax-1.5, alibi": {"attention": "entmax-1.5", "position": "alibi"},
    "alibi": {"position": "alibi"},
    "nope": {"position": "nope"},
    "softmax1, yarn:4": {"attention": "softmax1", "rope_scaling": "yarn:4"},
    "differential": {"attention": "differential"},
}
OWN = {"softmax": None, "ssmax": ("ssmax", None), "ssmax with alibi": ("ssmax", "alibi")}


def state(model):
    """Return all of a model that a setting may change."""
    modules = {name: type(module) for name, module in model.named_modules()}
    hooks = {name: len(module._forward_pre_hooks) for name, module in model.named_modules()}
    tensors = {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    return modules, hooks, tensors, model.config.to_dict(), model.config._attn_implementation, vars(model).keys()


def inside(found, logits, spelling):
    """Check what a setting gives, and raise."""
    assert torch.isfinite(found).all()
    assert spelling == "as trained" or not torch.equal(found, logits)
    raise RuntimeError("inside")


@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("spelling", SETTINGS)
def test_everything_comes_back(spelling, own):
    """Also where the block raises: modules, hooks, tensors, config, attention implementation, logits."""
    model, ids = build("Llama"), tokens()
    if OWN[own] is not None:
        attention, bias = OWN[own]
        attach(model, attention, bias=bias)
        for mechanism in mechanisms_of(model).values():
            mechanism.s.data += 0.1
    setting = Setting.of(**SETTINGS[spelling])
    assert str(setting) == spelling
    with torch.no_grad():
        before, logits = state(model), model(ids).logits
        with pytest.raises(RuntimeError, match="inside"), setting(model, 40):
            inside(model(ids).logits, logits, spelling)
        after = state(model)
        for one, other in zip(before[2].items(), after[2].items(), strict=True):
            assert one[0] == other[0]
            assert torch.equal(one[1], other[1])
        assert before[:2] + before[3:] == after[:2] + after[3:]
        assert torch.equal(model(ids).logits, logits)


def test_one_spelling():
    same = [
        Setting.of("ssmax-bias:s=0.20,b=1", rope_theta_factor=4),
        Setting.of("ssmax-bias:b=1.0,s=.2", rope_theta_factor=4.0),
    ]
    assert same[0] == same[1]
    assert len({*same}) == 1
    assert str(same[0]) == "ssmax-bias:b=1,s=0.2, theta x4"
    grid = settings_of(["softmax", "ssmax", "softmax"], None, [1, 10, 1])
    assert [str(each) for each in grid] == ["softmax", "softmax, theta x10", "ssmax", "ssmax, theta x10"]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"position": "sines"}, "position 'sines': allowed are nope, alibi"),
        ({"position": "alibi", "rope_theta_factor": 2}, "position alibi and rope theta x2 are both given"),
        ({"attention": "nothing"}, "unknown attention mechanism 'nothing'"),
        ({"rope_theta": 5.0, "rope_theta_factor": 2}, "give one of them"),
    ],
)
def test_what_makes_no_sense_is_one_line(asked, says):
    with pytest.raises(UserError, match=says) as error:
        Setting.of(**asked)
    assert "\n" not in str(error.value)


STILL = {"rope_type": "proportional", "partial_rotary_factor": 0.0, "rope_theta": 10_000.0}


@pytest.mark.parametrize(
    ("model", "own", "asked", "says"),
    [
        ("GPT2", None, "nope", "GPT2LMHeadModel has positions of its own, which stay on"),
        ("GPT2", None, "alibi", "GPT2LMHeadModel has positions of its own, which stay on"),
        ("Llama", None, "nope", "the model has no RoPE to be taken off"),
        ("Llama", "alibi", "alibi", "it is the model's own"),
    ],
)
def test_a_position_without_effect_is_an_error(model, own, asked, says):
    """So is one beside which another stays on."""
    model = build(model, **({"rope_parameters": STILL} if model == "Llama" else {}))
    if own is not None:
        attach(model, "ssmax", bias=own)
    with pytest.raises(UserError, match=says), Setting.of(position=asked)(model):
        pass


def test_what_swaps_a_mechanism_keeps_the_models_bias(tokenizer, tmp_path):
    """load_model, retrofit and attach, as a setting does: without it a model of no rotation would have no position at all."""
    model = build("Llama", vocab_size=1024, rope_parameters=STILL)
    attach(model, "softmax", bias="alibi")
    folder = save_model(model, tokenizer, tmp_path / "saved")
    swapped = [load_model(str(folder), attention="ssmax")[0]]
    swapped.append(load_model(str(retrofit(str(folder), "ssmax", tmp_path / "retrofitted")))[0])
    attach(model, "ssmax")
    for each in (model, *swapped):
        assert each.config.ssmax["position"] == "alibi"
        assert [mechanism.position_bias.name for mechanism in mechanisms_of(each).values()] == ["alibi", "alibi"]
    attach(model, "ssmax", bias=None)
    assert "position" not in model.config.ssmax


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 8, 12, 20, 32])
def test_slopes_are_alibis(heads):
    assert slopes(heads) == references.alibi_slopes(heads).tolist()


def test_nope_is_a_model_without_rotation():
    """Equal to a model of transformers whose rotary share is 0."""
    model, ids = build("Llama"), tokens()
    rope = {"rope_type": "proportional", "partial_rotary_factor": 0.0, "rope_theta": 10_000.0}
    torch.manual_seed(0)
    config = LlamaConfig(**{**model.config.to_dict(), "rope_parameters": rope})
    without = LlamaForCausalLM(config).eval()
    without.load_state_dict(model.state_dict())
    with torch.no_grad(), Setting.of(position="nope")(model):
        torch.testing.assert_close(model(ids).logits, without(ids).logits, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["Qwen3", "Gemma3Text", "GPTNeoX", "Phi3"])
def test_alibi_is_eager_attention_with_a_bias_and_no_rotation(name):
    """In windowed layers too: their rotation is off as well."""
    model, ids = build(name), tokens(2, 50)
    eager = build(name)
    eager.set_attn_implementation("eager")
    handed = []

    def add(module, args, kwargs):
        mask = kwargs.get("attention_mask")
        length = ids.shape[1]
        bias = references.alibi_bias(4, length, length).float()[None]
        if mask is None:
            mask = torch.zeros(1, 1, length, length).masked_fill(~torch.ones(length, length).tril().bool(), -1e30)
        handed.append(mask.shape)
        return args, {**kwargs, "attention_mask": mask + bias}

    for module in attention_modules(eager).values():
        module.register_forward_pre_hook(add, with_kwargs=True)
    for rotary in rotary_modules(eager).values():
        for key, buffer in rotary.named_buffers():
            if key.endswith("inv_freq"):
                buffer.zero_()
    with torch.no_grad(), Setting.of(position="alibi")(model, 50) as effective:
        torch.testing.assert_close(model(ids).logits, eager(ids).logits, atol=2e-5, rtol=1e-4)
    assert len(handed) == 2
    assert effective.rope is None
    assert effective.record(model)["rope"]["position"] == "alibi"
    assert effective.columns()["rope"] == "alibi"


def test_n_is_not_narrowed_by_a_steep_bias():
    """Slopes of 1/2 leave far keys no weight; a row still sees them, so SSMax scales with all of them."""
    model = build("Llama", max_position_embeddings=1024)
    attach(model, "ssmax", bias="alibi")
    seen = []
    for mechanism in mechanisms_of(model).values():
        mechanism.query = lambda q, each: (seen.append(each.n), q)[1]
    with torch.no_grad():
        model(tokens(1, 600))
    assert seen[0][0, 0].tolist() == list(range(1, 601))


def test_a_model_keeps_its_own_bias_under_another_mechanism():
    model, ids = build("Llama"), tokens()
    attach(model, "ssmax", bias="alibi")
    right = build("Llama")
    attach(right, "softmax1", bias="alibi")
    with torch.no_grad(), Setting.of("softmax1")(model):
        assert torch.equal(model(ids).logits, right(ids).logits)


def test_a_checkpoint_with_a_bias_opens_with_it(tokenizer, tmp_path):
    model = build("Llama", vocab_size=1024)
    attach(model, "softmax", bias="alibi")
    ids = tokens(1, 30)
    with torch.no_grad():
        before = model(ids).logits
    save_model(model, tokenizer, tmp_path)
    again, _ = load_model(str(tmp_path))
    with torch.no_grad():
        assert torch.equal(again(ids).logits, before)
    assert again.config.ssmax["position"] == "alibi"


def test_a_run_records_where_the_mechanism_is(tokenizer, tmp_path):
    """True indices in the decoder: Gemma 3's first layer has a window."""
    model = build(
        "Gemma3Text", vocab_size=1024, num_hidden_layers=3, layer_types=["sliding_attention", *["full_attention"] * 2]
    )
    options = {"context_lengths": [120], "depth_percents": [50], "trials": 1, "output_path": tmp_path}
    rows = api.needle((model, tokenizer), attention=["ssmax", "entmax-1.5"], position="alibi", **options)
    assert set(rows["rope"]) == {"alibi"}
    assert set(rows["attention"]) == {"ssmax", "entmax-1.5"}
    for run in find_runs(tmp_path):
        attention = run.record()["attention"]
        assert attention["scaled_indices"] == [1, 2]
        assert attention["unscaled_indices"] == [0]
        assert attention["reference"]
        assert attention["unscaled_layers"] == ["model.layers.0.self_attn"]
        assert run.record()["reader"] == {"reader": "transformers", "devices": ["cpu"]}


def test_attention_is_a_function_and_no_package():
    """In a fresh process: `ssmax_eval.attention` is what it says, whatever was imported before it."""
    code = "import ssmax_eval, types; from ssmax_eval import mechanisms; import ssmax_eval.mechanisms.scales; "
    code += "assert isinstance(ssmax_eval.attention, types.FunctionType)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_models_own_mechanism_by_name_is_the_model_as_trained():
    """What it learned stays; with options it is a swap."""
    learned, plain = subjects(["ssmax-bible-2m", "softmax-bible-2m"])
    own, given = Setting.of("ssmax"), Setting.of("ssmax:s=0.2")
    assert as_it_is(learned, own) == as_it_is(plain, Setting.of("softmax")) == Setting()
    assert as_it_is(learned, Setting.of("ssmax", rope_theta_factor=4)) == Setting.of(rope_theta_factor=4)
    assert as_it_is(learned, given) == given
    assert as_it_is(learned, Setting.of("softmax")) == Setting.of("softmax")
    assert as_it_is(plain, own) == own

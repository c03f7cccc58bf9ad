"""A model with a mechanism never runs without it, however its attention is chosen."""

import copy
import json
import pickle

import pytest
import torch
from test_checkpoint import saved
from tiny import build, tokens
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

from ssmax_eval.errors import UserError
from ssmax_eval.mechanisms.attach import attach, detach
from ssmax_eval.mechanisms.implementation import IMPLEMENTATION
from ssmax_eval.mechanisms.layers import attention_modules
from ssmax_eval.models.checkpoint import with_mechanism
from ssmax_eval.models.load import load_model
from ssmax_eval.setting import Setting

DROPS = "attention implementation '(eager|sdpa)': it would drop the model's mechanism"


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def by_method(model, name):
    model.set_attn_implementation(name)


def by_method_of_the_decoder(model, name):
    model.get_decoder().set_attn_implementation(name)


def by_hand(model, name):
    model.config._attn_implementation = name


def by_hand_of_the_text(model, name):
    model.config.get_text_config()._attn_implementation = name


def choose_and_run(model, way, name):
    way(model, name)
    return model(tokens())


WAYS = (by_method, by_method_of_the_decoder, by_hand, by_hand_of_the_text)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["eager", "sdpa"])
@pytest.mark.parametrize("of_our_class", [False, True])
def test_another_implementation_is_refused(way, name, of_our_class):
    model, ids = build("Llama"), tokens()
    attach(model, "ssmax:s=0.4")
    if of_our_class:
        with_mechanism(model)
    logits = model(ids).logits
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(UserError, match=DROPS) as refused:
            choose_and_run(each, way, name)
        assert "\n" not in str(refused.value)
        each.config._attn_implementation = IMPLEMENTATION
        assert torch.equal(each(ids).logits, logits)


def test_also_in_the_text_part_of_a_multimodal_model():
    text = dict(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    vision = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=28)
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision | {"patch_size": 14}))
    model.eval()
    attach(model, "ssmax")
    model(tokens().clamp(max=63))
    model.config.text_config._attn_implementation = "sdpa"
    with pytest.raises(UserError, match=DROPS):
        model(tokens().clamp(max=63))


def test_without_a_mechanism_any_implementation_runs():
    model, ids = build("Llama"), tokens()
    model.set_attn_implementation("sdpa")
    logits = model(ids).logits
    attach(model, "ssmax")
    detach(model)
    with Setting.of("ssmax-fixed")(model):
        pass
    assert not any(module._forward_pre_hooks for module in attention_modules(model).values())
    model.set_attn_implementation("sdpa")
    assert torch.equal(model(ids).logits, logits)
    # a mechanism that is off is softmax, as before a late swap
    attach(model, "ssmax")
    for module in attention_modules(model).values():
        module.ssmax.active = False
    model.set_attn_implementation("sdpa")
    assert torch.equal(model(ids).logits, logits)


def test_a_mechanism_that_comes_back_is_guarded_once():
    model = build("Llama")
    attach(model, "ssmax")
    with Setting.of("softmax")(model):
        model.config._attn_implementation = "eager"
        model(tokens())
    model.config._attn_implementation = "eager"
    with pytest.raises(UserError, match=DROPS):
        model(tokens())
    assert [len(module._forward_pre_hooks) for module in attention_modules(model).values()] == [1, 1]


def test_a_checkpoint_with_a_mechanism_is_not_opened_with_another_implementation(tmp_path, tokenizer):
    folder = tmp_path / "model"
    logits = saved(folder, tokenizer, "ssmax")
    for asked in ("eager", {"": "sdpa"}):
        with pytest.raises(UserError, match=DROPS):
            AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, attn_implementation=asked)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True, attn_implementation="eager")
    with pytest.raises(UserError, match=DROPS):
        AutoModelForCausalLM.from_config(config)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, attn_implementation=IMPLEMENTATION)
    assert torch.equal(model(tokens()).logits, logits)
    # in a config.json it is a wish of which kernel, which load_model does not follow
    asks = json.loads((folder / "config.json").read_text()) | {"attn_implementation": "flash_attention_2"}
    (folder / "config.json").write_text(json.dumps(asks))
    assert torch.equal(load_model(str(folder))[0](tokens()).logits, logits)


def test_the_guard_breaks_no_graph():
    model, ids = build("Llama"), tokens()
    attach(model, "ssmax:s=0.4")
    logits = model(ids).logits
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(ids, use_cache=False).logits, logits)


@pytest.mark.filterwarnings("ignore")  # of the compiler's own
def test_a_layer_whose_forward_is_compiled_is_heard():
    model, ids = build("Llama"), tokens()
    attach(model, "ssmax:s=0.4")
    plain = model(ids).logits
    for layer in model.model.layers:
        layer.self_attn.forward = torch.compile(layer.self_attn.forward, backend="eager")
    assert torch.equal(model(ids).logits, plain)


class Around(torch.nn.Module):
    """A module that hands over to the attention within it, as users write it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *arguments, **options):
        return self.inner.forward(*arguments, **options)


def test_what_stands_around_an_attention_module_is_none():
    model, ids = build("Llama"), tokens()
    with Setting.of("ssmax:s=0.4")(model):
        plain = model(ids).logits
    for layer in model.model.layers:
        layer.self_attn = Around(layer.self_attn)
    assert [*attention_modules(model)] == [f"model.layers.{i}.self_attn.inner" for i in range(2)]
    with Setting.of("ssmax:s=0.4")(model):
        assert torch.equal(model(ids).logits, plain)

"""The seams of transformers that the product leans on, one test each: a new release that moves one fails here, by name."""

import inspect

import pytest
import torch
from tiny import ARCHITECTURES, build, tokens
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    modeling_utils,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.auto import auto_factory

from ssmax_eval.mechanisms.layers import attention_modules
from ssmax_eval.models.load import adapter_aside
from ssmax_eval.position.rotary import rotary_modules


def test_attention_functions_and_masks_register_by_name():
    assert callable(AttentionInterface.register)
    assert callable(AttentionMaskInterface.register)
    assert callable(sdpa_mask)
    given = inspect.signature(sdpa_attention_forward).parameters
    assert list(given)[:5] == ["module", "query", "key", "value", "attention_mask"]
    assert {"scaling", "is_causal"} <= set(given)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_attention_modules_are_found_by_the_interface_they_call(name):
    model = build(name)
    modules = attention_modules(model)
    assert len(modules) == 2
    called = []

    def spy(module, *args, **kwargs):
        called.append(module)
        return sdpa_attention_forward(module, *args, **kwargs)

    AttentionInterface.register("spy", spy)
    AttentionMaskInterface.register("spy", sdpa_mask)
    model.set_attn_implementation("spy")
    with torch.no_grad():
        model(tokens())
    assert called == list(modules.values())


def test_support_flags_exist():
    assert callable(PreTrainedModel._can_set_attn_implementation)
    assert isinstance(PreTrainedModel._supports_sdpa, bool)
    assert callable(PreTrainedModel.set_attn_implementation)


def test_sliding_window_reaches_the_function():
    """What makes a mechanism on a windowed layer an error instead of a wrong n."""
    seen = []

    def spy(module, *args, **kwargs):
        seen.append(kwargs.get("sliding_window"))
        return sdpa_attention_forward(module, *args, **kwargs)

    AttentionInterface.register("spy", spy)
    AttentionMaskInterface.register("spy", sdpa_mask)
    model = build("Mistral", sliding_window=16)
    model.set_attn_implementation("spy")
    with torch.no_grad():
        model(tokens())
    assert seen == [16, 16]


def test_rotary_modules_rebuild_from_a_config():
    model = build("Llama")
    (name, rotary), *others = rotary_modules(model).items()
    assert name == "model.rotary_emb"
    assert not others
    assert {"inv_freq", "original_inv_freq"} <= dict(rotary.named_buffers()).keys()
    assert rotary.config.rope_parameters["rope_theta"] == 10_000
    assert callable(rotary.config.standardize_rope_params)
    assert torch.equal(type(rotary)(config=rotary.config).inv_freq, rotary.inv_freq)


def test_trap_12_logits_to_keep_is_the_name():
    model, ids = build("Llama"), tokens()
    with torch.no_grad():
        assert model(ids, logits_to_keep=3).logits.shape[1] == 3
        assert model(ids, num_logits_to_keep=3).logits.shape[1] == ids.shape[1]  # silently ignored


def test_loading_tells_what_is_missing(tmp_path):
    build("Llama").save_pretrained(tmp_path)
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]


def test_loading_offers_what_is_missing_and_saving_asks_modules_what_is_tied():
    """How a table that layers share is held once in a checkpoint (models/sharing.py)."""
    assert "missing_keys" in inspect.signature(PreTrainedModel.tie_weights).parameters
    assert "self.to_json_file(" in inspect.getsource(PreTrainedConfig.save_pretrained)
    model = build("Llama")
    model.model.layers[1].mlp._tied_weights_keys = {"gate_proj.weight": "gate_proj.weight"}
    model.model.layers[1].mlp.gate_proj.weight = model.model.layers[0].mlp.gate_proj.weight
    names = modeling_utils.remove_tied_weights_from_state_dict(model.state_dict(), model)
    assert [name for name in names if "gate_proj" in name] == ["model.layers.0.mlp.gate_proj.weight"]


def test_an_adapter_is_looked_for_where_loading_puts_it_aside(tmp_path):
    """The Auto class and the model each look for one beside the weights (models/load.py)."""
    pytest.importorskip("peft")
    build("Llama").save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "task_type": "CAUSAL_LM"}')
    with pytest.raises((OSError, ValueError, TypeError)):  # its weights are not there
        AutoModelForCausalLM.from_pretrained(tmp_path)
    with adapter_aside():
        for path in (tmp_path, str(tmp_path)):
            assert AutoModelForCausalLM.from_pretrained(path).config.model_type == "llama"
        assert LlamaForCausalLM.from_pretrained(tmp_path).config.model_type == "llama"
    assert auto_factory.find_adapter_config_file.__module__ == "transformers.utils.peft_utils"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_text_configs_use_the_common_names(name):
    config = build(name).config.get_text_config()
    assert config.num_attention_heads == 4
    assert config.max_position_embeddings == 256

"""What a .gguf file's metadata says is what its model does: against llama.cpp's formulas, put on a plain transformers Llama by hand."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

pytest.importorskip("gguf")
from gguf_files import HEADS, WIDTH, write_gguf

from ssmax_eval.errors import UserError
from ssmax_eval.mechanisms.train_length import train_length_of
from ssmax_eval.models.gguf import apply_metadata
from ssmax_eval.models.load import load_model
from ssmax_eval.models.sources import ModelSource
from ssmax_eval.position.rope import rope_scaled

IDS = torch.randint(3, 250, (1, 300), generator=torch.Generator().manual_seed(0))
PAIRS = WIDTH // HEADS // 2
BASE = 10_000.0 ** -(np.arange(PAIRS) / PAIRS)
LLAMA3 = {"factor": 32.0, "low": 1.0, "high": 4.0, "original": 8192}
OTHER = np.linspace(1, 3, PAIRS).astype(np.float32)


def llama3_factors() -> np.ndarray:
    """As convert_hf_to_gguf.py computes rope_freqs of Llama 3.1."""
    found = []
    for frequency in BASE:
        wavelength = 2 * math.pi / frequency
        low, high = LLAMA3["original"] / LLAMA3["low"], LLAMA3["original"] / LLAMA3["high"]
        if wavelength < high:
            found.append(1.0)
        elif wavelength > low:
            found.append(LLAMA3["factor"])
        else:
            smooth = (LLAMA3["original"] / wavelength - LLAMA3["low"]) / (LLAMA3["high"] - LLAMA3["low"])
            found.append(1 / ((1 - smooth) / LLAMA3["factor"] + smooth))
    return np.array(found, np.float32)


def yarn(factor: float, original: int, fast: float = 32.0, slow: float = 1.0) -> np.ndarray:
    """As ggml's rope_yarn mixes extrapolated and interpolated angles."""

    def corrected(turns: float) -> float:
        return 2 * PAIRS * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(10_000.0))

    low, high = max(0, math.floor(corrected(fast))), min(2 * PAIRS - 1, math.ceil(corrected(slow)))
    ramp = 1 - np.clip((np.arange(PAIRS) - low) / max(0.001, high - low), 0, 1)
    return BASE / factor * (1 - ramp) + BASE * ramp


S = "rope.scaling."
CASES = {
    "plain": ({}, {}, BASE, 1.0, 2048),
    "none": ({S + "type": "none", S + "factor": 4.0}, {}, BASE, 1.0, 2048),
    "linear": ({S + "type": "linear", S + "factor": 4.0, S + "original_context_length": 512}, {}, BASE / 4, 1.0, 512),
    "linear without its type": ({S + "factor": 4.0}, {}, BASE / 4, 1.0, 512),
    "the older spelling": ({"rope.scale_linear": 2.0}, {}, BASE / 2, 1.0, 1024),
    "yarn": (
        {S + "type": "yarn", S + "factor": 8.0, S + "original_context_length": 256},
        {}, yarn(8, 256), 1 + 0.1 * math.log(8), 256,
    ),
    "yarn with all": (
        {S + "type": "yarn", S + "factor": 4.0, S + "original_context_length": 512, S + "attn_factor": 0.9,
         S + "yarn_beta_fast": 16.0, S + "yarn_beta_slow": 2.0, S + "finetuned": True},
        {}, yarn(4, 512, 16, 2), 0.9 * (1 + 0.1 * math.log(4)), 512,
    ),
    "llama 3.1": ({}, {"rope_freqs.weight": llama3_factors()}, BASE / llama3_factors(), 1.0, 8192),
    "phi 3's": (
        {S + "original_context_length": 512, S + "attn_factor": 1.2},
        {"rope_factors_short.weight": OTHER, "rope_factors_long.weight": OTHER * 2}, BASE / OTHER, 1.2, 512,
    ),
    "other factors": ({}, {"rope_freqs.weight": OTHER}, BASE / OTHER, 1.0, 2048),
    "linear and factors": ({S + "factor": 2.0}, {"rope_freqs.weight": OTHER}, BASE / OTHER / 2, 1.0, 2048),
}  # fmt: skip


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory):
    """Return a function from frequencies and temperature to logits: what transformers makes of the file alone, rotated by hand."""
    path = write_gguf(tmp_path_factory.mktemp("plain"))
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)

    def logits(frequencies: np.ndarray, temperature: float = 1.0) -> torch.Tensor:
        model.model.rotary_emb.inv_freq = torch.tensor(frequencies, dtype=torch.float32)
        model.model.rotary_emb.attention_scaling = temperature
        with torch.no_grad():
            return model(IDS).logits

    return logits


@pytest.mark.parametrize("name", ["linear", "yarn with all", "llama 3.1", "other factors"])
def test_rope_is_that_of_the_metadata(name, tmp_path, by_hand):
    keys, tensors, frequencies, temperature, trained = CASES[name]
    model, _ = load_model(str(write_gguf(tmp_path, dict(keys), tensors)), dtype="float32")
    with torch.no_grad():
        logits = model(IDS).logits
    assert (logits - by_hand(frequencies, temperature)).abs().max() < 1e-3
    assert (logits - by_hand(BASE)).abs().max() > 0.1
    assert train_length_of(model.config) == trained
    with rope_scaled(model) as record:
        assert record.rope_type != "default"
        assert record.attention_scaling == pytest.approx(temperature)


@pytest.mark.parametrize("name", CASES)
def test_frequencies_are_those_of_the_metadata(name):
    keys, tensors, frequencies, temperature, trained = CASES[name]
    config = LlamaConfig(hidden_size=WIDTH, num_attention_heads=HEADS, max_position_embeddings=2048)
    metadata = {"general.architecture": "llama", "llama.context_length": 2048, "llama.rope.freq_base": 10_000.0}
    metadata |= {f"llama.{key}": value for key, value in keys.items()}
    read = {name: SimpleNamespace(data=values) for name, values in tensors.items()}
    apply_metadata(config, metadata, read, ModelSource("m", "m", Path("m.gguf")))
    rotary = LlamaRotaryEmbedding(config)
    torch.testing.assert_close(rotary.inv_freq, torch.tensor(frequencies, dtype=torch.float32), rtol=1e-5, atol=0)
    assert rotary.attention_scaling == pytest.approx(temperature)
    assert train_length_of(config) == trained


REFUSED = {
    "llama.rope.scaling.yarn_log_multiplier": {S + "type": "yarn", S + "factor": 4.0, S + "yarn_log_multiplier": 0.1},
    "llama.rope.scaling.alpha": {S + "alpha": 1000.0},
    "rope.scaling.type = 'dynamic'": {S + "type": "dynamic", S + "factor": 4.0},
    "rope.scaling.type = 'longrope'": {S + "type": "longrope", S + "factor": 4.0},
    "llama.attention.sliding_window = 128": {"attention.sliding_window": 128},
    "llama.attn_logit_softcapping": {"attn_logit_softcapping": 50.0},
    "llama.final_logit_softcapping": {"final_logit_softcapping": 30.0},
    "llama.expert_count = 8": {"expert_count": 8, "expert_used_count": 2},
    "llama.attention.causal = False": {"attention.causal": False},
    "llama.logit_scale": {"logit_scale": 0.5},
    "llama.attention.scale": {"attention.scale": 0.5},
    "llama.a_key_of_tomorrow": {"a_key_of_tomorrow": 1},
}


@pytest.mark.parametrize("said", REFUSED)
def test_a_key_that_nobody_applies_is_refused_by_name(said, tmp_path):
    path = write_gguf(tmp_path, dict(REFUSED[said]))
    with pytest.raises(UserError) as error:
        load_model(str(path))
    assert said.removeprefix("llama.rope.") in str(error.value) or said in str(error.value)
    assert "\n" not in str(error.value)


def test_keys_that_say_what_holds_anyway_pass(tmp_path, by_hand):
    keys = {
        "attention.key_length": 32, "attention.value_length": 32, "attention.causal": True, "expert_count": 0,
        "attention.sliding_window": 0, "tensor_data_layout": "Meta AI original pth", S + "finetuned": False,
    }  # fmt: skip
    model, _ = load_model(str(write_gguf(tmp_path, keys)), dtype="float32")
    with torch.no_grad():
        assert (model(IDS).logits - by_hand(BASE)).abs().max() < 1e-4


def test_tensors_without_a_place_are_refused(tmp_path):
    path = write_gguf(tmp_path, extra={"blk.0.attn_q.bias": np.ones(WIDTH, np.float32)})
    with pytest.raises(UserError, match=r"1 of its tensors have no place in LlamaForCausalLM, blk\.0\.attn_q\.bias"):
        load_model(str(path))


def test_an_adapter_beside_a_gguf_is_refused(tmp_path):
    path = write_gguf(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    with pytest.raises(UserError, match="an adapter lies beside it"):
        load_model(str(path))


@pytest.mark.slow
def test_smollm2_is_what_transformers_makes_of_it(smollm2):
    from transformers import GgufConfig

    from ssmax_eval.models.sources import packaged_path

    path = packaged_path("smollm2-135m")
    options = {"dtype": torch.bfloat16, "quantization_config": GgufConfig(dequantize=True)}
    plain = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **options)
    ids = torch.arange(100, 140)[None]
    with torch.no_grad():
        assert torch.equal(smollm2[0](ids).logits, plain(ids).logits)

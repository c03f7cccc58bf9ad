"""Attention masses against peers on a real pretrained model: transformers' eager maps, and transformer-lens where it is installed."""

import copy

import pytest
import torch

from ssmax_eval.mechanisms.attach import attach
from ssmax_eval.probes.needle.probe import NeedleProbe, masses_of
from ssmax_eval.readers.transformers import TransformersReader

LENGTH = 300


@pytest.fixture(scope="module")
def prompts(smollm2):
    probe = NeedleProbe(context_lengths=(LENGTH,), depth_percents=(0, 50), trials=1)
    return [probe.prompt(smollm2[1], sample) for sample in probe.plan()]


def check(model, tokenizer, prompts, maps):
    """Compare masses of both spans, and the maximum, with maps of (layer, batch, heads, rows, keys)."""
    for i, score in enumerate(masses_of(TransformersReader(model, tokenizer))(prompts)):
        prompt = prompts[i]
        row = maps[:, i, :, LENGTH - 1 - prompt.answer_length].double()
        for measure, span in (
            ("mass_answer", slice(prompt.value_start, prompt.value_end)),
            ("mass_needle", slice(prompt.needle_start, prompt.needle_end)),
        ):
            found = torch.tensor(score[measure], dtype=torch.float64)
            torch.testing.assert_close(found, row[..., span].sum(-1), atol=1e-6, rtol=2e-5)
        torch.testing.assert_close(
            torch.tensor(score["maximum"], dtype=torch.float64), row.amax(-1), atol=1e-6, rtol=2e-5
        )


@pytest.mark.slow
def test_masses_equal_eagers_on_smollm2(smollm2, prompts):
    """30 layers of 9 heads on 3 key heads, in float32."""
    model = copy.deepcopy(smollm2[0]).float()
    ids = torch.tensor([prompt.ids[:-1] for prompt in prompts])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = torch.stack(model(input_ids=ids, output_attentions=True).attentions)
    attach(model)
    check(model, smollm2[1], prompts, maps)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_masses_equal_transformer_lens_patterns_on_smollm2(smollm2, prompts, tmp_path):
    """Needs transformer-lens 4.3 beside the test extra; where it is not installed, eager's maps stand alone."""
    bridges = pytest.importorskip("transformer_lens.model_bridge")
    model, tokenizer = smollm2
    model = copy.deepcopy(model).float()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    bridge = bridges.TransformerBridge.boot_transformers(str(tmp_path), dtype=torch.float32, device="cpu")
    ids = torch.tensor([prompt.ids[:-1] for prompt in prompts])
    with torch.no_grad():
        _, cache = bridge.run_with_cache(ids, names_filter=lambda name: name.endswith("hook_pattern"))
    layers = model.config.num_hidden_layers
    maps = torch.stack([cache[f"blocks.{i}.attn.hook_pattern"] for i in range(layers)])
    check(model, tokenizer, prompts, maps)

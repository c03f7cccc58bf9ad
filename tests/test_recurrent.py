"""Recurrent and hybrid models of transformers, as they are: needle and loss run, masses are those of attention layers or not applicable."""

import pytest
import torch
from test_preflight import odd, right_nll
from tiny import build, tokens

import ssmax_eval.api as api
from ssmax_eval import UserError
from ssmax_eval.readers.nll import token_nll

MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
RECURRENT = {
    "Mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "expand": 2, "chunk_size": 16},
}
HYBRID = {
    "Bamba": {**MAMBA, "attn_layer_indices": [1]},
    "FalconH1": {**MAMBA, "mamba_d_ssm": 64, "head_dim": 8},
    "Qwen3Next": {
        "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
    },
    "RecurrentGemma": {
        "lru_width": 32, "block_types": ["recurrent", "attention"], "attention_window_size": 16, "head_dim": 8,
    },
}  # fmt: skip
GRID = {"context_lengths": [120], "depth_percents": [50], "trials": 2}


def made(kind):
    return (
        odd("recurrent layers beside attention")
        if kind == "Jamba"
        else build(kind, vocab_size=1024, **(RECURRENT | HYBRID)[kind])
    )


@pytest.mark.parametrize("kind", [*RECURRENT, *HYBRID, "Jamba"])
def test_needle_and_loss_run_as_the_model_computes(kind, tokenizer, tmp_path):
    model, ids = made(kind), tokens(2, 60)
    assert api.needle((model, tokenizer), **GRID, output_path=tmp_path)["error"].isna().all()
    rows = api.loss((model, tokenizer), context_length=96, documents=2, output_path=tmp_path)
    assert rows["error"].isna().all()
    assert torch.allclose(token_nll(model, ids), right_nll(model, ids), atol=1e-4)


@pytest.mark.parametrize("kind", RECURRENT)
def test_masses_of_recurrent_models_are_not_applicable(kind, tokenizer, tmp_path):
    with pytest.raises(
        UserError, match="attention mechanisms and masses are not applicable: it has no attention layers"
    ):
        api.attention((made(kind), tokenizer), **GRID, output_path=tmp_path)


@pytest.mark.parametrize(
    ("kind", "layers"),
    [("Bamba", [1]), ("FalconH1", [0, 1]), ("Qwen3Next", [1]), ("Jamba", [1, 3]), ("RecurrentGemma", [1])],
)
def test_masses_of_hybrids_are_those_of_their_attention_layers(kind, layers, tokenizer, tmp_path):
    rows = api.attention((made(kind), tokenizer), **GRID, output_path=tmp_path)
    assert sorted(rows["layer"].unique()) == layers

"""The length a model was trained at, as published configs spell it."""

import pytest
import transformers

from ssmax_eval.mechanisms.train_length import train_length_of

TYPES = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA_3 = {"rope_type": "linear", "factor": 8.0}
OLMO_3 = {
    "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192, "attention_factor": 1.2,
    "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip
LLAMA_3 = {
    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}


@pytest.mark.parametrize(
    ("name", "config", "length"),
    [
        ("Gemma3Text", {"max_position_embeddings": 131072, "rope_scaling": GEMMA_3}, 16384),
        (
            "Gemma3Text",
            {"max_position_embeddings": 131072, "rope_parameters": {"full_attention": GEMMA_3, "sliding_attention": PLAIN}, **TYPES},
            16384,
        ),
        ("Olmo3", {"max_position_embeddings": 65536, "rope_scaling": OLMO_3}, 8192),
        (
            "Olmo3",
            {"max_position_embeddings": 65536, "rope_parameters": {"sliding_attention": PLAIN, "full_attention": OLMO_3}, **TYPES},
            8192,
        ),
        ("Llama", {"max_position_embeddings": 131072, "rope_scaling": LLAMA_3}, 8192),
        ("Phi3", {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "rope_scaling": LONGROPE}, 4096),
        # with the older spelling users were asked to leave the longest position as trained
        ("Llama", {"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 4096),
        # and here transformers takes it as the original one
        ("Llama", {"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, 4096),
        ("Llama", {"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 4096),
        # an original length that nothing uses, as its class holds one
        ("Phi3", {"max_position_embeddings": 2048}, 2048),
        ("GPT2", {"n_positions": 1000}, 1000),
        ("Mpt", {"max_seq_len": 77}, 77),
        ("Rwkv", {"context_length": 55}, 55),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_published_forms_give_the_original_length(name, config, length):
    built = getattr(transformers, f"{name}Config")(**{key: copied(value) for key, value in config.items()})
    assert train_length_of(built) == length
    assert train_length_of(config) == length
    assert train_length_of(built.to_dict()) == length


def copied(value):
    return {key: copied(each) for key, each in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"seq_length": 2048}, 2048),
        ({"n_ctx": 512}, 512),
        ({"max_sequence_length": 300}, 300),
        ({"text_config": {"max_position_embeddings": 5}, "max_position_embeddings": 9}, 5),
        ({"max_position_embeddings": 8, "ssmax": {"train_length": 4}}, 4),
        (
            {"max_position_embeddings": 64, "rope_parameters": {"chunked_attention": PLAIN, "full_attention": LLAMA_3}},
            8192,
        ),
        ({"max_position_embeddings": "long", "ssmax": "odd"}, None),
        ({}, None),
    ],
)
def test_other_names(config, length):
    assert train_length_of(config) == length

"""The length a model was pretrained at, in tokens: read in one place from whatever its config says."""

import math
from typing import Any

LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "max_seq_length",
    "seq_length",
    "context_length",
    "model_max_length",
)
TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config", "decoder")


def train_length_of(config: Any) -> int | None:
    """Return the training length that a transformers config, or a config.json as a dict, tells; None if it tells none.

    In this order: the `ssmax` entry's train_length; a train_length of the config's own (a model that we trained further);
    under RoPE scaling `original_max_position_embeddings`, which
    published yarn, llama3 and longrope configs name, beside the RoPE parameters or in them; the config's longest position.
    RoPE parameters can be one set or one for each layer type; then the full-attention layers' set counts, which is the one
    that was stretched. Under linear (and proportional) scaling by a factor the longest position is the stretched one, as in
    Gemma 3, and is divided by it; not so if the type is spelled `type`: with that older spelling transformers asked users
    to leave max_position_embeddings as trained. Under yarn, llama3, longrope and dynamic scaling without an original
    length transformers itself takes the longest position as the original one.
    """
    mechanism = read(config, "ssmax")
    if isinstance(mechanism, dict) and (length := whole(mechanism.get("train_length"))):
        return length
    text = text_part(config)
    if length := whole(read(text, "train_length")):
        return length
    rope = full_attention_rope(read(text, "rope_scaling") or read(text, "rope_parameters"))
    kind = rope.get("rope_type", rope.get("type"))
    if kind not in (None, "default"):  # a config class can hold an original length of its own that nothing uses
        beside, within = (read(each, "original_max_position_embeddings") for each in (text, rope))
        if length := whole(beside) or whole(within):
            return length
    longest = next((length for name in LENGTHS if (length := whole(read(text, name)))), None)
    factor = rope.get("factor")
    stretched = kind in ("linear", "proportional") and "type" not in rope
    if longest and stretched and isinstance(factor, int | float) and factor > 1:
        return max(1, round(longest / factor))
    return longest


def read(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)


def text_part(config: Any) -> Any:
    """Return the config of the text decoder: of a multimodal wrapper its text part, else the config itself."""
    if not isinstance(config, dict):
        return config.get_text_config(decoder=True)
    part = next((part for name in TEXT_PARTS if isinstance(part := config.get(name), dict)), None)
    return config if part is None else text_part(part)


def full_attention_rope(parameters: Any) -> dict[str, Any]:
    """Return a config's RoPE parameters, those of its full-attention layers where each layer type has its own."""
    if not isinstance(parameters, dict):
        return {}
    nested = {name: each for name, each in parameters.items() if isinstance(each, dict)}
    if not nested:
        return parameters
    return nested.get("full_attention") or next((each for name, each in nested.items() if "sliding" not in name), {})


def whole(value: Any) -> int | None:
    """Return a length as a whole number; None for what is none."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 1
    return int(value) if known else None

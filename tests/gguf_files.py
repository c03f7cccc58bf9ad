"""Tiny .gguf files with metadata of choice, as llama.cpp's converter writes them."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import pre_tokenizers

WIDTH, HEADS, ROWS = 64, 2, 264


def write_gguf(
    folder: Path,
    keys: dict[str, Any] | None = None,
    extra: dict[str, np.ndarray] | None = None,
    architecture: str = "llama",
) -> Path:
    """Write a two-layer random Llama of single bytes. keys: metadata after the architecture's name; extra: more tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.gguf"
    w = gguf.GGUFWriter(path, architecture)
    w.add_context_length(2048)
    w.add_embedding_length(WIDTH)
    w.add_block_count(2)
    w.add_feed_forward_length(48)
    w.add_head_count(HEADS)
    w.add_head_count_kv(HEADS)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_rope_dimension_count((keys or {}).pop("rope.dimension_count", WIDTH // HEADS))
    w.add_rope_freq_base(10_000.0)
    w.add_vocab_size(ROWS)
    for key, value in (keys or {}).items():
        add = {bool: w.add_bool, int: w.add_uint32, float: w.add_float32, str: w.add_string}[type(value)]
        add(f"{architecture}.{key}", value)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list(["<s>", "</s>", *letters, "th", "he", *(f"<{i}>" for i in range(ROWS - 4 - len(letters)))])
    w.add_token_types([3, 3] + [1] * (ROWS - 2))
    w.add_token_merges(["t h", "h e"])  # a list of one is read as a text by transformers 5.17
    w.add_bos_token_id(0)
    w.add_eos_token_id(1)
    w.add_unk_token_id(0)
    w.add_pad_token_id(1)
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.2).astype(np.float32)

    w.add_tensor("token_embd.weight", draw(ROWS, WIDTH))
    w.add_tensor("output.weight", draw(ROWS, WIDTH))
    w.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for i in range(2):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            w.add_tensor(f"blk.{i}.{name}.weight", draw(WIDTH, WIDTH))
        for name, shape in (("ffn_gate", (48, WIDTH)), ("ffn_up", (48, WIDTH)), ("ffn_down", (WIDTH, 48))):
            w.add_tensor(f"blk.{i}.{name}.weight", draw(*shape))
        for name in ("attn_norm", "ffn_norm"):
            w.add_tensor(f"blk.{i}.{name}.weight", np.ones(WIDTH, np.float32))
    for name, values in (extra or {}).items():
        w.add_tensor(name, values)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path

"""Which checkpoints are causal language models: wrappers read text as they do themselves, others are refused by what they are."""

import json
import shutil

import pytest
import torch
import transformers
from tiny import COMMON, build, tokens
from transformers import AutoModelForImageTextToText, ByT5Tokenizer

import ssmax_eval
from ssmax_eval.errors import UserError
from ssmax_eval.mechanisms.attach import attach
from ssmax_eval.models.causal import refuse_unless_causal
from ssmax_eval.models.load import load_model, load_tokenizer
from ssmax_eval.models.sources import resolve

TEXT = {**COMMON, "vocab_size": 1024, "max_position_embeddings": 512}
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 16, "patch_size": 8,
}  # fmt: skip
QWEN_VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
QWEN_IDS = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
MROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}
WRAPPERS = {
    "Llava": {"text_config": {"model_type": "llama", **TEXT}, "vision_config": {"model_type": "clip_vision_model", **VISION}},
    "Mistral3": {"text_config": {"model_type": "mistral", **TEXT}, "vision_config": {"model_type": "pixtral", **VISION}},
    "Qwen2_5_VL": {
        "text_config": {**TEXT, "rope_parameters": MROPE}, "vision_config": {**QWEN_VISION, "fullatt_block_indexes": [0]}, **QWEN_IDS,
    },
    "Qwen3VL": {
        "text_config": {**TEXT, "head_dim": 8, "rope_parameters": MROPE | {"mrope_interleaved": True}},
        "vision_config": {**QWEN_VISION, "deepstack_visual_indexes": [0]}, **QWEN_IDS,
    },
    "Gemma3": {
        "text_config": {**TEXT, "head_dim": 8, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
        "vision_config": VISION, "mm_tokens_per_image": 4,
    },
    "PaliGemma": {
        "text_config": {"model_type": "gemma", "head_dim": 8, **TEXT}, "vision_config": {"model_type": "siglip_vision_model", **VISION},
    },
}  # fmt: skip


@pytest.fixture
def save(tmp_path, tokenizer):
    def save(model):
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


def wrapper(name):
    config = getattr(transformers, f"{name}Config")(**{"image_token_index": 90, **WRAPPERS[name]})
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config).eval()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["Llava", "Mistral3", "Qwen2_5_VL", "Qwen3VL", "Gemma3"])
def test_a_wrapper_reads_text_as_it_does_itself(name, save, tmp_path):
    whole = wrapper(name)
    model, _ = load_model(str(save(whole)))
    with torch.no_grad():
        assert (model(tokens()).logits - whole(input_ids=tokens()).logits).abs().max() < 1e-5
    rows = ssmax_eval.needle(
        str(tmp_path / type(whole).__name__),
        context_lengths=(128,),
        depth_percents=(50,),
        trials=1,
        output_path=tmp_path / "runs",
    )
    assert rows.error.isna().all()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_wrapper_whose_rows_see_what_comes_after_them_is_refused(save):
    said = "PaliGemmaForConditionalGeneration is not a causal .*: its rows see what comes after them"
    with pytest.raises(UserError, match=said):
        refuse_unless_causal(wrapper("PaliGemma"))
    with pytest.raises(UserError, match=said):
        load_model(str(save(wrapper("PaliGemma"))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["Llama", "Qwen3Moe", "DeepseekV3", "Gemma3Text", "Mamba"])
def test_decoders_are_causal(name, dtype):
    refuse_unless_causal(build(name).to(dtype))


def test_a_model_that_draws_at_random_is_refused_as_that():
    """What differs between two forwards of one text is not what comes after a row."""
    model = build("Llama")
    model.model.layers[0].mlp.register_forward_hook(lambda _, __, out: torch.nn.functional.dropout(out, 0.1))
    with pytest.raises(UserError, match="two forwards of one text differ, so it draws at random"):
        refuse_unless_causal(model)


HALF = {
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "d_model": 16,
}
NARROW = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
OTHERS = {
    "BartForConditionalGeneration": ({**HALF, **NARROW}, "is an encoder-decoder, not a causal"),
    "T5ForConditionalGeneration": (T5, "is an encoder-decoder, not a causal"),
    "WhisperForConditionalGeneration": ({**HALF, **NARROW, "vocab_size": 60000}, "is an encoder-decoder, not a causal"),
    "BertForMaskedLM": (COMMON, "is an encoder, not a causal"),
    "ModernBertForMaskedLM": (COMMON, "is an encoder, not a causal"),
    "CLIPModel": ({}, "is multimodal and not a causal"),
    "ViTForImageClassification": ({**VISION}, "not a causal .* none of type 'vit'"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_decoder_is_named(name, save):
    entries, said = OTHERS[name]
    model_class = getattr(transformers, name)
    model = model_class(model_class.config_class(**entries))
    folder = save(model if name != "CLIPModel" else build("Llama", vocab_size=1024))
    model.config.architectures = [name]
    model.config.save_pretrained(folder)
    with pytest.raises(UserError, match=said) as error:
        load_model(str(folder))
    assert name.removesuffix("ForMaskedLM") in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_model_type_is_named(tmp_path, checkpoint):
    folder = shutil.copytree(checkpoint, tmp_path / "unknown")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "of_tomorrow"}))
    with pytest.raises(UserError, match="model type 'of_tomorrow' is not known to transformers"):
        load_model(str(folder))


@pytest.fixture
def without_tokenizer(tmp_path, checkpoint):
    folder = shutil.copytree(checkpoint, tmp_path / "bare")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    return folder


def test_a_tokenizer_of_bytes_needs_no_vocabulary_file(without_tokenizer):
    ByT5Tokenizer().save_pretrained(without_tokenizer)
    tokenizer = load_tokenizer(resolve(str(without_tokenizer)), False)
    assert tokenizer("ab").input_ids == [100, 101, 1]


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Qwen2", "GPTNeoX"])
def test_a_tokenizer_that_is_not_there_is_missing(without_tokenizer, name):
    build(name, vocab_size=1024).config.save_pretrained(without_tokenizer)
    with pytest.raises(UserError, match="no tokenizer in it|tokenizer is missing"):
        load_tokenizer(resolve(str(without_tokenizer)), False)


def test_a_tokenizer_without_its_merges_is_refused(without_tokenizer):
    (without_tokenizer / "vocab.json").write_text('{"a": 0, "b": 1}')
    (without_tokenizer / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(UserError, match=r"its tokenizer is missing or cannot be loaded .*merges"):
        load_tokenizer(resolve(str(without_tokenizer)), False)


def test_a_refusal_names_a_key_to_null_only_where_there_is_one():
    with pytest.raises(UserError, match="use softmax, or set the config's sliding_window to null"):
        attach(build("Mistral", sliding_window=16), "ssmax")
    model = build("Gemma3Text", layer_types=["sliding_attention"] * 2)
    model.config.sliding_window = None
    with pytest.raises(UserError, match="use softmax$"):
        attach(model, "ssmax")

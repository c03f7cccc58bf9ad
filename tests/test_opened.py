"""What decides numbers decides the fingerprint: every file that loading a folder opens, and no other; weights elsewhere are refused."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import build, tokens
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_utils import _get_resolved_checkpoint_files

from ssmax_eval.errors import UserError
from ssmax_eval.models.load import load_model
from ssmax_eval.models.retrofit import retrofit
from ssmax_eval.models.sources import resolve


@pytest.fixture
def folder(tmp_path, checkpoint):
    return shutil.copytree(checkpoint, tmp_path / "model")


@pytest.fixture
def sharded(tmp_path, tokenizer):
    build("Llama", vocab_size=1024, max_position_embeddings=512).save_pretrained(
        tmp_path / "sharded", max_shard_size="80KB"
    )
    tokenizer.save_pretrained(tmp_path / "sharded")
    return tmp_path / "sharded"


def fingerprint(folder):
    return resolve(str(folder)).fingerprint


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    "name",
    [
        "anything.model",
        "bpe.tiktoken",
        "added_tokens.json",
        "generation_config.json",
        "modeling_mine.py",
        "sub/code.py",
        "what.is.this",
    ],
)
def test_any_file_that_may_be_opened_counts(folder, name):
    before = fingerprint(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    assert fingerprint(folder) != before


def test_what_is_never_opened_does_not_count(folder):
    before = fingerprint(folder)
    for name in (
        "README.md",
        "LICENSE.txt",
        "training.json",
        "training_log.jsonl",
        "training.svg",
        "pytorch_model.bin",
        ".gitattributes",
    ):
        (folder / name).write_text("other")
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "model.safetensors").write_text("other")
    assert fingerprint(folder) == before


def test_the_weights_are_those_that_transformers_chooses(folder, sharded):
    for each in (folder, sharded):
        chosen, _ = _get_resolved_checkpoint_files(
            str(each), variant=None, gguf_file=None, use_safetensors=True, user_agent=None, is_remote_code=False
        )
        assert sorted(map(str, resolve(str(each)).weights)) == sorted(chosen)
    assert len(resolve(str(sharded)).weights) > 1
    shutil.copy(folder / "model.safetensors", sharded / "other.safetensors")
    edit(sharded / "config.json", transformers_weights="other.safetensors")
    assert [file.name for file in resolve(str(sharded)).weights] == ["other.safetensors"]


def test_an_index_counts_and_so_does_what_it_names(sharded):
    before = fingerprint(sharded)
    (sharded / "below").mkdir()
    shard = min(sharded.glob("model-*.safetensors")).name
    (sharded / shard).rename(sharded / "below" / shard)
    index = sharded / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(shard, f"below/{shard}"))
    moved = fingerprint(sharded)
    assert moved != before
    data = (sharded / "below" / shard).read_bytes()
    (sharded / "below" / shard).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert fingerprint(sharded) != moved
    index.write_text(json.dumps({**json.loads(index.read_text()), "more": 1}))
    assert fingerprint(sharded) != moved


@pytest.mark.parametrize("way", ["../", "absolute", "link", "linked folder"])
def test_weights_outside_the_folder_are_refused(sharded, way):
    elsewhere = sharded.parent / "elsewhere"
    elsewhere.mkdir()
    shard = min(sharded.glob("model-*.safetensors")).name
    (sharded / shard).rename(elsewhere / shard)
    index = sharded / "model.safetensors.index.json"
    if way == "link":
        (sharded / shard).symlink_to(elsewhere / shard)
    elif way == "linked folder":
        (sharded / "below").symlink_to(elsewhere)
        index.write_text(index.read_text().replace(shard, f"below/{shard}"))
    else:
        place = f"../elsewhere/{shard}" if way == "../" else str(elsewhere / shard)
        index.write_text(index.read_text().replace(shard, place))
    with pytest.raises(UserError, match="lie outside its folder"):
        load_model(str(sharded))
    with pytest.raises(UserError, match="lie outside its folder"):
        fingerprint(sharded)


def test_a_hub_cache_s_own_links_are_no_outside(folder, tmp_path):
    before = fingerprint(folder)
    blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        file.rename(blobs / file.name)
        (snapshot / file.name).symlink_to(os.path.relpath(blobs / file.name, snapshot))
    assert fingerprint(snapshot) == before
    assert load_model(str(snapshot))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ('{"weight_map": {}}', "names no files"),
        ('{"metadata": {}, "weight_map": {"a": "gone.safetensors"}}', "'gone.safetensors' are missing"),
        ('{"metadata": {}, "weight_map": {"a": "weights.bin"}}', "not .safetensors"),
    ],
)
def test_broken_indexes_are_one_line(sharded, text, said):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match=said):
        fingerprint(sharded)


@pytest.fixture
def with_adapter(folder):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    peft.get_peft_model(build("Llama", vocab_size=1024, max_position_embeddings=512), config).save_pretrained(folder)
    return folder


PEFT_WARNS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@PEFT_WARNS
def test_a_model_with_an_adapter_is_not_saved_without_its_weights(with_adapter, tmp_path):
    with pytest.raises(UserError, match=r"an adapter lies on its weights.* merge it"):
        retrofit(str(with_adapter), "ssmax", tmp_path / "made")
    assert not (tmp_path / "made").exists()


@PEFT_WARNS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_in_the_folder_is_applied_and_counts(with_adapter, checkpoint, dtype):
    before = fingerprint(with_adapter)
    assert before != fingerprint(checkpoint)
    for alpha in (8, 16):
        edit(with_adapter / "adapter_config.json", lora_alpha=alpha)
        model, _ = load_model(str(with_adapter), dtype=dtype)
        plain = AutoModelForCausalLM.from_pretrained(with_adapter, dtype=getattr(torch, dtype))
        with torch.no_grad():
            logits = model(tokens()).logits
            assert torch.equal(logits, plain(tokens()).logits)
            assert not torch.equal(logits, load_model(str(checkpoint), dtype=dtype)[0](tokens()).logits)
    assert fingerprint(with_adapter) != before


@PEFT_WARNS
def test_an_adapter_whose_names_transformers_does_not_know_is_applied_as_peft_applies_it(folder):
    """transformers leaves the magnitudes of DoRA at their first values, and says so in its loading info alone."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, use_dora=True, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    made = peft.get_peft_model(build("Llama", vocab_size=1024, max_position_embeddings=512), config).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1.5)
        made.save_pretrained(folder)
        assert torch.equal(load_model(str(folder))[0](tokens()).logits, made(tokens()).logits)
    file = folder / "adapter_model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if "magnitude" not in name}
    save_file(kept, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"weights are missing, .*magnitude"):
        load_model(str(folder))


@PEFT_WARNS
@pytest.mark.parametrize("tied", [False, True])
def test_tokens_that_an_adapter_trains_are_the_heads_too_where_it_is_tied(tied, tmp_path, checkpoint):
    """PEFT gives a tied head the embedding's trained tokens: they are saved once, and are not missing."""
    peft = pytest.importorskip("peft")
    base = build("Llama", vocab_size=1024, max_position_embeddings=512, tie_word_embeddings=tied)
    base.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[5, 6, 7], init_lora_weights=False)
    torch.manual_seed(1)
    made = peft.get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "trainable_tokens" in name:
                parameter.add_(torch.randn_like(parameter))
        made.save_pretrained(tmp_path)
        again = build("Llama", vocab_size=1024, max_position_embeddings=512, tie_word_embeddings=tied)
        expected = peft.PeftModel.from_pretrained(again, tmp_path).eval()(tokens() % 8).logits
        assert torch.equal(load_model(str(tmp_path))[0](tokens() % 8).logits, expected)


@PEFT_WARNS
def test_weights_missing_below_an_adapter_are_refused(with_adapter):
    tensors = load_file(with_adapter / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, with_adapter / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="1 weights are missing"):
        load_model(str(with_adapter))


@PEFT_WARNS
def test_an_adapter_that_would_not_be_applied_is_refused(with_adapter, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(UserError, match="peft is not installed"):
            load_model(str(with_adapter))
    (with_adapter / "adapter_model.safetensors").rename(with_adapter / "adapter_model.bin")
    with pytest.raises(UserError, match="'adapter_model.safetensors' are missing"):
        load_model(str(with_adapter))

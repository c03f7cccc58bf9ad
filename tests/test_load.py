"""Loading: mechanisms and weights that belong together, and refusals in one line."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tokens
from transformers import LlamaForCausalLM

import ssmax_eval
from ssmax_eval.errors import UserError
from ssmax_eval.mechanisms.attach import attach, learned_of
from ssmax_eval.models.load import load_model
from ssmax_eval.models.sources import resolve


@pytest.fixture
def trained(tmp_path, checkpoint):
    """Return a checkpoint with a mechanism and learned values, and the logits it must give."""
    model, tokenizer = load_model(str(checkpoint))
    attach(model, "ssmax-bias")
    for i, values in enumerate(p for name, p in model.named_parameters() if ".ssmax." in name):
        values.data = torch.linspace(0.1, 0.5, 4) + i / 10
    folder = tmp_path / "trained"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with torch.no_grad():
        return folder, model(tokens()).logits


def test_trap_8_learned_values_come_back(trained):
    folder, logits = trained
    model, _ = load_model(str(folder))
    with torch.no_grad():
        assert torch.equal(model(tokens()).logits, logits)
    assert list(learned_of(model)) == [f"model.layers.{i}.self_attn" for i in (0, 1)]
    assert json.loads((folder / "config.json").read_text())["ssmax"]["attention"] == "ssmax-bias"


def test_trap_8_the_plain_class_drops_them_which_is_why_ours_refuses(trained):
    folder, logits = trained
    plain = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        assert (plain(tokens()).logits - logits).abs().max() > 1e-2


def test_trap_8_tensors_without_a_mechanism_are_refused(trained):
    folder, _ = trained
    config = json.loads((folder / "config.json").read_text())
    del config["ssmax"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError,
        match="4 ssmax tensors, but its config names no attention",
    ):
        load_model(str(folder))


def test_trap_8_a_mechanism_without_tensors_is_refused(trained):
    folder, _ = trained
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if ".ssmax.b" not in k}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="names attention ssmax-bias, which does not fit .* .2 too many or missing"):
        load_model(str(folder))


def test_a_mechanism_without_parameters_needs_no_tensors(tmp_path, checkpoint):
    model, tokenizer = load_model(str(checkpoint), attention="ssmax-fixed")
    model.save_pretrained(tmp_path / "fixed")
    tokenizer.save_pretrained(tmp_path / "fixed")
    again, _ = load_model(str(tmp_path / "fixed"))
    with torch.no_grad():
        assert torch.equal(again(tokens()).logits, model(tokens()).logits)


def test_swap_replaces_the_checkpoints_mechanism(trained, checkpoint):
    folder, logits = trained
    swapped, _ = load_model(str(folder), attention="softmax")
    plain, _ = load_model(str(checkpoint))
    with torch.no_grad():
        assert torch.equal(swapped(tokens()).logits, plain(tokens()).logits)
        assert not torch.equal(swapped(tokens()).logits, logits)


def test_missing_weights_are_refused(tmp_path, checkpoint):
    folder = shutil.copytree(checkpoint, tmp_path / "half")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing, model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(str(folder))


def test_dtype_and_device(checkpoint):
    assert load_model(str(checkpoint))[0].dtype == torch.float32
    assert load_model(str(checkpoint), dtype="bfloat16")[0].dtype == torch.bfloat16
    with pytest.raises(UserError, match="dtype 'int8'"):
        load_model(str(checkpoint), dtype="int8")
    with pytest.raises(UserError, match="device 'tpu'"):
        load_model(str(checkpoint), device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="0 CUDA devices"):
            load_model(str(checkpoint), device="cuda")


def test_fingerprint_is_of_content_not_of_place(tmp_path, checkpoint):
    copy = shutil.copytree(checkpoint, tmp_path / "elsewhere")
    assert resolve(str(copy)).fingerprint == resolve(str(checkpoint)).fingerprint
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"][0] += 1e-3
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    assert resolve(str(copy)).fingerprint != resolve(str(checkpoint)).fingerprint


def test_labels(checkpoint):
    assert resolve(f"Mine={checkpoint}").label == "Mine"
    assert resolve(str(checkpoint)).label == "tiny-llama"


def test_remote_code_only_when_asked(tmp_path, checkpoint):
    folder = shutil.copytree(checkpoint, tmp_path / "remote")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_mine.Mine"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_mine.py").write_text("raise SystemExit('code of a checkpoint ran')")
    with pytest.raises(UserError, match="--trust-remote-code"):
        load_model(str(folder))


def test_pickled_weights_are_not_read(tmp_path, checkpoint):
    folder = shutil.copytree(checkpoint, tmp_path / "pickle")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no .safetensors weights"):
        load_model(str(folder))


def test_import_is_light():
    import subprocess
    import sys

    code = "import sys, ssmax_eval, ssmax_eval.cli; assert not {'torch', 'transformers', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in ssmax_eval.__all__:
        assert callable(getattr(ssmax_eval, name))


@pytest.mark.slow
def test_gguf_model_saved_and_loaded_again_is_the_same(smollm2, tmp_path):
    model, tokenizer = smollm2
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again, _ = load_model(str(tmp_path / "saved"))
    ids = torch.arange(100, 140)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


OLDER = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "ownlm"


class RotaryEmbedding(torch.nn.Module):
    def __init__(self, dim, base=10000.0):
        super().__init__()
        inv_freq = 1 / (base ** (torch.arange(0, dim, 2).float() / dim))
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, x, position_ids):
        half = position_ids[..., None].float() * self.inv_freq
        angles = torch.cat([half, half], -1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.model.rotary_emb = RotaryEmbedding(config.head_dim, config.rope_parameters["rope_theta"])
"""


def test_what_remote_code_computes_when_it_is_made_is_not_left_to_chance(tmp_path, checkpoint):
    """Older remote code keeps RoPE's frequencies in a buffer that no checkpoint holds, which transformers leaves as the memory was."""
    folder = shutil.copytree(checkpoint, tmp_path / "older")
    (folder / "modeling_own.py").write_text(OLDER)
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    config |= {"model_type": "ownlm", "architectures": ["OwnForCausalLM"], "auto_map": own}
    (folder / "config.json").write_text(json.dumps(config))
    model, _ = load_model(str(folder), trust_remote_code=True)
    plain, _ = load_model(str(checkpoint))
    with torch.no_grad():
        assert torch.equal(model(tokens()).logits, plain(tokens()).logits)

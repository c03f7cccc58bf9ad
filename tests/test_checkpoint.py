"""The checkpoint format: three ways to open it, equal logits; no way to open it without its mechanism unnoticed."""

import json
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from architectures import build_small
from safetensors.torch import load_file, save_file
from tiny import build, needed_by, tokens
from transformers import AutoModelForCausalLM, modeling_utils

from ssmax_eval.cli import main
from ssmax_eval.errors import UserError
from ssmax_eval.mechanisms.attach import attach, mechanisms_of
from ssmax_eval.mechanisms.registry import mechanisms
from ssmax_eval.models import checkpoint as checkpoint_module
from ssmax_eval.models.checkpoint import cast, save_model
from ssmax_eval.models.load import load_model
from ssmax_eval.models.retrofit import retrofit
from ssmax_eval.position.rope import RopeSetting
from ssmax_eval.setting import Setting

LEARNED = ("ssmax", "ssmax-bias", "learned-p")


def saved(folder, tokenizer, mechanism, architecture="Llama", dtype="float32"):
    """Save a tiny model under a mechanism with values of its own, and return its logits in float32."""
    model = build(architecture, vocab_size=1024, max_position_embeddings=512, **needed_by(mechanism))
    attach(model, mechanism)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for each in mechanisms_of(model).values():
            for parameter in each.parameters():
                parameter += 0.3 * torch.rand(parameter.shape, generator=generator)
        logits = model(tokens()).logits
    save_model(cast(model, getattr(torch, dtype)), tokenizer, folder)
    return logits


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    """Return, by mechanism, a folder and the logits that it must give."""
    top = tmp_path_factory.mktemp("mechanisms")
    return {mechanism: (top / mechanism, saved(top / mechanism, tokenizer, mechanism)) for mechanism in mechanisms()}


@pytest.mark.parametrize("mechanism", mechanisms())
def test_load_model_gives_what_was_saved(folders, mechanism):
    folder, logits = folders[mechanism]
    model, _ = load_model(str(folder))
    with torch.no_grad():
        assert torch.equal(model(tokens()).logits, logits)
    base = "llama" if mechanism == "softmax" else "ssmax_llama"
    assert json.loads((folder / "config.json").read_text())["model_type"] == base


OPEN = """
import sys, torch
from transformers import AutoModelForCausalLM, modeling_utils
for folder in sys.argv[2:]:
    ids = torch.load(sys.argv[1])
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        torch.save(model(ids).logits, folder + "/logits.pt")
"""


def test_auto_model_in_a_process_of_its_own_gives_the_same(folders, tmp_path):
    """Nothing but transformers is imported there: what opens the checkpoint is its auto_map."""
    torch.save(tokens(), tmp_path / "ids.pt")
    paths = [str(folder) for folder, _ in folders.values()]
    subprocess.run([sys.executable, "-c", OPEN, tmp_path / "ids.pt", *paths], check=True, capture_output=True)
    for folder, logits in folders.values():
        # the softmax checkpoint is a plain one, which transformers runs with sdpa: the same bits
        assert torch.equal(torch.load(folder / "logits.pt"), logits)


def test_lm_evals_hf_model_gives_the_same(folders):
    pytest.importorskip("lm_eval")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lm_eval.models.huggingface import HFLM

        for mechanism in LEARNED:
            folder, logits = folders[mechanism]
            model = HFLM(pretrained=str(folder), trust_remote_code=True, device="cpu", dtype="float32")
            assert torch.equal(model._model_call(tokens()), logits)


def test_without_its_mechanism_it_is_not_opened_silently(folders):
    """The Auto classes refuse; a plain class named on purpose warns twice: of the type and of what it leaves out."""
    folder, _ = folders["ssmax"]
    code = f"from transformers import AutoModelForCausalLM as A; A.from_pretrained({str(folder)!r}, trust_remote_code=False)"
    refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert refused.returncode
    assert "trust_remote_code=True" in refused.stderr
    code = f"from transformers import LlamaForCausalLM as L; L.from_pretrained({str(folder)!r})"
    warned = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "`ssmax_llama` to instantiate a model of type `llama`" in warned.stderr
    assert "ssmax.s" in warned.stderr
    assert "UNEXPECTED" in warned.stderr


@pytest.mark.parametrize("architecture", ["Qwen3", "GPT2", "Mistral", "GPTNeoX"])
def test_other_architectures(tmp_path, tokenizer, architecture):
    logits = saved(tmp_path / "model", tokenizer, "ssmax", architecture)
    with torch.no_grad():
        assert torch.equal(load_model(str(tmp_path / "model"))[0](tokens()).logits, logits)


def test_what_a_mechanism_learned_is_not_rounded(tmp_path, tokenizer):
    saved(tmp_path / "model", tokenizer, "ssmax", dtype="bfloat16")
    kinds = {name: tensor.dtype for name, tensor in load_file(tmp_path / "model" / "model.safetensors").items()}
    assert {kind for name, kind in kinds.items() if ".ssmax." in name} == {torch.float32}
    assert {kind for name, kind in kinds.items() if ".ssmax." not in name} == {torch.bfloat16}
    for dtype in ("auto", "bfloat16"):
        ours, _ = load_model(str(tmp_path / "model"), dtype=dtype)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", trust_remote_code=True, dtype=dtype)
        assert ours.dtype == theirs.dtype == torch.bfloat16
        assert all(each.s.dtype == torch.float32 for model in (ours, theirs) for each in mechanisms_of(model).values())
        with torch.no_grad():
            assert torch.equal(ours(tokens()).logits, theirs.eval()(tokens()).logits)


def test_the_table_that_layers_share_is_saved_once(folders):
    folder, _ = folders["learned-p"]
    assert sum(name.endswith("ssmax.p") for name in load_file(folder / "model.safetensors")) == 1


@pytest.mark.parametrize("mechanism", LEARNED)
def test_trap_8_missing_mechanism_tensors_are_an_error_for_auto_model_too(folders, tmp_path, mechanism):
    """transformers would warn and run on, with whatever the memory held as s."""
    folder, _ = folders[mechanism]
    tensors = {
        name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if ".ssmax.s" not in name
    }
    for name in ("config.json", "modeling_ssmax.py"):
        shutil.copy(folder / name, tmp_path)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=rf"names attention {mechanism}, which does not fit .* \(2 too many or missing"
    ):
        AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)


def test_saved_again_it_is_the_same_checkpoint(folders, tmp_path, tokenizer):
    folder, logits = folders["ssmax"]
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == (folder / "config.json").read_text()
    assert (tmp_path / "modeling_ssmax.py").read_text() == (folder / "modeling_ssmax.py").read_text()
    with torch.no_grad():
        assert torch.equal(load_model(str(tmp_path))[0](tokens()).logits, logits)


@pytest.mark.parametrize(
    ("mechanism", "start"), [("ssmax", 1 / (torch.lgamma(torch.tensor(513.0)).item() / 512)), ("ssmax:s=0.2", 0.2)]
)
def test_retrofit(checkpoint, tmp_path, mechanism, start):
    folder = retrofit(str(checkpoint), mechanism, tmp_path / "new")
    model, _ = load_model(str(folder))
    swapped, _ = load_model(str(checkpoint), attention=mechanism)
    with torch.no_grad():
        assert torch.equal(model(tokens()).logits, swapped(tokens()).logits)
    carried = mechanisms_of(model).values()
    assert all(each.s.tolist() == pytest.approx([start] * each.layer.heads, rel=1e-6) for each in carried)


def test_back_to_softmax_it_is_a_plain_checkpoint_again(folders, checkpoint, tmp_path):
    folder, _ = folders["ssmax"]
    plain = retrofit(str(folder), "softmax", tmp_path / "plain")
    config = json.loads((plain / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert not {"auto_map", "ssmax"} & config.keys()
    model, _ = load_model(str(folder), attention="softmax")
    with torch.no_grad():
        assert torch.equal(load_model(str(plain))[0](tokens()).logits, model(tokens()).logits)
        assert torch.equal(AutoModelForCausalLM.from_pretrained(plain)(tokens()).logits, model(tokens()).logits)


# names or experts that transformers converts on the way from disk: renamed, merged, moved below another prefix
CONVERTED = ["gpt_neox", "mixtral", "qwen3_moe", "nemotron_h"]
LAW = "ssmax:s=0.2,train_length=512"


@torch.no_grad()
def reopened(kind, folder, tokenizer):
    """Return the logits of a model from disk under a mechanism, and those of its retrofit, opened by us and by transformers."""
    model = build_small(kind)
    model.save_pretrained(folder / "own")
    tokenizer.save_pretrained(folder / "own")
    retrofit(str(folder / "own"), LAW, folder / "new")
    right, _ = load_model(str(folder / "own"), attention=LAW)
    ours, _ = load_model(str(folder / "new"))
    theirs = AutoModelForCausalLM.from_pretrained(folder / "new", trust_remote_code=True).eval()
    return [model(tokens()).logits for model in (right, ours, theirs)]


@pytest.mark.parametrize("kind", CONVERTED)
def test_a_retrofit_of_a_model_from_disk_has_all_its_weights(tmp_path, tokenizer, kind):
    right, ours, theirs = reopened(kind, tmp_path, tokenizer)
    assert torch.equal(ours, right)
    assert torch.equal(theirs, right)
    # and back: under the names that a plain checkpoint of its type has
    retrofit(str(tmp_path / "new"), "softmax", tmp_path / "plain")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("own", "plain"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("kind", ["falcon_h1", "diffllama"])
def test_a_retrofit_has_what_no_checkpoint_holds(tmp_path, tokenizer, kind):
    """Falcon-H1's multipliers are buffers that are not saved; DiffLlama has parameters made beside the meta device."""
    right, ours, theirs = reopened(kind, tmp_path, tokenizer)
    assert torch.equal(ours, right)
    assert torch.equal(theirs, right)


@torch.no_grad()
def test_a_retrofit_of_rope_where_the_config_tells_no_length(tmp_path, tokenizer):
    own, rope = tmp_path / "own", RopeSetting(theta_factor=4)
    build_small("recurrent_gemma").save_pretrained(own)
    tokenizer.save_pretrained(own)
    retrofit(str(own), None, tmp_path / "new", rope=rope)
    model, _ = load_model(str(own))
    with Setting.of(rope_theta_factor=4)(model):
        assert torch.equal(load_model(str(tmp_path / "new"))[0](tokens()).logits, model(tokens()).logits)


def test_a_rope_that_a_config_does_not_take_is_not_saved(tmp_path, tokenizer, capsys):
    """Phi-3's knows longrope alone; its model takes others."""
    build_small("phi3").save_pretrained(tmp_path / "own")
    tokenizer.save_pretrained(tmp_path / "own")
    with pytest.raises(SystemExit) as exit:
        main(["retrofit", "--model", str(tmp_path / "own"), "--rope-scaling", "yarn:4", "--out", str(tmp_path / "new")])
    assert exit.value.code == 2
    assert "rope yarn:4: the config of Phi3ForCausalLM does not take it" in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["own"]


@pytest.mark.parametrize("mechanism", ["ssmax", "learned-p", None])
def test_what_would_be_lost_is_not_saved(checkpoint, tmp_path, monkeypatch, capsys, mechanism):
    write = modeling_utils.safe_save_file

    def renamed(tensors, *arguments, **options):
        return write({name.replace("q_proj", "query"): each for name, each in tensors.items()}, *arguments, **options)

    monkeypatch.setattr(modeling_utils, "safe_save_file", renamed)
    options = ["--attention", mechanism] if mechanism else ["--rope-theta-factor", "2"]
    with pytest.raises(SystemExit) as exit:
        main(["retrofit", "--model", str(checkpoint), *options, "--out", str(tmp_path / "new")])
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert "2 of its weights would be lost (model.layers.0.self_attn.q_proj.weight first)" in said
    assert not [*tmp_path.iterdir()]


def test_another_attention_implementation_would_drop_the_mechanism(folders):
    model, _ = load_model(str(folders["ssmax"][0]))
    with pytest.raises(UserError, match="it would drop the model's mechanism"):
        model.set_attn_implementation("sdpa")


def test_retrofit_leaves_what_is_there_alone(checkpoint, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(SystemExit) as exit:
        main(["retrofit", "--model", str(checkpoint), "--out", str(tmp_path)])
    assert exit.value.code == 2
    assert "not empty" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_model_with_a_mechanism_can_be_pickled(folders, tmp_path):
    """Also opened in a process that has not made its classes yet, as joblib's and multiprocessing's workers have not."""
    folder, logits = folders["ssmax"]
    model, _ = load_model(str(folder))
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    torch.save(tokens(), tmp_path / "ids")
    code = (
        "import pickle, sys, torch\n"
        "model = pickle.loads(open(sys.argv[1], 'rb').read())\n"
        "torch.save(model(torch.load(sys.argv[2])).logits.detach(), sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "model.pickle", tmp_path / "ids"], check=True)
    assert torch.equal(torch.load(tmp_path / "ids"), logits)
    assert not hasattr(checkpoint_module, "poem")
    assert not hasattr(checkpoint_module, "ssmax_poem")

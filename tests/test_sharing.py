"""The one table of learned-p survives what copies, places, pickles and pushes a model."""

import copy
import io
import os
import pickle
import warnings
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny import build, tokens
from transformers import AutoModelForCausalLM, PreTrainedModel

from ssmax_eval.mechanisms.attach import attach, mechanisms_of
from ssmax_eval.models.checkpoint import REMOTE_FILE, with_mechanism
from ssmax_eval.models.load import load_model
from ssmax_eval.setting import Setting

REST = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")


def logits_of(model):
    with torch.no_grad():
        return model(tokens()).logits


def tables(model):
    return [mechanism.p for mechanism in mechanisms_of(model).values()]


def is_one_table(model):
    return len(mechanisms_of(model)) > 1 and len({id(table) for table in tables(model)}) == 1


def opened(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options).eval()


@pytest.fixture(scope="module")
def model():
    model = build("Llama", num_hidden_layers=3)
    attach(model, "learned-p")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for mechanism in mechanisms_of(model).values():
            for parameter in mechanism.parameters():
                parameter += 0.3 * torch.rand(parameter.shape, generator=generator)
    return with_mechanism(model)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned-p")
    model.save_pretrained(folder)
    return folder


def through_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {f"protocol {n}": lambda model, n=n: pickle.loads(pickle.dumps(model, n)) for n in range(6)} | {
    "torch.save": through_torch_save,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("mechanism", ["learned-p", "ssmax"])
@pytest.mark.parametrize("how", COPIES)
def test_copies_compute_the_same_with_one_table(model, how, mechanism):
    if mechanism == "ssmax":
        model = build("Qwen3")
        attach(model, mechanism)
        with_mechanism(model)
    made = COPIES[how](model)
    assert torch.equal(logits_of(made), logits_of(model))
    assert mechanism == "ssmax" or is_one_table(made)
    assert type(COPIES[how](model.config)) is type(model.config)


def test_a_checkpoint_holds_it_once_and_opens_with_one_table(model, folder):
    names = [name for name in load_file(folder / "model.safetensors") if name.endswith("ssmax.p")]
    assert names == ["model.layers.0.self_attn.ssmax.p"]  # as ever
    for options in ({}, {"device_map": "cpu"}):
        made = opened(folder, **options)
        assert torch.equal(logits_of(made), logits_of(model))
        assert is_one_table(made)
        assert all(isinstance(table, torch.nn.Parameter) for table in tables(made))
    # what a Trainer does when it goes on
    made.load_state_dict({name: 0 * tensor for name, tensor in load_file(folder / "model.safetensors").items()}, False)
    assert all(not table.any() for table in tables(made))


def test_one_table_is_trained_by_all_layers(model):
    """Its gradient is the sum of those that a table in each layer would have."""
    one, apart = copy.deepcopy(model), copy.deepcopy(model)
    for mechanism in mechanisms_of(apart).values():
        mechanism.p = torch.nn.Parameter(mechanism.p.detach().clone())
    for each in (one, apart):
        each(tokens(), labels=tokens()).loss.backward()
    gradients = [table.grad for table in tables(apart)]
    assert all(gradient.any() for gradient in gradients)
    torch.testing.assert_close(tables(one)[0].grad, sum(gradients), atol=1e-7, rtol=1e-5)
    assert sum(name.endswith("ssmax.p") for name, _ in one.named_parameters()) == 1


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
@pytest.mark.parametrize("on_disk", [(0,), (1,), (0, 2), (0, 1, 2)])
def test_layers_on_disk(model, folder, tmp_path, on_disk):
    places = REST | {f"model.layers.{i}": "disk" if i in on_disk else "cpu" for i in range(3)}
    made = opened(folder, device_map=places, offload_folder=tmp_path / "off")
    for _ in range(2):
        assert torch.equal(logits_of(made), logits_of(model))
    made.save_pretrained(tmp_path / "again")
    assert torch.equal(logits_of(opened(tmp_path / "again")), logits_of(model))


def test_offloaded_layers_can_be_given_a_mechanism(tmp_path):
    plain = build("Llama")
    plain.save_pretrained(tmp_path / "plain")
    places = REST | {"model.layers.0": "disk", "model.layers.1": "cpu"}
    offloaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", device_map=places, offload_folder=tmp_path / "off"
    )
    for mechanism in ("ssmax", "learned-p"):
        with Setting.of(mechanism)(plain), Setting.of(mechanism)(offloaded):
            assert torch.equal(logits_of(offloaded), logits_of(plain))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("copied", ["ssmax", "0.self_attn.ssmax", "1.self_attn.ssmax"])
def test_what_peft_copied_and_trained_comes_back(folder, tmp_path, copied):
    """It trains a copy in each layer; merged and saved, every layer keeps its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=[copied], init_lora_weights=False)
    wrapped = peft.get_peft_model(opened(folder), config)
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    for step in range(2):
        wrapped(tokens(seed=step), labels=tokens(seed=step)).loss.backward()
    torch.optim.SGD(trained, lr=1.0).step()
    wrapped.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(opened(folder), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits_of(again), logits_of(wrapped.eval()), atol=0, rtol=0)
    merged = wrapped.merge_and_unload().eval()
    assert not is_one_table(merged)
    merged.save_pretrained(tmp_path / "merged")
    made = opened(tmp_path / "merged")
    assert torch.equal(logits_of(made), logits_of(merged))
    made.tie_weights()  # as resizing embeddings does: nothing trained apart is made one
    assert torch.equal(logits_of(made), logits_of(merged))


@pytest.mark.parametrize("part", ["model", "config"])
def test_what_is_pushed_holds_the_file_that_opens_it(model, tmp_path, monkeypatch, part):
    pushed = []

    def upload(self, folder, repo_id, before, **_):  # what transformers' own sends: what is new or changed
        pushed.append({n for n in os.listdir(folder) if before.get(n) != os.path.getmtime(os.path.join(folder, n))})

    hub = SimpleNamespace(create_repo=lambda name, **_: SimpleNamespace(repo_id=name))
    monkeypatch.setattr(PreTrainedModel, "_upload_modified_files", upload)
    monkeypatch.setattr(type(model.config), "_upload_modified_files", upload)
    for module in ("modeling_utils", "configuration_utils"):
        monkeypatch.setattr(f"transformers.{module}.hf_api", lambda: hub)
    given = model if part == "model" else model.config
    for _ in range(2):
        given.save_pretrained(str(tmp_path / "out"), push_to_hub=True)
    assert len(pushed) == 2
    assert all({"config.json", REMOTE_FILE} <= names for names in pushed)


def test_a_bundled_model_and_its_file_are_unchanged(tmp_path):
    from ssmax_eval.models.sources import BUNDLED

    model, _ = load_model("ssmax-bible-2m")
    model.save_pretrained(tmp_path)
    assert (tmp_path / REMOTE_FILE).read_text() == (BUNDLED / "ssmax-bible-2m" / REMOTE_FILE).read_text()

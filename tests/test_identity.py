"""What a model handed over as an object computes decides its run: its state changes the fingerprint, foreign code forbids resuming."""

import functools
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from conftest import make_tokenizer
from tiny import ARCHITECTURES, build
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.models.llama import modeling_llama
from transformers.models.qwen3 import modeling_qwen3

import ssmax_eval
from ssmax_eval.mechanisms.attach import attach
from ssmax_eval.models.identity import identify, identify_source
from ssmax_eval.models.known_code import ALL_ATTENTION_FUNCTIONS, unknown_library_code
from ssmax_eval.models.sources import resolve
from ssmax_eval.models.subjects import subject
from ssmax_eval.position.rope import rope_scaled

SMALL = {"vocab_size": 1024, "max_position_embeddings": 512}


@pytest.fixture
def model():
    return build("Llama", **SMALL)


@pytest.fixture
def plain(model, tokenizer):
    return identify(model, tokenizer)


@pytest.mark.parametrize("name", [*ARCHITECTURES, "Mamba", "Bloom"])
def test_models_of_transformers_are_known_and_the_same_every_time(name, tokenizer):
    model = build(name)
    first = identify(model, tokenizer)
    assert first.unknown_code is None
    assert identify(build(name), tokenizer) == first
    with torch.no_grad():
        model(torch.arange(3, 40)[None])
    assert identify(model, tokenizer) == first


def test_a_name_of_an_implementation_that_computes_softmax_changes_nothing(model, tokenizer, plain):
    attach(model)
    assert identify(model, tokenizer) == plain
    attach(model, "ssmax")
    lawful = identify(model, tokenizer)
    assert lawful.unknown_code is None
    assert lawful != plain


def scale_attention(model):
    model.model.layers[0].self_attn.scaling *= 2


def turn_a_frequency(model):
    model.model.rotary_emb.inv_freq[1] *= 2


def edit_the_config(model):
    model.config.tie_word_embeddings = True


def edit_generation(model):
    model.generation_config.repetition_penalty = 1.5


def exchange_the_activation(model):
    model.model.layers[0].mlp.act_fn = nn.GELU()


def take_another_models_function(model):
    attention = model.model.layers[0].self_attn
    attention.forward = types.MethodType(modeling_qwen3.Qwen3Attention.forward, attention)


@pytest.mark.parametrize(
    "change",
    [
        scale_attention,
        turn_a_frequency,
        edit_the_config,
        edit_generation,
        exchange_the_activation,
        take_another_models_function,
    ],
)
def test_state_decides_the_fingerprint_and_stays_resumable(change, model, tokenizer, plain):
    change(model)
    changed = identify(model, tokenizer)
    assert changed.fingerprint != plain.fingerprint
    assert changed.unknown_code is None


def in_memory(model, _):
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def on_disk(model, folder):
    accelerate = pytest.importorskip("accelerate")
    accelerate.disk_offload(model, folder, execution_device=torch.device("cpu"))


def packed(model, _):
    """Put quantized layers in place of linear ones, whose weights are neither parameters nor buffers."""
    torch.ao.quantization.quantize_dynamic(model.model, {nn.Linear}, dtype=torch.float16, inplace=True)


def of_other_tensors(model, _):
    from torch.testing._internal.two_tensor import TwoTensor

    projection = model.model.layers[0].self_attn.q_proj
    weight = projection.weight.detach()
    projection.weight = nn.Parameter(TwoTensor(weight, weight.clone()), requires_grad=False)


def sparse(model, _):
    projection = model.model.layers[0].self_attn.q_proj
    projection.weight = nn.Parameter(projection.weight.detach().to_sparse_csr(), requires_grad=False)


@pytest.mark.filterwarnings("ignore:.*(deprecated|beta state).*")
@pytest.mark.parametrize("put", [in_memory, on_disk, packed, of_other_tensors, sparse])
def test_weights_decide_wherever_they_are(put, tokenizer, tmp_path):
    """Offloaded to memory or a disk, packed, wrapped or sparse."""
    found = []
    for number, factor in enumerate((1.0, 1.0, 3.0)):
        model = build("Llama", **SMALL)
        with torch.no_grad():
            model.model.layers[0].self_attn.q_proj.weight.mul_(factor)
        put(model, tmp_path / str(number))
        found.append(identify(model, tokenizer).fingerprint)
    assert found[0] == found[1] != found[2]


def test_tokenizer_and_rope_decide_the_fingerprint(model, tokenizer, plain):
    assert identify(model, make_tokenizer("bos")).fingerprint != plain.fingerprint
    assert identify(build("Llama", seed=1, **SMALL), tokenizer).fingerprint != plain.fingerprint
    with rope_scaled(model, theta_factor=50):
        assert identify(model, tokenizer).fingerprint != plain.fingerprint


def mine(*arguments, **options):
    raise AssertionError("only looked at")


class Mine(nn.SiLU):
    def forward(self, x):
        return x


class Callable:
    def __call__(self, *arguments):
        return mine


def decorated(function):
    @functools.wraps(function)
    def wrapper(*arguments, **options):
        return function(*arguments, **options) if mine else None

    return wrapper


def patch_one_forward(model, patch):
    model.forward = mine


def patch_a_wrapped_forward(model, patch):
    model.forward = functools.partial(torch.no_grad()(mine), 1)


def patch_a_class(model, patch):
    patch.setattr(modeling_llama.LlamaAttention, "forward", decorated(modeling_llama.LlamaAttention.forward))


def patch_torch_s_class(model, patch):
    patch.setattr(nn.Linear, "forward", mine)


def patch_a_module_function(model, patch):
    patch.setattr(modeling_llama, "apply_rotary_pos_emb", mine)


def patch_torch(model, patch):
    patch.setattr(nn.functional, "scaled_dot_product_attention", mine)


def patch_the_code_of_a_function(model, patch):
    patch.setattr(modeling_llama.LlamaMLP.forward, "__code__", mine.__code__)


def hook_forward(model, patch):
    model.model.layers[1].register_forward_hook(mine)


def hook_forward_early(model, patch):
    model.lm_head.register_forward_pre_hook(lambda *each: None)


def hook_everything(model, patch):
    handle = nn.modules.module.register_module_forward_hook(mine)
    patch.callback = handle.remove


def put_in_a_module(model, patch):
    model.model.layers[0].mlp.act_fn = Mine()


def put_in_a_callable(model, patch):
    del model.model.layers[0].mlp.act_fn
    model.model.layers[0].mlp.act_fn = Callable()


def register_attention(model, patch):
    AttentionInterface.register("mine", mine)
    AttentionMaskInterface.register("mine", sdpa_mask)
    model.set_attn_implementation("mine")


def register_over_sdpa(model, patch):
    patch.setitem(AttentionInterface._global_mapping, "sdpa", mine)


def patch_generate(model, patch):
    model.generate = mine


@pytest.mark.parametrize(
    "change",
    [
        patch_one_forward, patch_a_wrapped_forward, patch_a_class, patch_torch_s_class, patch_a_module_function, patch_torch,
        patch_the_code_of_a_function, hook_forward, hook_forward_early, hook_everything, put_in_a_module, put_in_a_callable,
        register_attention, register_over_sdpa, patch_generate,
    ],
)  # fmt: skip
def test_foreign_code_is_seen_and_never_shares_a_run(change, model, tokenizer, plain, monkeypatch):
    monkeypatch.callback = lambda: None
    change(model, monkeypatch)
    try:
        changed = identify(model, tokenizer)
    finally:
        monkeypatch.callback()
    assert changed.unknown_code is not None
    assert "test_identity.py" in changed.unknown_code
    assert changed.fingerprint != plain.fingerprint


def test_what_can_be_seen_of_foreign_code_decides(model, tokenizer):
    found = set()
    for factor in (1.0, 2.0):
        model.forward = lambda *each, factor=factor: factor
        found.add(identify(model, tokenizer).fingerprint)
    model.forward = lambda *each: 3.0
    found.add(identify(model, tokenizer).fingerprint)
    assert len(found) == 3


GRID = {"context_lengths": (128,), "depth_percents": (50,), "trials": 1}


def test_a_patched_forward_gets_no_stored_rows(model, tokenizer, tmp_path, caplog):
    """Each run's rows must be its own, and the stock model's rows nobody else's."""
    stock = ssmax_eval.needle((model, tokenizer), output_path=tmp_path, **GRID)
    assert "its runs start over" not in caplog.text
    forward, held = model.forward, types.SimpleNamespace()  # what the hash cannot look into

    @functools.wraps(forward)
    def patched(*arguments, **options):
        out = forward(*arguments, **options)
        out.logits = out.logits * held.scale
        return out

    model.forward = patched
    for scale in (1.0, -1.0):
        held.scale = scale
        rows = ssmax_eval.needle((model, tokenizer), output_path=tmp_path, **GRID)
        assert (rows.answer_nll.item() == pytest.approx(stock.answer_nll.item())) == (scale == 1)
        assert len(rows) == 1
    assert "its runs start over" in caplog.text
    assert "LlamaForCausalLM.forward" in caplog.text
    del model.forward
    caplog.clear()
    again = ssmax_eval.needle((model, tokenizer), output_path=tmp_path, **GRID)
    assert again.answer_nll.item() == stock.answer_nll.item()
    assert "its runs start over" not in caplog.text


def test_code_put_over_transformers_counts_for_models_on_disk_too(checkpoint, monkeypatch):
    before = subject("", str(checkpoint))
    assert before.resumable
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", mine)
    after = subject("", str(checkpoint))
    assert not after.resumable
    assert after.fingerprint != before.fingerprint


def test_an_attention_function_that_a_config_names_counts(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "named")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attn_implementation": "named"}))
    AttentionInterface.register("named", mine)
    AttentionMaskInterface.register("named", sdpa_mask)
    assert not subject("", str(folder)).resumable


def head_of(weight):
    return functools.partial(torch.nn.functional.linear, weight=weight)


def test_state_that_known_code_carries_decides_too(model, tokenizer):
    """A function bound to weights, another module's method, a head outside the tree: known code, and other numbers."""
    weights = [torch.ones(1024, 32), 2 * torch.ones(1024, 32)]
    found = []
    for weight in weights:
        model.lm_head.forward = head_of(weight)
        found.append(identify(model, tokenizer).fingerprint)
    outside = nn.Linear(32, 1024, bias=False)
    for scale in (1, 50):
        outside.weight.data.mul_(scale)
        model.lm_head.forward = outside.forward
        found.append(identify(model, tokenizer).fingerprint)
    del model.lm_head.forward
    for layer in (0, 1):
        model.model.norm.forward = model.model.layers[layer].input_layernorm.forward
        model.model.layers[layer].input_layernorm.weight.data.fill_(layer + 2.0)
        found.append(identify(model, tokenizer).fingerprint)
    assert len(set(found)) == 6


def test_one_known_function_in_anothers_place_is_seen(model, tokenizer, plain, monkeypatch, checkpoint):
    stock = identify_source(resolve(str(checkpoint)))
    monkeypatch.setattr(torch.nn.functional, "silu", torch.nn.functional.gelu)
    changed = identify(model, tokenizer)
    assert "silu is gelu" in changed.unknown_code
    assert changed.fingerprint != plain.fingerprint
    assert identify_source(resolve(str(checkpoint))).fingerprint != stock.fingerprint
    monkeypatch.undo()
    assert identify(model, tokenizer) == plain
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", modeling_llama.eager_attention_forward)
    assert "attention implementation sdpa" in identify(model, tokenizer).unknown_code


def test_code_put_over_a_model_type_of_another_modules_name_is_seen(monkeypatch):
    """gemma3_text is a type of the module gemma3."""
    from transformers.models.gemma3 import modeling_gemma3

    assert not list(unknown_library_code({"gemma3_text"}, {"sdpa"}))
    monkeypatch.setattr(modeling_gemma3, "rotate_half", lambda x: x)
    assert list(unknown_library_code({"gemma3_text"}, {"sdpa"}))


def test_the_fingerprint_of_an_object_is_every_processs():
    code = "import sys; sys.path.insert(0, 'tests'); import conftest; from tiny import build; "
    code += "from ssmax_eval.models.identity import identify; "
    code += "print(identify(build('Llama', vocab_size=1024), conftest.make_tokenizer('digits')).fingerprint)"
    top = Path(__file__).parent.parent
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    other = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=top, env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(top)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    own = identify(build("Llama", vocab_size=1024), make_tokenizer("digits")).fingerprint
    assert other.stdout.strip() == own


@pytest.mark.filterwarnings("ignore")  # of the compiler's own
def test_what_was_compiled_in_a_process_changes_no_other_model(model, tokenizer, plain):
    compiled = build("Llama", **SMALL)
    compiled.model.layers[0].self_attn.forward = torch.compile(
        compiled.model.layers[0].self_attn.forward, backend="eager"
    )
    compiled(torch.arange(3, 40)[None])
    assert any(name.startswith("__compiled_fn") for name in vars(modeling_llama))
    assert identify(model, tokenizer) == plain


def test_named_tuples_of_transformers_are_known_and_those_of_others_code_are_not(monkeypatch):
    """Reformer's outputs are such: once its module was imported, no model's stored rows were used again."""
    from transformers.models.reformer import modeling_reformer

    assert not list(unknown_library_code([], {"sdpa"}))
    changed = eval("lambda _cls, a, b: _tuple_new(_cls, (b, a))", {"_tuple_new": tuple.__new__})
    changed.__name__ = "__new__"
    monkeypatch.setattr(modeling_reformer.LocalSelfAttentionOutput, "__new__", changed)
    assert [where for where, _ in unknown_library_code([], {"sdpa"})] == [
        "LocalSelfAttentionOutput: class LocalSelfAttentionOutput.__new__"
    ]

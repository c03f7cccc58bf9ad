"""What a config.json asks for is done or refused: RoPE scaling never ignored, switches of the form of outputs without effect."""

import json
import logging

import pytest
import torch
from tiny import build, tokens
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

import ssmax_eval
from ssmax_eval.errors import UserError
from ssmax_eval.models.config import layer_types_with_rope
from ssmax_eval.models.load import load_model

IDS = tokens(rows=1, length=120)
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [3.0, 2.0, 4.0, 5.0]}


@pytest.fixture
def make(tmp_path, tokenizer):
    """Return a function that writes a tiny checkpoint with config.json entries of choice and returns its folder."""

    def make(name="Llama", generation=None, **entries):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        build(name, vocab_size=1024).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for file, changes in (("config.json", entries), ("generation_config.json", generation or {})):
            raw = json.loads((folder / file).read_text())
            if "rope_scaling" in changes:
                raw.pop("rope_parameters", None)
            (folder / file).write_text(json.dumps({**raw, **changes}))
        return folder

    return make


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def expected(folder, **config):
    """Return the logits of the unmodified model with entries of its config set as given."""
    raw = json.loads((folder / "config.json").read_text())
    dropped = ("return_dict", "use_return_dict", "output_attentions", "attn_implementation", "_attn_implementation")
    kept = {key: value for key, value in raw.items() if key not in (*dropped, "rope_scaling", "rope_parameters")}
    (folder / "config.json").write_text(json.dumps(kept | config))
    return logits(AutoModelForCausalLM.from_pretrained(folder))


SWITCHES = [
    {"return_dict": False},
    {"use_return_dict": False},
    {"output_attentions": True, "output_hidden_states": True},
    {"output_attentions": True, "attn_implementation": "sdpa"},
    {"use_cache": False},
    {"torchscript": True},
    {"attn_implementation": "flash_attention_2"},
    {"_attn_implementation": "flash_attention_3"},
    {"attn_implementation": "flex_attention"},
    {"attn_implementation": {"": "flash_attention_2"}},
    {"attn_implementation": "eager"},
]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_switches_change_no_number(make, switches, caplog):
    folder = make(**switches)
    with caplog.at_level(logging.WARNING, "ssmax_eval"):
        model, _ = load_model(str(folder))
    assert ("transformers' default is used" in caplog.text) == ("fl" in str(switches).replace("False", ""))
    assert (logits(model) - expected(folder)).abs().max() < 1e-5


@pytest.mark.parametrize("switches", [{"return_dict": False, "use_cache": False}, {}])
def test_every_scoring_works_on_them(make, switches, tmp_path):
    outputs = {"return_dict_in_generate": True, "output_scores": True, "use_cache": False}
    folder = make(generation=outputs, max_position_embeddings=512, **switches)
    for scoring in ("forced", "generate"):
        options = {"context_lengths": (128,), "depth_percents": (50,), "trials": 1, "scoring": scoring}
        rows = ssmax_eval.needle(str(folder), output_path=tmp_path / "runs", **options)
        assert rows.error.isna().all()
    model, _ = load_model(str(folder))
    assert model.generate(IDS, max_new_tokens=2, do_sample=False).shape == (1, 122)


def test_a_registered_attention_function_that_a_config_names_stays(make):
    AttentionInterface.register("kept", sdpa_attention_forward)
    AttentionMaskInterface.register("kept", sdpa_mask)
    from ssmax_eval.models.config import load_config
    from ssmax_eval.models.sources import resolve

    folder = make(attn_implementation="kept")
    assert load_config(resolve(str(folder)))._attn_implementation == "kept"
    with pytest.raises(UserError, match="'nobodys', which is not registered"):
        load_model(str(make(attn_implementation="nobodys")))


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"rope_scaling": {"factor": 4.0}}, "rope_scaling in its config has 'factor' but no 'rope_type'"),
        ({"rope_parameters": {"factor": 4.0, "rope_theta": 1e4}}, "rope_parameters in its config has 'factor'"),
        ({"rope_scaling": {"type": None, "factor": 4.0}}, "has 'factor' but no 'rope_type'"),
        ({"rope_scaling": 4.0}, "rope_scaling 4.0"),
        ({"rope_scaling": {"type": "mine", "factor": 4.0}}, "rope_type 'mine' in its config is not known"),
        ({"rope_scaling": {"rope_type": "su", "factor": 4.0, **FACTORS}}, "type 'su'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "its config.json cannot be used"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 4.0}}},
            "does not take the RoPE scaling",
        ),
    ],
    ids=str,
)
def test_rope_scaling_that_would_be_ignored_is_refused(make, entries, said):
    with pytest.raises(UserError, match=said) as error:
        load_model(str(make(**entries)))
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["GPT2", "OPT"])
def test_rope_scaling_of_a_model_without_rope_is_refused(make, name):
    with pytest.raises(UserError, match="(ignores|does not take) the RoPE scaling"):
        load_model(str(make(name, rope_scaling={"rope_type": "linear", "factor": 4.0})))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"type": "yarn", "factor": 4.0},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
        ),
        (
            {"type": "su", "original_max_position_embeddings": 64, **FACTORS},
            {"rope_type": "longrope", "original_max_position_embeddings": 64, **FACTORS},
        ),
    ],
)
def test_older_spellings_are_read(make, written, meant):
    folder = make(rope_scaling=written)
    model, _ = load_model(str(folder))
    right = expected(folder, rope_parameters={"rope_theta": 10_000.0, **meant})
    assert (logits(model) - right).abs().max() < 1e-5
    assert (right - expected(folder)).abs().max() > 1e-2


def test_su_is_the_formula_of_phi_3(make):
    """Angles divided by the long factors past the original length; cos and sin times sqrt(1 + ln(longest / original) / ln original)."""
    written = {"type": "su", "original_max_position_embeddings": 64, **FACTORS}
    model, _ = load_model(str(make(rope_scaling=written)))
    rotary = model.model.rotary_emb
    cos, _ = rotary(torch.zeros(1), torch.arange(100)[None])
    angles = torch.arange(100)[:, None] / (torch.tensor(FACTORS["long_factor"]) * 10_000 ** (torch.arange(4) / 4))
    temperature = (1 + torch.tensor(256 / 64).log() / torch.tensor(64.0).log()).sqrt()
    torch.testing.assert_close(cos[0, :, :4], angles.cos() * temperature)


@pytest.mark.parametrize("family", ["Llama", "Gemma3Text", "Qwen3"])
def test_layer_types_with_rope_are_those_of_transformers(family):
    """Older releases that are allowed lack the method, so ours has to be the same where there is one."""
    config = build(family).config
    parameters = config.rope_parameters
    expected = [key for key, each in parameters.items() if isinstance(each, dict)]
    assert layer_types_with_rope(config, parameters) == expected
    if hasattr(config, "nested_rope_parameter_keys"):
        assert layer_types_with_rope(config, parameters) == config.nested_rope_parameter_keys(parameters)

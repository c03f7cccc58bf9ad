"""Every mechanism against a float64 map written apart from it (references.py): weights, outputs, gradients, parts, padding, positions."""

import math
from contextlib import contextmanager
from functools import partial

import plain_weights
import pytest
import references
import structure_references
import torch
from tiny import build, needed_by, tokens
from transformers import AttentionInterface, AutoModelForCausalLM, DiffLlamaConfig, DiffLlamaForCausalLM

import ssmax_eval.api as api
from ssmax_eval import Layer, Mechanism, QueryScale, Setting, UserError, load_model, register, save_model
from ssmax_eval.mechanisms import mechanism as module_of_mechanism
from ssmax_eval.mechanisms.attach import attach, learned_of, mechanisms_of
from ssmax_eval.mechanisms.implementation import IMPLEMENTATION
from ssmax_eval.mechanisms.interface import recording
from ssmax_eval.mechanisms.layers import attention_modules
from ssmax_eval.mechanisms.recorder import Recorder
from ssmax_eval.mechanisms.registry import MECHANISMS, mechanisms
from ssmax_eval.mechanisms.seen import Forward, Seen
from ssmax_eval.mechanisms.spelling import Attention
from ssmax_eval.probes.needle.probe import NeedleProbe, masses_of
from ssmax_eval.readers.answers import forced, generate
from ssmax_eval.readers.transformers import TransformersReader

LENGTH = 70
LAMBDAS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")


def softmax1(mechanism, q, k, v, scaling, seen, bias, x=None):
    sink = torch.zeros(mechanism.layer.heads)
    return references.attention(q, k, v, scaling, partial(references.softmax1_map, sink=sink), seen, bias)


def sink(mechanism, q, k, v, scaling, seen, bias, x=None):
    mapping = partial(references.softmax1_map, sink=mechanism.sink.double())
    return references.attention(q, k, v, scaling, mapping, seen, bias)


def entmax(mechanism, q, k, v, scaling, seen, bias, x=None):
    factor = mechanism.factor.double()[:, None, None]
    return references.attention(
        q, k, v, scaling, lambda scores, seen: references.entmax15_map(factor * scores, seen), seen, bias
    )


def ssmax(mechanism, q, k, v, scaling, seen, bias, x=None):
    n = seen.sum(-1, keepdim=True).clamp(min=1)
    scale = references.ssmax_scale(n, mechanism.s.double()[:, None, None])
    return references.attention(q, k, v, scaling, references.softmax_map, seen, bias, query_scale=scale)


def softmax(mechanism, q, k, v, scaling, seen, bias, x=None):
    return references.attention(q, k, v, scaling, references.softmax_map, seen, bias)


def differential(mechanism, q, k, v, scaling, seen, bias, x=None):
    vectors = [getattr(mechanism, name).double() for name in LAMBDAS]
    return references.differential(q, k, v, scaling, seen, *vectors, depth=mechanism.layer.index, bias=bias)


class Shadow:
    """A mechanism's options and numbers with float64 parameters in its place."""

    def __init__(self, mechanism, parameters):
        vars(self).update({key: value for key, value in vars(mechanism).items() if not key.startswith("_")})
        vars(self).update(parameters)


def with_input(reference):
    """Return a reference that takes the layer's input last, of one that finds it at the mechanism."""

    def call(mechanism, q, k, v, scaling, seen, bias=None, x=None):
        own = mechanism
        if not isinstance(own, Shadow):
            own = Shadow(mechanism, dict(mechanism.named_parameters()))
        own.shown = x
        return reference(own, q, k, v, scaling, seen, bias)

    return call


# how each is spelled, its float64 reference, and what its learned parameters are set to
TABLE = {
    "ssmax": ("ssmax", ssmax),
    "softmax1": ("softmax1", softmax1),
    "softmax-sink": ("softmax-sink", sink),
    "entmax-1.5": ("entmax-1.5:factor=0.8", entmax),
    "differential": ("differential", differential),
    **plain_weights.TABLE,
    **{name: (spelling, with_input(each)) for name, (spelling, each) in structure_references.TABLE.items()},
}
WHOLE = [name for name, (spelling, _) in TABLE.items() if Attention.of(spelling).mechanism.cache == "whole"]
WITH_POSITION = [(name, None) for name in TABLE] + [(name, "alibi") for name in (*TABLE, "softmax")]


def attached(name, bias=None, architecture="Llama", **changes):
    """Return a tiny model with a mechanism whose learned values are no first values."""
    model = build(architecture, **needed_by(name), **changes)
    attach(model, TABLE[name][0] if name in TABLE else name, bias=bias)
    generator = torch.Generator().manual_seed(3)
    for mechanism in mechanisms_of(model).values():
        for parameter in mechanism.parameters():
            largest = (
                0.2 if parameter.ndim == 1 else 0.2 / parameter.shape[-1]
            )  # sums of matrices no larger than numbers
            parameter.data += largest * torch.rand(parameter.shape, generator=generator)
    return model


def bias_of(bias, heads, keys):
    return references.alibi_bias(heads, keys, keys) if bias else None


def reference(name, *arguments):
    return (TABLE[name][1] if name in TABLE else softmax)(*arguments)


@contextmanager
def handed_over():
    """List what layers hand to our attention function while the block runs, what it gives them, and their input if wanted."""
    ours, handed = AttentionInterface()[IMPLEMENTATION], []

    def spy(module, query, key, value, mask, **kwargs):
        x = vars(module).get("layer_input")
        output, none = ours(module, query, key, value, mask, **kwargs)
        handed.append((module.ssmax, query, key, value, kwargs["scaling"], output, x))
        return output, none

    AttentionInterface.register(IMPLEMENTATION, spy)
    try:
        yield handed
    finally:
        AttentionInterface.register(IMPLEMENTATION, ours)


def test_every_mechanism_has_a_float64_reference():
    """Query scales have theirs in test_scales.py, what has no map in test_structure.py."""
    maps = {name for name, each in mechanisms().items() if not issubclass(each, QueryScale) and each.has_map}
    assert maps <= set(TABLE)


@pytest.mark.parametrize(("name", "bias"), WITH_POSITION)
@pytest.mark.parametrize("architecture", ["Llama", "Qwen3"])
def test_weights_and_output_are_the_float64_ones(name, bias, architecture):
    """All rows of both layers, four query heads on two key heads, with the q, k and v that the layer itself used; to 1e-6."""
    model = attached(name, bias, architecture)
    seen = torch.ones(LENGTH, LENGTH).tril().bool()[None, None]
    recorder = Recorder(torch.arange(LENGTH)[None].expand(2, -1), lambda recorded: recorded.weights)
    with handed_over() as handed, recording(model, recorder), torch.no_grad():
        model(input_ids=tokens(2, LENGTH))
    assert len(handed) == len(recorder.kept) == model.config.num_hidden_layers
    for (mechanism, query, key, value, scaling, output, x), weights in zip(handed, recorder.kept.values(), strict=True):
        arguments = (query.double(), key.double(), value.double(), scaling, seen, bias_of(bias, 4, LENGTH), x)
        right_output, right = reference(name, mechanism, *arguments)
        assert (weights - right).abs().max() < 1e-6
        assert (output - right_output).abs().max() < 1e-5 * right_output.abs().max()


@pytest.mark.parametrize(("name", "bias"), WITH_POSITION)
def test_blocks_of_rows_and_parts_over_a_cache_are_the_whole(name, bias, monkeypatch):
    model, ids = attached(name, bias), tokens(2, LENGTH)
    rows = torch.tensor([[3, 40, LENGTH - 1], [0, 55, 66]])
    whole = Recorder(rows, lambda recorded: recorded.weights)
    with recording(model, whole), torch.no_grad():
        logits = model(input_ids=ids).logits
    monkeypatch.setattr(module_of_mechanism, "BLOCK_ENTRIES", 2 * 4 * LENGTH * 7)  # seven rows a block
    blocks = Recorder(rows, lambda recorded: recorded.weights)
    with recording(model, blocks), torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, logits, atol=2e-5, rtol=1e-5)
    for layer, weights in whole.kept.items():
        assert (blocks.kept[layer] - weights).abs().max() < 2e-6
    last = Recorder(torch.tensor([[LENGTH - 31], [LENGTH - 31]]), lambda recorded: recorded.weights)
    with torch.no_grad():
        cache = model(input_ids=ids[:, :30], use_cache=True).past_key_values
        if name in WHOLE:
            with pytest.raises(UserError, match="it reads whole sequences only, not 40 of 70 tokens over a KV cache"):
                model(input_ids=ids[:, 30:], past_key_values=cache, use_cache=True)
            return
        with recording(model, last):
            part = model(input_ids=ids[:, 30:], past_key_values=cache, use_cache=True).logits
    for layer, weights in whole.kept.items():
        assert (last.kept[layer][0, :, 0] - weights[0, :, 2]).abs().max() < 2e-6
    torch.testing.assert_close(part, logits[:, 30:], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TABLE)
def test_masses_are_the_float64_maps_in_whole_and_in_chunks(name, tokenizer):
    """What the attention probe stores, to 1e-6: whole forwards, and prompts read 50 tokens at a time over a cache."""
    model = attached(name, vocab_size=1024, max_position_embeddings=512)
    probe = NeedleProbe(context_lengths=(150,), depth_percents=(0, 60), trials=1)
    prompts = [probe.prompt(tokenizer, sample) for sample in probe.plan()]
    keys = len(prompts[0].ids) - 1
    reader = TransformersReader(model, tokenizer)
    with handed_over() as handed:
        whole = masses_of(reader)(prompts)
    seen = torch.ones(keys, keys).tril().bool()[None, None]
    for i, (prompt, score) in enumerate(zip(prompts, whole, strict=True)):
        for layer, (mechanism, *tensors, scaling, _, x) in enumerate(handed[: model.config.num_hidden_layers]):
            q, k, v = (each[i : i + 1].double() for each in tensors)
            x = None if x is None else x[i : i + 1]
            _, weights = TABLE[name][1](mechanism, q, k, v, scaling, seen, None, x)
            row = weights[0, :, keys - prompt.answer_length]
            on_value = row[:, prompt.value_start : prompt.value_end].sum(-1)
            most = float(row.detach().sum(-1).max())
            within = 1e-6 if most < 1.001 else 5e-6 * most  # stored are six digits
            assert score["mass_answer"][layer] == pytest.approx(on_value.tolist(), abs=within)
            assert score["mass_needle"][layer] == pytest.approx(
                row[:, prompt.needle_start : prompt.needle_end].sum(-1).tolist(), abs=within
            )
            if mechanism.normalised:
                assert score["row_sum"] is None
            else:
                assert score["row_sum"][layer] == pytest.approx(row.sum(-1).tolist(), abs=within)
            if mechanism.signed:
                assert score["entropy"][layer] == score["log_odds"][layer] == [None] * len(row)
            else:
                shares = row / row.sum(-1, keepdim=True)
                assert score["entropy"][layer] == pytest.approx(torch.special.entr(shares).sum(-1).tolist(), abs=1e-5)
    if name in WHOLE:
        with pytest.raises(UserError, match="whole sequences only"):
            masses_of(reader)(prompts, 50)
        return
    parts = masses_of(reader)(prompts, 50)
    for one, other in zip(whole, parts, strict=True):
        for measure in ("mass_answer", "mass_needle", "mass_next", "maximum"):
            for a, b in zip(one[measure], other[measure], strict=True):
                assert a == pytest.approx(b, abs=1e-6 if most < 1.001 else 5e-6 * most)


@pytest.mark.parametrize(("name", "bias"), WITH_POSITION)
def test_gradients_are_the_float64_ones(name, bias, monkeypatch):
    """Of q, k, v and what is learned, through blocks that are computed again in the backward pass; rows of padding too."""
    monkeypatch.setattr(module_of_mechanism, "BLOCK_ENTRIES", 2 * 4 * 12 * 5)
    model = attached(name, bias)
    module = attention_modules(model)["model.layers.1.self_attn"]
    generator = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(2, heads, 12, 8, generator=generator).requires_grad_() for heads in (4, 2, 2))
    along = torch.randn(2, 12, 4, 8, generator=generator)
    seen = torch.ones(12, 12).tril().bool()[None, None].repeat(2, 1, 1, 1)
    seen[1, :, :, :3] = False  # left padding: three rows see nothing
    x = torch.randn(2, 12, 32, generator=generator).requires_grad_() if module.ssmax.needs_input else None
    vars(module)["layer_input"] = x
    output, _ = AttentionInterface()[IMPLEMENTATION](module, q, k, v, seen, scaling=0.3)
    assert not output[1, :3].any()
    (output * along).sum().backward()
    given = [q, k, v, *([] if x is None else [x])]
    # what changes projections has its gradient there (test_structure.py)
    learned = {name: p for name, p in module.ssmax.named_parameters() if p.grad is not None}
    ours = [*(each.grad for each in given), *(p.grad for p in learned.values())]
    assert all(torch.isfinite(each).all() for each in ours)
    doubles = [each.detach().double().requires_grad_() for each in given]
    parameters = [p.detach().double().requires_grad_() for p in learned.values()]
    shadow = Shadow(module.ssmax, dict(zip(learned, parameters, strict=True)))
    # a reference's padding rows are zeros before its own norm, as ours are
    right, _ = reference(name, shadow, *doubles[:3], 0.3, seen, bias_of(bias, 4, 12), *doubles[3:] or [None])
    (right * along.double()).sum().backward()
    assert (output - right).abs().max() < 1e-5 * max(1, right.abs().max())
    for one, other in zip(ours, [*(each.grad for each in doubles), *(p.grad for p in parameters)], strict=True):
        assert (one - other).abs().max() < 1e-4 * max(1e-2, other.abs().max())


@pytest.mark.parametrize(("name", "bias"), WITH_POSITION)
def test_padding_changes_nothing(name, bias):
    model, ids = attached(name, bias), tokens(1, 30)
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        both = [torch.nn.functional.pad(each, (0, 6)) for each in (ids, torch.ones_like(ids))]
        right = model(input_ids=both[0], attention_mask=both[1]).logits[:, :30]
        padded = torch.cat([torch.zeros(1, 6, dtype=torch.long), ids], 1)
        mask = torch.cat([torch.zeros(1, 6, dtype=torch.long), torch.ones_like(ids)], 1)
        position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
        found = model(input_ids=padded, attention_mask=mask, position_ids=position_ids).logits[:, 6:]
    for each in (found, right):
        assert torch.isfinite(each).all()
        torch.testing.assert_close(each, plain, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "name", [name for name, (text, _) in TABLE.items() if not Attention.of(text).mechanism.runs_on_sdpa()]
)
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bfloat16"])
def test_bfloat16_does_not_round_the_maps(name, autocast):
    """Products of bfloat16 stay float32: rounded scores would cost entmax 3% of a weight."""
    torch.manual_seed(0)
    model = attached(name)
    module = attention_modules(model)["model.layers.0.self_attn"]
    if not autocast:
        module.bfloat16()
    q, k, v = (torch.randn(1, heads, 20, 8).bfloat16() for heads in (4, 2, 2))
    x = torch.randn(1, 20, 32).bfloat16() if module.ssmax.needs_input else None
    vars(module)["layer_input"] = x
    seen = torch.ones(20, 20).tril().bool()[None, None]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output, _ = AttentionInterface()[IMPLEMENTATION](module, q, k, v, None, scaling=2.0)
    right, _ = TABLE[name][1](module.ssmax, q.double(), k.double(), v.double(), 2.0, seen, None, x)
    assert output.dtype == torch.bfloat16
    assert (output.double() - right).abs().max() <= 2**-8 * right.abs().max()


@pytest.mark.parametrize("name", [name for name in TABLE if name not in WHOLE])
def test_forced_is_greedy_decoding(name, tokenizer):
    model = attached(name, vocab_size=1024, max_position_embeddings=512)
    probe = NeedleProbe(context_lengths=(120,), depth_percents=(50,), trials=1)
    prompt = probe.prompt(tokenizer, probe.plan()[0])
    (decoded,) = generate(model, tokenizer, [prompt])
    written = model.generate(
        torch.tensor([prompt.ids[: -prompt.answer_length]]), max_new_tokens=prompt.answer_length, do_sample=False
    )[0].tolist()
    assert decoded["error"] is None
    (score,) = forced(model, tokenizer, [type(prompt)(**{**vars(prompt), "ids": written})])
    assert score["correct"]


def test_differential_is_transformers_difflama():
    """The same weights in DiffLlama and in a Llama with our mechanism give the same logits, grouped keys and all."""
    shape = {
        "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 8,
        "num_key_value_heads": 4, "initializer_range": 0.2, "head_dim": 4, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    torch.manual_seed(1)
    theirs = DiffLlamaForCausalLM(DiffLlamaConfig(**shape)).eval()
    ours = build("Llama", **shape)
    attach(ours, "differential")
    state = {
        key.replace("self_attn.lambda", "self_attn.ssmax.lambda"): value for key, value in theirs.state_dict().items()
    }
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert (missing, [key for key in unexpected if "groupnorm" not in key]) == ([], [])
    ids = tokens(2, 33)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-5, rtol=1e-5)


def test_differential_needs_pairs():
    with pytest.raises(UserError, match="1 heads of keys has no pairs"):
        attach(build("Llama", num_key_value_heads=1), "differential")


@pytest.mark.parametrize("name", TABLE)
def test_a_checkpoint_keeps_it(name, tokenizer, tmp_path):
    model = attached(name, vocab_size=1024)
    ids = tokens(1, 20)
    with torch.no_grad():
        before = model(ids).logits
    save_model(model, tokenizer, tmp_path / "saved")
    again, _ = load_model(str(tmp_path / "saved"))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    for each in (again, theirs):
        with torch.no_grad():
            assert torch.equal(each(ids).logits, before)
        assert learned_of(each) == learned_of(model)


def test_first_values_are_the_same_for_a_seed_and_others_for_another():
    one, same, other = (build("Llama") for _ in range(3))
    for model, seed in ((one, 1), (same, 1), (other, 2)):
        torch.manual_seed(seed * 10)  # which has no say
        attach(model, "differential", seed=seed)
    values = [mechanisms_of(model)["model.layers.1.self_attn"].lambda_q1 for model in (one, same, other)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


@pytest.fixture
def registry():
    before = dict(mechanisms())
    yield
    MECHANISMS.clear()
    MECHANISMS.update(before)


def test_whole_forwards_only_is_said_in_one_line(registry, tokenizer, tmp_path):
    """A mechanism that needs more of earlier rows than their keys is refused where it would get only a part."""

    @register
    class Whole(Mechanism):
        """weights = softmax(z - what earlier rows gave the key)"""

        name = "whole"
        cache = "whole"
        carries = True

        def weights(self, scores, seen):
            given = scores.sigmoid().masked_fill(~seen.mask, 0)
            earlier = seen.carry.get("given", torch.zeros_like(given[:, :, :1])) + given.cumsum(2) - given
            seen.carry["given"] = earlier[:, :, -1:] + given[:, :, -1:]
            return (scores - earlier).softmax(-1)

    model = build("Llama", vocab_size=1024)
    asked = {
        "attention": "whole",
        "context_lengths": [120],
        "depth_percents": [50],
        "trials": 2,
        "output_path": tmp_path,
    }
    rows = api.needle((model, tokenizer), **asked)
    assert rows["error"].isna().all()
    with pytest.raises(UserError, match="cannot be read in parts: attention whole: it reads whole sequences only"):
        api.needle((model, tokenizer), **asked, chunk=50, fresh=True)
    with pytest.raises(UserError, match="use forced scoring"):
        api.needle((model, tokenizer), **asked, scoring="generate")
    with Setting.of("whole")(model), pytest.raises(UserError, match="1 of 21 tokens over a KV cache"):
        model.generate(tokens(1, 20), max_new_tokens=3)


def test_what_blocks_carry_on_makes_them_the_whole(registry, monkeypatch):
    @register
    class Running(Mechanism):
        """weights = softmax(z - sum over earlier rows)"""

        name = "running"
        cache = "whole"
        carries = True

        def weights(self, scores, seen):
            given = scores.sigmoid().masked_fill(~seen.mask, 0)
            before = seen.carry.get("given", torch.zeros_like(given[:, :, :1]))
            earlier = before + given.cumsum(2) - given
            seen.carry["given"] = before + given.sum(2, keepdim=True)
            return (scores - earlier).softmax(-1)

    model, ids = build("Llama"), tokens(1, 40)
    attach(model, "running")
    with torch.no_grad():
        whole = model(ids).logits
    monkeypatch.setattr(module_of_mechanism, "BLOCK_ENTRIES", 4 * 40 * 6)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, whole, atol=1e-5, rtol=1e-5)
    model.train()
    model(ids).logits.sum().backward()  # blocks are computed again with what they were told then
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_layers_input_reaches_those_that_ask(registry):
    shown = []

    @register
    class Asks(Mechanism):
        """weights = softmax(z), x seen"""

        name = "asks"
        needs_input = True

        def weights(self, scores, seen):
            shown.append(seen.input)
            return scores.softmax(-1)

    model, ids = build("Llama"), tokens(2, 10)
    inputs = []
    hooks = [
        module.register_forward_pre_hook(lambda m, a, k: inputs.append(k["hidden_states"]), with_kwargs=True)
        for module in attention_modules(model).values()
    ]
    with Setting.of("asks")(model), torch.no_grad():
        model(ids)
    assert len(shown) == len(inputs) == 2
    assert all(torch.equal(one, other) for one, other in zip(shown, inputs, strict=True))
    with Setting.of("softmax1")(model), torch.no_grad():
        model(ids)
    assert not any("layer_input" in vars(module) for module in attention_modules(model).values())
    for hook in hooks:
        hook.remove()


def test_a_name_that_is_taken_is_refused(registry):
    class Own(Mechanism):
        name = "ssmax"

    with pytest.raises(UserError, match="has one of this name"):
        register(Own)
    with pytest.raises(UserError, match="its name is None"):
        register(type("Nameless", (Mechanism,), {}))


def test_n_of_heads_that_see_unlike_keys():
    """A bool mask with a head dimension gives each head its own n."""
    mask = torch.ones(6, 6).tril().bool().repeat(1, 2, 1, 1)
    mask[:, 1, :, :2] = False
    mask[:, 1, 0, 0] = mask[:, 1, 1, 1] = True
    n = Seen(Forward(6, 6, mask, True, mask.device, 1.0)).n
    assert n[0].tolist() == mask[0].sum(-1).tolist()


def test_distances_are_from_a_rows_own_key():
    mask = torch.ones(1, 1, 4, 4).tril().bool()
    seen = Seen(Forward(4, 4, mask, True, mask.device, 1.0))
    assert seen.position.tolist() == [[0, 1, 2, 3]]
    assert seen.distance[0, 0].tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [2, 1, 0, 0], [3, 2, 1, 0]]
    # a static cache is longer than what was read
    later = torch.zeros(1, 1, 1, 9).bool()
    later[..., :5] = True
    assert Seen(Forward(1, 9, later, True, mask.device, 1.0)).position.tolist() == [[4]]


def test_layers_are_told_what_they_stand_on():
    model = build("Qwen3", num_hidden_layers=3)
    attach(model, "ssmax", seed=4)
    told = [mechanism.layer for mechanism in mechanisms_of(model).values()]
    assert told == [Layer(4, 256, 2, 8, 32, index, 3, 4) for index in range(3)]


def test_math_of_entmax_is_finite_where_scores_are_far():
    from ssmax_eval.mechanisms.entmax import entmax15

    far = torch.tensor([[1e4, -1e4, 0.0], [0.0, -math.inf, -math.inf], [-3e4, -3e4, -3e4]], requires_grad=True)
    weights = entmax15(far)
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [1 / 3] * 3]))
    weights.square().sum().backward()
    assert torch.isfinite(far.grad[[0, 2]]).all()
    flat = entmax15(torch.zeros(1, 100_000))
    torch.testing.assert_close(flat, torch.full((1, 100_000), 1e-5), atol=1e-9, rtol=1e-4)


def test_evaluation_changes_nothing_that_is_not_its_own(registry):
    """Scores that are a view of what is learned, and weights in expanded memory, come out as with gradients."""

    @register
    class Table(Mechanism):
        """weights of a learned table, and of n alone"""

        name = "table"

        def __init__(self, layer):
            super().__init__(layer)
            self.table = torch.nn.Parameter(torch.rand(1, layer.heads, 64, 64))

        def scores(self, q, k, seen):
            rows, keys = q.shape[2], k.shape[2]
            return self.table[:, :, seen.rows, :keys].expand(len(q), -1, -1, -1)[:, :, :rows]

        def weights(self, scores, seen):
            return scores.softmax(-1) if self.layer.index else (1 / seen.n)[..., None].expand_as(scores)

    model, ids = build("Llama"), tokens(2, 30)
    attach(model, "table")
    table = mechanisms_of(model)["model.layers.0.self_attn"].table
    before, trained = table.detach().clone(), model(ids).logits
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, trained.detach(), atol=1e-6, rtol=1e-6)
    assert torch.equal(table, before)


def test_the_models_dropout_is_not_dropped():
    model, ids = build("Llama", attention_dropout=0.5), tokens(1, 30)
    attach(model, "entmax-1.5")
    model.train()
    with torch.no_grad():
        assert not torch.equal(model(ids).logits, model(ids).logits)
        model.eval()
        assert torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", ["softmax", "ssmax", "entmax-1.5"])
def test_trap_1_of_mechanisms_recorded_rows_are_float32_under_autocast(name):
    model = build("Llama")
    attach(model, name)
    recorder = Recorder(torch.tensor([[5, 19]]), lambda recorded: recorded.weights)
    with recording(model, recorder), torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        model(tokens(1, 20))
    for weights in recorder.kept.values():
        assert weights.dtype == torch.float32
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), atol=1e-6, rtol=0)


def test_a_bias_on_windowed_layers_is_no_mechanism_there():
    """learned-p's shared table is not the first layer's, which has a window; records tell the layers that have it."""
    model = build("Gemma3Text", num_hidden_layers=3, layer_types=["sliding_attention", *["full_attention"] * 2])
    for attention, scaled in (("learned-p", [1, 2]), ("softmax", [])):
        assert attach(model, attention, bias="alibi").scaled_indices == scaled
        with Setting()(model) as effective:
            assert effective.attached.scaled_indices == scaled
            assert effective.has_mechanism


def test_options_are_tried_on_a_generous_layer(registry):
    """A mechanism that wants four groups of heads can be asked for; a layer that has none refuses it."""

    @register
    class Groups(Mechanism):
        """of four groups"""

        name = "groups"

        def __init__(self, layer):
            super().__init__(layer)
            if layer.heads % 4 or layer.layers < 2:
                raise UserError(f"attention groups: {layer.heads} heads are not four groups")

    assert str(Setting.of("groups")) == "groups"
    with pytest.raises(UserError, match="2 heads are not four groups"):
        attach(build("Llama", num_attention_heads=2), "groups")

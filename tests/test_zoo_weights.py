"""Mechanisms of one map against closed forms, public packages and their own limits; test_mechanisms.py has the float64 references."""

import json
import math

import plain_weights
import pytest
import references
import torch
from test_cli import call
from test_readme import TINY
from tiny import build, tokens
from torch.nn import functional as F

from ssmax_eval import Layer, Setting, UserError, attach, load_model
from ssmax_eval.mechanisms.attach import mechanisms_of
from ssmax_eval.mechanisms.entmax import sparsemax
from ssmax_eval.mechanisms.registry import MECHANISMS, mechanisms
from ssmax_eval.mechanisms.seen import Forward, Seen
from ssmax_eval.mechanisms.spelling import Attention

LAYER = Layer(heads=4, train_length=1024, key_heads=2, head_dim=8, width=32, index=1, layers=3, seed=5)
NEW = [
    "sparsemax", "asentmax", "sssmax", "scale-nq", "scale-nq:channels=1", "sigmoid", "stick-breaking", "scale-invariant",
    "fox", "fox-bias",
]  # fmt: skip


def made(name, layer=LAYER):
    mechanisms()
    return Attention.of(name).on(layer)


def seen_of(rows, keys=None, x=None):
    keys = keys or rows
    mask = torch.ones(rows, keys).tril(keys - rows).bool()[None, None]
    return Seen(Forward(rows, keys, mask, True, mask.device, 1.0, input=x))


def weights_of(mechanism, q, k, x=None):
    """Return the float32 weights of a causal forward, as `mix` makes them."""
    seen = seen_of(q.shape[2], x=x)
    _, weights, _ = mechanism.mix(q, k, k, seen, (0, q.shape[2], k.shape[2]), {})
    return weights


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [0.01, 0.3, 3, 1e4])
@pytest.mark.parametrize("keys", [1, 2, 7, 300, 5000])
def test_sparsemax_is_the_authors_package(scale, keys):
    entmax = pytest.importorskip("entmax")
    scores = scale * drawn(20, keys, seed=keys)
    right = entmax.sparsemax(scores.double(), dim=-1)
    assert (sparsemax(scores) - right).abs().max() < 1e-6


def test_sparsemax_by_support_search_and_by_bisection_agree():
    """The two references, and ours where Newton has most to leave out: scores that halve, and equal ones."""
    halving = torch.tensor([2.0**-k for k in range(60)])
    scores = torch.stack([halving, torch.zeros(60), drawn(60), 5 * drawn(60)])[None, None]
    seen = torch.ones(60).bool()
    found, right = plain_weights.sparsemax_map(scores, seen), references.entmax_map(scores, seen, 2.0)
    assert (found - right).abs().max() < 1e-13
    assert (sparsemax(scores) - right).abs().max() < 1e-7
    hidden = sparsemax(torch.tensor([[0.0, -math.inf, -0.5]]))
    assert hidden.tolist() == [[0.75, 0, 0.25]]


def test_gradients_by_finite_differences():
    scores = 0.5 * drawn(1, 4, 6, 6).double()
    scores.requires_grad_()
    seen = seen_of(6)
    assert torch.autograd.gradcheck(sparsemax, scores)
    for name in ("sigmoid", "sigmoid:b=-1", "stick-breaking"):
        mechanism = made(name)
        assert torch.autograd.gradcheck(lambda z, each=mechanism: each.weights(z, seen), scores)


def test_stick_breaking_halves_what_is_left():
    seen = seen_of(5)
    weights = made("stick-breaking").weights(torch.zeros(1, 1, 5, 5).masked_fill(~seen.mask, -1e9), seen)[0, 0]
    assert weights[0].tolist() == [0] * 5  # it sees its own key alone
    assert weights[4].tolist() == pytest.approx([1 / 16, 1 / 8, 1 / 4, 1 / 2, 0], abs=1e-7)
    # a row's sum is 1 minus what every key has left
    scores = 3 * drawn(1, 4, 5, 5)
    found = made("stick-breaking").weights(scores.masked_fill(~seen.mask, -1e9), seen)
    left = (1 - scores.double().sigmoid()).tril(-1) + torch.ones(5, 5).triu()
    torch.testing.assert_close(found.sum(-1), (1 - left.prod(-1)).float(), atol=1e-6, rtol=0)


def test_stick_breaking_loses_no_digits_behind_a_large_score():
    """A total minus a sum from the start would leave 1e-4 of such a weight."""
    keys = 4096
    scores = torch.full((1, 1, 1, keys), -6.0)
    scores[..., : keys // 2] = 1000.0
    found = made("stick-breaking").weights(scores, seen_of(1, keys))[0, 0, 0]
    passed = F.logsigmoid(-scores[0, 0, 0, :-1].double())
    right = F.logsigmoid(scores[0, 0, 0, :-1].double()) + torch.cat(
        [passed.flip(0).cumsum(0).flip(0)[1:], torch.zeros(1)]
    )
    torch.testing.assert_close(found[:-1].double(), right.exp(), atol=1e-30, rtol=1e-4)
    assert found[keys // 2 - 1] > 0.006


def test_scale_invariant_counts_each_range_of_distances_alike():
    """Of normal scores, the expected weight before the sum is e^.5 / (1 + t / tau)."""
    mechanism, z = made("scale-invariant:tau=10"), drawn(100_000).double()
    for t in (0, 10, 90, 990):
        m = 2 * math.log1p(t / mechanism.tau)
        exact = math.exp((1 + m) / 2 - m)
        assert exact == pytest.approx(math.exp(0.5) / (1 + t / 10))
    seen = seen_of(1, 40)
    q, k = drawn(1, 4, 1, 8), drawn(1, 2, 40, 8, seed=1)
    plain = super(type(mechanism), mechanism).scores(q, k, seen)
    found = mechanism.scores(q, k, seen)
    assert torch.equal(found[..., -1], plain[..., -1])  # its own key
    m = 2 * math.log(1 + 30 / 10)
    torch.testing.assert_close(found[..., 9], math.sqrt(1 + m) * plain[..., 9] - m)
    assert z.std() > 0.99


def test_fox_bias_starts_with_times_of_even_logarithms():
    """In T tokens a weight falls by e."""
    times = -1 / F.logsigmoid(made("fox-bias").b.double())
    torch.testing.assert_close(times, torch.logspace(math.log10(2), math.log10(1024), 4).double(), atol=0, rtol=1e-3)
    times = -1 / F.logsigmoid(made("fox-bias:shortest=3,longest=300").b.double())
    assert (times[0].item(), times[-1].item()) == pytest.approx((3, 300), rel=1e-4)
    half = made("fox:shortest=1.4427,longest=1.4427").b  # the authors' first bias
    assert half.abs().max() < 1e-4
    assert torch.equal(made("fox").b, made("fox-bias").b)
    assert len(made("fox", Layer(heads=1, train_length=64, width=8)).b) == 1


def test_fox_without_input_is_fox_bias_also_far_away():
    """Sums of 3,000 tokens keep the digits of near differences."""
    length = 3000
    fox, bias = made("fox"), made("fox-bias")
    fox.w.data.zero_()
    q, k, x = drawn(1, 4, length, 8), drawn(1, 2, length, 8, seed=1), drawn(1, length, 32, seed=2)
    seen = seen_of(length, x=x)
    with torch.no_grad():
        rows = slice(length - 4, length)
        found = fox.scores(q[:, :, rows], k, seen.block(length - 4, length, length))
        right = bias.scores(q[:, :, rows], k, seen.block(length - 4, length, length))
    apart = (found - right)[..., : length - 3].abs()  # later keys are hidden
    assert apart[..., -60:].max() < 2e-5
    assert apart.max() < 1e-6 * right.abs().max()


def test_scale_nq_is_softmax_at_first():
    model, ids = build("Llama"), tokens()
    with torch.no_grad():
        softmax = model(ids).logits
        for name in ("scale-nq", "scale-nq:channels=1"):
            with Setting.of(name)(model):
                torch.testing.assert_close(model(ids).logits, softmax, atol=1e-6, rtol=1e-6)


def test_scale_nq_of_channels_scales_each_alone():
    mechanism, q = made("scale-nq:channels=1"), drawn(2, 4, 5, 8)
    mechanism.n_out_bias.data[1, 0, 3] = 0.0
    scaled = mechanism.query(q, seen_of(5))
    assert not scaled[:, 1, :, 3].any()
    q[:, 1, :, 3] = 0
    assert torch.equal(scaled, q)
    assert made("scale-nq").n_out.shape == (4, 1, 64)


def test_sssmax_stays_above_a_tenth():
    mechanism = made("sssmax:s=0.2,b=-3")
    assert mechanism(torch.ones(1, 1, 1)).tolist() == [[[pytest.approx(0.1)]] * 4]


def test_asentmax_starts_as_the_paper_unless_told():
    mechanism = made("asentmax", Layer(heads=4000, train_length=64))
    beta, gamma = mechanism.beta.detach(), mechanism.gamma.detach()
    assert (beta >= 0.1).all()
    assert (beta <= 1).all()
    assert beta.mean() == pytest.approx(0.55, abs=0.02)
    assert beta.std() == pytest.approx(0.9 / math.sqrt(12), abs=0.02)
    assert (gamma.mean().item(), gamma.std().item()) == (pytest.approx(0, abs=0.01), pytest.approx(0.1, abs=0.01))
    other = made("asentmax:delta=0,beta=0.08,gamma=1")
    assert (other.delta, other.beta.tolist(), other.gamma.tolist()) == (0, pytest.approx([0.08] * 4), [1] * 4)
    # z (0 + beta ln(n + 1)): SSMax's law before entmax
    q, k = drawn(1, 4, 1, 8), drawn(1, 2, 40, 8, seed=1)
    found = other.scores(q, k, seen_of(1, 40))
    torch.testing.assert_close(found, 0.08 * math.log(41) * super(type(other), other).scores(q, k, seen_of(1, 40)))


@pytest.mark.parametrize("name", ["fox", "scale-invariant", "stick-breaking", "sigmoid", "sparsemax", "asentmax"])
def test_float32_whatever_autocast_says(name):
    mechanism = made(name)
    q, k, x = (drawn(*shape).bfloat16() for shape in ((1, 4, 9, 8), (1, 2, 9, 8), (1, 9, 32)))
    assert weights_of(mechanism, q.float(), k.float(), x).dtype == torch.float32


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("scale-nq:channels=2", "channels=2 of scale-nq: allowed are 0"),
        ("scale-nq:channels=0.5", "allowed are whole numbers"),
        ("scale-invariant:tau=0", "tau=0: allowed are numbers from 1e-6"),
        ("fox:shortest=0", "shortest=0: allowed are numbers from 1e-6"),
        ("fox-bias:longest=-1", "longest=-1: allowed are numbers from 1e-6"),
        ("fox-bias:shortest=8,longest=4", "longest=4: allowed are numbers from shortest=8"),
        ("sigmoid:c=1", "unknown option 'c=1' of attention sigmoid; allowed: train_length, b"),
    ],
)
def test_wrong_options_are_one_clear_line(text, says):
    with pytest.raises(UserError) as error:
        Attention.of(text)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_what_cannot_be_swapped_in_says_so(caplog):
    for name in NEW:
        caplog.clear()
        with Setting.of(name)(build("Llama")):
            pass
        assert bool(caplog.records) is not made(name).swap, name


TRAINED_ALWAYS = ["scale-nq", "fox", "stick-breaking"]  # a query part, one of the input, one whose rows do not sum to 1


@pytest.mark.parametrize(
    "names",
    [TRAINED_ALWAYS, pytest.param([name for name in NEW if name not in TRAINED_ALWAYS], marks=pytest.mark.slow)],
    ids=["some", "others"],
)
def test_recipes_train_them_and_probes_read_them(names, tmp_path, capsys):
    small = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    asked = [part for name in names for part in ("--attention", name)]
    code, _, err = call(capsys, "train", "--recipe", "smoke", *asked, *small, "--out", tmp_path / "models")
    assert code == 0, err
    folders = sorted(path.parent for path in (tmp_path / "models").rglob("model.safetensors"))
    assert len(folders) == len(names)
    moved = {}
    for folder in folders:
        mechanism = next(iter(mechanisms_of(load_model(str(folder))[0]).values()))
        first = dict(type(mechanism)(mechanism.layer, **given_to(folder)).named_parameters())
        moved[folder.name] = [torch.equal(p, first[name]) for name, p in mechanism.named_parameters()]
    assert [name for name, same in moved.items() if same and all(same)] == []
    models = [part for folder in folders for part in ("--model", folder)]
    grid = ("--context-lengths", "96", "--depth-percents", "50", "--trials", "1", "--no-report", "--json")
    for command in (
        ("attention", *grid),
        ("loss", "--context-length", "128", "--documents", "1", "--window", "16", "--no-report"),
    ):
        code, _, err = call(capsys, command[0], *models, *command[1:], "--output-path", tmp_path / "out")
        assert code == 0, err


def given_to(folder):
    spelled = Attention.of(json.loads((folder / "config.json").read_text())["ssmax"]["attention"])
    return {key: int(value) if key == "channels" else value for key, value in spelled.options}


def test_the_list_tells_all_of_every_mechanism_in_120_columns(capsys):
    code, out, _ = call(capsys, "mechanisms")
    assert code == 0
    lines = out.splitlines()
    assert max(map(len, lines)) <= 120
    head = next(line for line in lines if line.startswith(" mechanism"))
    at, end = head.index("formula"), head.index("changes")
    starts = {line[:at].strip() for line in lines}
    listed = json.loads(call(capsys, "mechanisms", "--json")[1])
    told = {each["mechanism"]: each for each in listed["mechanisms"]}
    assert set(told) == set(MECHANISMS) <= starts
    words = " ".join(" ".join(line[at:end].split()) for line in lines)
    for name, each in told.items():
        for said in (each["formula"], each["reference"], each["choices"]):
            assert " ".join(said.split()) in words, name
    assert told["fox"]["learned_numbers"] == 16 * 1024 + 16
    assert (told["fox"]["cache"], told["fox"]["needs_input"], told["fox"]["parts"]) == ("whole", True, ["scores"])
    assert (told["stick-breaking"]["sparse"], told["stick-breaking"]["normalised"]) == (True, False)
    assert listed["example_layer"]["heads"] == 16


@pytest.mark.parametrize("name", [name for name in NEW if name != "sssmax"])
def test_flags_are_true(name):
    """Whether weights are below 0, exactly 0, or do not sum to 1."""
    mechanism = made(name)
    q, k, x = 2 * drawn(2, 4, 30, 8), drawn(2, 2, 30, 8, seed=1), drawn(2, 30, 32, seed=2)
    seen = seen_of(30, x=x)
    with torch.no_grad():
        weights = weights_of(mechanism, mechanism.query(q, seen), k, x)
    rows = weights[:, :, 1:]
    assert (rows < 0).any() == mechanism.signed
    assert (rows[seen.mask.expand_as(weights)[:, :, 1:]] == 0).any() == mechanism.sparse
    assert bool((rows.sum(-1) - 1).abs().max() < 1e-5) == mechanism.normalised
    assert not weights[(~seen.mask).expand_as(weights)].any()


def test_attach_keeps_softmax_apart():
    """A mechanism taken off leaves the model as it was."""
    model, ids = build("Qwen3"), tokens()
    with torch.no_grad():
        before = model(ids).logits
        for name in NEW:
            attach(model, name)
            assert torch.isfinite(model(ids).logits).all()
        attach(model, "softmax")
        assert torch.equal(model(ids).logits, before)

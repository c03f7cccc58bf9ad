"""Formulas of the query scales against closed forms and transformers' own implementations."""

import math

import pytest
import torch

from ssmax_eval.errors import UserError
from ssmax_eval.mechanisms.mechanism import Layer
from ssmax_eval.mechanisms.registry import MECHANISMS, mechanisms, register
from ssmax_eval.mechanisms.scales import QueryScale, mean_log_n
from ssmax_eval.mechanisms.spelling import Attention
from ssmax_eval.setting import Setting

N = torch.tensor([[[1.0, 2, 10, 100, 1023, 1024, 1025, 8191, 8192, 20000, 100000]]])
L = 1024


def scale(name, **options):
    return MECHANISMS[name](Layer(2, L), **options)(N)


@pytest.mark.parametrize(
    ("name", "options", "formula"),
    [
        ("softmax", {}, lambda n: 1.0),
        ("ssmax", {"s": 0.43}, lambda n: 0.43 * math.log(n)),
        ("ssmax", {}, lambda n: math.log(n) * L / math.lgamma(L + 1)),
        ("ssmax-fixed", {}, lambda n: math.log(n)),
        ("ssmax-bias", {"s": 0.2, "b": 0.7}, lambda n: 0.2 * math.log(n) + 0.7),
        ("sssmax", {}, lambda n: 0.43 * math.log(n) + 0.1 + 0.1),
        ("sssmax", {"s": 0.2, "b": -0.7}, lambda n: 0.2 * math.log(n) + 0.1),
        ("constant-n", {"s": 0.2}, lambda n: 0.2 * math.log(L)),
        ("log-n", {}, lambda n: max(1.0, math.log(n) / math.log(L))),
        ("llama4", {}, lambda n: 1 + 0.1 * math.log(1 + math.floor(n / 8192))),
        ("llama4", {"beta": 0.3, "floor_scale": 512}, lambda n: 1 + 0.3 * math.log(1 + math.floor(n / 512))),
        ("ministral3", {}, lambda n: 1 + 0.1 * math.log(1 + math.floor((n - 1) / L))),
        ("yarn-factor", {"factor": 8}, lambda n: (0.1 * math.log(8) + 1) ** 2),
        ("grok", {}, lambda n: math.log2(n - 1) / math.log2(L) if n - 1 > L else 1.0),
        ("sqrt-log-n", {}, lambda n: math.sqrt(2 * math.log(n))),
        ("learned-p", {}, lambda n: 1.0),
    ],
)
def test_scale_is_its_formula(name, options, formula):
    expected = torch.tensor([formula(n) for n in N[0, 0].tolist()])
    values = scale(name, **options)
    assert values.dtype == torch.float32
    for head in values[0]:
        torch.testing.assert_close(head, expected, atol=1e-6, rtol=1e-5)


def test_every_scale_is_tested_above():
    tested = {mark.args[1][i][0] for mark in test_scale_is_its_formula.pytestmark for i in range(len(mark.args[1]))}
    assert tested == {name for name, each in mechanisms().items() if issubclass(each, QueryScale)}


def test_ministral3_equals_transformers():
    from transformers.models.ministral3.modeling_ministral3 import get_llama_4_attn_scale

    theirs = get_llama_4_attn_scale(N[0].long() - 1, 0.1, L)[:, 0, :, 0]
    torch.testing.assert_close(scale("ministral3")[:, 0], theirs)


def test_llama4_equals_transformers():
    # transformers has it inline in Llama4TextAttention.forward: log1p(floor((positions + 1) / floor_scale)) * attn_scale + 1
    from transformers import Llama4TextConfig

    config = Llama4TextConfig()
    theirs = torch.log1p(torch.floor(N[0] / config.floor_scale)) * config.attn_scale + 1.0
    torch.testing.assert_close(scale("llama4")[:, 0], theirs)


@pytest.mark.parametrize(
    ("length", "s"),
    [(128, 0.2579), (256, 0.2193), (512, 0.1906), (1024, 0.1685), (2048, 0.1509), (4096, 0.1366)],
)
def test_initial_s_is_one_over_mean_log_n(length, s):
    assert 1 / mean_log_n(length) == pytest.approx(s, abs=5e-5)
    direct = sum(math.log(n) for n in range(1, length + 1)) / length
    assert mean_log_n(length) == pytest.approx(direct, rel=1e-12)


def test_ssmax_bounds_of_the_paper():
    """SSMax's maximum is at least 1 / ((n - 1) / n^(s gap) + 1); softmax's at most 1 / ((n - 1) / e^(range) + 1)."""
    generator = torch.Generator().manual_seed(0)
    for n in (10, 1000, 100_000):
        z = torch.randn(n, generator=generator, dtype=torch.float64)
        top = z.sort().values
        weights = (0.43 * math.log(n) * z).softmax(0).max()
        assert weights >= 1 / ((n - 1) / n ** (0.43 * (top[-1] - top[-2])) + 1) - 1e-12
        assert z.softmax(0).max() <= 1 / ((n - 1) / math.exp(top[-1] - top[0]) + 1) + 1e-12


def test_a_users_own_scale():
    @register
    class Sharp(QueryScale):
        """C = factor"""

        name = "sharp"

        def __init__(self, layer, *, factor: float = 2.0):
            super().__init__(layer)
            self.factor = factor

        def forward(self, n):
            return torch.full_like(n, self.factor)

    try:
        from tiny import build, tokens

        model, ids = build("Llama"), tokens()
        with torch.no_grad(), Setting.of("sharp:factor=3")(model) as effective:
            logits = model(ids).logits
            assert effective.attached.attention == "sharp:factor=3"
        with torch.no_grad():
            for layer in model.model.layers:  # the same law by hand: scale the query projection
                layer.self_attn.q_proj.weight.mul_(3)
            torch.testing.assert_close(logits, model(ids).logits, atol=1e-4, rtol=1e-4)
    finally:
        del MECHANISMS["sharp"]


@pytest.mark.parametrize(
    "text",
    [
        "sigmoidal",
        "",
        "ssmax:t=1",
        "ssmax:s",
        "ssmax:s=",
        "ssmax:s=x",
        "ssmax:s=nan",
        "ssmax:s=inf",
        "softmax:s=1",
        "ssmax:train_length=0",
    ],
)
def test_wrong_scales_are_one_clear_line(text):
    with pytest.raises(UserError, match="allowed|unknown") as error:
        Attention.of(text)
    assert "\n" not in str(error.value)


def test_canonical_spelling():
    assert (
        str(Attention.of("ssmax-bias:s=0.20,b=1"))
        == str(Attention.of("ssmax-bias:b=1.0,s=.2"))
        == "ssmax-bias:b=1,s=0.2"
    )

"""The references of the mechanisms against closed forms and against public implementations."""

import math
from types import SimpleNamespace

import pytest
import references
import torch
from torch.nn import functional as F
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.diffllama import modeling_diffllama as diffllama
from transformers.models.gpt_oss import modeling_gpt_oss as gpt_oss
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

NONE = torch.zeros(3)


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, dtype=torch.float64, generator=generator)


def causal(rows: int, keys: int) -> torch.Tensor:
    return torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows)


def ragged(*shape: int, seed: int = 0) -> torch.Tensor:
    """Seen keys at random, at least the first of each row."""
    seen = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    seen[..., 0] = True
    return seen


def close(got: torch.Tensor, want: torch.Tensor, atol: float) -> None:
    assert got.dtype == torch.float64
    assert got.shape == want.shape
    torch.testing.assert_close(got, want.double(), rtol=0.0, atol=atol)


MAPS = {
    "softmax": references.softmax_map,
    "softmax1": lambda scores, seen: references.softmax1_map(scores, seen, NONE),
    "entmax15": references.entmax15_map,
    "entmax 1.2": lambda scores, seen: references.entmax_map(scores, seen, 1.2),
    "sparsemax": lambda scores, seen: references.entmax_map(scores, seen, 2.0),
}


@pytest.mark.parametrize("name", MAPS)
def test_any_map_is_of_the_seen_alone(name):
    scores, seen = draw(2, 3, 5, 7, scale=2.0), ragged(2, 3, 5, 7)
    seen[0, 1, 2] = False
    weights = MAPS[name](scores, seen)
    assert (weights >= 0).all()
    assert (weights[~seen] == 0).all()
    sums = weights.sum(-1)
    assert sums[0, 1, 2] == 0
    if name == "softmax1":
        assert (sums < 1).all()
    else:
        close(sums[seen.any(-1)], torch.ones(29), 1e-14)
    # whatever stands at unseen keys, and keys left out rather than hidden
    for junk in (math.inf, -math.inf, math.nan, 1e9):
        assert torch.equal(MAPS[name](torch.where(seen, scores, junk), seen), weights)
    alone = MAPS[name](scores[..., seen[1, 2, 4]], torch.ones(1, dtype=torch.bool))
    close(weights[1, 2, 4][seen[1, 2, 4]], alone[1, 2, 4], 1e-15)
    # one mask for the batch and the heads
    mask = causal(5, 7)
    assert torch.equal(MAPS[name](scores, mask), MAPS[name](scores, mask.expand(2, 3, 5, 7)))


@pytest.mark.parametrize("name", MAPS)
def test_any_map_takes_large_scores(name):
    scores = draw(1, 3, 4, 6, scale=1e4)
    weights = MAPS[name](scores, causal(4, 6))
    assert weights.isfinite().all()
    if name != "softmax1":
        shifted = MAPS[name](scores + 2.0**20, causal(4, 6))
        close(weights, shifted, 1e-8)


def test_softmax_is_torchs():
    scores, seen = draw(2, 3, 5, 7, scale=3.0), ragged(2, 3, 5, 7)
    want = scores.masked_fill(~seen, -math.inf).softmax(-1)
    close(references.softmax_map(scores, seen), want, 1e-15)


def test_softmax1_is_its_formula():
    scores = torch.tensor([0.0, math.log(2.0), math.log(5.0)], dtype=torch.float64)
    weights = references.softmax1_map(scores.view(1, 1, 1, 3), torch.ones(3).bool(), NONE[:1])
    close(weights[0, 0, 0], torch.tensor([1.0, 2.0, 5.0]) / 9, 1e-7)
    scores, seen = draw(2, 3, 5, 7), ragged(2, 3, 5, 7)
    shares = scores.exp() * seen
    want = shares / (1 + shares.sum(-1, keepdim=True))
    close(references.softmax1_map(scores, seen, NONE), want, 1e-15)
    # no sink at all is softmax, and a sink above everything leaves nothing
    low = torch.full((3,), -math.inf)
    want = references.softmax_map(scores, seen)
    close(references.softmax1_map(scores, seen, low), want, 1e-15)
    assert references.softmax1_map(scores, seen, NONE + 1e5).sum() == 0
    # all scores far below the sink's 0
    assert references.softmax1_map(scores - 1e4, seen, NONE).sum() == 0


def test_softmax1_is_torchs_add_zero_attn():
    q, k, v = (draw(2, 5, 12, seed=seed) for seed in range(3))
    eye, zeros = torch.eye(12, dtype=torch.float64), torch.zeros(36, dtype=torch.float64)
    want, weights = F.multi_head_attention_forward(
        *(x.transpose(0, 1) for x in (q, k, v)),
        embed_dim_to_check=12,
        num_heads=3,
        in_proj_weight=torch.cat([eye] * 3),
        in_proj_bias=zeros,
        bias_k=None,
        bias_v=None,
        add_zero_attn=True,
        dropout_p=0.0,
        out_proj_weight=eye,
        out_proj_bias=zeros[:12],
        attn_mask=~causal(5, 5),
        average_attn_weights=False,
    )
    q, k, v = (x.view(2, 5, 3, 4).transpose(1, 2) for x in (q, k, v))
    out, got = references.attention(q, k, v, 0.5, MAPS["softmax1"], causal(5, 5))
    close(got, weights[..., :-1], 1e-14)
    close(out.reshape(2, 5, 12), want.transpose(0, 1), 1e-14)


@pytest.mark.parametrize("learned", [False, True])
def test_sinks_are_gpt_osss(learned):
    q, k, v = draw(2, 6, 5, 8), draw(2, 2, 7, 8, seed=1), draw(2, 2, 7, 8, seed=2)
    sinks = draw(6, seed=3) if learned else torch.zeros(6).double()
    seen = causal(5, 7)
    module = SimpleNamespace(num_key_value_groups=3, sinks=sinks, training=False)
    mask = torch.zeros(5, 7).double().masked_fill(~seen, -math.inf)
    want, weights = gpt_oss.eager_attention_forward(module, q, k, v, mask, 0.3)

    def mapping(scores, seen):
        return references.softmax1_map(scores, seen, sinks)

    out, got = references.attention(q, k, v, 0.3, mapping, seen)
    close(got, weights, 1e-14)
    close(out, want, 1e-14)


def two(alpha: float, t: float) -> float:
    """The larger score's share of entmax([t, 0]), t >= 0, solved by hand."""
    if t >= 1 / (alpha - 1):
        return 1.0
    if alpha == 1.5:  # x - y = t / 2 and x^2 + y^2 = 1 for the two roots x and y
        return 0.5 + t / 8 * math.sqrt(8 - t * t)
    if alpha == 2.0:  # x - y = t and x + y = 1
        return (1 + t) / 2
    assert alpha == 3.0  # x^2 - y^2 = 2 t and x + y = 1
    return 0.5 + t


@pytest.mark.parametrize("t", [0.0, 1e-6, 0.1, 0.25, 0.45, 0.9, 1.0, 1.5, 1.999, 2.0, 2.5, 40.0])
def test_entmax_of_two_scores_is_solved_by_hand(t):
    scores = torch.tensor([t, 0.0], dtype=torch.float64).view(1, 1, 1, 2)
    seen = torch.ones(2, dtype=torch.bool)

    def exact(alpha):
        share = two(alpha, t)
        return torch.tensor([share, 1 - share], dtype=torch.float64).view(1, 1, 1, 2)

    close(references.entmax15_map(scores, seen), exact(1.5), 1e-15)
    for alpha in (1.5, 2.0, 3.0):
        close(references.entmax_map(scores, seen, alpha), exact(alpha), 1e-15)


@pytest.mark.parametrize("n", [1, 2, 5, 100])
def test_entmax_of_ties_is_even(n):
    scores, seen = torch.full((1, 1, 1, n), 3.7).double(), torch.ones(n).bool()
    want = torch.full((1, 1, 1, n), 1 / n, dtype=torch.float64)
    close(references.entmax15_map(scores, seen), want, 1e-15)
    for alpha in (1.1, 1.5, 2.0):
        close(references.entmax_map(scores, seen, alpha), want, 1e-14)


@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0, 3.0, 30.0])
def test_entmax15_is_bisected_entmax(scale):
    scores, seen = draw(2, 3, 8, 40, scale=scale), ragged(2, 3, 8, 40)
    got, want = references.entmax15_map(scores, seen), references.entmax_map(scores, seen, 1.5)
    close(got, want, 1e-14)
    close(got.sum(-1), torch.ones(2, 3, 8), 1e-14)


def test_entmax15_of_three_scores_is_solved_by_hand():
    # halves 0.4, 0.2, 0 less tau squared sum to 1 at tau = 0.2 - sqrt((1 - 0.08) / 3)
    tau = 0.2 - math.sqrt(0.92 / 3)
    scores = torch.tensor([0.8, 0.4, 0.0], dtype=torch.float64).view(1, 1, 1, 3)
    want = (scores / 2 - tau) ** 2
    close(references.entmax15_map(scores, torch.ones(3).bool()), want, 1e-15)


def test_entmax_goes_from_softmax_to_argmax():
    scores, seen = draw(1, 2, 4, 9), causal(4, 9)
    soft = references.softmax_map(scores, seen)
    close(references.entmax_map(scores, seen, 1 + 1e-6), soft, 1e-5)
    most = scores.masked_fill(~seen, -math.inf).argmax(-1, keepdim=True)
    hard = torch.zeros_like(scores).scatter(-1, most, 1.0)
    close(references.entmax_map(scores, seen, 200.0), hard, 1e-15)
    close(references.entmax15_map(1e3 * scores, seen), hard, 1e-15)


@pytest.mark.parametrize("alpha", [1.2, 1.5, 2.0, 2.7])
def test_entmax_is_the_maximum_it_is_defined_by(alpha):
    """Argmax over the simplex of p . z + Tsallis entropy: no other p, near or far, does better."""
    scores, seen = draw(1, 1, 1, 12), torch.ones(12).bool()
    best = references.entmax_map(scores, seen, alpha)[0, 0, 0]

    def value(p):
        entropy = (p - p**alpha).sum(-1) / (alpha * (alpha - 1))
        return (p * scores[0, 0, 0]).sum(-1) + entropy

    others = draw(500, 12, seed=1, scale=3.0).softmax(-1)
    for step in (1.0, 1e-1, 1e-3):
        assert (value((1 - step) * best + step * others) <= value(best) + 1e-15).all()


def test_entmax_is_the_authors_package():
    entmax = pytest.importorskip("entmax")
    for scale in (0.1, 1.0, 5.0):
        scores = draw(2, 3, 8, 40, scale=scale)
        seen = ragged(2, 3, 8, 40)
        hidden = scores.masked_fill(~seen, -1e4)
        close(references.entmax15_map(scores, seen), entmax.entmax15(hidden, dim=-1), 1e-11)
        full = torch.ones(40).bool()
        close(references.entmax15_map(scores, full), entmax.entmax15(scores, dim=-1), 1e-14)
        close(references.entmax_map(scores, full, 2.0), entmax.sparsemax(scores, dim=-1), 1e-14)
        for alpha in (1.2, 1.5, 1.8):
            want = entmax.entmax_bisect(scores, alpha, dim=-1, n_iter=100)
            close(references.entmax_map(scores, full, alpha), want, 1e-13)


def test_ssmax_scale_is_its_formula():
    assert references.ssmax_scale(1, 0.43) == 0
    assert references.ssmax_scale(1, 0.43, 0.5) == 0.5
    close(references.ssmax_scale(math.e**3, 2.0, 1.0), torch.tensor(7.0), 1e-14)
    got = references.ssmax_scale(torch.arange(1, 5), torch.tensor([[1.0], [0.5]]))
    want = torch.tensor([1, 2, 3, 4]).double().log() * torch.tensor([[1.0], [0.5]])
    close(got, want, 1e-15)


def test_ssmax_is_powers_of_n():
    """The paper's own form, n^(s z_i) / sum_j n^(s z_j), with n the keys that a row sees."""
    q, k, v = draw(2, 4, 6, 8), draw(2, 2, 6, 8, seed=1), draw(2, 2, 6, 8, seed=2)
    s = torch.tensor([0.2, 0.43, 1.0, 1.5], dtype=torch.float64).view(4, 1, 1)
    n = torch.arange(1.0, 7.0).double().view(6, 1)
    scale = references.ssmax_scale(n, s)
    softmax, seen = references.softmax_map, causal(6, 6)
    got = references.attention(q, k, v, 8**-0.5, softmax, seen, query_scale=scale)[1]
    scores = q @ k.repeat_interleave(2, 1).transpose(-1, -2) * 8**-0.5
    shares = n ** (s * scores) * seen
    close(got, shares / shares.sum(-1, keepdim=True), 1e-14)
    with pytest.raises(AssertionError, match="whole query"):
        references.attention(q, k, v, 1.0, softmax, seen, query_scale=torch.ones(6))


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (6, 1)])
def test_attention_is_torchs(heads, groups):
    q, k = draw(2, heads, 5, 8), draw(2, groups, 7, 8, seed=1)
    v, bias = draw(2, groups, 7, 8, seed=2), draw(heads, 5, 7, seed=3)
    seen = ragged(2, 1, 5, 7)
    softmax = references.softmax_map
    want = F.scaled_dot_product_attention(q, k, v, seen, scale=0.3, enable_gqa=True)
    out, weights = references.attention(q, k, v, 0.3, softmax, seen)
    assert weights.shape == (2, heads, 5, 7)
    close(out.transpose(1, 2), want, 1e-14)
    mask = bias.expand(2, -1, -1, -1).masked_fill(~seen, -math.inf)
    want = F.scaled_dot_product_attention(1.7 * q, k, v, mask, scale=0.3, enable_gqa=True)
    out = references.attention(q, k, v, 0.3, softmax, seen, bias, 1.7)[0]
    close(out.transpose(1, 2), want, 1e-14)
    # the output is the map over the values
    shares = references.attention(q, k, v, 0.3, MAPS["entmax15"], seen)
    want = torch.einsum("bhts,bhsd->bthd", shares[1], v.repeat_interleave(heads // groups, 1))
    close(shares[0], want, 1e-14)


@pytest.mark.parametrize(("heads", "groups"), [(2, 2), (4, 4), (4, 2), (8, 4)])
@pytest.mark.parametrize("depth", [0, 3])
@pytest.mark.parametrize("precise", [True, False])
def test_differential_is_diffllamas(heads, groups, depth, precise, monkeypatch):
    torch.manual_seed(depth)
    config = diffllama.DiffLlamaConfig(
        hidden_size=8 * heads,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=8,
        num_hidden_layers=4,
        lambda_std_dev=0.5,
        attn_implementation="eager",
    )
    module = diffllama.DiffLlamaAttention(config, depth).double().eval()
    hidden, seen = draw(2, 6, 8 * heads, scale=3.0), causal(6, 6)
    places = diffllama.DiffLlamaRotaryEmbedding(config)(hidden, torch.arange(6)[None])
    projects = module.q_proj, module.k_proj, module.v_proj
    q, k, v = (project(hidden).view(2, 6, -1, 8).transpose(1, 2) for project in projects)
    q, k = diffllama.apply_rotary_pos_emb(q, k, *places)
    handed = []
    module.o_proj.register_forward_pre_hook(lambda _, inputs: handed.append(inputs[0]))
    mask = torch.zeros(6, 6).double().masked_fill(~seen, -math.inf)
    with torch.no_grad(), monkeypatch.context() as patch:
        if precise:  # DiffLlama takes its softmax and its lambda in float32 by name
            patch.setattr(torch, "float32", torch.float64)
        each = module(hidden, places, mask)[1]
    lambdas = module.lambda_q1, module.lambda_k1, module.lambda_q2, module.lambda_k2
    options = module.scaling, seen, *lambdas, depth, config.rms_norm_eps
    with torch.no_grad():
        out, weights = references.differential(q, k, v, *options)
        lambda1, lambda2 = ((lambdas[i] @ lambdas[i + 1]).exp() for i in (0, 2))
    atol = 1e-13 if precise else 1e-5
    assert out.shape == (2, 6, heads, 8)
    close(out.reshape(2, 6, -1), handed[0], atol)
    pairs = heads // 2
    share = lambda1 - lambda2 + 0.8 - 0.6 * math.exp(-0.3 * depth)
    close(weights, each[:, :pairs] - share * each[:, pairs:], atol)


def test_differential_of_one_key_is_solved_by_hand():
    """A single key: both softmaxes are 1, so that what is left is the value's direction."""
    q, k, v = draw(1, 2, 1, 4), draw(1, 2, 1, 4, seed=1), draw(1, 2, 1, 4, seed=2)
    nought = torch.zeros(4, dtype=torch.float64)
    seen = torch.ones(1, 1, dtype=torch.bool)
    out, weights = references.differential(q, k, v, 0.5, seen, *[nought] * 4, depth=0, eps=0.0)
    assert weights.item() == pytest.approx(1 - 0.2, abs=1e-15)
    joined = v.flatten()
    close(out.flatten(), 0.8 * joined / joined.square().mean().sqrt(), 1e-14)
    # a bias acts on each map before the difference
    k, v = draw(1, 2, 3, 4, seed=3), draw(1, 2, 3, 4, seed=4)
    seen, bias = seen.expand(1, 3), torch.zeros(2, 1, 3).double()
    bias[0, 0, 2] = bias[1, 0, 1] = 1e6
    weights = references.differential(q, k, v, 0.5, seen, *[nought] * 4, depth=0, bias=bias)[1]
    close(weights.flatten(), torch.tensor([0.0, -0.2, 1.0]), 1e-7)


def test_alibi_slopes_are_the_papers():
    assert references.alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    want = torch.tensor([2 ** (-i / 2) for i in range(1, 17)], dtype=torch.float64)
    close(references.alibi_slopes(16), want, 1e-16)
    assert references.alibi_slopes(1).tolist() == [2.0**-8]
    assert references.alibi_slopes(3).tolist() == [2.0**-4, 2.0**-8, 2.0**-2]


@pytest.mark.parametrize("heads", range(1, 73))
def test_alibi_slopes_are_blooms_and_mpts(heads):
    slopes = references.alibi_slopes(heads)
    assert len(slopes) == heads
    bloom = build_alibi_tensor(torch.ones(1, 2, dtype=torch.int64), heads, torch.float32)[:, 0, 1]
    torch.testing.assert_close(bloom.double(), slopes, rtol=3e-6, atol=0.0)
    mpt = -build_mpt_alibi_tensor(heads, 2)[:, 0, 0]
    torch.testing.assert_close(mpt.double(), slopes, rtol=1e-6, atol=0.0)


def test_alibi_bias_is_slope_times_distance():
    bias = references.alibi_bias(3, 4, 4)
    slopes = references.alibi_slopes(3)
    for head, row, key in ((0, 3, 0), (1, 2, 1), (2, 3, 3), (0, 0, 0), (2, 1, 0)):
        assert bias[head, row, key] == -slopes[head] * (row - key)
    assert (bias.triu(1) == 0).all()
    # fewer rows than keys are the last ones
    assert torch.equal(references.alibi_bias(3, 2, 4), bias[:, 2:])


@pytest.mark.parametrize("heads", [4, 6])
def test_alibi_bias_gives_blooms_and_mpts_maps(heads):
    """Theirs are one row of biases for all rows, the same as a softmax sees them."""
    q, k, v = (draw(1, heads, 9, 8, seed=seed) for seed in range(3))
    bloom = build_alibi_tensor(torch.ones(1, 9, dtype=torch.int64), heads, torch.float32)
    mpt = build_mpt_alibi_tensor(heads, 9)
    softmax, seen = references.softmax_map, causal(9, 9)
    bias = references.alibi_bias(heads, 9, 9)
    got = references.attention(q, k, v, 0.4, softmax, seen, bias)
    close(bias[:, -1:], mpt, 1e-6)
    for theirs in (bloom, mpt):
        mask = theirs.double().expand(heads, 9, 9).masked_fill(~seen, -math.inf)
        want = F.scaled_dot_product_attention(q, k, v, mask, scale=0.4)
        close(got[0].transpose(1, 2), want, 1e-6)

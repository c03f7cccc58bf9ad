"""How far two readings of the same tokens may be apart: what kernels differ by, of the same sums in another order."""

import math

import torch
from torch import Tensor

# in nats a token: at most, and in the mean. SmolLM2 read in parts differs by 2e-5 at most in float32; in bfloat16 by .26 at
# most and .045 in the mean over 600 tokens. In float64 our softmax and losses are float32's all the same
NATS = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.2, torch.bfloat16: 1.0}
MEAN_NATS = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
# and in an attention weight, or an output against its layer's largest
SHARE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.01, torch.bfloat16: 0.05}


def difference(one: Tensor, other: Tensor) -> float:
    """Return the largest absolute difference; infinite where one of them is not finite."""
    away = float((one.float() - other.float().to(one.device)).abs().max())
    return away if math.isfinite(away) else math.inf


def close(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    """Tell whether two readings of the same tokens, in nats, differ by no more than a dtype's roundings do."""
    away = (one.float() - other.float().to(one.device)).abs()
    return bool(away.max() <= NATS[dtype] and away.mean() <= MEAN_NATS[dtype])  # False for NaN

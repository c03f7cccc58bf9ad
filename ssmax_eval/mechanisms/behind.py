"""Softmax attention of rows behind keys that all of them see, without a mask of rows x keys."""

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

Pair = tuple[Tensor, Tensor]  # keys and values (batch, key heads, keys, head_dim)


def behind(query: Tensor, front: Pair, own: Pair, scaling: float) -> Tensor:
    """Return the output (batch, heads, rows, head_dim) of rows that see all of `front`, and of `own` what comes up to them.

    query (batch, heads, rows, head_dim); own: of these rows. On a processor the two are attended apart, each with sdpa's own
    kernel, and joined by their logsumexp; elsewhere sdpa knows this mask by its name, and never has it as numbers.
    """
    if query.device.type == "cpu" and query.shape[-1] == own[1].shape[-1] and not torch.is_grad_enabled():
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        first, first_sum = flash(query, *front, 0.0, False, scale=scaling)
        second, second_sum = flash(query, *own, 0.0, True, scale=scaling)
        share = torch.sigmoid(first_sum - second_sum)[..., None]  # of the weights that front has, float32
        return torch.lerp(second.float(), first.float(), share).to(query.dtype)
    groups = query.shape[1] // own[0].shape[1]
    key, value = (torch.cat(each, 2).repeat_interleave(groups, 1) for each in zip(front, own, strict=True))
    mask = causal_lower_right(query.shape[2], key.shape[2])
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)

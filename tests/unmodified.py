"""The unmodified model's own numbers: logits over all rows, eager maps, greedy text, and its logits under SSMax in float64."""

import copy
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pytest
import torch
from architectures import build_small
from torch import Tensor, nn
from transformers import AttentionInterface, GenerationConfig, PreTrainedModel

CLOSE = 1e-3  # of logits that ought to be the same
LAW_S = 0.2


@dataclass
class Reference:
    """What the unmodified model says, worked out once for each prompt."""

    model_type: str
    logits_of: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    @cached_property
    def pristine(self) -> PreTrainedModel:
        model = build_small(self.model_type)
        model.config.return_dict = True
        return model

    @property
    def model(self) -> PreTrainedModel:
        """A model that has read nothing yet: some keep a state between forwards (dynamic RoPE)."""
        return copy.deepcopy(self.pristine)

    @torch.no_grad()
    def logits(self, ids: list[int]) -> Tensor:
        """Return the logits of every row, float64 (tokens, vocabulary)."""
        key = tuple(ids)
        if key not in self.logits_of:
            out = self.model(input_ids=torch.tensor([ids]), return_dict=True)
            self.logits_of[key] = out.logits[0].double()
        return self.logits_of[key]

    def nll(self, ids: list[int]) -> Tensor:
        """Return each token's nll but the first's, in nats."""
        return -self.logits(ids[:-1]).log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]

    def is_causal(self, ids: list[int]) -> bool:
        """Tell whether rows are blind to what comes after them, at the same length."""
        part = len(ids) * 2 // 3
        other = ids[:part] + [3 + token % 100 for token in ids[part:]]
        return bool((self.logits(ids)[:part] - self.logits(other)[:part]).abs().max() < CLOSE)

    @torch.no_grad()
    def generated(self, ids: list[int], new: int) -> list[int]:
        """Return what `generate` writes greedily; of the model's own settings only the end counts."""
        tokens, model = torch.tensor([ids]), self.model
        own = model.generation_config
        model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=own.eos_token_id, pad_token_id=1, max_new_tokens=new
        )
        out = model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        return out[0, len(ids) :].tolist()

    @torch.no_grad()
    def maps(self, ids: list[int]) -> list[tuple[int, Tensor]]:
        """Return each eager attention map (heads, tokens, tokens) with its layer's true number, in order of depth."""
        eager = self.model
        eager.set_attn_implementation("eager")
        caught: dict[str, list[Tensor]] = {}

        def catch(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                for part in output if isinstance(output, tuple) else ():
                    is_map = isinstance(part, Tensor) and part.shape[:1] + part.shape[2:] == (1, len(ids), len(ids))
                    # a layer hands on what its attention gave it
                    if is_map and not any(part is each for found in caught.values() for each in found):
                        caught.setdefault(name, []).append(part)

            return hook

        for name, module in eager.named_modules():
            if re.search(r"\.\d+\.", name):
                module.register_forward_hook(catch(name))
        out = eager(input_ids=torch.tensor([ids]), output_attentions=True, return_dict=True)
        if (out.logits[0].double() - self.logits(ids)).abs().max() > CLOSE:
            raise NoReference("eager attention is another model than the native one")
        if not caught:
            raise NoReference("no eager maps")
        if any(len(each) > 1 for each in caught.values()):
            raise NoReference("a layer attends several times")
        return [(int(re.findall(r"\.(\d+)\.", f"{name}.")[0]), each[0][0]) for name, each in caught.items()]

    @torch.no_grad()
    def under_law(self, ids: list[int]) -> Tensor:
        """Return the logits under C = s ln n on the layers without a window, attention worked out in float64."""
        scale = Scale()
        model = self.model
        if model.config._attn_implementation != "sdpa":
            model.set_attn_implementation("sdpa")
        for module in model.modules():
            vars(module)["sweep_scale"] = scale
        tokens = torch.tensor([ids])
        # in sdpa's place and under its name: forwards ask for the name
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(AttentionInterface._global_mapping, "sdpa", float64_attention)
            plain = model(input_ids=tokens, return_dict=True).logits[0].double()
            if scale.calls == 0 or (plain - self.logits(ids)).abs().max() > CLOSE:
                raise NoReference("float64 attention is another model than the native one")
            scale.s = LAW_S
            logits: Tensor = model(input_ids=tokens, return_dict=True).logits[0].double()
        if (logits - plain).abs().max() < CLOSE:
            raise NoReference("no layer without a window")
        return logits


class NoReference(Exception):
    """The unmodified model does not say what would be right; the text says why."""


@dataclass
class Scale:
    s: float | None = None
    calls: int = 0


def float64_attention(module, query, key, value, attention_mask, scaling=None, sliding_window=None, **kwargs):  # type: ignore[no-untyped-def]
    """softmax(C(n) q.k scaling) v in float64, with masks as sdpa takes them, caps and sinks; C only where there is no window."""
    state: Scale = module.sweep_scale
    state.calls += 1
    known = {"dropout", "is_causal", "position_ids", "output_attentions", "use_cache", "s_aux", "softcap"}
    known |= {"indices", "block_indices"}  # of sparse attention, whose mask says the same here
    tensors = [name for name, each in kwargs.items() if isinstance(each, Tensor) and name not in known]
    if tensors:
        raise NoReference(f"attention takes {', '.join(tensors)}")
    groups = query.shape[1] // key.shape[1]
    q = query.double()
    k, v = (t.double().repeat_interleave(groups, dim=1) for t in (key, value))
    rows, keys = q.shape[2], k.shape[2]
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    seen = torch.ones(rows, keys, dtype=torch.bool)[None, None]
    if attention_mask is None and causal:
        seen = seen.tril(keys - rows)
    bias = torch.zeros(1, 1, rows, keys, dtype=torch.float64)
    if attention_mask is not None:
        is_bool = attention_mask.dtype == torch.bool
        seen = attention_mask if is_bool else attention_mask > -1e4
        bias = bias if is_bool else attention_mask.double().clamp(min=-1e4)
    types = getattr(getattr(module, "config", None), "layer_types", None)
    layer = getattr(module, "layer_idx", None)
    kind = str(types[layer]) if types and isinstance(layer, int) else ""
    if state.s is not None and not sliding_window and not re.search("sliding|chunked|local", kind):
        n = seen[:, :1].sum(-1).clamp(min=1).double()
        q = q * (state.s * n.log())[..., None]
    scores = (q @ k.transpose(-1, -2)) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if (cap := kwargs.get("softcap")) is not None:
        scores = cap * (scores / cap).tanh()
    scores = (scores + bias).masked_fill(~seen, -math.inf)
    if (sinks := kwargs.get("s_aux")) is not None:
        column = sinks.double().reshape(1, -1, 1, 1).expand(scores.shape[0], -1, rows, 1)
        scores = torch.cat([scores, column], -1)
    weights = scores.softmax(-1).nan_to_num()[..., :keys]
    return (weights @ v).transpose(1, 2).to(query.dtype).contiguous(), weights

"""Before its first number on a model: does what we read of it agree with what the unmodified model computes?

Model families differ in ways that no list keeps up with: decoders that leave rows out, code that asks for the name of the
attention implementation, caches of their own, terms added to the scores. So each way of reading is compared with the
model's own on a short input. What differs is refused in one line, or the way that agrees is taken and recorded.
"""

import logging
import math
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..mechanisms.layers import reads_on
from ..models.causal import refuse_unless_causal
from ..position.rotary import rope_that_turns
from .attention_proof import ROWS, compare_attention
from .head import READS_MORE, logits_of, nll_of
from .inference import greedy
from .nll import token_nll
from .own_scale import scaled_twice
from .thresholds import proof_length
from .tolerance import close, difference

# by model: what reading it in parts was found to differ by, for each setting (parts.py)
FOUND: WeakKeyDictionary[PreTrainedModel, dict[Any, str | None]] = WeakKeyDictionary()


@torch.inference_mode()
def preflight(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    mechanism: bool = False,
    masses: bool = False,
) -> dict[str, Any]:
    """Compare our ways of reading with the model's own, and return what was found, for the record.

    The model is in its setting. longest: tokens of the longest prompt to come. mechanism: one is on, swapped in or its own.
    masses: attention will be recorded. Returned: tokens, the length of the input, to which all of it is proved;
    head, what the head is read from (rows or full logits); and the largest differences found: kept_rows, with_a_token_more
    (the model's own rows when another token follows), own_decoding (its own generate) and our_attention in nats,
    recorded_output as a share of a layer's largest output, eager_maps as weights; called, the attention modules that ran;
    scaled_twice, the layers that scale queries by position beside a mechanism.
    Raises UserError for a model whose attention our function, or whose weights our recorder, does not give as the model does.
    """
    ids = input_ids(model, tokenizer, longest)
    found: dict[str, Any] = {"tokens": ids.shape[1], "head": "rows"}
    READS_MORE.discard(model)
    FOUND.pop(model, None)
    refuse_unless_causal(model, ids)
    own = nll_of(model(input_ids=ids[:, :-1], use_cache=False).logits, ids[:, 1:])
    longer = nll_of(model(input_ids=ids, use_cache=False).logits[:, :-1], ids[:, 1:])
    if not torch.isfinite(own).all():  # nothing to compare; rows that are not finite say so
        return {
            **found,
            "finite": False,
            **(compare_attention(model, ids, masses, longest) if mechanism or masses else {}),
        }
    try:
        kept = token_nll(model, ids)
        last = nll_of(logits_of(model, ids[:, :-1], slice(-ROWS, None), use_cache=False)[0], ids[:, -ROWS:])
    except Exception:  # a decoder that hands over something else than hidden states
        kept, last = own + math.inf, own[:, -ROWS:]
    found["kept_rows"] = max(difference(own, kept), difference(own[:, -ROWS:], last))
    found["with_a_token_more"] = difference(own, longer)
    if not close(own, longer, model.dtype):
        logging.getLogger(__name__).warning(
            "ssmax-eval: note: %s: its own rows change by %.3g nats when a token follows, so one forward's verdict can "
            "differ from greedy decoding's; --scoring generate decodes",
            type(model).__name__,
            found["with_a_token_more"],
        )
    found["own_decoding"] = compare_decoding(model, tokenizer, ids)
    if rope_that_turns(model) == "dynamic":
        logging.getLogger(__name__).warning(
            "ssmax-eval: note: %s: dynamic RoPE turns by the length of each forward, so beyond the trained length one "
            "forward's verdict can differ from cached decoding's",
            type(model).__name__,
        )
    if not (close(own, kept, model.dtype) and close(own[:, -ROWS:], last, model.dtype)):
        READS_MORE.add(model)
        found["head"] = "full logits"
    if mechanism or masses:
        found |= compare_attention(model, ids, masses, longest)
    if mechanism:
        found["scaled_twice"] = scaled_twice(model, ids, longest)
    return found


def compare_decoding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> float | None:
    """Return the largest difference of two steps of a model's own `generate` from its forward, in nats; None where it cannot generate.

    Some hand their decoder other positions when they generate, or forget what a window of no layer holds. The forward's numbers
    stay the model's; a note says that greedy decoding's are others.
    """
    try:
        with greedy(model, tokenizer):
            out = model.generate(
                ids, max_new_tokens=2, min_new_tokens=2, return_dict_in_generate=True, output_logits=True
            )
        steps = torch.stack([each.float() for each in out.logits], 1).log_softmax(-1)
        own = model(input_ids=out.sequences, use_cache=False).logits[:, -3:-1].float().log_softmax(-1)
        chosen = out.sequences[:, -2:, None]
        one, other = steps.gather(2, chosen)[..., 0], own.gather(2, chosen)[..., 0]
    except Exception:  # generation fails in as many ways as there are models
        return None
    if not close(one, other, model.dtype):
        logging.getLogger(__name__).warning(
            "ssmax-eval: note: %s: its own generate differs from its forward by %.3g nats, so forced verdicts, which are the "
            "forward's, can differ from greedy decoding's; --scoring generate decodes",
            type(model).__name__,
            difference(one, other),
        )
    return difference(one, other)


def input_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, longest: int) -> Tensor:
    """Return the input, int64 (1, tokens): drawn ids of a fixed seed, none of them special."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    plain = sorted(set(tokenizer.get_vocab().values()) - special) or [0]
    drawn = torch.randint(len(plain), (1, proof_length(model, longest)), generator=torch.Generator().manual_seed(0))
    return torch.tensor(plain)[drawn].to(reads_on(model))

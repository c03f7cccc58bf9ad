"""What our tasks ask of lm-eval's models: an answer scored on exactly its prompt's ids, and attention masses.

lm-eval hands a request to the model's method of the request type's name, so importing this gives its base class one
method for each of ours, and every backend answers them: `exact_loglikelihood` through the backend's own scoring of ids,
`attention_mass` by a refusal where the model is not of our type. The usual `loglikelihood` would not do: it moves a space
before the answer into what is scored, cuts the start off prompts that are too long, and with --use_cache answers
for whichever model was asked first.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CacheHook, TemplateLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.encoding import Encoder
from ..data.prompts import Prompt
from ..errors import UserError
from ..position.learned import position_end
from ..probes.checks import check_tokenizer

EXACT, MASS = "exact_loglikelihood", "attention_mass"
log = logging.getLogger("lm_eval.ssmax_eval")  # below lm-eval's own, so that it is shown as its messages are


def prompt_of(lm: TemplateLM, doc: dict[str, Any]) -> Prompt:
    """Return a document's prompt in the ids that the model's own tokenizer gives. Raises UserError if they are others."""
    ids = list(doc["ids"]) if doc.get("ids") else list(lm.tok_encode(doc["context"] + doc["answer"]))
    prompt = Prompt(ids=ids, **{field.name: doc[field.name] for field in fields(Prompt) if field.name != "ids"})
    if prompt.sha256 != doc["prompt_sha256"]:
        raise UserError(
            f"prompt {doc['sample']}: the model's tokenizer makes {len(ids)} tokens of it, not the {doc['context_length']} that the task "
            "assembled, or others; give task and model one tokenizer, and let add_bos_token in --model_args be as that has it"
        )
    if doc.get("ids") and not reads_as(lm, prompt, doc):
        raise UserError(
            f"prompt {doc['sample']}: to the model's tokenizer its ids are another text than the task assembled; "
            "give task and model one tokenizer"
        )
    return prompt


def reads_as(lm: TemplateLM, prompt: Prompt, doc: dict[str, Any]) -> bool:
    """Tell whether a prompt's ids are its document's text to the model's own tokenizer, if the backend shows that."""
    tokenizer = getattr(lm, "tokenizer", None)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return True
    decode = Encoder(tokenizer, ".", " ").decode
    before, answer = prompt.ids[: -prompt.answer_length], prompt.ids[-prompt.answer_length :]
    return decode(answer) == doc["answer"] and decode(before).endswith(doc["context"])


@contextmanager
def room_for(lm: Any, tokens: int) -> Iterator[None]:
    """Let a model read sequences of `tokens`; raise UserError where it would cut off their start, or has no positions for them.

    A transformers model whose positions do not end has no length of its own, so where its user set no max_length, it is `tokens`
    for this block.
    """
    limit = getattr(lm, "max_length", None)
    model = getattr(lm, "model", None)
    own = getattr(lm, "_max_length", None)
    if isinstance(model, PreTrainedModel):
        check_tokenizer(model, lm.tokenizer, tokens, tokens)
    if limit is None or tokens <= limit:
        yield
        return
    if own or not isinstance(model, PreTrainedModel) or position_end(model) is not None:
        raise UserError(
            f"prompts of {tokens} tokens: the model's max_length is {limit}, and lm-eval would cut their start off; "
            f"put max_length={tokens + keeps_one(lm)} into --model_args, or ask for shorter ones"
        )
    lm._max_length = tokens
    try:
        yield
    finally:
        lm._max_length = own


def keeps_one(lm: Any) -> int:
    """Return how many tokens of the max_length that it is given a backend keeps for itself: one, where lm-eval asks an API."""
    return int(any(each.__name__ == "TemplateAPI" for each in type(lm).__mro__))


def exact_loglikelihood(self: LM, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
    """Return (log-likelihood in nats, is greedy decoding's choice) of each document's answer, given exactly its prompt's ids."""
    hook = self.cache_hook
    # --use_cache knows neither model nor settings, so it gets nothing to keep
    self.cache_hook = CacheHook(None)
    try:
        if not shows_ids(self):
            log.warning("%s shows no token ids: prompts are sent as text, unchecked", type(self).__name__)
            return list(self.loglikelihood(list(requests)))
        prompts = [prompt_of(self, request.doc) for request in requests]
        with room_for(self, max(len(prompt.ids) for prompt in prompts)):
            triples = [
                (request.args, prompt.ids[: -prompt.answer_length], prompt.ids[-prompt.answer_length :])
                for request, prompt in zip(requests, prompts, strict=True)
            ]
            return list(self._loglikelihood_tokens(triples))
    finally:
        self.cache_hook = hook


def shows_ids(lm: LM) -> bool:
    """Tell whether a backend can be given token ids; some APIs take text only."""
    return isinstance(lm, TemplateLM) and all(isinstance(each, int) for each in lm.tok_encode("a"))


def attention_mass(self: LM, requests: Sequence[Instance]) -> list[str]:
    """Refuse: only our model type shows its attention."""
    raise UserError(
        f"task {requests[0].task_name}: model type {type(self).__name__} does not show its attention; run it with "
        "ssmax-eval lm-eval --model ssmax-eval --model_args pretrained=MODEL"
    )


for name, method in ((EXACT, exact_loglikelihood), (MASS, attention_mass)):
    if not hasattr(LM, name):
        setattr(LM, name, method)

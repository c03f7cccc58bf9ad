"""Can texts of unequal length share a forward? Compared once with each text alone, as lm-eval pads them.

Most models leave padding out. A recurrent state reads it, a table of positions counts it, and some RoPE turns by the longest text.
RWKV of transformers mixes up the texts of any batch once it has a state.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..position.rotary import turns_beyond
from .head import nll_of
from .preflight import input_ids
from .tolerance import close

SHORT = 3  # tokens of the shortest text, which is nearly all padding
# of a request's options for decoding, those that read the prompt's ids, padding among them; the others change nothing here
READING = ("repetition_penalty", "no_repeat_ngram_size", "encoder_repetition_penalty", "encoder_no_repeat_ngram_size")
GREEDY = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "num_beams": 1, "num_return_sequences": 1}
STEPS = 2  # the first reads the text, the second its cache
LEAST = -1e4  # logits; an option that forbids a token puts it at -inf

NOTES = {
    "right": "ssmax-eval: note: %s: contexts padded to one length have other numbers than alone, so only those of one length share "
    "a forward",
    "left": "ssmax-eval: note: %s: texts padded to one length are continued otherwise than alone, so each is continued by itself",
}


class Padding:
    """Tells whether a model's numbers stay the same when texts are padded to one length; compared when it is first asked."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.found: dict[Any, bool] = {}

    def right(self, longest: int) -> bool:
        """Tell it of zeros behind texts, without a mask. longest: tokens of the longest text."""
        return self.same("right", longest, {})

    def left(self, longest: int, options: dict[str, Any]) -> bool:
        """Tell it of padding in front of texts that are gone on with. longest: tokens with what is written; options: of generate."""
        return self.same("left", longest, options)

    @torch.inference_mode()
    def same(self, side: str, longest: int, options: dict[str, Any]) -> bool:
        """Compare a side's padding on texts as long as preflight's, once for the same length and options, and note what differs."""
        switch = turns_beyond(self.model)
        if switch is not None and longest > switch:
            return self.kept(side, False)  # by its definition, and mostly too long to be compared
        ids = input_ids(self.model, self.tokenizer, longest)
        key = (side, ids.shape[1], repr(sorted(options.items())))
        if key not in self.found:
            texts = [ids[0, :length] for length in (ids.shape[1] - STEPS, ids.shape[1] // 2, SHORT)]
            same = right_alike(self.model, texts) if side == "right" else self.left_alike(texts, options)
            self.found[key] = self.kept(side, same)
        return self.found[key]

    def kept(self, side: str, same: bool) -> bool:
        """Note once for each side that padding changes numbers, and return whether it does not."""
        if not same and side not in self.found:
            self.found[side] = False
            logging.getLogger(__name__).warning(NOTES[side], type(self.model).__name__)
        return same

    def left_alike(self, texts: list[Tensor], options: dict[str, Any]) -> bool:
        """Compare what greedy decoding takes its first tokens from, of texts padded in front and of each alone."""
        pad = self.tokenizer.pad_token_id
        batch = pad_sequence(texts, batch_first=True, padding_value=pad, padding_side="left")
        mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True, padding_side="left")
        together, written = self.steps(batch, mask, options)
        # of the vocabulary, the ids of a text: the far tail of many words differs more by a dtype's roundings
        looked = torch.cat([texts[0], torch.tensor([pad], device=batch.device)])
        for i, text in enumerate(texts):
            alone, own = self.steps(text[None], torch.ones_like(text[None]), options)
            for step in range(min(len(alone), len(together))):
                one, other = (each[step].log_softmax(-1)[looked] for each in (together[:, i], alone[:, 0]))
                if not close(one, other, self.model.dtype):
                    return False
                if written[i, step] != own[0, step]:
                    break  # a tie
        return True

    def steps(self, ids: Tensor, mask: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the scores (steps, texts, vocabulary) of greedy decoding, and what it writes (texts, steps)."""
        out = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=STEPS,
            pad_token_id=self.tokenizer.pad_token_id,
            use_cache=True,
            return_dict_in_generate=True,
            output_scores=True,
            **{name: value for name, value in options.items() if name in READING},
            **GREEDY,
        )
        return torch.stack([each.float().clamp(min=LEAST) for each in out.scores]), out.sequences[:, ids.shape[1] :]


def right_alike(model: PreTrainedModel, texts: list[Tensor]) -> bool:
    """Compare the nll of tokens of texts padded behind, and of each text alone."""
    logits = model(pad_sequence([text[:-1] for text in texts], batch_first=True)).logits
    for text, padded in zip(texts, logits, strict=True):
        alone = model(text[None, :-1]).logits
        one, other = (nll_of(each, text[None, 1:]) for each in (padded[None], alone))
        if not close(one, other, model.dtype):
            return False
    return True


def one_by_one(context: Tensor, mask: Tensor, pad: int, go_on: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Go on with each text of a batch by itself, unpadded; return them as one batch.

    context, mask: (texts, tokens), padded in front. pad: the id that is put behind what ends earlier, as generate does. go_on: of
    ids and mask, the ids with what follows.
    """
    written = []
    for ids, own in zip(context, mask, strict=True):
        text = ids[None, own.argmax() :]
        written.append(go_on(text, torch.ones_like(text))[0, text.shape[1] :])
    return torch.cat([context, pad_sequence(written, batch_first=True, padding_value=pad)], 1)

"""The reader of encoders: the answer's tokens are masked, and all of them predicted in one forward."""

from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.prompts import Prompt
from ..errors import UserError
from ..mechanisms.interface import recording
from ..mechanisms.layers import reads_on
from ..mechanisms.recorder import Recorder
from ..models.encoders import refuse_without_mask
from .answers import Score, Watch, score_rows
from .attention_proof import ROWS, compare_attention
from .head import READS_MORE, logits_of, nll_of
from .preflight import input_ids
from .reader import ANSWERS, WEIGHTS, refuse_lacking
from .tolerance import close, difference
from .transformers import TransformersReader


class MaskedReader(TransformersReader):
    """Reads prompts with an encoder: the verdict is whether the argmax at every masked token is the answer's.

    Every token of an answer is predicted without the others, so its nll is the sum of theirs, and no probability of the answer
    as a whole. The text ends with the masks: what a tokenizer puts behind a text (BERT's [SEP]) is not there.
    """

    gives = frozenset({ANSWERS, WEIGHTS})
    scoring: ClassVar[str] = "masked"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(model, tokenizer)
        refuse_without_mask(model, tokenizer)
        self.mask: int = tokenizer.mask_token_id

    def inputs(self, prompt: Prompt) -> int:
        """Return how many of a prompt's tokens the model is given: all of them."""
        return len(prompt.ids)

    @torch.inference_mode()
    def prove(self, longest: int, needs: frozenset[str], mechanism: bool = False) -> dict[str, Any]:
        """Compare our ways of reading with the model's own, as preflight does for a causal model, and return what was found."""
        refuse_lacking(self, needs)
        model = self.model
        ids = input_ids(model, self.tokenizer, longest)
        READS_MORE.discard(model)
        own = nll_of(model(input_ids=ids).logits, ids)[:, -ROWS:]
        kept = nll_of(logits_of(model, ids, slice(-ROWS, None))[0], ids[:, -ROWS:])
        found: dict[str, Any] = {"tokens": ids.shape[1], "head": "rows", "kept_rows": difference(own, kept)}
        if not torch.isfinite(own).all():
            found["finite"] = False
        elif not close(own, kept, model.dtype):
            READS_MORE.add(model)
            found["head"] = "full logits"
        masses = WEIGHTS in needs
        return found | (compare_attention(model, ids, masses, longest) if mechanism or masses else {})

    @torch.inference_mode()
    def answers(self, prompts: list[Prompt], chunk: int | None = None, watch: Watch | None = None) -> list[Score]:
        """Score prompts of equal length, their answers masked, in one forward; only the masks' rows reach the head.

        Scores and watch are those of answers.forced. There is no nll of tokens that are not masked. Raises UserError for a chunk.
        """
        if chunk is not None and chunk < len(prompts[0].ids):
            raise UserError(
                f"chunk {chunk}: {type(self.model).__name__} is an encoder, which reads a text whole; leave it out"
            )
        shown = [[*p.ids[: -p.answer_length], *[self.mask] * p.answer_length] for p in prompts]
        ids = torch.tensor(shown, device=reads_on(self.model))
        rows = slice(-max(p.answer_length for p in prompts), None)
        if watch is None:
            logits, _ = logits_of(self.model, ids, rows)
        else:
            with recording(self.model, Recorder(watch.rows, watch.reduce)) as recorder:
                logits, _ = logits_of(self.model, ids, rows)
            watch.kept, watch.nll = recorder.kept, [None] * len(prompts)
        return [score_rows(self.tokenizer, p, logits[i, -p.answer_length :]) for i, p in enumerate(prompts)]

    def describe(self) -> dict[str, Any]:
        """Return what a record tells of the reader."""
        return super().describe() | {"scoring": self.scoring}

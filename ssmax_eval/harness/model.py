"""lm-eval's model type `ssmax-eval`: any model of ours in any setting, scored as the native probes score.

Prompts of equal length share a forward pass, only the answers' rows reach lm_head, and nothing is truncated.
"""

import json
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import groupby
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from ..data.prompts import Prompt
from ..environment import environment
from ..errors import UserError
from ..models.encoders import is_encoder
from ..models.load import load_model, load_tokenizer
from ..models.sources import resolve
from ..models.subjects import RunOptions, subject
from ..plans import as_it_is
from ..probes.attention.masses import branch_masses_of, masses_of
from ..probes.needle.branches import Forked, branches, pays
from ..provenance import describe_model
from ..readers.answers import NOT_FINITE, Score, finite_logits
from ..readers.memory import BATCH_TOKENS, BranchScorer, Scorer
from ..readers.padding import Padding, one_by_one
from ..readers.reader import ANSWERS, GENERATE, WEIGHTS
from ..readers.transformers import TransformersReader
from ..setting import Setting
from .requests import prompt_of, room_for

Pair = tuple[Any, list[int], list[int]]  # the texts or None, the context's ids, the continuation's
HF_OPTIONS = "batch_size max_batch_size max_length enable_thinking think_end_token chat_template_args prefix_token_id"
SETTINGS_KEY = "ssmax-eval"  # under which a response cache keeps what it was made with


class SSMaxLM(HFLM):
    """A transformers model as ssmax_eval loads it, for lm-eval.

    pretrained, attention, rope_theta, rope_theta_factor, rope_scaling, position, dtype, trust_remote_code: as --model, --attention ... of
    `ssmax-eval needle`. batch_size: prompts in a forward pass; auto fills BATCH_TOKENS and halves when memory runs out.
    max_length: a longer prompt is an error; None takes the longest. Raises UserError.
    """

    def __init__(
        self,
        pretrained: str = "",
        *,
        attention: str | None = None,
        rope_theta: float | None = None,
        rope_theta_factor: float = 1.0,
        rope_scaling: str | None = None,
        position: str | None = None,
        dtype: str = "auto",
        device: str | None = "cuda",
        trust_remote_code: bool = False,
        **options: Any,
    ) -> None:
        if unknown := sorted(options.keys() - set(HF_OPTIONS.split())):
            known = f"pretrained, attention, rope_theta, rope_theta_factor, rope_scaling, position, dtype, {HF_OPTIONS.replace(' ', ', ')}"
            raise UserError(f"model_args {unknown[0]}: not taken by model type ssmax-eval; allowed are {known}")
        pretrained = str(pretrained)  # lm-eval reads a folder called 123 as a number
        if not pretrained:
            raise UserError("model_args: they name no model; add --model_args pretrained=MODEL")
        self._source = resolve(pretrained)
        self._options = RunOptions(dtype=dtype, trust_remote_code=trust_remote_code)
        setting = Setting.of(
            attention,
            rope_theta=rope_theta,
            rope_theta_factor=float(rope_theta_factor),
            rope_scaling=rope_scaling,
            position=position,
        )
        setting = as_it_is(subject("", pretrained), setting)
        super().__init__(
            pretrained,
            backend="causal",
            device=device or "cuda",
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            **options,
        )
        self._setting = ExitStack()  # it stays for the model's life
        longest = int(options.get("max_length") or self.max_length)
        given = options.get("max_length")
        effective = self._setting.enter_context(setting(self.model, None if given is None else int(given)))
        self.reader = TransformersReader(self.model, self.tokenizer)
        self.padding = Padding(self.model, self.tokenizer)
        # masses are compared where they are asked for
        proof = self.reader.prove(longest, frozenset({ANSWERS, GENERATE}), effective.has_mechanism)
        self.setting = {
            "model": describe_model(subject("", pretrained), self.model, self.tokenizer, dtype),
            **effective.record(self.model),
            "preflight": proof,
            "environment": environment(self.model),
        }

    def _get_config(self, pretrained: str, **ignored: Any) -> None:
        self._config = None  # comes with the model

    def _get_backend(self, *arguments: Any, **ignored: Any) -> None:
        self.backend = "causal"

    def _create_tokenizer(self, pretrained: str, *arguments: Any, **ignored: Any) -> None:
        self.tokenizer = load_tokenizer(self._source, self._options.trust_remote_code)

    def _create_model(self, pretrained: str, **ignored: Any) -> None:
        self._model, _ = load_model(
            self._source,
            dtype=self._options.dtype,
            device=str(self._device),
            trust_remote_code=self._options.trust_remote_code,
        )
        if is_encoder(self._model):
            raise UserError(
                f"model {pretrained!r}: {type(self._model).__name__} is an encoder, and lm-eval's tasks continue a text; use "
                "ssmax-eval needle"
            )
        self._config = self._model.config

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval's results should tell of the model: weights' fingerprint, setting, versions, machine."""
        model = self.setting["model"]
        info = {"model_num_parameters": model["parameters"], "model_dtype": f"torch.{model['dtype']}"}
        return {**info, "model_sha": model["fingerprint"], "ssmax_eval": self.setting}

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Take lm-eval's response cache (--use_cache). Raises UserError for one of another model or setting."""
        if (kept := cache_hook.dbdict) is not None:
            own = json.dumps({key: self.setting[key] for key in ("model", "attention", "rope")}, sort_keys=True)
            made_with = kept.get(SETTINGS_KEY) if len(kept) else own
            if made_with != own:
                raise UserError(
                    f"use_cache {kept.filename!r}: its responses are of another model or setting; give another path"
                )
            kept[SETTINGS_KEY] = own
        super().set_cache_hook(cache_hook)

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        if not requests:
            return []
        if not all(context and continuation for _, context, continuation in requests):
            raise UserError(
                "a request has no tokens to score or none before them: its task and this tokenizer do not fit"
            )
        prompts = [prompt(context, continuation) for _, context, continuation in requests]
        with room_for(self, max(len(each.ids) for each in prompts) - 1):  # the last token is not read
            if len({tuple(each.ids[:-1]) for each in prompts}) < len({tuple(each.ids) for each in prompts}):
                found = self.choices(requests, disable_tqdm, override_bs)
                if not all(math.isfinite(nats) for nats, _ in found):
                    raise UserError(f"a request has no score: {NOT_FINITE}")
                return found
            answers = [
                (-score["answer_nll"], score["correct"])
                for score in self.scores(prompts, self.reader.answers, disable_tqdm)
            ]
        for (text, _, _), answer in zip(requests, answers, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers

    def choices(
        self, requests: Sequence[Pair], disable_tqdm: bool, override_bs: int | None
    ) -> list[tuple[float, bool]]:
        """Score one-token choices after the same context as lm-eval does, which reads it once for all of them.

        It pads contexts behind. Where that would change numbers, those of one length are given to it at a time.
        """
        read = super()._loglikelihood_tokens
        lengths = [len(context) + len(continuation) - 1 for _, context, continuation in requests]
        if self.batch_size == 1 or len(set(lengths)) == 1 or self.padding.right(max(lengths)):
            return list(read(list(requests), disable_tqdm, override_bs))
        found: dict[int, tuple[float, bool]] = {}
        for length in tqdm(sorted(set(lengths), reverse=True), disable=disable_tqdm or self.rank != 0 or None):
            same = [i for i, own in enumerate(lengths) if own == length]
            scores = read([requests[i] for i in same], True, self.prompts_at_once(length))
            found |= zip(same, scores, strict=True)
        return [found[i] for i in range(len(requests))]

    def exact_loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Return (log-likelihood in nats, is greedy decoding's choice) of each document's answer; a trial's prompts are read forked."""
        scores = self.documents(requests, self.reader.answers, self.reader.forked, False)
        return [(-score["answer_nll"], score["correct"]) for score in scores]

    def attention_mass(self, requests: Sequence[Instance]) -> list[str]:
        """Return each document's score with every head's attention on the needle (probes.attention_mass), as JSON."""
        scores = self.documents(requests, masses_of(self.reader), branch_masses_of(self.reader), True)
        return [json.dumps(score) for score in scores]

    def documents(self, requests: Sequence[Instance], score: Scorer, read: BranchScorer, masses: bool) -> list[Score]:
        """Score the prompts of our tasks' documents. read: as branches, where that changes no number and spares enough."""
        prompts = [prompt_of(self, request.doc) for request in requests]
        longest = max(len(each.ids) for each in prompts)
        with room_for(self, longest):
            if masses:
                self.reader.prove(longest, frozenset({ANSWERS, WEIGHTS}))
            trials: dict[Any, list[int]] = {}
            for i, request in enumerate(requests):
                if request.doc.get("plan", 1) > 1:  # whose trials have one haystack
                    key = tuple(request.doc[name] for name in ("task", "haystack", "seed", "trial"))
                    trials.setdefault(key, []).append(i)
            shared = [own for own in trials.values() if pays([prompts[i] for i in own], masses)]
            fork = None
            if shared:
                how = self.reader.forking(longest, frozenset({WEIGHTS} if masses else ()))
                self.setting["preflight"]["forked"] = str(how)
                fork = None if how.why else partial(branches, read=read, masses=masses, by_snapshots=how.by_snapshots)
            return self.scores(prompts, score, trials=shared if fork else (), fork=fork)

    def scores(
        self,
        prompts: list[Prompt],
        score: Scorer,
        disable_tqdm: bool = False,
        trials: Sequence[list[int]] = (),
        fork: Callable[..., Forked] | None = None,
    ) -> list[Score]:
        """Score prompts in batches of equal length, the longest first. Raises UserError for one that cannot be scored.

        trials: the indices of those that are read forked before, a trial at a time, as `fork` yields them (branches).
        """
        found: dict[int, Score] = {}
        in_memory = self.reader.in_memory(score, halve=self.batch_size == "auto")
        bar = tqdm(
            total=len(prompts), disable=disable_tqdm or self.rank != 0 or None, desc="Running loglikelihood requests"
        )

        def keep(indices: list[int], scores: list[Score]) -> None:
            for i, each in zip(indices, scores, strict=True):
                if each["error"]:
                    raise UserError(f"a sequence of {len(prompts[i].ids)} tokens has no score: {each['error']}")
                found[i] = each
            bar.update(len(indices))

        for own in trials:
            assert fork is not None
            for together, call in fork(self.reader, in_memory, prompts=[prompts[i] for i in own]):
                keep([own[at] for at in together], call())
        order = sorted(set(range(len(prompts))) - found.keys(), key=lambda i: (-len(prompts[i].ids), i))
        for length, group in groupby(order, key=lambda i: len(prompts[i].ids)):
            same = list(group)
            size = self.prompts_at_once(length)
            for start in range(0, len(same), size):
                batch = same[start : start + size]
                keep(batch, in_memory([prompts[i] for i in batch]))
        bar.close()
        return [found[i] for i in range(len(prompts))]

    def prompts_at_once(self, length: int) -> int:
        """Return how many sequences of a length share a forward pass."""
        if self.batch_size == "auto":
            return max(1, BATCH_TOKENS.get(self.device.type, BATCH_TOKENS["cuda"]) // length)
        return int(self.batch_size)

    def _detect_batch_size(self, requests: Sequence[Pair] | None = None, pos: int = 0) -> int:
        # lm-eval would try 64 sequences of the greatest length, with all their logits
        return self.prompts_at_once(sum(map(len, requests[pos][1:])) if requests else self.max_length)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate as lm-eval does, with room for the longest prompt and all it may write; where there is none, an error."""
        room = [
            len(self.tok_encode(text)) + normalize_gen_kwargs(dict(options), self.max_gen_toks)["max_gen_toks"]
            for text, options in (request.args for request in requests)
        ]
        with room_for(self, max(room)), torch.inference_mode(), finite_logits(self.model) as finite:
            written = list(super().generate_until(requests, disable_tqdm=disable_tqdm))
            if not finite():
                raise UserError(f"generation: {NOT_FINITE}, which is a failure and not a text; try another --dtype")
        return written

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any) -> torch.Tensor:
        """Go on with a batch of texts; with one at a time where padding in front would change what is written."""
        mask: torch.Tensor = options.pop("attention_mask")
        go_on = partial(super()._model_generate, stop=stop, **options)
        if len(context) == 1 or self.padding.left(max_length, options):
            return go_on(context, max_length, attention_mask=mask)
        room = max_length - context.shape[1]
        return one_by_one(
            context,
            mask,
            self.tokenizer.pad_token_id,
            lambda ids, own: go_on(ids, ids.shape[1] + room, attention_mask=own),
        )


def prompt(context: list[int], continuation: list[int]) -> Prompt:
    """Return a context and what is scored after it as a prompt of no known needle."""
    return Prompt(
        [*context, *continuation], len(continuation), "", "", "", None, None, None, None, None, len(context), None, 0
    )

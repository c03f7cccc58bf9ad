"""What a needle grid asks: its parameters and their ranges, its samples, their prompts and rows."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...data.chat import Chat
from ...data.haystacks import Haystack, haystack
from ...data.needles import LISTED, Asked, Needle
from ...data.own import OwnNeedle
from ...data.prompts import CONTROLS, Prompt, assemble
from ...data.unknown import lost_in_words, texts_of
from ...data.vocabulary import CITIES
from ...rows import Fields
from ..attention.rows import AttentionRow
from ..budget import within
from ..checks import chat_advice, notes, require
from ..defaults import DEPTH_PERCENTS, LONGEST, PLAN, SCORED, SEED, TEXT, TRIALS, UNKNOWN
from ..kind import Probe
from .credit import METRICS, TO_WRITE, judged, words
from .plan import Sample, grid_of
from .rows import NeedleRow, placed

MOST_TRIALS = 100_000
PLANS = (1, 2)
SCORING = ("forced", "generate", *METRICS)
# of prompts and scores, by plan: raise one when the same parameters come to mean other rows
FORMAT = {
    1: {"needle": 1, "attention": 2, "needed-scale": 1},
    2: {"needle": 2, "attention": 3, "needed-scale": 1},
}
ASK_ALL = 2  # the same of prompts that ask for all facts
TOLD_ANEW = 2  # the same of needles of one's own whose prompts or spans were ambiguous
WRITTEN = 2  # the same of answers that are written: how long they may be, and how they are judged


@dataclass(frozen=True)
class NeedleGrid(Probe):
    """Parameters of a needle grid.

    context_lengths: tokens of the whole prompt, answer included. depth_percents: 0 (start) to 100. trials: prompts a cell.
    needle: a task of ours, or one's own (data.own). haystack: a reference as data.haystacks.haystack takes it. scoring: forced
    (masked, where the model is an encoder), generate, or a metric of what is generated (credit.py). controls: no-needle,
    needle-only, which a needle whose question has other words always has.
    plan_version: 2, a trial is one haystack, shared by its lengths and depths, needle and value drawn for each prompt; 1, all
    is drawn for each prompt, as before there were two. chat: read prompts as a user's messages, with a template that counts in
    their length; of plan 2 only.
    attention_mass: also store what every head does in the answer's rows (../attention/masses.py), from the same forward.
    limit: the first N samples, trials outermost so that the grid fills evenly. limit_tokens: at most so many tokens, whole
    trials dropped first, then the longest lengths (budget.within). chunk: tokens to prefill at a time; None is
    all at once, and smaller when memory runs out. Raises UserError for values out of range.
    """

    context_lengths: tuple[int, ...] = UNKNOWN
    depth_percents: tuple[float, ...] = DEPTH_PERCENTS
    trials: int = TRIALS
    needle: Asked = field(default_factory=Needle)
    haystack: str = TEXT
    scoring: str = SCORED
    controls: tuple[str, ...] = ()
    seed: int = SEED
    limit: int | None = None
    limit_tokens: int | None = None
    attention_mass: bool = False
    chunk: int | None = None
    plan_version: int = PLAN
    chat: Chat | None = None

    def __post_init__(self) -> None:
        for length in self.context_lengths:
            require(1 <= length <= LONGEST, "context length", length, f"whole numbers of tokens, 1 to {LONGEST}")
        for depth in self.depth_percents:
            require(math.isfinite(depth) and 0 <= depth <= 100, "depth percent", depth, "0 (start) to 100 (end)")
        require(bool(self.context_lengths), "context lengths", "", "at least one")
        require(bool(self.depth_percents), "depth percents", "", "at least one")
        require(1 <= self.trials <= MOST_TRIALS, "trials", self.trials, f"1 to {MOST_TRIALS}")
        require(self.scoring in SCORING, "scoring", self.scoring, " or ".join(SCORING))
        if self.scoring in METRICS and isinstance(self.needle, OwnNeedle):
            for answer in sorted(self.needle.answers()):
                none = f"forced or generate with answer {answer!r}, which has no words to compare"
                require(bool(words(answer, answer)), "scoring", self.scoring, none)
        for control in self.controls:
            require(control in CONTROLS, "control", control, ", ".join(CONTROLS))
        if self.attention_mass:
            require(self.scoring == "forced", "scoring", self.scoring, "forced where attention mass is wanted")
            require(
                self.needle.task not in LISTED,
                "task",
                self.needle.task,
                "those with one value to look at: single, multikey, digits, recall, choice",
            )
        require(self.chunk is None or self.chunk >= 1, "chunk", self.chunk, "auto and whole numbers from 1")
        require(self.limit is None or self.limit >= 1, "limit", self.limit, "1 or more")
        require(self.plan_version in PLANS, "plan", self.plan_version, " or ".join(map(str, PLANS)))
        require(self.chat is None or self.plan_version > 1, "plan", self.plan_version, "2 with a chat template")
        if self.needle.task == "digits":
            own = "none: task digits makes its own; leave it out"
            require(self.haystack in ("text", "digits"), "haystack", self.haystack, own)
        object.__setattr__(self, "context_lengths", tuple(sorted(set(self.context_lengths))))
        object.__setattr__(self, "depth_percents", tuple(sorted({float(depth) + 0.0 for depth in self.depth_percents})))
        own_ceiling = {"needle-only"} if self.needle.is_indirect else set()
        object.__setattr__(self, "controls", tuple(sorted({*self.controls} | own_ceiling)))
        if isinstance(self.needle, Needle) and self.needle.asks_all:
            require(self.plan_version > 1, "plan", self.plan_version, "2 where all facts are asked for")
            none = "none where all facts are asked for: each prompt has the others'"
            require(not self.controls, "controls", ", ".join(self.controls), none)
            most = f"at most {len(CITIES)} where all facts are asked for, and at least 2"
            require(2 <= len(self.depth_percents) <= len(CITIES), "depth percents", len(self.depth_percents), most)
            object.__setattr__(self, "needle", replace(self.needle, needles=len(self.depth_percents)))
        if self.limit_tokens is not None:
            self.plan()  # which says the least that a trial takes

    @cached_property
    def source(self) -> Haystack:
        """The haystack, read once."""
        reference = "text" if self.needle.task == "digits" else self.haystack
        return haystack(reference, any_script=self.plan_version > 1)

    @property
    def name(self) -> str:
        """The probe's name in the run store."""
        return "attention" if self.attention_mass else "needle"

    @property
    def schema(self) -> type[NeedleRow]:
        """The schema of its rows."""
        return AttentionRow if self.attention_mass else NeedleRow

    @property
    def haystack_name(self) -> str:
        return "digits" if self.needle.task == "digits" else self.source.name

    def plan(self) -> list[Sample]:
        """Return the samples in the order they run: by length, the controls after the grid."""
        samples = within(
            grid_of(self.trials, self.context_lengths, self.depth_percents, self.controls), self.limit_tokens
        )
        return sorted(samples[: self.limit], key=lambda s: (s.control or "", *s[:3]))

    def prompt(self, tokenizer: PreTrainedTokenizerBase, sample: Sample) -> Prompt:
        length, depth, trial, control = sample
        seed = f"{self.seed}/{length}/{depth:g}/{trial}"
        shared = f"{self.seed}/haystack/{trial}" if self.plan_version > 1 else None
        prompt = assemble(
            tokenizer, self.needle, self.source, length, depth, seed, control, shared, self.chat, self.depth_percents
        )
        return prompt if self.scoring not in METRICS else replace(prompt, to_write=max(TO_WRITE, prompt.answer_length))

    def shortest(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Return the tokens of the longest needle, question and answer among the samples that could be too short for theirs."""
        parts = [len(self.prompt(tokenizer, sample._replace(control="needle-only")).ids) for sample in self.plan()[:1]]
        near = [sample for sample in self.plan() if not sample.control and sample.context_length < 2 * parts[0]]
        parts += [len(self.prompt(tokenizer, sample._replace(control="needle-only")).ids) for sample in near]
        return max(parts) if near else 0

    def row(self, sample: Sample, prompt: Prompt, score: Fields) -> Fields:
        """Return the row of a prompt and what it scored."""
        control = sample.control
        return {
            "sample": sample.name,
            "task": self.needle.named,
            "value": self.needle.value,
            "needles": self.needle.needles,
            "haystack": self.haystack_name,
            "scoring": self.scoring,
            "control": control,
            "context_length": len(prompt.ids),
            "depth_percent": None if control else sample.depth_percent,
            "realised_depth_percent": prompt.realised_depth_percent,
            "trial": sample.trial,
            "plan": self.plan_version,
            "seed": self.seed,
            "needle": prompt.needle,
            "question": prompt.question,
            "expected": prompt.expected,
            **judged(self.scoring, prompt, score),
            **placed(prompt),
        }

    def parameters(self) -> dict[str, Any]:
        """Return all that decides the prompts and the scoring, the haystack's content included."""
        content: dict[str, Any] = {"haystack": self.haystack_name, "haystack_sha256": self.source.sha256}
        parameters = asdict(self)
        del parameters["attention_mass"]  # the probe's name tells it
        del parameters["chunk"]  # how it is computed, not what
        if self.needle.asks_all:
            content["ask"] = ASK_ALL
        elif isinstance(self.needle, Needle):  # runs of before there was a choice
            del parameters["needle"]["ask"]
        if isinstance(self.needle, OwnNeedle) and self.needle.is_told_anew:
            content["needle_format"] = TOLD_ANEW
        if self.scoring != "forced":
            content["written"] = WRITTEN
        for name in ("limit_tokens", "chat"):  # without one it is the run that it was before there was such a thing
            if getattr(self, name) is None:
                del parameters[name]
        if (plan := parameters.pop("plan_version")) > 1:  # runs of before plan 2 tell none
            content["plan"] = plan
        return {"format": FORMAT[plan][self.name], **parameters, **content}

    unit, sample_is = "trials", "prompt"

    def note(self, rows: Sequence[Fields]) -> str:
        return notes(self.haystack_name, self.source, self.needle, rows)

    def advice(self, tokenizer: PreTrainedTokenizerBase) -> str:
        lost = lost_in_words(tokenizer, texts_of(self.needle, self.source))
        return "; ".join(filter(None, [chat_advice(self.chat, tokenizer), lost]))

    def told(self, tokenizer: PreTrainedTokenizerBase) -> Fields:
        return {} if self.chat is None else {"chat": self.chat.record(tokenizer)}

    def longest(self) -> int:
        return max(sample.context_length for sample in replace(self, limit=None).plan())

    def reads(self, sample: Sample) -> list[int]:
        """Return the tokens of each sequence that a sample's rows take, at most."""
        return [sample.context_length or min(self.context_lengths)]

"""The probe of RULER: its prompts read in one forward where that settles their score, answers written where it does not.

An answer's score is 1 if greedy decoding writes it, and greedy decoding writes it if each of its tokens is the argmax behind
those before it (readers/answers.py). So one forward over prompt and answer can prove a score of 1. It cannot prove less: what
else greedy decoding writes may hold the references in another order, spelling or place. Such prompts are decoded.
"""

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.chat import Chat, chat_asked
from ...data.haystacks import Haystack, haystack
from ...data.ruler.prompts import RulerPrompt, draft, ruler_prompt
from ...data.ruler.tasks import TASKS, Task, task_named
from ...data.unknown import haystack_text, lost_in_words, refuse_lost
from ...readers.answers import Score
from ...readers.memory import prompts_at_once
from ...readers.reader import ANSWERS, GENERATE, InOrder, Reader
from ...rows import Fields
from ..budget import within
from ..by_model import default_lengths
from ..checks import chat_advice, check_model, refuse_chat_elsewhere, require
from ..defaults import LONGEST, SCORED, SEED, TEXT, TRIALS, UNKNOWN
from ..kind import Probe
from ..needle.grid import MOST_TRIALS
from ..options import several
from . import PROBE
from .credit import share_found
from .options import RulerOptions
from .rows import RulerRow

SCORING = ("forced", "generate")
SHORTEST = 1024  # tokens of a default prompt: the example of ruler_vt alone has 500
FORMAT = 1  # of prompts and scores: raise it when the same parameters come to mean other rows


class Sample(NamedTuple):
    """One prompt of the plan."""

    task: str
    context_length: int
    trial: int

    @property
    def name(self) -> str:
        return f"{self.task}/{self.context_length}/{self.trial}"


class Read(NamedTuple):
    """What was read of a prompt, as its row names it."""

    predicted: str | None
    credit: float | None
    settled: bool | None
    answer_nll: float | None
    error: str | None


@dataclass(frozen=True)
class RulerProbe(Probe):
    """Parameters of RULER.

    tasks: lm-eval's names. context_lengths: tokens of a prompt and of the answer that it may have. trials: prompts of each task
    and length. haystack: in place of the essays, as data.haystacks.haystack takes it; a trial's prose begins at one place for all
    tasks and lengths. scoring: forced, or generate for every prompt. chat: prompts as a user's messages. limit: the first N
    prompts, trials outermost. limit_tokens: at most so many tokens (budget.within). chunk: tokens to prefill at a time. Raises
    UserError for values out of range.
    """

    tasks: tuple[str, ...] = tuple(TASKS)
    context_lengths: tuple[int, ...] = UNKNOWN
    trials: int = TRIALS
    haystack: str = TEXT
    scoring: str = SCORED
    seed: int = SEED
    limit: int | None = None
    limit_tokens: int | None = None
    chunk: int | None = None
    chat: Chat | None = None

    name = PROBE.name
    schema = RulerRow
    unit, sample_is = "trials", "prompt"

    def __post_init__(self) -> None:
        for length in self.context_lengths:
            require(1 <= length <= LONGEST, "context length", length, f"whole numbers of tokens, 1 to {LONGEST}")
        require(bool(self.context_lengths), "context lengths", "", "at least one")
        require(1 <= self.trials <= MOST_TRIALS, "trials", self.trials, f"1 to {MOST_TRIALS}")
        require(self.scoring in SCORING, "scoring", self.scoring, " or ".join(SCORING))
        require(self.chunk is None or self.chunk >= 1, "chunk", self.chunk, "auto and whole numbers from 1")
        require(self.limit is None or self.limit >= 1, "limit", self.limit, "1 or more")
        asked = {task_named(name).name for name in self.tasks}
        object.__setattr__(self, "tasks", tuple(name for name in TASKS if name in asked) or tuple(TASKS))
        object.__setattr__(self, "context_lengths", tuple(sorted(set(self.context_lengths))))
        if self.limit_tokens is not None:
            self.plan()  # which says the least that a trial takes

    @cached_property
    def source(self) -> Haystack:
        """The prose, read once."""
        return haystack(self.haystack, any_script=True)

    @property
    def needs(self) -> frozenset[str]:
        """What a reader has to give."""
        return frozenset({GENERATE} if self.scoring == "generate" else {ANSWERS, GENERATE})

    def given(self, gives: frozenset[str]) -> "RulerProbe | None":
        return self if self.needs <= gives else replace(self, scoring="generate") if GENERATE in gives else None

    def plan(self) -> list[Sample]:
        """Return the samples in the order they run: by task and length."""
        every = itertools.product(range(self.trials), self.context_lengths, self.tasks)
        samples = within([Sample(task, length, trial) for trial, length, task in every], self.limit_tokens)[
            : self.limit
        ]
        return sorted(samples, key=lambda sample: (self.tasks.index(sample.task), *sample[1:]))

    def prompt(self, tokenizer: PreTrainedTokenizerBase, sample: Sample) -> RulerPrompt:
        """Return the prompt of a sample. Raises UserError for a length that is too short for it."""
        return ruler_prompt(tokenizer, *self.drawn(sample), self.chat)

    def drawn(self, sample: Sample) -> tuple[Task, Haystack, int, str, str]:
        """Return what a sample's prompt is drawn from."""
        prose = f"{self.seed}/ruler/haystack/{sample.trial}"
        return TASKS[sample.task], self.source, sample.context_length, f"{self.seed}/ruler/{sample.name}", prose

    def check(self, model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise UserError if a prompt is too short for its task, the tokenizer not the model's, or positions run out."""
        refuse_chat_elsewhere(model, self.chat)
        refuse_lost(tokenizer, haystack_text(self.source))
        for (_, length), group in itertools.groupby(self.plan(), key=lambda sample: sample[:2]):
            first, *others = group
            made = [draft(tokenizer, *self.drawn(first), self.chat)]
            if 2 * made[0].shortest > length:  # other draws have longer keys and sentences
                made += [draft(tokenizer, *self.drawn(sample), self.chat) for sample in others]
            max(made, key=lambda each: each.shortest).refuse_short()
        longest = max(sample.context_length for sample in self.plan())
        check_model(model, tokenizer, longest, longest, self.chunk)

    def __call__(
        self,
        reader: Reader,
        done: Collection[str] = (),
        batch_size: int | None = None,
        claim: Callable[[], bool] = lambda: True,
    ) -> Iterator[list[Fields]]:
        """Yield the rows of each batch, those with a sample named in `done` left out."""
        self.check(reader.model, reader.tokenizer)
        force = reader.in_memory(reader.answers, batch_size is None, self.chunk)
        write = reader.in_memory(reader.generate, batch_size is None, self.chunk)
        for (task, length), group in itertools.groupby(self.plan(), key=lambda sample: sample[:2]):
            samples = list(group)
            size = batch_size or prompts_at_once(reader.model, length)
            for start in range(0, len(samples), size):
                batch = samples[start : start + size]
                if not claim() or all(self.has(sample, done) for sample in batch):
                    continue
                prompts = [self.prompt(reader.tokenizer, sample) for sample in batch]
                tries = self.scoring == "forced" and TASKS[task].spelled
                read = scored(force if tries else None, write, prompts)
                yield [self.row(*each) for each in zip(batch, prompts, read, strict=True) if each[0].name not in done]

    def row(self, sample: Sample, prompt: RulerPrompt, read: Read) -> Fields:
        """Return the row of a prompt and what was read of it."""
        return {
            "sample": sample.name,
            "task": sample.task,
            "haystack": self.source.name,
            "scoring": self.scoring,
            "context_length": sample.context_length,
            "prompt_tokens": len(prompt.ids) - prompt.answer_length,
            "trial": sample.trial,
            "seed": self.seed,
            "haystack_start": prompt.haystack_start,
            "haystack_sentences": prompt.haystack_sentences,
            "chat": prompt.chat,
            "question": prompt.question,
            "references": list(prompt.references),
            **read._asdict(),
            "correct": None if read.credit is None else read.credit == 1,
            "prompt_sha256": prompt.sha256,
        }

    def parameters(self) -> dict[str, Any]:
        """Return all that decides the prompts and the scoring, the haystack's content included."""
        parameters = asdict(self)
        del parameters["chunk"]  # how it is computed, not what
        return {"format": FORMAT, **parameters, "haystack": self.source.name, "haystack_sha256": self.source.sha256}

    def advice(self, tokenizer: PreTrainedTokenizerBase) -> str:
        lost = lost_in_words(tokenizer, haystack_text(self.source))
        return "; ".join(filter(None, [chat_advice(self.chat, tokenizer), lost]))

    def told(self, tokenizer: PreTrainedTokenizerBase) -> Fields:
        return {} if self.chat is None else {"chat": self.chat.record(tokenizer)}

    def longest(self) -> int:
        return max(self.context_lengths)


def scored(force: InOrder | None, write: InOrder, prompts: Sequence[RulerPrompt]) -> list[Read]:
    """Return what is read of prompts: where `force` settles one nothing is written, and the others are written. None settles none."""
    told = [{}] * len(prompts) if force is None else forced_scores(force, prompts)
    left = [i for i, score in enumerate(told) if not score.get("correct")]
    found = dict(enumerate(told)) | dict(zip(left, write([prompts[i] for i in left]) if left else [], strict=True))
    out = []
    for i, prompt in enumerate(prompts):
        failed, text = found[i]["error"], found[i]["predicted"]
        credit = share_found(text or "", prompt.references) if failed is None else None
        settled = None if failed is not None else i not in left
        out.append(Read(text, credit, settled, told[i].get("answer_nll"), failed))
    return out


def forced_scores(force: InOrder, prompts: Sequence[RulerPrompt]) -> list[Score]:
    """Return what one forward over each prompt's answer tells; prompts whose answers have as many tokens are read together."""
    found: dict[int, Score] = {}
    for length in dict.fromkeys(len(prompt.ids) for prompt in prompts):
        alike = [i for i, prompt in enumerate(prompts) if len(prompt.ids) == length]
        found |= dict(zip(alike, force([prompts[i] for i in alike]), strict=True))
    return [found[i] for i in range(len(prompts))]


def make(models: Any, options: RulerOptions, beside: Sequence[Probe] = ()) -> RulerProbe:
    """Return RULER's tasks as options ask for them. Raises UserError."""
    lengths = options.context_lengths
    if lengths is None:
        lengths = [each for each in default_lengths(models, options.trust_remote_code) if each >= SHORTEST] or [
            SHORTEST
        ]
    return RulerProbe(
        tasks=tuple(several(options.tasks)),
        context_lengths=tuple(lengths),
        trials=options.trials,
        haystack=options.haystack,
        scoring=options.scoring,
        seed=options.seed,
        limit=options.limit,
        limit_tokens=options.limit_tokens,
        chunk=options.chunk,
        chat=chat_asked(options.chat_template, options.system),
    )


PROBE.maker(make)

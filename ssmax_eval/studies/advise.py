"""Which setting to read a model with beyond its training length, if any: candidates race, and the choice is checked on other prompts."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pandas as pd

from .. import statistics
from ..errors import UserError
from ..models.subjects import RunOptions, Subject, subjects
from ..plans import as_it_is
from ..probes import PROBES
from ..probes.by_model import default_lengths, default_task, training_length
from ..probes.defaults import DEPTH_PERCENTS
from ..probes.loss.options import LossOptions
from ..probes.needle.options import NeedleOptions
from ..results import tables
from ..run import run_probes
from ..setting import Setting
from ..store import Run
from .fitted import fitted_scale, laws_of, needed_scale

log = logging.getLogger(__name__)
AS_TRAINED, SWAPPED = Setting(), Setting.of("ssmax")
# what is tried: no change, a query scale, RoPE turned slower
CANDIDATES = (
    AS_TRAINED,
    SWAPPED,
    *(Setting.of(name) for name in ("constant-n", "log-n")),
    *(Setting.of(rope_theta_factor=factor) for factor in (2.0, 4.0, 8.0)),
    Setting.of(rope_scaling="yarn:2"),
)
# of the trials, and of the candidates, those that are left: most is read of the two that few prompts cannot tell apart
ROUNDS = ((1 / 16, len(CANDIDATES) + 1), (1 / 8, 4), (3 / 8, 2))
# trials: half of them check. Of 6 checks the exact test can be sure of a gain; of 5 it gives p = 2 * 2**-5 = .06 at best
FEWEST = 12
NEEDED = (1 / 8, 3)  # of the trials, at how many depths: the needed scale, of whose law one more candidate is made
# of the trials, at how many depths: the same task, another haystack, another task; a trial is what intervals are made over
CHECKS = ((1 / 2, 3), (1 / 2, 1), (1 / 2, 1))
SEED = 999  # of the needed scale, apart from the rounds
PRICED = (1 / 2, SEED)  # of the documents, which ones: those whose loss chooses
OTHER_TASK = {"single": "multikey", "recall": "multikey", "multikey": "single"}


@dataclass(frozen=True)
class Asked:
    """What advice is asked about: a model, at which lengths, and with how many prompts.

    lengths: the shortest, at which the price is told, is the training length, or near it. trials: of a whole grid for each
    candidate; the race takes under half of those tokens. other_haystack: that the choice is checked on too; None for Bible text,
    or generated prose where that is the haystack. documents: that
    tell the price; half as many others choose.
    """

    model: str | Mapping[str, Any]
    lengths: tuple[int, ...] = ()
    depths: tuple[float, ...] = DEPTH_PERCENTS
    trials: int = 16
    task: str | None = None
    haystack: str = "text"
    other_haystack: str | None = None
    documents: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trials < FEWEST:
            raise UserError(
                f"trials {self.trials}: allowed are whole numbers from {FEWEST}; half of them check the choice, and of fewer checks "
                "no gain is sure, however clear"
            )

    @cached_property
    def subject(self) -> Subject:
        return subjects(self.model)[0]

    @property
    def models(self) -> dict[str, Any]:
        """The model by its label, as runs take it."""
        return {self.subject.label: self.model} if isinstance(self.model, str) else dict(self.model)

    @property
    def bare(self) -> Any:
        """The model without a label, as what it is gets known."""
        return self.model if isinstance(self.model, str) else next(iter(self.model.values()))

    @cached_property
    def own_task(self) -> str:
        return self.task or default_task(self.bare)

    @cached_property
    def context_lengths(self) -> tuple[int, ...]:
        return tuple(sorted({*self.lengths})) or default_lengths(self.bare)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt: on which layers a mechanism stands goes by it, in the documents too."""
        return max(self.context_lengths)

    def texts(self, share: float, seed: int) -> LossOptions:
        """Return a share of the documents of the shortest length, which are those of no other seed."""
        return LossOptions(
            context_length=min(self.context_lengths),
            documents=max(1, round(share * self.documents)),
            seed=self.seed + seed,
        )

    def grid(
        self, share: float, seed: int, depths: int | None = None, haystack: str | None = None, task: str | None = None
    ) -> NeedleOptions:
        """Return a grid of a share of the trials, at so many depths spread evenly, whose prompts are those of no other seed."""
        known = sorted({*self.depths})
        last, count = len(known) - 1, min(depths or len(known), len(known))
        places = [last // 2] if count == 1 else [round(i * last / (count - 1)) for i in range(count)]
        return NeedleOptions(
            context_lengths=self.context_lengths,
            depth_percents=tuple(known[place] for place in places),
            trials=max(1, round(share * self.trials)),
            seed=self.seed + seed,
            haystack=haystack or self.haystack,
            task=task or self.own_task,
        )


@dataclass(frozen=True)
class Advice:
    """What to do with a model, and why.

    setting: what to read it with; the model as trained where nothing helps. race: statistics.ranked of each round, the last one
    with nats, what each costs a token at the shortest length (of documents that chose). held_out: rows
    of the model as trained and in its setting, of held-out prompts: the same task, another haystack, another task.
    price: statistics.price. refused: why candidates did not start. tokens: read to choose, to check, and of the whole list. runs:
    the needed scale's and the checks', which the page shows; the race's prompts chose, so they prove nothing. fitted: the s of
    s ln n that the needed scale comes nearest to; None where it was not measured, or the model's mechanism is not softmax.
    """

    model: str
    setting: Setting
    train_length: int | None
    race: Sequence[pd.DataFrame]
    series: Mapping[Setting, str]
    held_out: pd.DataFrame
    price: pd.DataFrame
    refused: Mapping[Setting, str]
    tokens: Mapping[str, int]
    runs: Sequence[Run] = field(default=(), repr=False)
    fitted: float | None = None

    @property
    def own(self) -> str:
        """The series of the model as trained."""
        return self.series[AS_TRAINED]

    @property
    def name(self) -> str:
        """The series of the model in the setting."""
        return self.series[self.setting]


def advise(asked: Asked, options: RunOptions) -> Advice:
    """Let candidates race, choose one of those that are left, and check it. Raises UserError for what cannot be read."""
    subject = asked.subject
    options = replace(options, reaches=asked.longest)
    refused, grids = applicable(subject, asked, options)
    # a model's own mechanism is the model as trained
    left = list(dict.fromkeys(as_it_is(subject, setting) for setting in CANDIDATES if setting not in refused))
    log.warning(
        "ssmax-eval: cost: %d settings race, the choice is checked; about %s tokens in all, %s in the longest",
        len(left) + 1,
        f"{at_most(asked, len(left) + 1, grids):,}",
        f"{asked.longest:,}",
    )
    # what no scale can be put on needs none
    needed = [] if SWAPPED in refused else needed_scale(asked.models, asked.grid(NEEDED[0], SEED, NEEDED[1]), options)
    laws = laws_of(needed, training_length(asked.bare))
    if (fitted := fitted_scale(laws, training_length(asked.bare))) is not None:
        left.append(fitted)
    first_grid = asked.grid(ROUNDS[0][0], 0)
    runs = read(asked, first_grid, left, options)
    # the names that rows of all candidates have beside each other; rows of fewer would be told apart by less
    first = statistics.with_series(statistics.of_prompts(tables(runs))).drop_duplicates("run_id").set_index("run_id")
    series = {setting: str(first["series"][run.run_id]) for setting, run in zip(left, runs, strict=True)}
    whole_list = round(tokens_of(runs) * asked.trials / first_grid.trials)
    names = {run.run_id: series[setting] for setting, run in zip(left, runs, strict=True)}

    def rows_of(some: Sequence[Run]) -> pd.DataFrame:
        rows = tables(some)
        return rows.assign(series=rows["run_id"].map(names))

    def more(made: Sequence[Run], settings: Sequence[Setting]) -> list[Run]:
        names.update({run.run_id: series[setting] for setting, run in zip(settings, made, strict=True)})
        return [*made]

    race = [statistics.ranked(rows_of(runs))]
    for number, (share, keep) in enumerate(ROUNDS[1:], 1):
        best = [*race[-1]["series"][:keep]]
        left = [each for each in left if series[each] in best]
        runs += more(read(asked, asked.grid(share, number), left, options), left)
        rows = rows_of(runs)
        rows = rows[rows["series"].isin([series[each] for each in left])]
        race.append(statistics.ranked(rows))
    own = series[AS_TRAINED]
    with_own = [AS_TRAINED, *(each for each in left if each != AS_TRAINED)]
    priced = more(read_texts(asked, asked.texts(*PRICED), with_own, options), with_own)
    nats = statistics.price(rows_of(priced), own).set_index("series")["nats"].to_dict()
    race[-1] = race[-1].assign(nats=race[-1]["series"].map({own: 0.0, **nats}))
    name = statistics.chosen(race[-1])
    choice = next(each for each in left if series[each] == name)
    pair = [AS_TRAINED] if choice == AS_TRAINED else [AS_TRAINED, choice]
    checks = [run for grid in grids for run in more(read(asked, grid, pair, options), pair)]
    documents = more(read_texts(asked, asked.texts(1, 0), pair, options), pair)
    return Advice(
        subject.label,
        choice,
        training_length(asked.bare),
        race,
        series,
        rows_of(checks),
        statistics.price(rows_of(documents), own),
        refused,
        # the list: a whole grid for each candidate, at what these prompts took
        {
            "choosing": tokens_of(needed) + tokens_of(runs) + tokens_of(priced),
            "checking": tokens_of(checks) + tokens_of(documents),
            "the whole list": whole_list,
        },
        [*needed, *checks, *documents],
        None if laws.empty else float(laws.loc["s ln n", "s"]),
    )


def at_most(asked: Asked, settings: int, checks: Sequence[NeedleOptions]) -> int:
    """Return the tokens that so many settings' race takes, with the needed scale before it and the checks after it."""

    def prompts(grid: NeedleOptions) -> int:
        return grid.trials * len(grid.depth_percents)

    race = sum(prompts(asked.grid(share, 0)) * min(keep, settings) for share, keep in ROUNDS)
    whole = race + prompts(asked.grid(NEEDED[0], 0, NEEDED[1])) + 2 * sum(map(prompts, checks))
    documents = min(ROUNDS[-1][1] + 1, settings) * asked.texts(*PRICED).documents + 2 * asked.documents
    return whole * sum(asked.context_lengths) + documents * min(asked.context_lengths)


def read(asked: Asked, grid: NeedleOptions, settings: Sequence[Setting], options: RunOptions) -> list[Run]:
    """Run a needle grid on the model in several settings, and return a run for each."""
    return run_probes([PROBES["needle"].make(asked.models, grid)], asked.models, settings, options)


def read_texts(asked: Asked, texts: LossOptions, settings: Sequence[Setting], options: RunOptions) -> list[Run]:
    """Run the loss of documents on the model in several settings, and return a run for each."""
    return run_probes([PROBES["loss"].make(asked.models, texts)], asked.models, settings, options)


def applicable(subject: Subject, asked: Asked, options: RunOptions) -> tuple[dict[Setting, str], list[NeedleOptions]]:
    """Return the candidates that have no effect on a model or that it cannot take, and why; and the checks that it can take.

    All of it before the race, which a refusal would waste. Raises UserError for what nothing is left of.
    """
    if subject.foreign is not None:
        raise UserError(
            f"model {subject.label}: advice is on settings, which no function or server can be put in; give a model"
        )
    refused: dict[Setting, str] = {}
    model, tokenizer = subject.load(options)
    for setting in CANDIDATES:
        try:
            with setting(model, asked.longest):
                pass
        except UserError as error:
            refused[setting] = str(error)
    if AS_TRAINED in refused:
        raise UserError(refused[AS_TRAINED])
    PROBES["loss"].make(asked.models, asked.texts(1, 0)).check(model, tokenizer)
    elsewhere = asked.other_haystack or ("text" if asked.haystack == "bible" else "bible")
    others = ((None, None), (elsewhere, None), (None, OTHER_TASK.get(asked.own_task, "single")))
    checks: list[NeedleOptions] = []
    for number, (how, other) in enumerate(zip(CHECKS, others, strict=True), len(ROUNDS)):
        grid = asked.grid(how[0], number, how[1], *other)
        try:
            PROBES["needle"].make(asked.models, grid).check(model, tokenizer)
        except UserError as error:
            if not checks:  # the race asks the same
                raise
            log.warning("ssmax-eval: note: not checked on task %s in haystack %s: %s", grid.task, grid.haystack, error)
            continue
        checks.append(grid)
    return refused, checks


def tokens_of(runs: Sequence[Run]) -> int:
    """Return the tokens that runs read."""
    return sum(int(run.record()["tokens"]) for run in runs)

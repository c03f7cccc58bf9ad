"""Which setting to read a model with at each length, if any but its own: settings race, and what is taken is checked on other prompts."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from .. import statistics
from ..errors import UserError
from ..models.subjects import RunOptions, Subject
from ..plans import as_it_is
from ..probes import PROBES
from ..probes.by_model import training_length
from ..probes.needle.options import NeedleOptions
from ..setting import Setting
from ..store import Run
from .asked import Asked
from .fitted import fitted_scale, laws_of, needed_scale
from .race import ROUNDS, Read, by_lengths, raced

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
NEEDED = (1 / 8, 3)  # of the trials, at how many depths: the needed scale, of whose law one more candidate is made
# of the trials, at how many depths: the same task, another haystack, another task; a trial is what intervals are made over
CHECKS = ((1 / 2, 3), (1 / 2, 1), (1 / 2, 1))
SEED = 999  # of the needed scale, apart from the rounds
OTHER_TASK = {"single": "multikey", "recall": "multikey", "multikey": "single"}
AS_ADVISED = "as advised"


@dataclass(frozen=True)
class Advice:
    """What to do with a model, and why.

    settings: what the race took for texts that are no longer than each of these lengths; the model as trained where nothing helps. race:
    statistics.ranked of the prompts that chose. held_out: rows of the model as trained and as advised, of held-out prompts:
    the same task, another haystack, another task. price: statistics.price of each setting advised. refused: why candidates did
    not start. tokens: read to choose, to check, and of the whole list. runs: the needed scale's and the checks', which the page
    shows; the race's prompts chose, so they prove nothing. fitted: the s of s ln n that the needed scale comes nearest to;
    None where it was not measured, or the model's mechanism is not softmax.
    """

    model: str
    settings: Mapping[int, Setting]
    train_length: int | None
    race: pd.DataFrame
    series: Mapping[Setting, str]
    held_out: pd.DataFrame
    price: pd.DataFrame
    refused: Mapping[Setting, str]
    tokens: Mapping[str, int]
    runs: Sequence[Run] = field(default=(), repr=False)
    fitted: float | None = None

    @property
    def setting(self) -> Setting:
        """The setting of a checkpoint, which has one: that of the longest of the lengths that are not read as trained."""
        return next((each for each in [*self.settings.values()][::-1] if each != AS_TRAINED), AS_TRAINED)

    @property
    def own(self) -> str:
        """The series of the model as trained."""
        return self.series[AS_TRAINED]

    @property
    def name(self) -> str:
        """The series of the model as advised: its setting's, where one is advised at all lengths."""
        return series_of(self.settings, self.series)

    def at(self, context_length: int) -> Setting:
        """Return the setting for a text of so many tokens: that of the next length asked about, or of the longest."""
        return self.settings[next((each for each in self.settings if each >= context_length), max(self.settings))]


def advise(asked: Asked, options: RunOptions) -> Advice:
    """Let settings race, take what finds most at each length, and check it. Raises UserError for what cannot be read."""
    subject, options = asked.subject, replace(options, reaches=asked.longest)
    refused, grids = applicable(subject, asked, options)
    train_length = training_length(asked.bare)
    # a model's own mechanism is the model as trained
    racing = list(dict.fromkeys(as_it_is(subject, setting) for setting in CANDIDATES if setting not in refused))
    log.warning(
        "ssmax-eval: cost: %d settings race, the choice is checked; about %s tokens in all, %s in the longest",
        len(racing) + 1,
        f"{at_most(asked, len(racing) + 1, grids):,}",
        f"{asked.longest:,}",
    )
    read = Read(asked, options)
    # what no scale can be put on needs none
    grid = asked.grid(NEEDED[0], SEED, NEEDED[1])
    needed = [] if SWAPPED in refused else needed_scale(asked.models, grid, options, read.readers)
    laws = laws_of(needed, train_length)
    if (fitted := fitted_scale(laws, train_length)) is not None:
        racing.append(fitted)
    race = raced(read, racing)
    by_name = {name: setting for setting, name in read.series.items()}
    names = {length: [read.series[each] for each in some] for length, some in race.left.items()}
    taken = statistics.chosen(race.rows, names)
    if not taken:
        raise UserError(
            f"model {subject.label}: no prompt could be read; the first: {race.rows['error'].dropna().iloc[0]}"
        )
    own = read.series[AS_TRAINED]
    tried = [by_name[name] for name in dict.fromkeys([own, *taken.values()])]
    documents = read.probed("loss", asked.texts, tried)
    price = statistics.price(read.named(documents, tried), own)
    taken = spared(taken, {*price.loc[price["low"] > 0, "series"]}, own, race.rows, train_length or 0)
    settings = {length: by_name[name] for length, name in taken.items()}
    checks, held_out = checked(read, settings, grids)
    return Advice(
        subject.label,
        settings,
        train_length,
        statistics.ranked(race.rows),
        read.series,
        held_out,
        price[price["series"].isin(taken.values())],
        refused,
        # the list: a whole grid for each candidate, at what these prompts took
        {
            "choosing": tokens_of(needed) + tokens_of(race.runs),
            "checking": tokens_of(checks) + tokens_of(documents),
            "the whole list": round(tokens_of(race.first) * asked.trials / asked.grid(ROUNDS[0][0], 0).trials),
        },
        [*needed, *checks, *documents],
        None if laws.empty else float(laws.loc["s ln n", "s"]),
    )


def spared(
    taken: Mapping[int, str], costly: Collection[str], own: str, rows: pd.DataFrame, train_length: int
) -> dict[int, str]:
    """Return the series taken at each length, at trained ones no other than beyond them or the model as trained.

    As trained it is read where it finds more of the same prompts, or as many and the other costs loss. What is taken stays where
    no length is longer than what was trained.
    """
    out: dict[int, str] = {}
    for length in sorted(taken, reverse=True):
        out[length] = taken[length]
        if length <= train_length < max(taken):
            other = out[min(each for each in out if each > length)]
            fewer = not statistics.finds_as_many(rows, length, other, own)
            spare = fewer or (other in costly and statistics.finds_as_many(rows, length, own, other))
            out[length] = own if spare else other
    return dict(sorted(out.items()))


def at_most(asked: Asked, settings: int, checks: Sequence[NeedleOptions]) -> int:
    """Return the tokens that so many settings' race takes, with the needed scale before it and the checks after it."""

    def prompts(grid: NeedleOptions) -> int:
        return grid.trials * len(grid.depth_percents)

    race = sum(prompts(asked.grid(share, 0)) * min(keep or settings, settings) for share, keep in ROUNDS)
    whole = race + prompts(asked.grid(NEEDED[0], 0, NEEDED[1])) + 2 * sum(map(prompts, checks))
    documents = min(settings, 1 + len(asked.context_lengths)) * asked.documents
    return whole * sum(asked.context_lengths) + documents * min(asked.context_lengths)


def checked(
    read: Read, settings: Mapping[int, Setting], grids: Sequence[NeedleOptions]
) -> tuple[list[Run], pd.DataFrame]:
    """Read held-out prompts as trained and as advised; return the runs, and the rows of these two series."""
    left = {length: [AS_TRAINED, setting] for length, setting in settings.items()}
    runs, ran = list[Run](), list[Setting]()
    for grid in grids:
        for lengths, some in by_lengths(left, [*dict.fromkeys([AS_TRAINED, *settings.values()])]):
            runs += read(replace(grid, context_lengths=lengths), some)
            ran += some
    rows, own = read.named(runs, ran), read.series[AS_TRAINED]
    at = rows["context_length"].map({length: read.series[setting] for length, setting in settings.items()})
    name = series_of(settings, read.series)
    advised = [] if name == own else [rows[rows["series"] == at].assign(series=name)]
    return runs, pd.concat([rows[rows["series"] == own], *advised], ignore_index=True)


def series_of(settings: Mapping[int, Setting], series: Mapping[Setting, str]) -> str:
    """Return the series of a model read in settings by length: a setting's, where it is one at all lengths."""
    some = {*settings.values()}
    return series[some.pop()] if len(some) == 1 else AS_ADVISED


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
    PROBES["loss"].make(asked.models, asked.texts).check(model, tokenizer)
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

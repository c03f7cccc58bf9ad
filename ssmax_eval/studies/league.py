"""The league: every attention mechanism trained by one recipe on the same batches and seeds, and measured by the same probes.

What is there stays: trained models, runs, times. So a league that was stopped goes on, and one more mechanism or seed costs its
own training and runs alone.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from ..errors import UserError
from ..mechanisms.registry import is_own, mechanisms
from ..mechanisms.spelling import Attention
from ..models.subjects import RunOptions
from ..plans import AS_TRAINED
from ..probes import PROBES
from ..probes.loss.options import LossOptions
from ..probes.needle.options import NeedleOptions
from ..run import run_probes
from ..setting import settings_of
from ..store import Run
from ..training.folder import read_record
from ..training.job import Job
from ..training.jobs import train_all
from ..training.recipes import Recipe

log = logging.getLogger(__name__)
BASELINES = ("softmax", "ssmax")  # always trained: what all others stand beside
NEEDLE_TIMES, LOSS_TIMES = (1, 2, 4, 8, 16, 32, 64), 16  # of the training length
FACTORS = (1.0, 4.0, 16.0, 64.0)  # of RoPE's theta, for what is trained with full RoPE
# C(n) is one fixed number up to the training length, and nothing is learned: softmax's own training, for a swap afterwards
NOT_TRAINED = ("log-n", "llama4", "ministral3", "yarn-factor", "grok")
# options with which a mechanism's training at this size works: first values and lengths (see each one's `choices`)
OPTIONS = {
    "entmax-1.5": "factor=0.3",
    "sparsemax": "factor=0.3",
    "asentmax": "delta=0,beta=0.08,gamma=1",
    "lssar": "p=3",
    "cca": "g=8,s=16",
}


@dataclass(frozen=True)
class Entry:
    """One line of the league: a mechanism trained from scratch, and the position it is trained with."""

    attention: str
    position: str
    of_recipe: bool  # whether that position is the recipe's own

    @property
    def name(self) -> str:
        return self.attention if self.of_recipe else f"{self.attention} ({self.position})"

    @property
    def family(self) -> str:
        """What it is coloured by: the file of its mechanism, as files are families."""
        mechanism = Attention.of(self.attention).mechanism
        return mechanism.__module__.rpartition(".")[2].replace("_", " ") if is_own(mechanism) else "yours"


@dataclass(frozen=True)
class League:
    """What is compared, and how: recipe, entries, seeds, and prompts a depth of each length."""

    recipe: Recipe
    entries: Sequence[Entry]
    seeds: Sequence[int] = (0, 1, 2)
    trials: int = 3
    documents: int = 16
    depths: tuple[float, ...] = field(default=tuple(float(depth) for depth in range(0, 101, 10)))

    def __post_init__(self) -> None:
        if self.recipe.is_encoder or self.recipe.position == "learned":
            raise UserError(
                f"recipe {self.recipe.name}: the league reads texts in order and at {NEEDLE_TIMES[-1]} times the training length; "
                "use a decoder's recipe whose positions do not end"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds {','.join(map(str, self.seeds))}: allowed are different whole numbers, one or more")

    @property
    def models(self) -> list[tuple[Entry, int]]:
        """Entries and seeds, a seed at a time, so that a league that is stopped has whole seeds."""
        return [(entry, seed) for seed in self.seeds for entry in self.entries]

    def label(self, entry: Entry, seed: int) -> str:
        mechanism = entry.attention.replace(":", "-").replace(",", "-")
        return "-".join([self.recipe.name, *([] if entry.of_recipe else [entry.position]), mechanism, f"s{seed}"])

    def job(self, entry: Entry, seed: int) -> Job:
        return Job(replace(self.recipe, position=entry.position), entry.attention, seed=seed)

    @property
    def configurations(self) -> dict[str, tuple[str, int]]:
        """Each model's entry and seed, by the label of the model."""
        return {self.label(entry, seed): (entry.name, seed) for entry, seed in self.models}


def entries(recipe: Recipe, asked: Sequence[str] = (), rope: Sequence[str] = ()) -> list[Entry]:
    """Return what stands in a league, softmax and SSMax in front: what is asked for, or every mechanism that training changes.

    rope: mechanisms that are also trained with full RoPE. A mechanism that can be trained with one position alone has that
    one. Raises UserError.
    """
    known = mechanisms()
    names = [":".join(filter(None, (name, OPTIONS.get(name)))) for name in known if name not in NOT_TRAINED]
    wanted = dict.fromkeys(str(Attention.of(each)) for each in (*BASELINES, *(asked or names)))
    found = []
    for attention in wanted:
        position = Attention.of(attention).mechanism.position or recipe.position
        found.append(Entry(attention, position, position == recipe.position))
    for attention in dict.fromkeys(str(Attention.of(each)) for each in rope):
        if recipe.position == "rope":
            raise UserError(f"rope {attention!r}: the recipe has full RoPE already; leave it out")
        found.append(Entry(attention, "rope", False))
    return found


def trained(
    league: League, folder: Path, jobs: int = 1, device: str = "auto"
) -> tuple[dict[str, Path], dict[str, str]]:
    """Train what is missing below a folder; return the folders of all models by label, and why entries could not be trained.

    One that cannot be, as the recipe has too few heads for it, leaves the others as they are. Raises UserError for a baseline.
    """
    if jobs < 1:
        raise UserError(f"jobs {jobs}: allowed are whole numbers from 1")
    folders = {league.label(entry, seed): folder / league.label(entry, seed) for entry, seed in league.models}
    missing = sum(not any(each.glob("*.safetensors")) for each in folders.values())
    log.warning(
        "ssmax-eval: cost: %d models of %d mechanisms, %d of them to be trained",
        len(folders),
        len(league.entries),
        missing,
    )
    failed: dict[str, str] = {}
    for at_once in batched(league.models, jobs):
        wanted = [(entry, seed) for entry, seed in at_once if entry.name not in failed]
        try:
            train_all(
                [league.job(*each) for each in wanted],
                [folders[league.label(*each)] for each in wanted],
                device,
                side_by_side=jobs,
            )
        except UserError:
            for entry, seed in wanted:  # one after the other, to know which
                try:
                    train_all([league.job(entry, seed)], [folders[league.label(entry, seed)]], device)
                except UserError as error:
                    if entry.name in BASELINES:
                        raise
                    failed[entry.name] = str(error)
                    log.warning("ssmax-eval: note: %s is left out: %s", entry.name, error)
    return folders, failed


def batched(models: Sequence[tuple[Entry, int]], size: int) -> Iterator[list[tuple[Entry, int]]]:
    """Yield models a few at a time (itertools.batched is of Python 3.12)."""
    left = iter(models)
    while some := list(islice(left, size)):
        yield some


def probed(league: League, folders: Mapping[str, Path], options: RunOptions) -> list[Run]:
    """Run the league's probes on every model, and return the runs; what is trained with full RoPE runs at several thetas."""
    length = league.recipe.train_length
    groups: dict[tuple[bool, bool], dict[str, str]] = {}
    for entry, seed in league.models:
        # masses only where there is a map over the keys
        kind = (Attention.of(entry.attention).mechanism.has_map, entry.position == "rope")
        label = league.label(entry, seed)
        groups.setdefault(kind, {})[label] = str(folders[label])
    runs = []
    for (has_map, at_thetas), models in groups.items():
        grid = NeedleOptions(
            context_lengths=tuple(length * times for times in NEEDLE_TIMES),
            depth_percents=league.depths,
            trials=league.trials,
            attention_mass=has_map,
        )
        text = LossOptions(context_length=length * LOSS_TIMES, documents=league.documents, window=length)
        probes = [PROBES["needle"].make(models, grid), PROBES["loss"].make(models, text)]
        settings = settings_of([None], rope_theta_factors=FACTORS) if at_thetas else AS_TRAINED
        runs += run_probes(probes, models, settings, options)
    return runs


def learned_parameters(folders: Mapping[str, Path]) -> dict[str, int]:
    """Return how many parameters each model has, by label."""
    return {label: int(read_record(folder)["parameters"]) for label, folder in folders.items()}

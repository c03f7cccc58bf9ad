"""The configurations of arXiv 2501.19399, trained by one recipe over several seeds and measured by what its figures need.

What is there stays: trained models, runs, times. So a study that was stopped goes on.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from ..mechanisms.scales import LearnedP
from ..models.load import load_model
from ..models.sources import STUDY, STUDY_FOLDER
from ..models.subjects import RunOptions
from ..plans import AS_TRAINED
from ..probes import PROBES
from ..probes.loss.options import LossOptions
from ..probes.needed_scale.options import NeededScaleOptions
from ..probes.needle.options import NeedleOptions
from ..run import run_probes
from ..setting import Setting
from ..store import Run
from ..training.folder import LOG, read_log, read_record
from ..training.job import Job
from ..training.jobs import TRAINED, paper_jobs, train_all
from ..training.recipes import RECIPES, Recipe

log = logging.getLogger(__name__)
NAMES = {
    "a": "(a) softmax",
    "b": "(b) SSMax",
    "c": "(c) SSMax, s = 1",
    "d": "(d) SSMax with bias",
    "e": "(e) SSMax put in after training",
    "f": "(f) SSMax put in late in training",
    "p": "learned p_n",
}
NEEDLE_TIMES, LOSS_TIMES = (1, 2, 4, 8, 16), 20  # of the training length
# what (a) is read with to see what s does: far too large a scale, and s = 0 with b = 1, which is softmax
TOO_LARGE, NEAR_ZERO = Setting.of("ssmax-fixed:s=5"), Setting.of("ssmax-bias:s=0,b=1")
SWAPPED = Setting.of("ssmax")
# of the study set's models (benchmarks/study.py)
IN_STUDY = {"a": "softmax", "b": "ssmax", "c": "ssmax-fixed", "d": "ssmax-bias", "f": "ssmax-late", "p": "learned-p"}

Model = tuple[str, int]  # a configuration's letter and a seed


@dataclass(frozen=True)
class Paper:
    """What is compared: recipe, seeds, and prompts a depth of each length.

    models: where trained models are, by letter and seed; (e) is (a) read under SSMax, so it has none of its own.
    """

    recipe: Recipe
    seeds: Sequence[int] = (0, 1, 2)
    trials: int = 8
    documents: int = 16
    depths: tuple[float, ...] = field(default=tuple(float(depth) for depth in range(0, 101, 25)))

    def __post_init__(self) -> None:
        if self.recipe.is_encoder or self.recipe.position == "learned":
            raise UserError(
                f"recipe {self.recipe.name}: the paper reads texts in order, at {LOSS_TIMES} times the training length; use a "
                "decoder's recipe whose positions do not end"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds {','.join(map(str, self.seeds))}: allowed are different whole numbers, one or more")

    def jobs(self) -> dict[Model, Job]:
        """Return the trainings, a seed at a time, so that a study that is stopped has whole seeds."""
        return {
            (letter, seed): job
            for seed in self.seeds
            for letter, job in zip(TRAINED, paper_jobs(Job(self.recipe, seed=seed)), strict=True)
        }


def trained(paper: Paper, folder: Path, jobs: int = 1, device: str = "auto") -> dict[Model, str]:
    """Train what is missing below a folder, `jobs` at a time, and return all models' folders. Raises UserError."""
    if jobs < 1:
        raise UserError(f"jobs {jobs}: allowed are whole numbers from 1")
    wanted = paper.jobs()
    folders = {model: folder / job.name for model, job in wanted.items()}
    missing = sum(not any(each.glob("*.safetensors")) for each in folders.values())
    log.warning("ssmax-eval: cost: %d models, %d of them to be trained", len(folders), missing)
    train_all([*wanted.values()], [*folders.values()], device, side_by_side=min(jobs, len(folders)))
    return {model: str(each) for model, each in folders.items()}


def study_set() -> tuple[Paper, dict[Model, str]]:
    """Return the committed study set as a study: recipe cpu, four seeds of (a) and (b), one of the others. Raises UserError."""
    found = {
        (letter, seed): f"{STUDY}cpu-{name}-s{seed}"
        for seed in range(100)
        for letter, name in IN_STUDY.items()
        if (STUDY_FOLDER / f"cpu-{name}-s{seed}").is_dir()
    }
    if not {("a", 0), ("b", 0)} <= {*found}:
        raise UserError(
            "study: its models are not there; they come with the repository (results/models/study), not with the package: "
            "clone it, or leave --study out to train"
        )
    return Paper(RECIPES["cpu"], tuple(sorted({seed for _, seed in found}))), found


def folder_of(reference: str) -> Path:
    """Return the folder of a model of the study."""
    return STUDY_FOLDER / reference.removeprefix(STUDY) if reference.startswith(STUDY) else Path(reference)


@dataclass(frozen=True)
class Measured:
    """Runs by the model and setting that they are of. needle, loss: of all, (e) too; scale: the needed scale of (a); large, zero: of
    (a) under TOO_LARGE and NEAR_ZERO.
    """

    needle: Mapping[Model, Run]
    loss: Mapping[Model, Run]
    scale: Mapping[Model, Run]
    large: Mapping[Model, Run]
    zero: Mapping[Model, Run]

    @property
    def runs(self) -> list[Run]:
        parts = (self.needle, self.loss, self.scale, self.large, self.zero)
        return [run for part in parts for run in part.values()]


def measured(paper: Paper, models: Mapping[Model, str], options: RunOptions) -> Measured:
    """Run the probes on every model, and return the runs."""
    length = paper.recipe.train_length
    grid = NeedleOptions(
        context_lengths=tuple(length * times for times in NEEDLE_TIMES),
        depth_percents=paper.depths,
        trials=paper.trials,
        attention_mass=True,
    )
    short = NeedleOptions(
        context_lengths=(length,), depth_percents=paper.depths, trials=paper.trials, attention_mass=True
    )
    text = LossOptions(context_length=length * LOSS_TIMES, documents=paper.documents, window=length)
    few = paper.depths[:: max(1, len(paper.depths) // 2)]
    factors = NeededScaleOptions(context_lengths=grid.context_lengths, depth_percents=few, trials=6)

    def of(letters: str, probe: str, asked: object, settings: Sequence[Setting] = AS_TRAINED) -> list[dict[Model, Run]]:
        chosen = [model for model in models if model[0] in letters]
        references = {f"{letter}{seed}": models[letter, seed] for letter, seed in chosen}
        runs = run_probes([PROBES[probe].make(references, asked)], references, settings, options)
        # a model's settings stand beside each other
        return [dict(zip(chosen, runs[i :: len(settings)], strict=True)) for i in range(len(settings))]

    needles, losses = ({}, {})  # type: dict[Model, Run], dict[Model, Run]
    for probe, asked, found in (("needle", grid, needles), ("loss", text, losses)):
        own, after = of("a", probe, asked, [*AS_TRAINED, SWAPPED])
        found |= own | of("bcdfp", probe, asked)[0] | {("e", seed): run for (_, seed), run in after.items()}
    large, zero = of("a", "needle", short, [TOO_LARGE, NEAR_ZERO])
    return Measured(needles, losses, of("a", "needed-scale", factors)[0], large, zero)


def table_of_p(reference: str) -> list[float]:
    """Return the learned p_n of a model, n from 1."""
    model, _ = load_model(reference, device="cpu", dtype="float32")
    table = next(each for each in model.modules() if isinstance(each, LearnedP))
    return [float(each) for each in table.p.detach()]


def log_of(reference: str) -> list[dict[str, float]]:
    """Return the lines of a model's training log; none where it has none."""
    lines: list[dict[str, float]] = read_log(folder_of(reference) / LOG)
    return lines


def learned_s(reference: str) -> list[list[float]]:
    """Return the learned s of a model, a list of heads for each layer, as its training recorded them."""
    return [[float(each) for each in layer["s"]] for layer in read_record(folder_of(reference))["learned"].values()]

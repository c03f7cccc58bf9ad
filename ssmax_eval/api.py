"""Probes and training as Python functions, the same words and defaults as on the command line."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import pandas as pd

from .errors import nearest
from .launch import launched
from .probes import PROBES
from .probes.kind import Kind, SomeOptions
from .probes.options import options_of

P = ParamSpec("P")
MODELS = "references (directory, .gguf file, hub id, known name), {label: reference or (model, tokenizer)}, or one (model, tokenizer)."


def function(options: Callable[P, SomeOptions], kind: Kind[SomeOptions]) -> Callable[Concatenate[Any, P], pd.DataFrame]:
    """Return the Python function of a probe: its signature and documentation are its options'."""
    takes = {each.name: each for each in options_of(kind.options)}

    def call(models: Any, *arguments: P.args, **given: P.kwargs) -> pd.DataFrame:
        if unknown := next((name for name in given if name not in takes), None):
            raise TypeError(f"{kind.function}() takes no {unknown!r}{nearest(unknown, takes)}")
        return run(kind, models, options(*arguments, **given))

    parameters = [inspect.Parameter("models", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Any)]
    parameters += [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.type)
        for each in takes.values()
    ]
    call.__name__ = call.__qualname__ = kind.function
    call.__signature__ = inspect.Signature(parameters, return_annotation=pd.DataFrame)  # type: ignore[attr-defined]
    told = [f"    models: {MODELS}", *(f"    {name}: {each.told.help}" for name, each in takes.items())]
    call.__doc__ = "\n".join(
        [
            str(kind.options.__doc__),
            "",
            f"Return {kind.returns}; with dry_run what they would cost by context length.",
            "",
            *told,
            "",
            "Raises UserError.",
        ]
    )
    return call  # type: ignore[return-value]  # models can be named too


def run(kind: Kind[SomeOptions], models: Any, options: SomeOptions) -> pd.DataFrame:
    """Run a probe in every setting and return the rows, or what they would cost."""
    from .dry_run import dry_run
    from .plans import how_asked, planned_runs, settings_asked
    from .results import load_results
    from .run import run_probes

    asked = ([kind.make(models, options)], models, settings_asked(options), how_asked(options))
    if options.dry_run:
        return pd.DataFrame(dry_run(planned_runs(*asked), asked[-1])["lengths"])
    return kind.numbers(load_results(*run_probes(*asked)))


def __getattr__(name: str) -> Any:
    kind = next((each for each in PROBES.values() if each.function == name), None)
    if kind is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = globals()[name] = function(kind.options, kind)
    return made


def train(
    recipe: str,
    attention: str | None = None,
    *,
    out: str | Path,
    seed: int = 0,
    swap_to: str | None = None,
    swap_fraction: float = 0.125,
    start: str | None = None,
    device: str = "auto",
    fresh: bool = False,
    compiled: bool | None = None,
    log_to: Sequence[str] = (),
    **changes: Any,
) -> Path:
    """Train one model of a recipe into folder `out` and return it; a stopped run goes on, a finished one is left alone.

    compiled: by torch.compile; None does so on CUDA. log_to: integrations of transformers, for example ("tensorboard",).
    changes: fields of the recipe set to other values (steps=2000, text="book.txt", digits=(4, 9)). Raises UserError.
    """
    from .training.card import write_card
    from .training.job import Job
    from .training.recipes import recipe as find
    from .training.train import train as run_training

    chosen = find(recipe).changed({key: as_text(value) for key, value in changes.items()})
    job = Job(chosen, attention, swap_to, swap_fraction, seed, start)
    folder = run_training(
        job, Path(out), device, fresh, compiled, log_to=[log_to] if isinstance(log_to, str) else log_to
    )
    if launched().is_first and not (folder / "README.md").exists():
        write_card(folder)
    return folder


def as_text(value: Any) -> str:
    """Write a recipe's value as --set takes it."""
    return ":".join(map(str, value)) if isinstance(value, tuple | list) else str(value)

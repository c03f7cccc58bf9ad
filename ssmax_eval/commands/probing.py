"""The commands that probe: one for each probe, and `run`, which is all of them. Their options are the probes' own."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args

import typer

from ..launch import launched
from ..probes import PROBES
from ..probes.kind import Kind, Probe
from ..probes.options import Field, auto, in_words, options_of
from ..processes import together
from ..quiet import quiet_libraries
from .options import IMPORTS, import_files

RUN = (
    "All probes but RULER on all models: needle and attention in one forward, needed scale, loss up to the longest context length; one "
    "report. "
    "Or what a sweep's file asks for: any probes, models, settings and tasks."
)
SWEEP = Annotated[
    Path | None,
    typer.Argument(metavar="[SWEEP.yaml]", help="Run what this file asks for (docs/sweeps.md), and nothing else."),
]
MODELS = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[LABEL=]REF",
        help="Directory, .gguf file, hub id or known name; repeatable. Default: the bundled pair.",
    ),
]


def register(app: typer.Typer) -> None:
    """Give the app a command for each probe, and `run`."""
    for kind in PROBES.values():
        app.command(kind.name)(command(str(kind.options.__doc__), [kind]))
    asked = [kind for kind in PROBES.values() if kind.in_run]
    widest = [kind for kind in asked if not any(covers(other, kind) for other in asked)]
    app.command("run")(command(RUN, widest, {"sweep": SWEEP}))


def covers(other: Kind[Any], kind: Kind[Any]) -> bool:
    """Tell whether another probe's rows tell all that this one's do."""
    return other is not kind and issubclass(other.schema, kind.schema)


def command(told: str, kinds: Sequence[Kind[Any]], more: Mapping[str, Any] | None = None) -> Callable[..., None]:
    """Return the command of some probes: its signature is what they can be asked, and `more`, a sweep's file."""
    every = options_of(*(kind.options for kind in kinds), *(kind.shown for kind in kinds))
    taken = [option for option in every if len(kinds) == 1 or not option.told.alone]

    def run(
        model: list[str] | None,
        imports: list[Path] | None,
        context: typer.Context = None,  # type: ignore[assignment]  # typer knows it by this annotation; given with `more`
        sweep: Path | None = None,
        **given: Any,
    ) -> None:
        quiet_libraries()
        if sweep is None:
            show(kinds, model, imports, taken, given)
        else:
            from .sweeping import show_sweep

            every = {"model": model, **given}
            # what was said counts, also where it is what it would be anyway: the file may say otherwise
            said = [name for name in every if getattr(context.get_parameter_source(name), "name", "") != "DEFAULT"]
            show_sweep(sweep, imports, {name: every[name] for name in said})

    own = [
        *([named("context", typer.Context, inspect.Parameter.empty)] if more else []),
        *(named(name, annotation) for name, annotation in (more or {}).items()),
        named("model", MODELS),
        named("imports", IMPORTS),
    ]
    run.__doc__ = told
    run.__signature__ = inspect.Signature([*own, *map(parameter, taken)])  # type: ignore[attr-defined]
    return run


def named(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def parameter(option: Field) -> inspect.Parameter:
    """Return an option as typer takes it; what it parses itself, and what can be repeated, as text."""
    default, told = option.default, option.told
    kinds = [each for each in (get_args(option.type) or (option.type,)) if each is not NoneType]
    kind: Any = Path if Path in kinds else kinds[0]
    if told.repeated:
        kind = list[str]
    elif told.parse is not None:
        kind = str
        default = "auto" if told.parse is auto else in_words(default) if default else None
    flags = [f"--{option.name.replace('_', '-')}"] if kind is bool and not default else []
    info = typer.Option(*flags, metavar=told.metavar, help=told.help)
    return named(option.name, Annotated[kind if default is not None else kind | None, info], default)


def value(option: Field, given: Any) -> Any:
    """Return an option's value from what typer read. Raises UserError for text that cannot be parsed."""
    if option.told.parse is None or given is None:
        return option.default if given is None else given
    return option.told.parse(option.name.replace("_", " "), given)


def show(
    kinds: Sequence[Kind[Any]],
    models: list[str] | None,
    imports: Sequence[Path] | None,
    taken: Sequence[Field],
    given: Mapping[str, Any],
) -> None:
    """Make the probes that were asked for, run them, and print and report what they find; or only their plan.

    Of several processes the first prints and reports.
    """
    from ..dry_run import dry_run
    from ..models.sources import PAIR
    from ..models.subjects import RunOptions
    from ..plans import how_asked, planned_runs, settings_asked
    from ..run import run_probes
    from ..setting import Setting
    from ..statistics import Thresholds
    from ..terminal import print_plan, print_runs

    def thresholds() -> Thresholds:
        return Thresholds(**{each.name: given[each.name] for each in fields(Thresholds) if each.name in given})

    def plan() -> tuple[list[Probe], list[str], list[Setting], RunOptions]:
        import_files(imports)
        thresholds()  # what is wrong with them is said before anything runs
        values = {option.name: value(option, given[option.name]) for option in taken}
        asked = models or [*PAIR]
        probes: list[Probe] = []
        for kind in kinds:
            probes.append(kind.make(asked, kind.asked(values), probes))
        common = kinds[0].asked(values)
        return probes, asked, settings_asked(common), how_asked(common)

    if given["dry_run"]:
        if launched().is_first:
            print_plan(dry_run(planned_runs(*(wanted := plan())), wanted[-1]), given["json"])
        return
    output_path = Path(given["output_path"])
    with together(output_path):  # from here on, so that what is wrong for all is said by one
        runs = run_probes(*plan())
    if launched().is_first:
        tables = given["tables"] and Path(given["tables"])
        print_runs(runs, output_path, given["report"], given["json"], thresholds(), tables)

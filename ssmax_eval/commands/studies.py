"""The commands that combine trainings and runs: league, paper, advise, reach."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from ..probes.defaults import SEED
from ..probes.options import auto, numbers
from ..quiet import quiet_libraries
from .options import IMPORTS, import_files

log = logging.getLogger(__name__)


def league_command(
    recipe: Annotated[
        str, typer.Option(help="What every mechanism is trained by; `ssmax-eval recipes` lists them.")
    ] = ("league"),
    seeds: Annotated[str, typer.Option(metavar="N,...", help="Training seeds.")] = "0,1,2",
    attention: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:key=value,...]",
            help="A mechanism of the league; repeatable. softmax and ssmax are always in it. Default: every one that training changes.",
        ),
    ] = None,
    rope: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:key=value,...]",
            help="Train this one with full RoPE too, and read it at the best theta; repeatable.",
        ),
    ] = None,
    trials: Annotated[int, typer.Option(help="Prompts at each of 11 depths of each length.")] = 3,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the recipe; repeatable.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Models to train at a time, on a processor.")] = 1,
    models_path: Annotated[Path, typer.Option(help="Where models are trained, a folder each.")] = Path(
        "results/models"
    ),
    output_path: Annotated[Path, typer.Option(help="Where runs and measured times are stored.")] = Path(
        "results/league"
    ),
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("reports/league.html"),
    figures: Annotated[Path | None, typer.Option(help="Also write the figure here, as SVG, PNG and PDF.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    imports: IMPORTS = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Train every attention mechanism by one recipe, measure all alike, and write one page; a stopped league goes on."""
    quiet_libraries()
    import_files(imports)
    from ..models.subjects import RunOptions
    from ..report.page import check_name
    from ..studies.league import League, entries
    from ..studies.league_page import written
    from ..terminal import print_found
    from ..training.recipes import changes_of
    from ..training.recipes import recipe as find

    check_name(out)
    chosen = find(recipe).changed(changes_of(change or []))
    league = League(chosen, entries(chosen, attention or (), rope or ()), whole_numbers("seeds", seeds), trials)
    options = RunOptions(device=device, output_path=output_path)
    findings, page = written(league, models_path, options, out, figures, jobs)
    print_found(findings, {"report": str(page)}, as_json)


def paper_command(
    recipe: Annotated[
        str, typer.Option(help="What every configuration is trained by; `ssmax-eval recipes` lists them.")
    ] = "smoke",
    seeds: Annotated[str, typer.Option(metavar="N,...", help="Training seeds.")] = "0,1,2",
    study: Annotated[
        bool, typer.Option("--study", help="Train nothing: measure the study set that the repository brings.")
    ] = False,
    trials: Annotated[int, typer.Option(help="Prompts at each of 5 depths of each length.")] = 8,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the recipe; repeatable.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Models to train at a time, on a processor.")] = 1,
    models_path: Annotated[Path, typer.Option(help="Where models are trained, a folder each.")] = Path(
        "results/models/paper"
    ),
    output_path: Annotated[Path, typer.Option(help="Where runs and measured times are stored.")] = Path(
        "results/paper"
    ),
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("reports/paper.html"),
    figures: Annotated[
        Path, typer.Option(help="Where each figure is written, as SVG, PNG and PDF, and the CSV behind it.")
    ] = Path("reports/paper"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Train the paper's configurations, draw its figures, and say of each of its claims whether it is reproduced."""
    quiet_libraries()
    from ..models.subjects import RunOptions
    from ..report.page import check_name
    from ..studies.paper import Paper, study_set, trained
    from ..studies.paper_page import written
    from ..terminal import print_found
    from ..training.recipes import changes_of
    from ..training.recipes import recipe as find

    check_name(out)
    given = {"--recipe": recipe != "smoke", "--seeds": seeds != "0,1,2", "--set": bool(change), "--jobs": jobs != 1}
    if study and (needless := next((name for name, each in given.items() if each), None)):
        raise UserError(f"{needless}: the study set is trained already; leave it out, or leave out --study")
    if study:
        paper, models = study_set()
        paper = replace(paper, trials=trials)
    else:
        chosen = find(recipe).changed(changes_of(change or []))
        paper = Paper(chosen, whole_numbers("seeds", seeds), trials)
        models = trained(paper, models_path, jobs, device)
    findings, page = written(paper, models, RunOptions(device=device, output_path=output_path), out, figures)
    print_found(findings, {"report": str(page)}, as_json)


def whole_numbers(name: str, text: str) -> list[int]:
    """Read whole numbers separated by commas. Raises UserError."""
    try:
        return [int(each) for each in text.split(",")]
    except ValueError:
        raise UserError(f"{name} {text!r}: allowed are whole numbers separated by commas") from None


def advise_command(
    model: Annotated[
        str, typer.Option(metavar="[LABEL=]REF", help="A bundled or known name, directory, .gguf file or hub id.")
    ],
    context_lengths: Annotated[
        str | None,
        typer.Option(metavar="N,...", help="Tokens; the shortest tells the price. Default: as the needle takes them."),
    ] = None,
    depth_percents: Annotated[
        str, typer.Option(metavar="D,...", help="Needle depths, 0 (start) to 100.")
    ] = "0,25,50,75,100",
    trials: Annotated[
        int, typer.Option(help="Trials of a whole grid; the race takes under half of one for each setting.")
    ] = 16,
    task: Annotated[
        str | None, typer.Option(help="What is asked. Default: what our recipe trained, else single.")
    ] = None,
    haystack: Annotated[str, typer.Option(metavar="NAME|PATH", help="Of the race.")] = "text",
    other_haystack: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH", help="That the choice is checked on too. Default: bible, or text beside that."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides all that is drawn.")] = SEED,
    output_path: Annotated[Path, typer.Option(help="Where runs are stored.")] = Path("results"),
    page: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("reports/advice.html"),
    out: Annotated[Path | None, typer.Option(help="Save the model in the setting advised here.")] = None,
    figures: Annotated[Path | None, typer.Option(help="Also write figures here, as SVG, PNG and PDF.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that a checkpoint brings.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Find the setting that reads a model best beyond its training length, if any helps, and say what it costs."""
    quiet_libraries()
    from ..models.retrofit import refuse_occupied
    from ..models.subjects import RunOptions
    from ..report.page import check_name
    from ..studies.advice import written
    from ..studies.asked import Asked
    from ..studies.held_out import helps
    from ..studies.per_head import told_of_saving
    from ..terminal import print_found

    check_name(page)
    if out is not None:
        refuse_occupied(out)
    lengths = () if context_lengths is None else numbers(int)("context lengths", context_lengths)
    asked = Asked(
        model,
        lengths,
        numbers(float)("depth percents", depth_percents),
        trials,
        task,
        haystack,
        other_haystack,
        seed=seed,
    )
    options = RunOptions(dtype=dtype, device=device, output_path=output_path, trust_remote_code=trust_remote_code)
    findings, written_to, advice = written(asked, options, page, figures)
    told = {"report": str(written_to)}
    if out is not None and helps(advice):
        told |= told_of_saving(asked, advice, options, out)
    print_found(findings, told, as_json)
    if out is not None and not helps(advice):
        log.warning("ssmax-eval: note: nothing is saved at %s, as nothing helps for sure", out)


def reach_command(
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[LABEL=]REF",
            help="Directory, .gguf file, hub id or known name; repeatable. Two series are compared. Default: the bundled pair.",
        ),
    ] = None,
    attention: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[:key=value,...]", help="Also swap the attention mechanism; repeatable."),
    ] = None,
    rope_theta_factor: Annotated[
        str, typer.Option(metavar="X[,X...]", help="Multiply RoPE theta; several values are an axis.")
    ] = "1",
    context_lengths: Annotated[
        str | None,
        typer.Option(
            metavar="N,N", help="Shortest and longest; those between are chosen. Default: as the needle takes them."
        ),
    ] = None,
    depth_percents: Annotated[
        str, typer.Option(metavar="D,...", help="Needle depths, 0 (start) to 100.")
    ] = "0,25,50,75,100",
    precision: Annotated[
        float, typer.Option(help="The 95% interval's upper end is at most this factor, squared, times the lower.")
    ] = 1.25,
    band: Annotated[float, typer.Option(help="Of two series: a ratio within this factor of 1 does not matter.")] = 1.5,
    limit_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens to read at most. Default: 4000 times the shortest length for each series."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="What is asked. Default: what our recipe trained, else single.")
    ] = None,
    haystack: Annotated[str, typer.Option(metavar="NAME|PATH", help="As the needle takes it.")] = "text",
    seed: Annotated[int, typer.Option(help="Decides all that is drawn.")] = SEED,
    output_path: Annotated[Path, typer.Option(help="Where runs are stored.")] = Path("results/reach"),
    page: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("reports/reach.html"),
    figures: Annotated[Path | None, typer.Option(help="Also write the figure here, as SVG, PNG and PDF.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    batch_size: Annotated[str, typer.Option(metavar="N|auto", help="Prompts in a forward pass.")] = "auto",
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that a checkpoint brings.")] = False,
    imports: IMPORTS = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Find how far models read, to a stated precision, with few tokens: each round asks where it tells most; a stopped one goes on."""
    quiet_libraries()
    import_files(imports)
    from ..models.sources import PAIR
    from ..models.subjects import RunOptions
    from ..report.page import check_name
    from ..setting import settings_of
    from ..studies.reach import Asked
    from ..studies.reach_page import written
    from ..terminal import print_found

    check_name(page)
    asked = Asked(
        model or [*PAIR],
        tuple(settings_of([None, *(attention or [])], None, [*numbers(float)("rope theta factor", rope_theta_factor)])),
        () if context_lengths is None else numbers(int)("context lengths", context_lengths),
        numbers(float)("depth percents", depth_percents),
        precision,
        band,
        limit_tokens,
        task,
        haystack,
        seed,
    )
    options = RunOptions(
        dtype=dtype,
        device=device,
        batch_size=auto("batch size", batch_size),
        output_path=output_path,
        trust_remote_code=trust_remote_code,
    )
    findings, written_to = written(asked, options, page, figures)
    print_found(findings, {"report": str(written_to)}, as_json)

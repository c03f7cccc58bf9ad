"""The commands that probe: needle, attention, loss, and run, which is all of them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..data.needles import Needle
from ..errors import UserError
from ..probes.defaults import DEPTH_PERCENTS, DOCUMENTS, PLAN, SCORED, SEED, TEXT, TRIALS, commas
from ..processes import launched, together
from ..quiet import quiet_libraries
from ..signatures import takes
from .options import IMPORTS, import_files

AS_THEY_ARE = (
    "task", "value", "needles", "trials", "haystack", "scoring", "attention_mass", "seed", "limit", "limit_tokens"
)  # fmt: skip
WITH_MASS = {"scoring": "forced", "attention_mass": True}


def on_models(
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[LABEL=]REF",
            help="Directory, .gguf file, hub id or known name; repeatable. Default: the bundled pair.",
        ),
    ] = None,
    attention: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:key=value,...]",
            help="Swap the attention mechanism; repeatable. `ssmax-eval mechanisms` lists them. Default: the model's own.",
        ),
    ] = None,
    rope_theta: Annotated[float | None, typer.Option(help="Absolute RoPE theta.")] = None,
    rope_theta_factor: Annotated[
        str, typer.Option(metavar="X[,X...]", help="Multiply RoPE theta; several values are an axis.")
    ] = "1",
    rope_scaling: Annotated[
        str | None,
        typer.Option(metavar="TYPE:FACTOR", help="linear, ntk, ntk-by-parts, dynamic or yarn, for example yarn:4."),
    ] = None,
    position: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="In RoPE's place: nope (no position) or alibi. Default: the model's own."),
    ] = None,
    imports: IMPORTS = None,
) -> None:
    """Options of every probe: what is probed."""


def as_usual(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    device_map: Annotated[
        str | None,
        typer.Option(
            metavar="auto", help="Spread a model that is larger than one device over all of them, memory and disk."
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    chunk: Annotated[
        str, typer.Option(metavar="N|auto", help="Tokens to prefill at a time; auto: all, less when memory runs out.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Decides all that is drawn: cities, values, haystacks, documents.")] = SEED,
    output_path: Annotated[Path, typer.Option(help="Where runs are stored.")] = Path("results"),
    report: Annotated[bool, typer.Option(help="Write the HTML report.")] = True,
    limit_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="At most N tokens a model and setting: whole trials (documents) are dropped first, then the longest lengths.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the plan and what it costs; no weights are loaded, nothing is written."),
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of finishing what is there.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that a checkpoint brings.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Options of every probe: how it runs, and where its rows go."""


def on_a_grid(
    context_lengths: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Tokens of the whole prompt. Default: 1/2, 1, 2, 4, 8 times the training length (1 to 16 times below 512); "
            "where a table of positions ends, down from there by halves.",
        ),
    ] = None,
    depth_percents: Annotated[str, typer.Option(metavar="D,...", help="Needle depths, 0 (start) to 100.")] = commas(
        DEPTH_PERCENTS
    ),
    trials: Annotated[int, typer.Option(help="Prompts a cell.")] = TRIALS,
    task: Annotated[
        str | None,
        typer.Option(
            help="single, multikey, multivalue, multiquery, digits or recall. Default: what our recipe trained, else single."
        ),
    ] = None,
    value: Annotated[str, typer.Option(help="What is hidden: number, word or uuid.")] = Needle.value,
    needles: Annotated[int, typer.Option(help="Facts in the multi tasks.")] = Needle.needles,
    haystack: Annotated[
        str,
        typer.Option(
            metavar="NAME|PATH",
            help="text (generated prose), noise, repeat, bible, hf:DATASET, a file or directory.",
        ),
    ] = TEXT,
    controls: Annotated[
        str, typer.Option(metavar="NAME,...", help="no-needle (guess rate), needle-only (ceiling).")
    ] = "",
    batch_size: Annotated[str, typer.Option(metavar="N|auto", help="Prompts in a forward pass.")] = "auto",
    plan: Annotated[
        int, typer.Option(metavar="1|2", help="2: a trial is one haystack for all lengths and depths. 1: one a prompt.")
    ] = PLAN,
    limit: Annotated[int | None, typer.Option(help="Only the first N prompts, spread over the grid.")] = None,
) -> None:
    """Options of probes on needle prompts."""


def on_documents(
    context_length: Annotated[
        int | None,
        typer.Option(help="Tokens of a document. Default: the longest context length that needle takes."),
    ] = None,
    documents: Annotated[int, typer.Option(help="How many documents.")] = DOCUMENTS,
    text: Annotated[
        str,
        typer.Option(
            metavar="NAME|PATH", help="text (generated prose), bible, hf:DATASET, a file, or a directory of documents."
        ),
    ] = TEXT,
    window: Annotated[
        int | None,
        typer.Option(help="Near context that the context gain leaves. Default: the training length, at most 256."),
    ] = None,
    pack: Annotated[bool, typer.Option("--pack", help="Join files that are shorter than a document.")] = False,
) -> None:
    """Options of the loss probe."""


def on_answers(
    scoring: Annotated[
        str, typer.Option(help="forced (one forward pass, greedy decoding's verdict) or generate.")
    ] = SCORED,
    attention_mass: Annotated[
        bool, typer.Option("--attention-mass", help="Also store each head's attention on the needle.")
    ] = False,
) -> None:
    """Options of the needle probe alone."""


def on_causes(
    attended: Annotated[
        float, typer.Option(help="Where a wrong answer was attended: mass of the top head on it, 0 to 1.")
    ] = 0.5,
    blow_up: Annotated[
        float, typer.Option(help="Where positions blow up: nats a token that the haystack costs more than when short.")
    ] = 1.0,
) -> None:
    """Options of probes that tell why a prompt was not found."""


@takes(on_models, on_a_grid, on_answers, on_causes, as_usual)
def needle_command(**given: Any) -> None:
    """Retrieval over a grid of context lengths and needle depths."""
    run_all(given, grid_probe)


@takes(on_models, on_a_grid, on_causes, as_usual)
def attention_command(**given: Any) -> None:
    """Attention of every head on the needle, over a grid of context lengths and depths; the needle's verdicts with it."""
    run_all(given | WITH_MASS, grid_probe)


@takes(on_models, on_documents, as_usual)
def loss_command(**given: Any) -> None:
    """Loss by position far beyond the training length, and what the far context is worth."""
    run_all(given, document_probe)


@takes(on_models, on_a_grid, on_documents, on_causes, as_usual, without=("context_length",))
def run_command(**given: Any) -> None:
    """All probes on all models: needle and attention in one forward, loss up to the longest context length; one report."""
    run_all(given | WITH_MASS, grid_probe, document_probe)


def run_all(given: dict[str, Any], *makers: Callable[..., Any]) -> None:
    """Make the probes that a command's options ask for, run them, and print and report what they find; or only their plan.

    Of several processes the first prints and reports.
    """
    quiet_libraries()
    import_files(given["imports"])
    from ..dry_run import dry_run
    from ..plans import planned_runs
    from ..run import run_probes
    from ..statistics import Thresholds
    from ..terminal import print_plan, print_runs

    if given["dry_run"]:
        if launched().is_first:
            asked = asked_of(given, makers)
            print_plan(dry_run(planned_runs(*asked), asked[-1]), given["as_json"])
        return
    with together(given["output_path"]):  # from here on, so that what is wrong for all is said by one
        runs = run_probes(*asked_of(given, makers))
    if launched().is_first:
        thresholds = Thresholds(**{name: given[name] for name in ("attended", "blow_up") if name in given})
        print_runs(runs, given["output_path"], given["report"], given["as_json"], thresholds)


def asked_of(
    given: dict[str, Any], makers: Sequence[Callable[..., Any]]
) -> tuple[list[Any], list[str], list[Any], Any]:
    """Return the probes, models, settings and options that a command's options ask for."""
    from ..models.sources import PAIR
    from ..models.subjects import RunOptions
    from ..setting import settings_of

    models = given["model"] or [*PAIR]
    options = RunOptions(
        dtype=given["dtype"],
        device=given["device"],
        device_map=given["device_map"],
        batch_size=auto("batch size", given.get("batch_size", "auto")),
        output_path=given["output_path"],
        fresh=given["fresh"],
        trust_remote_code=given["trust_remote_code"],
    )
    factors = numbers("rope theta factor", given["rope_theta_factor"], float)
    settings = settings_of(
        given["attention"] or [None], given["rope_theta"], factors, given["rope_scaling"], given["position"]
    )
    probes: list[Any] = []
    for make in makers:
        probes.append(make(given, models, *probes))
    return probes, models, settings, options


def grid_probe(given: dict[str, Any], models: list[str]) -> Any:
    """Return the needle grid that a command's options ask for."""
    from ..probes.make import needle_probe

    lengths = given["context_lengths"]
    return needle_probe(
        models,
        given["trust_remote_code"],
        context_lengths=None if lengths is None else numbers("context lengths", lengths, int),
        depth_percents=numbers("depth percents", given["depth_percents"], float),
        controls=list(filter(None, given["controls"].split(","))),
        chunk=auto("chunk", given["chunk"]),
        plan_version=given["plan"],
        **{name: given[name] for name in AS_THEY_ARE},
    )


def document_probe(given: dict[str, Any], models: list[str], grid: Any = None) -> Any:
    """Return the loss probe that a command's options ask for, in `run` as long as what limit_tokens leaves of the grid."""
    from ..probes.make import loss_probe

    far = max(sample.context_length for sample in replace(grid, limit=None).plan()) if grid else given["context_length"]
    names = ("documents", "text", "window", "pack", "seed", "limit_tokens")
    return loss_probe(
        models,
        given["trust_remote_code"],
        context_length=far,
        chunk=auto("chunk", given["chunk"]),
        **{name: given[name] for name in names},
    )


def numbers(what: str, text: str, kind: type[int] | type[float]) -> list[Any]:
    """Parse a comma-separated list of numbers."""
    try:
        parsed = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        parsed = []
    if not parsed:
        word = "whole numbers" if kind is int else "numbers"
        raise UserError(f"{what} {text!r}: allowed are {word} separated by commas")
    return parsed


def auto(what: str, text: str) -> int | None:
    """Parse auto, which is None, or one whole number."""
    if text == "auto":
        return None
    parsed = numbers(what, text, int)
    if len(parsed) != 1:
        raise UserError(f"{what} {text!r}: allowed are auto and one whole number")
    return int(parsed[0])

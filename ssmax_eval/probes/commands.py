"""The commands that probe: needle, attention, loss, run, and fading, which needs no model."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError

Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="[LABEL=]REF",
        help="Directory, .gguf file, hub id or known name; repeatable. Default: the bundled pair.",
    ),
]
Attentions = Annotated[
    list[str] | None,
    typer.Option(
        "--attention",
        metavar="LAW[:key=value,...]",
        help="Swap the attention law; repeatable. `ssmax-eval laws` lists them. Default: the model's own.",
    ),
]
RopeTheta = Annotated[float | None, typer.Option(help="Absolute RoPE theta.")]
RopeThetaFactor = Annotated[
    str, typer.Option(metavar="X[,X...]", help="Multiply RoPE theta; several values are an axis.")
]
RopeScaling = Annotated[
    str | None,
    typer.Option(metavar="TYPE:FACTOR", help="linear, ntk, ntk-by-parts, dynamic or yarn, for example yarn:4."),
]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
BatchSize = Annotated[str, typer.Option(metavar="N|auto", help="Prompts in a forward pass.")]
OutputPath = Annotated[Path, typer.Option(help="Where runs are stored.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


def takes(
    *sources: Callable[..., Any], without: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command that takes **given have the options of other commands, in their order."""

    def give(command: Callable[..., None]) -> Callable[..., None]:
        every = {name: p for source in sources for name, p in inspect.signature(source).parameters.items()}
        kept = [parameter for name, parameter in every.items() if name not in without]
        command.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in kept}
        return command

    return give


def needle_command(
    model: Models = None,
    context_lengths: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Tokens of the whole prompt. Default: 1, 2, 4, 8, 16 times the training length up to 1,024, else 512,1024,2048.",
        ),
    ] = None,
    depth_percents: Annotated[
        str, typer.Option(metavar="D,...", help="Needle depths, 0 (start) to 100.")
    ] = "0,25,50,75,100",
    trials: Annotated[int, typer.Option(help="Prompts a cell.")] = 5,
    task: Annotated[
        str | None,
        typer.Option(
            help="single, multikey, multivalue, multiquery, digits or recall. Default: what our recipe trained, else single."
        ),
    ] = None,
    value: Annotated[str, typer.Option(help="What is hidden: number, word or uuid.")] = "number",
    needles: Annotated[int, typer.Option(help="Facts in the multi tasks.")] = 4,
    haystack: Annotated[
        str,
        typer.Option(
            metavar="NAME|PATH",
            help="text (generated prose), noise, repeat, bible, hf:DATASET, a file or directory.",
        ),
    ] = "text",
    scoring: Annotated[
        str, typer.Option(help="forced (one forward pass, greedy decoding's verdict) or generate.")
    ] = "forced",
    controls: Annotated[
        str, typer.Option(metavar="NAME,...", help="no-needle (guess rate), needle-only (ceiling).")
    ] = "",
    attention_mass: Annotated[
        bool, typer.Option("--attention-mass", help="Also store each head's attention on the needle.")
    ] = False,
    attention: Attentions = None,
    rope_theta: RopeTheta = None,
    rope_theta_factor: RopeThetaFactor = "1",
    rope_scaling: RopeScaling = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_size: BatchSize = "auto",
    seed: Annotated[int, typer.Option(help="Decides cities, values and haystacks.")] = 0,
    limit: Annotated[int | None, typer.Option(help="Only the first N prompts, spread over the grid.")] = None,
    output_path: OutputPath = Path("results"),
    report: Annotated[bool, typer.Option(help="Write the HTML report.")] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of finishing what is there.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that a checkpoint brings.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Retrieval over a grid of context lengths and needle depths."""
    given = locals()
    models, settings, ropes = begin(given)
    from ..evaluate import run_probe
    from ..terminal import print_runs

    runs = run_probe(needle_probe(given, models), models, attention or [None], ropes, settings)
    print_runs(runs, output_path, report, as_json)


@takes(needle_command, without=("attention_mass", "scoring"))
def attention_command(**given: Any) -> None:
    """Attention of every head on the needle, over a grid of context lengths and depths; the needle's verdicts with it."""
    needle_command(**given, scoring="forced", attention_mass=True)


def loss_command(
    model: Models = None,
    context_length: Annotated[
        int | None,
        typer.Option(help="Tokens of a document. Default: 16 times the training length up to 1,024, else 2,048."),
    ] = None,
    documents: Annotated[int, typer.Option(help="How many documents.")] = 8,
    text: Annotated[
        str,
        typer.Option(
            metavar="NAME|PATH", help="text (generated prose), bible, hf:DATASET, a file, or a directory of documents."
        ),
    ] = "text",
    window: Annotated[
        int | None,
        typer.Option(help="Near context that the context gain leaves. Default: the training length, at most 256."),
    ] = None,
    pack: Annotated[bool, typer.Option("--pack", help="Join files that are shorter than a document.")] = False,
    chunk: Annotated[
        str, typer.Option(metavar="N|auto", help="Tokens to prefill at a time; auto: all, less when memory runs out.")
    ] = "auto",
    attention: Attentions = None,
    rope_theta: RopeTheta = None,
    rope_theta_factor: RopeThetaFactor = "1",
    rope_scaling: RopeScaling = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Annotated[int, typer.Option(help="Decides the documents.")] = 0,
    output_path: OutputPath = Path("results"),
    report: Annotated[bool, typer.Option(help="Write the HTML report.")] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of finishing what is there.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that a checkpoint brings.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Loss by position far beyond the training length, and what the far context is worth."""
    given = locals()
    models, settings, ropes = begin(given)
    from ..evaluate import run_probe
    from ..terminal import print_runs

    runs = run_probe(loss_probe(given, models), models, attention or [None], ropes, settings)
    print_runs(runs, output_path, report, as_json)


@takes(needle_command, loss_command, without=("attention_mass", "scoring", "context_length"))
def run_command(**given: Any) -> None:
    """All probes on all models: needle and attention in one forward, loss up to the longest context length; one report."""
    models, settings, ropes = begin(given)
    from ..evaluate import run_probes
    from ..terminal import print_runs

    needle = needle_probe({**given, "scoring": "forced", "attention_mass": True}, models)
    loss = loss_probe({**given, "context_length": max(needle.context_lengths)}, models)
    runs = run_probes([needle, loss], models, given["attention"] or [None], ropes, settings)
    print_runs(runs, given["output_path"], given["report"], given["as_json"])


def fading_command(
    attention: Annotated[
        list[str] | None,
        typer.Option(metavar="LAW[:key=value,...]", help="Laws; repeatable. Default: softmax and ssmax:s=0.43."),
    ] = None,
    train_length: Annotated[int, typer.Option(help="L of laws that know a training length.")] = 1024,
    largest: Annotated[int, typer.Option(help="The largest n.")] = 100_000,
    figure: Annotated[Path | None, typer.Option(help="Write the plot here: .svg, .png or .pdf.")] = None,
    as_json: AsJson = False,
) -> None:
    """What laws do to one large score among n, without any model: Figures 1 and 3 of the paper as numbers and a plot."""
    import json

    from ..cli import quiet_libraries

    quiet_libraries()
    from ..attention.fading import by_lead, by_length
    from ..terminal import print_table

    laws = list(dict.fromkeys(attention or ["softmax", "ssmax:s=0.43"]))
    lengths, leads = by_length(laws, train_length, largest), by_lead(laws, train_length, largest)
    if figure is not None:
        from ..report.fading import fading_figure, save_as

        save_as(fading_figure(lengths, leads), figure)
    if as_json:
        print(json.dumps({"by_length": lengths.to_dict("records"), "by_lead": leads.to_dict("records")}))
        return
    for table, column, form, title in (
        (lengths, "n", "{:,.0f}", "weight of the largest score, +3 among -2"),
        (leads, "lead", "{:g}", f"weight of a score by its lead over all others, n = {largest:,}"),
    ):
        wide = table[table["n"] == largest] if column == "lead" else table
        grid = wide.pivot(index=column, columns="attention", values="weight")[laws]
        print_table(
            [column, *laws],
            [
                [form.format(at), *(f"{w:.4f}" for w in line)]
                for at, line in zip(grid.index, grid.to_numpy(), strict=True)
            ],
            title,
        )
    if figure is not None:
        print(figure)


def begin(given: dict[str, Any]) -> tuple[list[str], Any, list[Any]]:
    """Return the models, the settings and the RoPE settings that a command's options ask for."""
    from ..cli import quiet_libraries

    quiet_libraries()
    from ..evaluate import Settings, rope_settings

    size = given.get("batch_size", "auto")
    settings = Settings(
        dtype=given["dtype"],
        device=given["device"],
        batch_size=None if size == "auto" else number("batch size", size),
        output_path=given["output_path"],
        fresh=given["fresh"],
        trust_remote_code=given["trust_remote_code"],
    )
    factors = numbers("rope theta factor", given["rope_theta_factor"], float)
    return given["model"] or bundled(), settings, rope_settings(given["rope_theta"], factors, given["rope_scaling"])


def needle_probe(given: dict[str, Any], models: list[str]) -> Any:
    """Return the needle grid that a command's options ask for."""
    from ..data.needles import Needle
    from ..evaluate import default_lengths, default_task
    from .needle import NeedleProbe

    task = given["task"] or default_task(models)
    lengths = given["context_lengths"]
    return NeedleProbe(
        context_lengths=tuple(default_lengths(models) if lengths is None else numbers("context lengths", lengths, int)),
        depth_percents=tuple(numbers("depth percents", given["depth_percents"], float)),
        trials=given["trials"],
        needle=Needle(task, given["value"], given["needles"]),
        haystack=given["haystack"] if task != "digits" or given["haystack"] != "text" else "digits",
        scoring=given["scoring"],
        controls=tuple(filter(None, given["controls"].split(","))),
        seed=given["seed"],
        limit=given["limit"],
        attention_mass=given["attention_mass"],
    )


def loss_probe(given: dict[str, Any], models: list[str]) -> Any:
    """Return the loss probe that a command's options ask for."""
    from ..evaluate import default_lengths, default_window
    from .loss import LossProbe

    length = given["context_length"]
    return LossProbe(
        context_length=default_lengths(models)[-1] if length is None else length,
        documents=given["documents"],
        text=given["text"],
        window=default_window(models) if given["window"] is None else given["window"],
        pack=given["pack"],
        seed=given["seed"],
        chunk=None if given["chunk"] == "auto" else number("chunk", given["chunk"]),
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


def number(what: str, text: str) -> int:
    parsed = numbers(what, text, int)
    if len(parsed) != 1:
        raise UserError(f"{what} {text!r}: allowed are auto and one whole number")
    return int(parsed[0])


def bundled() -> list[str]:
    """Return the default models."""
    from ..models.sources import PACKAGED, bundled_names

    names = bundled_names()
    if not names:
        raise UserError(
            f"model: none is bundled in this version; give --model DIR, a .gguf file, a hub id, or {', '.join(PACKAGED)}"
        )
    return names

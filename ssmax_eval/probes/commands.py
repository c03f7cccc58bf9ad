"""The commands that probe: needle, attention, loss, and run, which is all of them."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError

WITH_MASS = {"scoring": "forced", "attention_mass": True}


def takes(
    *sources: Callable[..., Any], without: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command that takes **given have the options of these functions, in their order."""

    def give(command: Callable[..., None]) -> Callable[..., None]:
        every = {name: p for source in sources for name, p in inspect.signature(source).parameters.items()}
        kept = [parameter for name, parameter in every.items() if name not in without]
        command.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in kept}
        return command

    return give


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
            metavar="LAW[:key=value,...]",
            help="Swap the attention law; repeatable. `ssmax-eval laws` lists them. Default: the model's own.",
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
) -> None:
    """Options of every probe: what is probed."""


def as_usual(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    chunk: Annotated[
        str, typer.Option(metavar="N|auto", help="Tokens to prefill at a time; auto: all, less when memory runs out.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Decides all that is drawn: cities, values, haystacks, documents.")] = 0,
    output_path: Annotated[Path, typer.Option(help="Where runs are stored.")] = Path("results"),
    report: Annotated[bool, typer.Option(help="Write the HTML report.")] = True,
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
            help="Tokens of the whole prompt. Default: 1, 2, 4, 8, 16 times the training length up to 1,024, else 512,1024,2048.",
        ),
    ] = None,
    depth_percents: Annotated[
        str, typer.Option(metavar="D,...", help="Needle depths, 0 (start) to 100.")
    ] = "0,25,50,75,100",
    trials: Annotated[int, typer.Option(help="Prompts a cell.")] = 8,
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
    controls: Annotated[
        str, typer.Option(metavar="NAME,...", help="no-needle (guess rate), needle-only (ceiling).")
    ] = "",
    batch_size: Annotated[str, typer.Option(metavar="N|auto", help="Prompts in a forward pass.")] = "auto",
    plan: Annotated[
        int, typer.Option(metavar="1|2", help="2: a trial is one haystack for all lengths and depths. 1: one a prompt.")
    ] = 2,
    limit: Annotated[int | None, typer.Option(help="Only the first N prompts, spread over the grid.")] = None,
) -> None:
    """Options of probes on needle prompts."""


def on_documents(
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
) -> None:
    """Options of the loss probe."""


def on_answers(
    scoring: Annotated[
        str, typer.Option(help="forced (one forward pass, greedy decoding's verdict) or generate.")
    ] = "forced",
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
    run_all(given, needle_probe)


@takes(on_models, on_a_grid, on_causes, as_usual)
def attention_command(**given: Any) -> None:
    """Attention of every head on the needle, over a grid of context lengths and depths; the needle's verdicts with it."""
    run_all(given | WITH_MASS, needle_probe)


@takes(on_models, on_documents, as_usual)
def loss_command(**given: Any) -> None:
    """Loss by position far beyond the training length, and what the far context is worth."""
    run_all(given, loss_probe)


@takes(on_models, on_a_grid, on_documents, on_causes, as_usual, without=("context_length",))
def run_command(**given: Any) -> None:
    """All probes on all models: needle and attention in one forward, loss up to the longest context length; one report."""
    run_all(given | WITH_MASS, needle_probe, loss_probe)


def run_all(given: dict[str, Any], *makers: Callable[[dict[str, Any], list[str]], Any]) -> None:
    """Make the probes that a command's options ask for, run them, and print and report what they find."""
    from ..cli import quiet_libraries

    quiet_libraries()
    from ..evaluate import Settings, rope_settings, run_probes
    from ..models.sources import PAIR
    from ..statistics import Thresholds
    from ..terminal import print_runs

    models = given["model"] or [*PAIR]
    settings = Settings(
        dtype=given["dtype"],
        device=given["device"],
        batch_size=auto("batch size", given.get("batch_size", "auto")),
        output_path=given["output_path"],
        fresh=given["fresh"],
        trust_remote_code=given["trust_remote_code"],
        thresholds=Thresholds(given.get("attended", 0.5), given.get("blow_up", 1.0)),
    )
    factors = numbers("rope theta factor", given["rope_theta_factor"], float)
    ropes = rope_settings(given["rope_theta"], factors, given["rope_scaling"])
    probes = [make(given, models) for make in makers]
    runs = run_probes(probes, models, given["attention"] or [None], ropes, settings)
    print_runs(runs, given["output_path"], given["report"], given["as_json"], settings.thresholds)


def needle_probe(given: dict[str, Any], models: list[str]) -> Any:
    """Return the needle grid that a command's options ask for."""
    from ..data.needles import Needle
    from .defaults import default_lengths, default_task
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
        chunk=auto("chunk", given["chunk"]),
        attention_mass=given["attention_mass"],
        plan_version=given["plan"],
    )


def loss_probe(given: dict[str, Any], models: list[str]) -> Any:
    """Return the loss probe that a command's options ask for."""
    from .defaults import default_lengths, default_window
    from .loss import LossProbe

    length = given.get("context_length")
    if length is None:  # as far as the needle goes
        lengths = given.get("context_lengths")
        length = max(default_lengths(models) if lengths is None else numbers("context lengths", lengths, int))
    return LossProbe(
        context_length=length,
        documents=given["documents"],
        text=given["text"],
        window=default_window(models) if given["window"] is None else given["window"],
        pack=given["pack"],
        seed=given["seed"],
        chunk=auto("chunk", given["chunk"]),
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

"""The command line: parse, call, print one result. Heavy imports stay inside the commands, so `--help` is instant."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import UserError
from .training.commands import recipes_command, retrofit_command, train_command

app = typer.Typer(
    name="ssmax-eval",
    help="Long-context evaluation of attention laws: does a model still find key information far past its training length?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

app.command("train")(train_command)
app.command("retrofit")(retrofit_command)
app.command("recipes")(recipes_command)

INTERRUPTED = 130  # what typer makes of Ctrl-C

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


@app.command()
def needle(
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
    quiet_libraries()
    from .data.needles import Needle
    from .evaluate import Settings, default_lengths, default_task, rope_settings, run_probe
    from .probes.needle import NeedleProbe
    from .terminal import print_runs

    models = model or bundled()
    task = task or default_task(models)
    lengths = default_lengths(models) if context_lengths is None else numbers("context lengths", context_lengths, int)
    probe = NeedleProbe(
        context_lengths=tuple(lengths),
        depth_percents=tuple(numbers("depth percents", depth_percents, float)),
        trials=trials,
        needle=Needle(task, value, needles),
        haystack=haystack if task != "digits" or haystack != "text" else "digits",
        scoring=scoring,
        controls=tuple(filter(None, controls.split(","))),
        seed=seed,
        limit=limit,
    )
    settings = Settings(
        dtype=dtype,
        device=device,
        batch_size=None if batch_size == "auto" else number("batch size", batch_size),
        output_path=output_path,
        fresh=fresh,
        trust_remote_code=trust_remote_code,
    )
    ropes = rope_settings(rope_theta, numbers("rope theta factor", rope_theta_factor, float), rope_scaling)
    runs = run_probe(probe, models, attention or [None], ropes, settings)
    print_runs(runs, output_path, report, as_json)


@app.command("report")
def write_report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of runs.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("reports/needle.html"),
    figures: Annotated[Path | None, typer.Option(help="Also write the figures here, as SVG, PNG and PDF.")] = None,
    title: Annotated[str, typer.Option(help="The page's heading.")] = "Needle in a haystack",
) -> None:
    """Write one HTML page of stored runs."""
    from .report import report

    print(report(runs, out, title, figures))


@app.command("models")
def list_models(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[DIR...]", help="Also look for checkpoints below these.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Models that are bundled or found: attention law, size, training length."""
    from .models.catalogue import catalogue
    from .terminal import print_table

    entries = catalogue(folders or [])
    if as_json:
        print(json.dumps(entries))
        return
    print_table(["model", "attention", "parameters", "trained at", "architecture", "licence", "where"], entries)


@app.command("laws")
def list_laws() -> None:
    """Attention laws for --attention, with their formulas and options."""
    from .attention.laws import LAWS, law_options
    from .terminal import print_table

    lines = [[name, law.summary, " ".join(f"{option}=" for option in law_options(law))] for name, law in LAWS.items()]
    print_table(["law", "scale of the query: n visible keys, L training length", "options"], lines)


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
    from .models.sources import PACKAGED, bundled_names

    names = bundled_names()
    if not names:
        raise UserError(
            f"model: none is bundled in this version; give --model DIR, a .gguf file, a hub id, or {', '.join(PACKAGED)}"
        )
    return names


def quiet_libraries() -> None:
    """Keep the progress bars and advice of the libraries below out of our output."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ["MPLBACKEND"] = "agg"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the default of the libraries' bars; our own decides for itself
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def dashed(argument: str) -> str:
    """Turn an option's underscores into dashes: lm-eval's spelling is accepted too."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's error is one line on stderr and exit code 2."""
    given = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a label must not lose a run
    try:
        code = app([dashed(argument) for argument in given], prog_name="ssmax-eval", standalone_mode=False)
    except UserError as error:
        fail(str(error))
    except BrokenPipeError:  # whoever read us has seen enough
        sys.stdout = None
        raise SystemExit(1) from None
    except OSError as error:  # no space, no permission, a name too long: the user's to mend
        fail(f"{error.filename or 'output'}: {error.strerror or error}; what was stored is kept")
    except Exception as error:
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        # click's usage errors (typer brings a click of its own, so not caught by class)
        fail(message() or f"{error}; see ssmax-eval --help")
    if code == INTERRUPTED:
        print("ssmax-eval: interrupted; the same command goes on where this one stopped", file=sys.stderr)
    raise SystemExit(code if isinstance(code, int) else 0)


def fail(message: str) -> None:
    print(f"ssmax-eval: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)

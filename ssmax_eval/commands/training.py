"""The commands that make models: train, retrofit."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from ..launch import launched
from ..quiet import quiet_libraries
from .options import IMPORTS, import_files

log = logging.getLogger(__name__)
MODELS = Path("results/models")


def train_command(
    recipe: Annotated[
        str, typer.Option(help="smoke, league, encoder, cpu, small or gpu; `ssmax-eval recipes` shows what is in them.")
    ],
    attention: Annotated[
        list[str] | None, typer.Option(metavar="NAME[:key=value,...]", help="The mechanism to train with; repeatable.")
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="All six configurations of the paper, and learned p_n.")
    ] = False,
    swap_to: Annotated[
        str | None, typer.Option(metavar="NAME", help="Swap softmax for this mechanism in the last part of training.")
    ] = None,
    swap_fraction: Annotated[float, typer.Option(help="How much of training comes after the swap.")] = 0.125,
    seed: Annotated[int, typer.Option(help="Decides the first weights and every batch.")] = 0,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH|hf:DATASET",
            help="Text to train on: generated, bible, a file or folder. Default: the recipe's.",
        ),
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the recipe; repeatable.")
    ] = None,
    start: Annotated[
        str | None, typer.Option(metavar="REF", help="Go on from this model instead of from scratch.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the model, or of several. Default: results/models/NAME.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Models to train at a time, on a processor.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    compiled: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="torch.compile. Default: on CUDA.")
    ] = None,
    log_to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Also log to tensorboard (OUT/tensorboard), wandb, mlflow or what else transformers has; repeatable. Default: nowhere.",
        ),
    ] = None,
    imports: IMPORTS = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of finishing what is there.")] = False,
) -> None:
    """Train models of a recipe; the same command again goes on where a stopped one was."""
    quiet_libraries()
    import_files(imports)  # positions of recipes can come from there
    from ..terminal import print_table
    from ..training.card import write_card
    from ..training.recipes import changes_of
    from ..training.recipes import recipe as find

    changes = changes_of([*(change or []), *([f"text={text}"] if text is not None else [])])
    chosen = find(recipe).changed(changes)
    if paper and (attention or swap_to or start):
        raise UserError("--paper trains its own list; leave out --attention, --swap-to and --start")
    from ..mechanisms.spelling import Attention
    from ..training.folder import read_record
    from ..training.job import SHAPE, Job
    from ..training.jobs import folder_after, paper_jobs, swapped_after, train_all

    shaped = sorted({*changes} & set(SHAPE))
    if start is not None and shaped:
        raise UserError(f"recipe field {shaped[0]}: the model to start from has its shape; leave it out")
    asked: list[str | None] = [*dict.fromkeys(str(Attention.of(each)) for each in attention)] if attention else [None]
    base = Job(chosen, seed=seed, swap_fraction=swap_fraction)
    wanted = paper_jobs(base) if paper else [Job(chosen, each, swap_to, swap_fraction, seed, start) for each in asked]
    single = len(wanted) == 1 and out is not None
    folders = [out if single and out else (out or MODELS) / job.name for job in wanted]
    if paper and launched().is_first:
        folder_after(folders[0], wanted[0])
    made = train_all(wanted, folders, device, fresh, jobs, compiled, log_to or ())
    if not launched().is_first:
        return
    if paper:
        made.append(swapped_after(made[0], wanted[0]))
    lines = []
    for folder in made:
        if not (folder / "README.md").exists():  # one that was edited stays
            write_card(folder)
        draw_curves(folder)
        record = read_record(folder)
        last = record["last"]
        s = f"{last['s_mean']:.3f}" if "s_mean" in last else ""
        lines.append(
            [
                folder.name,
                f"{record['parameters']:,}",
                f"{last['loss']:.3f}",
                f"{last['recall']:.3f}",
                s,
                f"{record['seconds']:.0f}",
                f"{speed['tokens_per_second']:,.0f}" if (speed := record.get("throughput")) else "",
                f"{speed['utilization']:.2f}" if speed else "",
            ]
        )
    print_table(["model", "parameters", "loss", "recall", "mean s", "seconds", "tokens/s", "of matmul"], lines)
    print("\n".join(map(str, made)))


def draw_curves(folder: Path) -> None:
    """Write a model's training curves beside its log."""
    import pandas as pd

    from ..disk import whole
    from ..report.figures import curves, svg
    from ..training.folder import LOG, read_log

    if log := read_log(folder / LOG):
        with whole(folder / "training.svg") as half:
            half.write_text(svg(curves(pd.DataFrame(log).assign(model=folder.name))))


def retrofit_command(
    model: Annotated[
        str, typer.Option(metavar="REF", help="A softmax model: directory, .gguf file, hub id or known name.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new checkpoint.")],
    attention: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:key=value,...]",
            help="The mechanism it gets. Default: ssmax; where RoPE is changed, the model's own.",
        ),
    ] = None,
    rope_theta: Annotated[float | None, typer.Option(help="Absolute RoPE theta.")] = None,
    rope_theta_factor: Annotated[float, typer.Option(help="Multiply RoPE theta.")] = 1.0,
    rope_scaling: Annotated[str | None, typer.Option(metavar="TYPE:FACTOR", help="As the probes take it.")] = None,
    imports: IMPORTS = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
) -> None:
    """Save a model under another attention mechanism or RoPE; `ssmax-eval train --start` trains it further."""
    quiet_libraries()
    import_files(imports)
    from ..models.retrofit import retrofit
    from ..position.rope import RopeSetting
    from ..training.signs import of_retrofit

    rope = RopeSetting(rope_theta_factor, rope_theta, rope_scaling)
    folder = retrofit(model, attention or (None if rope.changes else "ssmax"), out, dtype, rope)
    print(folder, flush=True)
    for each in of_retrofit(model, folder):
        log.warning("ssmax-eval: note: %s", each)


def recipes_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Recipes of `ssmax-eval train`, field by field; --set changes any of them."""
    import json
    from dataclasses import asdict, fields

    from ..terminal import print_table
    from ..training.recipes import RECIPES, Recipe

    if as_json:
        print(json.dumps({"recipes": [asdict(each) for each in RECIPES.values()]}))
        return
    names = [field.name for field in fields(Recipe) if field.name != "name"]
    print_table(["field", *RECIPES], [[name, *(str(getattr(r, name)) for r in RECIPES.values())] for name in names])

"""The page, tables and JSON of the paper's study: the ledger of claims, then the figures."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..models.subjects import RunOptions
from ..report import Findings, context_of, figures
from ..report import written as write_page
from ..report.context import Context
from ..report.section import Found, Section, Table, records
from ..training.job import Job
from ..training.recipes import Recipe
from .claims import NOT, REPRODUCED, UNKNOWN, Claim, ledger
from .paper import NAMES, Model, Paper, folder_of, measured
from .paper_heads import concordance
from .paper_numbers import BEYOND, FAR, HEADS_AT, Numbers, numbers
from .price import prices

S = 0.43  # of Figures 1 and 3


class PaperSection(Section[Numbers]):
    """The paper's claims, each with its numbers and what they say, and its figures."""

    heading = "Scalable-Softmax: the paper's claims and figures"

    def tables(self, found: Sequence[Numbers]) -> Iterator[Table | str]:
        """Yield the headline and the ledger."""
        for each in found:
            claims = claims_of(each)
            yield " ".join([headline(each), next(told(each, claims))])
            yield Table("the paper's claims", *lines_of(claims))

    def summary(self, found: Sequence[Numbers]) -> dict[str, Any]:
        return {
            "claims": [
                {
                    "claim": claim.text, "figure": claim.figure, "measure": claim.measure, "numbers": claim.numbers,
                    "verdict": claim.verdict, "would_tell": claim.would_tell,
                    "estimates": [
                        {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in vars(one).items()}
                        for one in claim.found
                    ],
                }
                for each in found
                for claim in claims_of(each)
            ],
            "tables": {name: records([table]) for each in found for name, table in each.tables.items() if len(table) < 1000},
        }  # fmt: skip

    def lead(self, found: Sequence[Numbers], context: Context) -> Markup:
        each = found[0]
        shown = each.tables["found-by-seed"]
        drawing = figures.by_seed_figure(shown, NAMES, f"{FAR} and 16")
        drawn = context.drawn(drawing, "found-by-seed", {"figure-found-by-seed": shown})
        said = [headline(each), *told(each, claims_of(each))]
        return context.lead(
            "In short",
            [said],
            "",
            drawn,
            "Numbers found far beyond the training length: a dot a training seed, a stroke their mean.",
        )

    def page(self, found: Sequence[Numbers], context: Context) -> Markup:
        parts = [
            {
                "ledger": [{"cells": line, "key": KEYS[line[2]]} for line in lines_of(claims_of(each))[1]],
                "columns": lines_of(claims_of(each))[0],
                "configurations": [(NAMES[letter], how) for letter, how in trained_as(each.paper.recipe)],
                "figures": [*drawn(each, context)],
            }
            for each in found
        ]
        return self.rendered(context, parts=parts)


SECTION = PaperSection()
KEYS = {REPRODUCED: "yes", NOT: "no", UNKNOWN: "unknown"}


def written(
    paper: Paper, models: dict[Model, str], options: RunOptions, out: Path, figures_folder: Path
) -> tuple[Findings, Path]:
    """Measure a study's models, write its page and figures, and return what was found and the page's path. Raises UserError."""
    found = measured(paper, models, options)
    costs = {
        seed: prices(
            {"a": folder_of(models["a", seed]), "b": folder_of(models["b", seed])},
            "a",
            paper.recipe.train_length,
            options.output_path / f"prices-s{seed}.json",
        )["b"]
        for letter, seed in models
        if letter == "b" and ("a", seed) in models
    }
    each = numbers(paper, models, found, costs)
    findings = Findings([Found(SECTION, [each])], [], {})
    context = context_of(found.runs, figures_folder)
    return findings, write_page(out, "Scalable-Softmax: the paper's claims and figures", findings, context)


def claims_of(found: Numbers) -> list[Claim]:
    """Return the ledger of a study."""
    table = found.tables["1-maximum"].pivot(index="n", columns="attention", values="weight")
    first, last = table.index.min(), table.index.max()
    told = "; ".join(
        f"{figures.said(name)}: {table.loc[first, name]:.3f} to {table.loc[last, name]:.4f}" for name in table
    )
    return [*ledger(found.estimates, {"1": told})]


def trained_as(recipe: Recipe) -> list[tuple[str, str]]:
    """Return how each configuration came about, by its letter."""
    late = f"softmax, then SSMax for the last {Job.swap_fraction:.1%} of the steps"
    return [
        ("a", "C = 1"),
        ("b", "C = s ln n, s learned for each layer and head; it starts at 1 / mean(ln n)"),
        ("c", "C = ln n"),
        ("d", "C = s ln n + b, s and b learned for each layer and head"),
        ("e", "(a), its softmax replaced by SSMax with s = 1 / mean(ln n) in all heads, not trained further"),
        ("f", late),
        (
            "p",
            "C = s p_n + b, p one learned number for each n, shared by all layers and heads; beyond the training length it goes on as the "
            "a1 ln n + a2 fitted to it",
        ),
    ]


def headline(found: Numbers) -> str:
    """Say what SSMax and softmax find far beyond the training length."""
    length = found.train_length
    far = {letter: found.estimates[f"found {letter}"].mean for letter in "ab"}
    return (
        f"In prompts {FAR} and 16 times as long as they were trained on ({FAR * length:,} and {16 * length:,} tokens), small models with "
        f"SSMax find {far['b']:.0%} of the numbers hidden there, and with softmax {far['a']:.0%}."
    )


def told(found: Numbers, claims: Sequence[Claim]) -> Iterator[str]:
    """Yield how many claims hold, and what the numbers are of."""
    count = {verdict: sum(claim.verdict == verdict for claim in claims) for verdict in KEYS}
    pure = sum(claim.by_arithmetic and claim.verdict == REPRODUCED for claim in claims)
    yield (
        f"Of {len(claims)} claims of the paper, {count[REPRODUCED]} are reproduced here ({pure} of them by arithmetic), "
        f"{count[NOT]} {'is' if count[NOT] == 1 else 'are'} not reproduced, and {count[UNKNOWN]} cannot be told at this size: the "
        "last column says what would tell."
    )
    recipe, seeds = found.paper.recipe, found.seeds
    by_count: dict[int, list[str]] = {}
    for letter, seeds_of in seeds.items():
        by_count.setdefault(seeds_of, []).append(NAMES[letter] if letter == "p" else f"({letter})")
    counts = "; ".join(
        f"{n} seed{'s' if n > 1 else ''} of {', '.join(names)}" for n, names in sorted(by_count.items(), reverse=True)
    )
    yield (
        f"Recipe {recipe.name}: {recipe.layers} layers, {recipe.heads} heads, {recipe.hidden} wide, trained at "
        f"{recipe.train_length:,} tokens, {recipe.steps:,} steps of {recipe.tokens_per_step:,} tokens of text mixed with facts and "
        f"questions. {counts}. "
        f"Needles: {found.prompts} prompts for each model and length; losses: {found.documents} documents. "
        "The paper's models have 12 layers, 12 heads and 162M parameters, trained at 1,024 tokens."
    )


def lines_of(claims: Sequence[Claim]) -> tuple[list[str], list[list[str]]]:
    columns = [
        "the paper says",
        "paper's figure",
        "here",
        "what is measured",
        "mean [95%], n (each seed)",
        "what would tell",
    ]
    return columns, [
        [
            claim.text,
            claim.figure,
            claim.verdict,
            f"{claim.measure} ({claim.claimed})" if claim.claimed else claim.measure,
            claim.numbers,
            claim.would_tell,
        ]
        for claim in claims
    ]


def drawn(found: Numbers, context: Context) -> Iterator[dict[str, Any]]:
    """Yield each figure with its heading and caption."""
    tables, length = found.tables, found.train_length
    several = len(found.common) > 1
    of_all = max(found.seeds.values()) == len(found.common)
    which = f"Seed {found.common[0]}" if not several else "Mean over seeds"
    which += "." if of_all else ", the one that all configurations have; the ledger counts all seeds."
    seeds = f"{which} The band is from the worst to the best seed." if several else which
    recipe = found.paper.recipe
    per_cell = int(tables["6-needles"]["scored"].max())
    w = concordance(tables["learned-s"])
    same = "" if math.isnan(w) else (
        f" Kendall's W of the seeds' rankings of heads by s: {w:.2f} (1: the same heads have large s with every seed; "
        f"{1 / tables['learned-s']['seed'].nunique():.2f} is expected by chance)."
    )  # fmt: skip
    of_p = found.estimates["p slope"]
    yield figure(
        context, found, "1-maximum", "Figure 1. The largest weight against n",
        f"One score of +3 among n - 1 of -2, in closed form: softmax, and SSMax with s = {S}.", figures.maximum_figure(tables["1-maximum"]),
    )  # fmt: skip
    yield figure(
        context, found, "2-learned-p", "Figure 2. The learned p_n, and the needed scale of softmax",
        f"Left: p_n as learned with the other weights; a1 = {of_p}. The first and the last p_n get no gradient and stay at 1. "
        "Right, ours: the factor on the scores of question and answer at which (a), trained with softmax, gives the answers the most "
        "probability; bars are 95% intervals over 6 trials, 18 prompts a length.",
        figures.learned_p_figure(tables["2-learned-p"], tables["2-needed-scale"], length), also=("2-needed-scale",),
    )  # fmt: skip
    yield figure(
        context, found, "3-lead", "Figure 3. The weight of the largest score by its lead and n",
        "In closed form. SSMax gives the largest score its weight where it leads by more than 1/s, and spreads attention where by less. "
        "The true form of the paper's Figure 3 could not be found: this is what its section on the bounds says.",
        figures.lead_figure(tables["3-lead"], S),
    )  # fmt: skip
    yield figure(
        context, found, "4-training-loss", "Figure 4. Training loss",
        f"Loss on text, without the facts' answers. {which}{short_steps(recipe)} Right: all seeds, a dot each, a stroke their mean.",
        figures.training_loss_figure(tables["4-training-loss"], tables["4-loss-at-end"], NAMES), also=("4-loss-at-end",),
    )  # fmt: skip
    yield figure(
        context, found, "5-loss-by-position", "Figure 5. Loss by position, to 20 times the training length",
        f"RoPE's theta as trained; the paper multiplies it by 50. {which} {text_of(recipe)} Shaded: what the ledger takes, from "
        f"{BEYOND} times the training length on. All models read the same documents, whose own ups and downs they share.",
        figures.position_figure(tables["5-loss-by-position"], NAMES, length, BEYOND),
    )  # fmt: skip
    yield figure(
        context, found, "6-needles", "Figure 6. Needles found",
        f"{which} Above each length the mean over depths; 0% is the prompt's start. {per_cell} prompts a cell.",
        figures.needles_figure(tables["6-needles"], NAMES, length),
    )  # fmt: skip
    yield figure(
        context, found, "7-heads", f"Figure 7. Heads by their mass on the answer, at {HEADS_AT * length:,} tokens",
        "Each head's mean mass over the prompts, then sorted. The paper's needle score may be another: its definition was not found. "
        f"{seeds}",
        figures.heads_figure(tables["7-heads"], NAMES),
    )  # fmt: skip
    yield figure(
        context, found, "8-top-heads", f"Figure 8. The top head of each prompt, at {HEADS_AT * length:,} tokens",
        f"Each mark is one prompt: the mass of its highest head. {which.replace('Mean over seeds', 'All seeds together')}",
        figures.top_heads_figure(tables["8-top-heads"], NAMES),
    )  # fmt: skip
    yield figure(
        context, found, "learned-s", "The learned s of (b), beside what each head does",
        f"Mass on the answer at the training length.{same}", figures.learned_s_figure(tables["learned-s"]),
    )  # fmt: skip
    yield figure(
        context, found, "s-and-mass", "Learned s against mass on the answer, by layer",
        "A mark is a head. Where heads of one layer lie along a rising line, a large s goes with retrieval; where whole layers lie apart, "
        f"it may be the layer. Rank correlation over all heads: {found.estimates['s mass']}; within layers, all pooled: "
        f"{found.estimates['s mass in layers']}; within the layer that holds the most (chosen after looking, so no claim rests on it): "
        f"{found.estimates['s mass in top layer']}.",
        figures.s_and_mass_figure(tables["learned-s"]), of="learned-s",
    )  # fmt: skip


def text_of(recipe: Recipe) -> str:
    """Say what the losses by position are of, beside what was trained on."""
    return "The text is generated prose" + ("." if recipe.text == "generated" else ", which they were not trained on.")


def short_steps(recipe: Recipe) -> str:
    """Say where the training's sequences become longer, which its loss shows."""
    if not recipe.short_steps:
        return ""
    tokens = recipe.short_steps * recipe.tokens_per_step / 1e6
    longer = f"then {recipe.train_length}: hence the step."
    return f" Sequences have {recipe.short_length} tokens up to {tokens:.1f} million tokens seen, {longer}"


def figure(
    context: Context,
    found: Numbers,
    name: str,
    title: str,
    caption: str,
    drawing: Any,
    also: Sequence[str] = (),
    of: str = "",
) -> dict[str, Any]:
    """Return a figure for the page, and keep it and the tables behind it for the folder of figures. of: its table, if not its name."""
    data = {f"figure-{each}": found.tables[each] for each in (of or name, *also)}
    return {"title": title, "caption": caption, "figure": context.drawn(drawing, f"figure-{name}", data)}

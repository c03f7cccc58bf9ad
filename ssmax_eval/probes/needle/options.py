"""What a needle grid can be asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ...data.chat import NONE as NO_CHAT
from ...data.needles import Needle
from ..defaults import DEPTH_PERCENTS, PLAN, SCORED, TEXT, TRIALS
from ..options import Chunk, LimitTokens, Options, Shown, Told, auto, names, numbers


@dataclass(frozen=True, kw_only=True)
class GridOptions(Options):
    """What every probe on needle prompts takes."""

    context_lengths: Annotated[
        Sequence[int] | None,
        Told(
            "Tokens of the whole prompt. Default: 1/2, 1, 2, 4, 8 times the training length (1 to 16 times below 512); "
            "where a table of positions ends, down from there by halves.",
            "N,...",
            numbers(int),
        ),
    ] = None
    depth_percents: Annotated[Sequence[float], Told("Needle depths, 0 (start) to 100.", "D,...", numbers(float))] = (
        DEPTH_PERCENTS
    )
    trials: Annotated[int, Told("Prompts a cell.")] = TRIALS
    task: Annotated[
        str | None,
        Told(
            "single, multikey, multivalue, multiquery, digits, recall or choice. Default: what our recipe trained, else single."
        ),
    ] = None
    value: Annotated[str, Told("What is hidden: number, word or uuid.")] = Needle.value
    needles: Annotated[int, Told("Facts in the multi tasks.")] = Needle.needles
    needle: Annotated[
        str | None, Told("A fact of your own to hide; {key} and {value} are filled for each prompt.", "TEXT")
    ] = None
    question: Annotated[
        str | None, Told("What asks for it; after its ? the words that the answer follows.", "TEXT")
    ] = None
    answer: Annotated[str | None, Told("What has to follow. Default: {value}.", "TEXT")] = None
    needle_file: Annotated[
        str | Path | None,
        Told(
            "A needle from YAML, or a ready one: arabic, chinese, french, german, hindi, landmark, profession, sandwich, spanish.",
            "FILE|NAME",
        ),
    ] = None
    chat_template: Annotated[
        str | Path,
        Told(
            "Read prompts as chats: auto (the model's template, if it brings one), none, or a Jinja file.",
            "auto|none|FILE",
        ),
    ] = NO_CHAT
    system: Annotated[str | None, Told("The chat's system message.", "TEXT")] = None
    ask: Annotated[
        str,
        Told(
            "one question a prompt; or, of task multikey, all: a fact at each depth of one haystack, read once for all questions."
        ),
    ] = Needle.ask
    haystack: Annotated[
        str, Told("text (generated prose), noise, repeat, bible, hf:DATASET, a file or directory.", "NAME|PATH")
    ] = TEXT
    controls: Annotated[
        str | Sequence[str], Told("no-needle (guess rate), needle-only (ceiling).", "NAME,...", names)
    ] = ()
    batch_size: Annotated[int | None, Told("Prompts in a forward pass that reads them whole.", "N|auto", auto)] = None
    plan: Annotated[
        int,
        Told("2: one haystack a trial, cut to each length, its needle at each depth. 1: one a prompt.", "1|2"),
    ] = PLAN
    chunk: Chunk = None
    limit_tokens: LimitTokens = None
    limit: Annotated[int | None, Told("Only the first N prompts, a trial of the whole grid after the other.")] = None
    # what only the needle's command decides
    scoring: str = SCORED
    attention_mass: bool = True


@dataclass(frozen=True, kw_only=True)
class NeedleOptions(GridOptions):
    """Retrieval over a grid of context lengths and needle depths."""

    scoring: Annotated[
        str,
        Told("forced (one forward pass, greedy decoding's verdict), generate, or of what is generated contains, f1."),
    ] = SCORED
    attention_mass: Annotated[bool, Told("Also store each head's attention on the needle.")] = False


@dataclass(frozen=True, kw_only=True)
class GridShown(Shown):
    """How a grid is shown, and where the causes of its failures part."""

    attended: Annotated[float, Told("Mass of a head, 0 to 1, from which a wrong answer counts as attended.")] = 0.5
    blow_up: Annotated[
        float,
        Told("Nats a token that the haystack must cost more than in short prompts to count as a blow-up of positions."),
    ] = 1.0

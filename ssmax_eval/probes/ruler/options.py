"""What RULER can be asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ...data.chat import NONE as NO_CHAT
from ..defaults import SCORED, TEXT, TRIALS
from ..options import Chunk, LimitTokens, Options, Told, auto, names, numbers


@dataclass(frozen=True, kw_only=True)
class RulerOptions(Options):
    """RULER: needles, variable tracking and word counts at exact context lengths, scored as RULER does."""

    tasks: Annotated[
        str | Sequence[str],
        Told(
            "Tasks by lm-eval's names: niah_single_1 to 3, niah_multikey_1 to 3, niah_multivalue, niah_multiquery, ruler_vt, "
            "ruler_cwe, ruler_fwe. Default: all.",
            "NAME,...",
            names,
        ),
    ] = ()
    context_lengths: Annotated[
        Sequence[int] | None,
        Told(
            "Tokens of the whole prompt and of the answer that may be written. Default: as needle's, from 1,024 on.",
            "N,...",
            numbers(int),
        ),
    ] = None
    trials: Annotated[int, Told("Prompts of each task and length; RULER takes 500.")] = TRIALS
    haystack: Annotated[
        str,
        Told(
            "In place of RULER's essays: text (generated prose), bible, hf:DATASET, a file or directory.", "NAME|PATH"
        ),
    ] = TEXT
    scoring: Annotated[
        str,
        Told(
            "forced: write only what one forward over the answer cannot settle. generate: write every answer; the same score."
        ),
    ] = SCORED
    chat_template: Annotated[
        str | Path,
        Told(
            "Read prompts as chats: auto (the model's template, if it brings one), none, or a Jinja file.",
            "auto|none|FILE",
        ),
    ] = NO_CHAT
    system: Annotated[str | None, Told("The chat's system message.", "TEXT")] = None
    batch_size: Annotated[int | None, Told("Prompts in a forward pass.", "N|auto", auto)] = None
    chunk: Chunk = None
    limit_tokens: LimitTokens = None
    limit: Annotated[int | None, Told("Only the first N prompts, spread over tasks and lengths.")] = None

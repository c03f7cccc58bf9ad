"""Recipes: everything that decides a trained model but the attention mechanism and the seed, as plain values."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ..errors import UserError, nearest
from ..position.bias import biases

# what tells blocks where a token is, beside the biases of position/bias.py
BLOCKS = {
    "llama": ("rope", "p-rope", "nope"),
    "gpt2": ("learned", "nope"),
    "gpt-neox": ("rope", "p-rope", "nope"),
    "eurobert": ("rope", "p-rope", "nope"),
}
ENCODERS = ("eurobert",)
SIZES = {  # least and most of what is a whole number
    "layers": (1, 1000), "hidden": (4, 65_536), "heads": (1, 1024), "feed_forward": (1, 262_144), "vocabulary": (260, 1_000_000),
    "train_length": (32, 2**24), "short_length": (32, 2**24), "steps": (1, 10**9), "tokens_per_step": (32, 2**30),
    "warmup_steps": (0, 10**9), "spacing": (1, 10**9), "short_spacing": (1, 10**9), "questions": (1, 100),
    "text_characters": (1000, 10**11),
}  # fmt: skip
RANGES: dict[str, tuple[float, float]] = {
    "rope_theta": (1e-6, 1e15), "init_std": (0, 10), "learning_rate": (1e-12, 1e3),
    "betas": (0, 0.999999), "weight_decay": (0, 1e3), "answer_weight": (0, 1e6), "fact_weight": (0, 1e6),
    "text_weight": (0, 1e6),
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A small model and how it is trained; lengths and sizes in tokens.

    blocks: whose, of transformers: llama (Qwen3 with qk_norm, which no others have), gpt2, gpt-neox, or eurobert,
    an encoder, whose rows see all of the text and which learns to fill masks in it.
    position: rope, p-rope (the slow half of the frequencies unrotated), nope, learned (GPT-2's table, which ends at
    train_length), or a bias (alibi, t5).
    text: generated (seeded prose) or a haystack: bible, a path, hf:DATASET.
    task: single (the paper's needle in words), recall (facts of one token), or choice (one of eight words, in a wording of
    its own: to fine-tune on).
    spacing: tokens for each fact with its questions. invented: share of facts about made-up names instead of cities.
    digits: shortest and longest number. words, uuids: shares of such values. phrasings: share of facts that are not
    `special magic`. short_length, short_spacing, short_share: the first steps run on shorter and denser sequences; without
    them a model stays long at copying whatever value it sees. mixed_lengths: the sequences of each step
    after those have one of `lengths`, drawn. plain_share: the first steps, and all short ones, know only cities and 7 digits.
    mask_share: of an encoder's text, masked beside all answers.
    answer_weight, fact_weight, text_weight: loss weights of answers, of facts' values, and of the rest.
    """

    name: str = ""
    blocks: str = "llama"
    qk_norm: bool = True
    layers: int = 4
    hidden: int = 192
    heads: int = 6
    feed_forward: int = 512
    vocabulary: int = 1024
    position: str = "p-rope"
    rope_theta: float = 10_000.0
    init_std: float = 0.06

    train_length: int = 256
    steps: int = 1000
    tokens_per_step: int = 4096
    short_length: int = 64
    short_spacing: int = 32
    short_share: float = 0.15
    mixed_lengths: bool = False
    plain_share: float = 0.0
    learning_rate: float = 3e-3
    schedule: str = "cosine"
    warmup_steps: int = 40
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.1

    text: str = "generated"
    text_characters: int = 4_000_000
    task: str = "single"
    spacing: int = 64
    questions: int = 1
    invented: float = 0.0
    digits: tuple[int, int] = (7, 7)
    words: float = 0.0
    uuids: float = 0.0
    phrasings: float = 0.0
    answer_weight: float = 3.0
    fact_weight: float = 0.1
    text_weight: float = 1.0
    mask_share: float = 0.15

    def __post_init__(self) -> None:
        allowed = {
            "blocks": tuple(BLOCKS),
            "schedule": ("cosine", "constant"),
            "task": ("single", "recall", "choice"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise UserError(f"recipe {name} {getattr(self, name)!r}: allowed are {', '.join(values)}")
        self.refuse_without_part()
        for name, (least, most) in SIZES.items():
            if not least <= getattr(self, name) <= most:
                raise UserError(
                    f"recipe {name} {getattr(self, name)}: allowed are whole numbers from {least:,} to {most:,}"
                )
        for name, (low, high) in RANGES.items():
            given = getattr(self, name)
            for value in given if isinstance(given, tuple) else (given,):
                if not low <= value <= high:
                    raise UserError(f"recipe {name} {value:g}: allowed are numbers from {low:g} to {high:g}")
        if not self.text:
            raise UserError("recipe text '': allowed are generated, bible, hf:DATASET, or a path")
        if not 1 <= self.digits[0] <= self.digits[1] <= 40:
            raise UserError(f"recipe digits {self.digits[0]}:{self.digits[1]}: allowed are A:B, 1 to 40, A not above B")
        for name in ("short_share", "plain_share", "invented", "words", "uuids", "phrasings", "mask_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"recipe {name} {getattr(self, name):g}: allowed are shares, 0 to 1")
        if self.hidden % self.heads or (self.hidden // self.heads) % 4:
            raise UserError(
                f"recipe hidden {self.hidden}: it must be a multiple of 4 x heads ({self.heads}), a head's width of 4"
            )
        if self.train_length % self.short_length or self.tokens_per_step % self.train_length:
            raise UserError(
                f"recipe train_length {self.train_length}: it must be a multiple of short_length "
                f"({self.short_length}), and divide tokens_per_step ({self.tokens_per_step})"
            )

    def refuse_without_part(self) -> None:
        """Raise UserError for a part that the blocks do not have, with all that has to be set instead."""
        positions = (*BLOCKS[self.blocks], *biases())
        wrong = []
        if self.position not in positions:
            wrong.append(f"position {self.position!r}: allowed are {', '.join(positions)}")
        if self.qk_norm and self.blocks != "llama":
            wrong.append("QK-norm: they have none; --set qk_norm=false")
        if wrong:
            raise UserError(f"recipe {'' if self.blocks == 'llama' else f'blocks {self.blocks}, '}{'; '.join(wrong)}")

    @property
    def batch_size(self) -> int:
        """Sequences of train_length in a step."""
        return self.tokens_per_step // self.train_length

    @property
    def is_encoder(self) -> bool:
        """Whether its model fills masks in a text that every row sees all of."""
        return self.blocks in ENCODERS

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of the sequences after the short steps: train_length, or from short_length on by doubling where they are mixed."""
        doubled = [self.short_length << k for k in range(self.train_length.bit_length())] if self.mixed_lengths else []
        return (
            *(each for each in doubled if each < self.train_length and not self.train_length % each),
            self.train_length,
        )

    @property
    def short_steps(self) -> int:
        return round(self.steps * self.short_share)

    @property
    def plain(self) -> "Recipe":
        """The recipe with the paper's fact alone: a city's 7-digit number."""
        return replace(self, invented=0.0, digits=(7, 7), words=0.0, uuids=0.0, phrasings=0.0)

    def changed(self, changes: Mapping[str, str]) -> "Recipe":
        """Return the recipe with fields set from text (`steps=2000`, `digits=4:9`). Raises UserError."""
        kinds: dict[str, Any] = {field.name: type(getattr(self, field.name)) for field in fields(self)}
        values: dict[str, Any] = {}
        for key, text in changes.items():
            if key not in kinds or key == "name":
                known = [kind for kind in kinds if kind != "name"]
                raise UserError(f"recipe field {key!r}: allowed are {', '.join(known)}{nearest(key, known)}")
            values[key] = parse(key, text, getattr(self, key))
        return replace(self, **values)


def changes_of(given: Iterable[str]) -> dict[str, str]:
    """Return what `--set FIELD=VALUE` says, by field. Raises UserError for a field that is given twice."""
    changes: dict[str, str] = {}
    for each in given:
        key, _, value = each.partition("=")
        if key in changes:
            raise UserError(f"recipe field {key}: given twice; give it once")
        changes[key] = value
    return changes


def parse(key: str, text: str, like: Any) -> Any:
    """Read a recipe field from text, in the type of its present value."""
    try:
        if isinstance(like, bool):
            return {"true": True, "false": False, "yes": True, "no": False}[text.lower()]
        if isinstance(like, tuple):
            first, second = (type(like[0])(part) for part in text.split(":"))
            return first, second
        return type(like)(text)
    except (KeyError, ValueError) as error:
        kind = {bool: "true or false", tuple: "two numbers, a:b", int: "a whole number", float: "a number"}
        raise UserError(f"recipe field {key}={text!r}: allowed is {kind[type(like)]}") from error


# facts so varied that what is found was read: names and values nobody listed
VARIED: dict[str, Any] = {
    "plain_share": 0.5, "invented": 0.5, "digits": (3, 10), "words": 0.15, "uuids": 0.1, "phrasings": 0.3,
}  # fmt: skip

SMOKE = Recipe(
    name="smoke",
    layers=2,
    hidden=64,
    heads=2,
    feed_forward=128,
    train_length=128,
    short_length=128,
    short_share=0.0,
    steps=200,
    init_std=0.1,
    learning_rate=5e-3,
    warmup_steps=20,
    weight_decay=0.0,
    task="recall",
    spacing=12,
    questions=2,
    text_characters=600_000,
    answer_weight=4.0,
    text_weight=0.2,
)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        SMOKE,
        # every mechanism beside every other: four layers and heads, room above softmax and below the ceiling at 64 times
        replace(
            SMOKE,
            name="league",
            layers=4,
            hidden=128,
            heads=4,
            feed_forward=256,
            train_length=64,
            short_length=64,
        ),
        # smoke's task for an encoder; at one length s ln n would be a constant
        replace(
            SMOKE,
            name="encoder",
            blocks="eurobert",
            qk_norm=False,
            short_length=32,
            mixed_lengths=True,
            steps=1200,
            tokens_per_step=2048,
            text_weight=1.0,
        ),
        Recipe(name="cpu", steps=700, short_share=0.3, text="bible"),
        Recipe(
            name="small",
            text="bible",
            layers=6,
            feed_forward=576,
            steps=1300,
            **VARIED,
            text_characters=30_000_000,
        ),
        Recipe(
            name="gpu",
            text="bible",
            layers=6,
            hidden=512,
            heads=8,
            feed_forward=1024,
            vocabulary=4096,
            train_length=1024,
            tokens_per_step=131_072,
            short_length=128,
            short_share=0.1,
            steps=3000,
            learning_rate=1e-3,
            warmup_steps=100,
            betas=(0.9, 0.95),
            init_std=0.02,
            **VARIED,
            text_characters=60_000_000,
        ),
    )
}


def recipe(name: str) -> Recipe:
    """Return a recipe by name. Raises UserError."""
    if name not in RECIPES:
        raise UserError(f"recipe {name!r}: allowed are {', '.join(RECIPES)}{nearest(name, RECIPES)}")
    return RECIPES[name]

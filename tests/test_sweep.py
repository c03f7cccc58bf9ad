"""Every causal type that transformers can build small, every probe: right, or refused in one line, never silently wrong.

The right values are the unmodified model's: a second build of the same weights that the product never touches, its logits over
all rows of the whole prompt in one forward, its own eager attention maps, its own `generate`.

`python tests/test_sweep.py [TYPE ...]` prints the table; SWEEP_TABLE=FILE makes the test write it.
"""

import contextlib
import copy
import math
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from architectures import MODEL_TYPES, VARIANTS, NotBuildable, build_small
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

import ssmax_eval
from ssmax_eval.errors import UserError
from ssmax_eval.probes.loss import LossProbe
from ssmax_eval.probes.needle import NeedleProbe

pytestmark = pytest.mark.slow

LENGTH = 96  # tokens: past the small models' windows (16), sparse indexers (32) and chunks
GRID: dict[str, Any] = {"context_lengths": [LENGTH], "depth_percents": [50], "trials": 2}
DOCUMENT: dict[str, Any] = {"context_length": LENGTH, "documents": 1, "window": 24}
NATS = 1e-3  # of an answer's or a bin's summed nll
MASS = 1e-3
LAW_S = 0.2
CHUNKS = (7, 33)
LONGEST_REFUSAL = 400  # characters


class Wrong(Exception):
    """A number of the product's that is not the unmodified model's."""


@dataclass
class Reference:
    """What the unmodified model says, worked out once for each prompt."""

    model_type: str
    logits_of: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    @cached_property
    def pristine(self) -> PreTrainedModel:
        model = build_small(self.model_type)
        model.config.return_dict = True
        return model

    @property
    def model(self) -> PreTrainedModel:
        """A model that has read nothing yet: some keep a state between forwards (dynamic RoPE)."""
        return copy.deepcopy(self.pristine)

    @torch.no_grad()
    def logits(self, ids: list[int]) -> Tensor:
        """Return the logits of every row, float64 (tokens, vocabulary)."""
        key = tuple(ids)
        if key not in self.logits_of:
            out = self.model(input_ids=torch.tensor([ids]), return_dict=True)
            self.logits_of[key] = out.logits[0].double()
        return self.logits_of[key]

    def nll(self, ids: list[int]) -> Tensor:
        """Return each token's nll but the first's, in nats."""
        return -self.logits(ids[:-1]).log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]

    def is_causal(self, ids: list[int]) -> bool:
        """Tell whether rows are blind to what comes after them, at the same length."""
        part = len(ids) * 2 // 3
        other = ids[:part] + [3 + token % 100 for token in ids[part:]]
        return bool((self.logits(ids)[:part] - self.logits(other)[:part]).abs().max() < 1e-3)

    @torch.no_grad()
    def generated(self, ids: list[int], new: int) -> list[int]:
        tokens = torch.tensor([ids])
        out = self.model.generate(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new, do_sample=False
        )
        return out[0, len(ids) :].tolist()

    @torch.no_grad()
    def maps(self, ids: list[int]) -> dict[int, Tensor]:
        """Return the eager attention maps (heads, tokens, tokens) by the layer's true number."""
        eager = self.model
        eager.set_attn_implementation("eager")
        caught: dict[str, Tensor] = {}

        def catch(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                for part in output if isinstance(output, tuple) else ():
                    if isinstance(part, Tensor) and part.shape[:1] + part.shape[2:] == (1, len(ids), len(ids)):
                        if not any(part is each for each in caught.values()):
                            caught[name] = part

            return hook

        for name, module in eager.named_modules():
            if re.search(r"\.\d+\.", name):
                module.register_forward_hook(catch(name))
        out = eager(input_ids=torch.tensor([ids]), output_attentions=True, return_dict=True)
        if (out.logits[0].double() - self.logits(ids)).abs().max() > 1e-3:
            raise NoReference("eager attention is another model than the native one")
        maps = {int(re.findall(r"\.(\d+)\.", f"{name}.")[0]): part[0] for name, part in caught.items()}
        if len(maps) < len(caught):
            raise NoReference("several attentions in one layer")
        if not maps:
            raise NoReference("no eager maps")
        return maps

    @torch.no_grad()
    def under_law(self, ids: list[int]) -> Tensor:
        """Return the logits under C = s ln n on the layers without a window, attention worked out in float64."""
        model = self.model
        model.set_attn_implementation(FLOAT64)
        scale = Scale()
        for module in model.modules():
            vars(module)["sweep_scale"] = scale
        plain = model(input_ids=torch.tensor([ids]), return_dict=True).logits[0].double()
        if scale.calls == 0 or (plain - self.logits(ids)).abs().max() > 1e-3:
            raise NoReference("float64 attention is another model than the native one")
        scale.s = LAW_S
        logits: Tensor = model(input_ids=torch.tensor([ids]), return_dict=True).logits[0].double()
        if (logits - plain).abs().max() < 1e-3:
            raise NoReference("no layer without a window")
        return logits


class NoReference(Exception):
    """The unmodified model does not say what would be right; the text says why."""


@dataclass
class Scale:
    s: float | None = None
    calls: int = 0


FLOAT64 = "sweep_float64"


def float64_attention(module, query, key, value, attention_mask, scaling=None, sliding_window=None, **kwargs):  # type: ignore[no-untyped-def]
    """softmax(C(n) q.k scaling) v in float64, the mask as sdpa takes it, C only where there is no window."""
    state: Scale = module.sweep_scale
    state.calls += 1
    extra = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if extra:
        raise NoReference(f"attention takes {extra[0]}")
    groups = query.shape[1] // key.shape[1]
    q = query.double()
    k, v = (t.double().repeat_interleave(groups, dim=1) for t in (key, value))
    rows, keys = q.shape[2], k.shape[2]
    causal = torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows)
    seen = causal[None, None]
    bias = torch.zeros(1, 1, rows, keys, dtype=torch.float64)
    if attention_mask is not None:
        is_bool = attention_mask.dtype == torch.bool
        seen = attention_mask if is_bool else attention_mask > -1e4
        bias = bias if is_bool else attention_mask.double().clamp(min=-1e4)
    types = getattr(getattr(module, "config", None), "layer_types", None)
    kind = str(types[module.layer_idx]) if types and hasattr(module, "layer_idx") else ""
    if state.s is not None and not sliding_window and not re.search("sliding|chunked|local", kind):
        n = seen[:, :1].sum(-1).clamp(min=1).double()
        q = q * (state.s * n.log())[..., None]
    scores = (q @ k.transpose(-1, -2)) * (q.shape[-1] ** -0.5 if scaling is None else scaling) + bias
    weights = scores.masked_fill(~seen, -math.inf).softmax(-1).nan_to_num()
    return (weights @ v).transpose(1, 2).to(query.dtype), weights


AttentionInterface.register(FLOAT64, float64_attention)
AttentionMaskInterface.register(FLOAT64, sdpa_mask)


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
            measured = {key: line for key, line in part.set_index(["layer", "head"]).iterrows()}
            row = len(prompt.ids) - 1 - prompt.answer_length
            for layer, true in zip(layers, sorted(maps), strict=True):
                weights = maps[true][:, row].double()
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
            same("layer numbers", layers, sorted(maps))
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
        near("largest change of a logit", float((after - self.reference.logits(ids)).abs().max()), 0, 1e-4)
        same("attention implementation", self.model.config._attn_implementation, self.reference.pristine.config._attn_implementation)
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
        """Return how each probe ends: right, refused, finite, no reference, WRONG or traceback, each with its reason."""
        return {name: outcome(probe) for name, probe in self.probes().items()}


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
        at = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
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


FAULTS = ("WRONG", "traceback")


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, dict[str, str]]]:
    lines: dict[str, dict[str, str]] = {}
    yield lines
    if path := os.environ.get("SWEEP_TABLE"):
        Path(path).write_text(written(lines))


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


def written(lines: dict[str, dict[str, str]]) -> str:
    """Return the table: a line for each type with a letter for each probe, then the reasons, then how many of each."""
    names = list(max(lines.values(), key=len))
    marks = {"right": "ok", "refused": "refused", "finite": "finite", "no reference": "no-ref", "WRONG": "WRONG", "traceback": "TRACE"}
    frame = pd.DataFrame(
        {name: {t: marks.get(line.get(name, "").partition(":")[0].partition(" (")[0], "") for t, line in lines.items()} for name in names}
    )
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
    print(written(lines))


if __name__ == "__main__":
    main()

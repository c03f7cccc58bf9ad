"""RULER by lm-eval beside ours, on one model: python benchmarks/ruler_agreement.py MODEL [LENGTH [PROMPTS [TASK,... [FOLDER]]]]

Of each of the six tasks that lm-eval can make without a download it takes the first prompts, has lm-eval write and score the answers,
and scores the very same prompts as the probe `ruler` does. Beside them the probe's own prompts, of all tasks. Needs lm-eval with
wonderwords and nltk (pip install "lm-eval[hf]" wonderwords nltk). What FOLDER has is not computed again. Prints a table.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ssmax_eval.data.ruler.prompts import RulerPrompt
from ssmax_eval.data.ruler.tasks import TASKS
from ssmax_eval.models.load import load_model, load_tokenizer
from ssmax_eval.models.sources import resolve
from ssmax_eval.probes.ruler.probe import RulerProbe, scored
from ssmax_eval.readers.transformers import TransformersReader

OFFLINE = ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "ruler_vt", "ruler_cwe", "ruler_fwe")


def by_lm_eval(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: str, length: int, count: int) -> Any:
    """Return lm-eval's prompts of a task, what it has the model write, and its scores."""
    import nltk

    nltk.data.find = lambda *arguments: None  # of the tasks in prose: else it looks for a download when it is imported
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        told = {"tokenizer": folder, "max_seq_lengths": [length]}
        # fwe's prompts are longer than it says, and max_length cuts what is too long
        model_type = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=2 * length)
        found = lm_eval.simple_evaluate(
            model=model_type, tasks=[task], limit=count, metadata=told, log_samples=True, bootstrap_iters=0
        )
    return [
        {
            "prompt": each["arguments"][0][0],
            "references": each["doc"]["outputs"],
            "written": each["resps"][0][0],
            "score": each[str(length)],
        }
        for each in found["samples"][task]
    ]


def by_us(reader: TransformersReader, task: str, samples: Any) -> Any:
    """Return what our scorer makes of lm-eval's prompts."""
    tokenizer, prompts = reader.tokenizer, []
    for each in samples:
        ids = tokenizer(each["prompt"]).input_ids
        spaces = "  " if task == "ruler_vt" else " "  # as its example has them
        answer = tokenizer(spaces + " ".join(each["references"]), add_special_tokens=False).input_ids
        where = dict.fromkeys(("needle_start", "needle_end", "value_start", "value_end", "realised_depth_percent"))
        prompts.append(
            RulerPrompt(
                [*ids, *answer], len(answer), "", "", "", question_start=len(ids), haystack_start=None, haystack_sentences=0,
                to_write=TASKS[task].to_write, references=tuple(each["references"]), **where,
            )
        )  # fmt: skip
    force = reader.in_memory(reader.answers, True) if TASKS[task].spelled else None
    write = reader.in_memory(reader.generate, True)
    return [one._asdict() for each in prompts for one in scored(force, write, [each])]


def of_ours(reader: TransformersReader, task: str, length: int, count: int) -> Any:
    """Return the probe's own rows."""
    probe = RulerProbe(tasks=(task,), context_lengths=(length,), trials=count)
    return [row for rows in probe(reader, batch_size=1) for row in rows]


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """Return what a file holds, or what is made and kept there."""
    if not path.exists():
        path.write_text(json.dumps(make()))
    return json.loads(path.read_text())


def difference(own: np.ndarray, theirs: np.ndarray) -> str:
    """Write the difference of two means with Welch's 95% interval; none where neither varies."""
    shift = f"{own.mean() - theirs.mean():+.2f}"
    if not own.var() + theirs.var():
        return shift
    found = stats.ttest_ind(own, theirs, equal_var=False).confidence_interval()
    return f"{shift} ({found.low:+.2f} to {found.high:+.2f})"


def main(reference: str, length: int, count: int, tasks: list[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    source = resolve(reference)
    model, tokenizer = load_model(source, dtype="float32", device="cpu")[0], load_tokenizer(source, False)
    reader = TransformersReader(model, tokenizer)
    print(
        "| task | prompts | equal scores | same text | settled | lm-eval's prompts | our prompts | ours minus theirs |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for task in tasks:
        name = f"{source.label}-{length}-{count}-{task}"
        rows = kept(folder / f"{name}-own.json", lambda: of_ours(reader, task, length, count))  # noqa: B023
        own = np.array([row["credit"] for row in rows])
        settled = sum(row["settled"] for row in rows)
        if task not in OFFLINE:
            print(f"| {task} | {len(own)} | – | – | {settled} | – | {own.mean():.2f} | – |", flush=True)
            continue
        theirs = kept(folder / f"{name}-lm-eval.json", lambda: by_lm_eval(model, tokenizer, task, length, count))  # noqa: B023
        again = kept(folder / f"{name}-again.json", lambda: by_us(reader, task, theirs))  # noqa: B023
        scores = np.array([each["score"] for each in theirs])
        equal = sum(abs(a["score"] - b["credit"]) < 1e-9 for a, b in zip(theirs, again, strict=True))
        # where an answer is settled nothing is written behind it
        same = sum(a["written"].startswith(b["predicted"]) for a, b in zip(theirs, again, strict=True))
        settled += sum(each["settled"] for each in again)
        print(
            f"| {task} | {len(theirs)}, {len(own)} | {equal} of {len(theirs)} | {same} of {len(theirs)} | {settled} | "
            f"{scores.mean():.2f} | {own.mean():.2f} | {difference(own, scores)} |", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    given = [*sys.argv[1:], *["", "1024", "10", ",".join(TASKS), "ruler-agreement"][len(sys.argv) - 1 :]]
    main(given[0], int(given[1]), int(given[2]), given[3].split(","), Path(given[4]))

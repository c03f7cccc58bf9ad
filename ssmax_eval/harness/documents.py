"""Prompts as lm-eval's documents: the native probes' own, built offline for the tokenizer of the model that is asked.

Each function is a `custom_dataset`: it takes what `--metadata` and `--model_args` say and returns {"test": documents,
"parameters": all that decided them}. Lengths, depths and trials are interleaved, so that the first N documents are balanced.
"""

import logging
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from ..data.chat import NONE as NO_CHAT
from ..data.chat import chat_asked
from ..data.documents import Documents, Window
from ..data.encoding import Encoder
from ..data.needles import Needle
from ..data.prompts import Prompt, sha256_of
from ..data.unknown import document_text, refuse_lost, refuse_unknown, texts_of
from ..data.vocabulary import CHOICES
from ..errors import UserError, nearest
from ..models.load import load_tokenizer
from ..models.shape import without_weights
from ..models.sources import ModelSource, on_disk
from ..probes.budget import cut_in_words, within
from ..probes.by_model import default_lengths, default_window
from ..probes.defaults import DEPTH_PERCENTS, DOCUMENTS, SEED, TEXT, TRIALS
from ..probes.needle.asked import needle_asked
from ..probes.needle.options import GridOptions
from ..probes.needle.plan import Sample
from ..probes.needle.probe import NeedleProbe

log = logging.getLogger("lm_eval.ssmax_eval")  # below lm-eval's own, so that it is shown as its messages are
Given = Mapping[str, Any]
Built = dict[str, Any]
SETTINGS = (
    "context_lengths depth_percents trials haystack task value needles seed plan text documents window limit_tokens "
    "needle question answer needle_file chat_template system"
).split()


def needle_prompts(*, one_length: int | None = None, with_mass: bool = False, **given: Any) -> Built:
    """Return the prompts of a needle grid. one_length: of a task which has but one. Raises UserError."""
    check_names(given)
    if one_length is not None and "context_lengths" in given:
        raise UserError(
            f"context_lengths {given['context_lengths']!r}: this task is for {one_length} tokens; take ssmax_needle for others"
        )
    task = str(given.get("task", Needle.task))
    words: dict[str, Any] = {name: text(given, name) for name in ("needle", "question", "answer", "needle_file")}
    if "task" in given and any(word is not None for word in words.values()):
        raise UserError(f"task {task!r}: a needle of your own asks its own question; take ssmax_needle for it")
    value, needles = str(given.get("value", Needle.value)), number(given, "needles", Needle.needles)
    own = needle_asked(GridOptions(**words, value=value, needles=needles))
    probe = NeedleProbe(
        context_lengths=(one_length,) if one_length else context_lengths(given),
        depth_percents=tuple(numbers(given, "depth_percents", float) or DEPTH_PERCENTS),
        trials=number(given, "trials", TRIALS),
        needle=own or Needle(task, value, needles),
        haystack=str(given.get("haystack", TEXT)) if task != "digits" else "digits",
        seed=number(given, "seed", SEED),
        limit_tokens=limit_tokens(given),
        attention_mass=with_mass,
        plan_version=number(given, "plan", NeedleProbe.plan_version),
        chat=chat_asked(text(given, "chat_template") or NO_CHAT, text(given, "system")),
    )
    if left := cut_in_words(probe):
        log.warning("%s", left)
    tokenizer = tokenizer_of(given)
    refuse_unknown(tokenizer, probe.needle)
    refuse_lost(tokenizer, texts_of(probe.needle, probe.source))
    docs = [needle_document(tokenizer, probe, sample) for sample in interleaved(probe)]
    return {"test": datasets.Dataset.from_list(docs), "parameters": {**probe.parameters(), **about(given)}}


def choice_prompts(**given: Any) -> Built:
    """Return the prompts of task choice, each with all that can be chosen, `gold` the right one's place. Raises UserError."""
    built = needle_prompts(**{**given, "task": "choice"})
    tokenizer = tokenizer_of(given)
    return {**built, "test": built["test"].map(lambda doc: with_choices(tokenizer, doc))}


def with_choices(tokenizer: PreTrainedTokenizerBase, doc: dict[str, Any]) -> Built:
    """Return a document's choices, each as an answer to the same context, and which of them is right."""
    made = []
    for word in CHOICES:
        answer = doc["answer"].replace(doc["expected"], word)
        adds = doc["chat"] is None  # a chat template brings its own
        ids = list(tokenizer(doc["context"] + answer, add_special_tokens=adds, verbose=False).input_ids)
        length = len(ids) - (doc["context_length"] - doc["answer_length"])
        made.append({"answer": answer, "answer_length": length, "prompt_sha256": sha256_of(ids), "ids": None})
    gold = CHOICES.index(doc["expected"])
    if made[gold]["prompt_sha256"] != doc["prompt_sha256"] or min(each["answer_length"] for each in made) < 1:
        raise UserError(
            f"tokenizer {type(tokenizer).__name__}: choices do not follow a question as tokens of their own"
        )
    return {"choices": made, "gold": gold}


def loss_documents(**given: Any) -> Built:
    """Return the same last `window` tokens of each document with shorter and longer context before them. Raises UserError."""
    check_names(given)
    lengths = sorted(set(context_lengths(given)))
    asked, limit = number(given, "documents", DOCUMENTS), limit_tokens(given)
    kept = within([Sample(length, 0.0, i) for i in range(asked) for length in lengths], limit)
    lengths, count = sorted({sample.context_length for sample in kept}), len({sample.trial for sample in kept})
    if limit is not None and len(kept) < asked * len(lengths):
        log.warning("limit tokens %d: %d of %d documents, context lengths %s", limit, count, asked, lengths)
    window = number(given, "window", min(default_window(models_of(given)), lengths[0] // 2))
    if not 1 <= window < lengths[0]:
        raise UserError(f"window {window}: allowed are 1 to {lengths[0] - 1}, less than the shortest context length")
    seed = number(given, "seed", SEED)
    source, tokenizer = Documents(str(given.get("text", TEXT))), tokenizer_of(given)
    refuse_lost(tokenizer, document_text(source))
    docs = []
    for i, whole in enumerate(source.windows(tokenizer, lengths[-1], count, seed)):
        for length in lengths:
            ids = ending(whole, length)
            prompt = Prompt(ids, window, "", "", "", None, None, None, None, None, len(ids) - window, None, 0)
            text = decoded(tokenizer, ids[whole.prefix : -window]), decoded(tokenizer, ids[-window:])
            docs.append(
                {"sample": f"{length}/{i}", "document": whole.name, "text": source.name, "seed": seed}
                | {"context_length": length, **asdict(prompt), "prompt_sha256": prompt.sha256}
                | {"context": text[0], "answer": text[1]}
            )
    parameters = {"context_lengths": lengths, "documents": count, "window": window, "text": source.name}
    parameters |= {"text_sha256": source.sha256, "seed": seed} | ({} if limit is None else {"limit_tokens": limit})
    return {"test": datasets.Dataset.from_list(docs), "parameters": {**parameters, **about(given)}}


def ending(whole: Window, length: int) -> list[int]:
    """Return a document's last tokens, what the tokenizer puts in front of every text before them: `length` ids in all."""
    return whole.ids[: whole.prefix] + whole.ids[len(whole.ids) - length + whole.prefix :]


def interleaved(probe: NeedleProbe) -> list[Sample]:
    """Return a grid's samples so that in the first N, for every N, counts of lengths differ by one at most, and so do those of depths."""
    plan, depths = [sample for sample in probe.plan() if sample.control is None], probe.depth_percents
    lengths, trials = sorted({sample.context_length for sample in plan}), len({sample.trial for sample in plan})
    both = math.lcm(len(lengths), len(depths))  # after so many, the same pairs would come again
    cells = len(lengths) * len(depths)
    return [
        Sample(lengths[j % len(lengths)], depths[(j + j // both) % len(depths)], trial)
        for trial in range(trials)
        for j in range(cells)
    ]


def needle_document(tokenizer: PreTrainedTokenizerBase, probe: NeedleProbe, sample: Sample) -> dict[str, Any]:
    """Return a native prompt as text, cut where its answer's tokens begin, with all that its native row says of it.

    Its ids go along where encoding the text would give others: the empty lines that fill up ABCDigits with some tokenizers,
    and what a tokenizer puts behind every text.
    """
    prompt = probe.prompt(tokenizer, sample)
    encoder = Encoder(tokenizer, ".", " ")
    own = prompt.ids[len(encoder.prefix) if prompt.chat is None else 0 :]
    context, answer = encoder.decode(own[: -prompt.answer_length]), encoder.decode(own[-prompt.answer_length :])
    ids = None if tokenizer(context + answer, verbose=False).input_ids == prompt.ids else prompt.ids
    return {**probe.row(sample, prompt, {}), **asdict(prompt), "ids": ids, "context": context, "answer": answer}


def decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return Encoder(tokenizer, ".", " ").decode(ids)


def source_of(given: Given) -> ModelSource | None:
    """Return the model that `--model_args pretrained=` names, if it lies on this disk; what a backend gets elsewhere is its own."""
    try:
        return on_disk(str(given.get("pretrained")))
    except UserError:
        return None  # a folder that is no checkpoint to us, but perhaps to the backend


def tokenizer_of(given: Given) -> PreTrainedTokenizerBase:
    """Return the tokenizer of `tokenizer` or `pretrained` (a name, or a tokenizer itself). Raises UserError where none is named."""
    named = given.get("tokenizer") or given.get("pretrained") or given.get("model")
    if isinstance(named, PreTrainedTokenizerBase):
        return named
    if not isinstance(named, str) or not named:
        raise UserError(
            "tokenizer: the prompts have exactly as many tokens as asked for, so they need one; "
            "put pretrained=MODEL into --model_args or tokenizer=MODEL into --metadata"
        )
    trusted = given.get("trust_remote_code") is True
    source = source_of({"pretrained": named})
    if source is not None:
        return load_tokenizer(source, trusted)
    try:
        return AutoTokenizer.from_pretrained(named, trust_remote_code=trusted)
    except Exception as error:  # the libraries below raise anything
        raise UserError(f"tokenizer {named!r}: cannot be loaded ({' '.join(str(error).split())[:200]})") from error


def about(given: Given) -> dict[str, Any]:
    """Return what the run's records should tell of the model beside its arguments: its name and the mechanism it carries."""
    source = source_of(given)
    entry = source.config().get("ssmax") if source else None
    mechanism = entry.get("attention") if isinstance(entry, dict) else "softmax"
    return {"model": source.label, "model_attention": mechanism} if source else {}


def context_lengths(given: Given) -> tuple[int, ...]:
    """Return the lengths asked for; by default what the native probes take for this model."""
    if asked := numbers(given, "context_lengths", int):
        return tuple(asked)
    return default_lengths(models_of(given), given.get("trust_remote_code") is True)


def models_of(given: Given) -> list[Any]:
    """Return the model whose shape decides defaults: on this disk, or built from its config as a hub has it; none where neither tells."""
    named = given.get("pretrained")
    if not isinstance(named, str) or source_of(given):
        return [named] if isinstance(named, str) else []
    try:
        trusted = given.get("trust_remote_code") is True
        return [(without_weights(AutoConfig.from_pretrained(named, trust_remote_code=trusted), trusted), None)]
    except Exception:  # a name that means something to its backend alone
        return []


def text(given: Given, name: str) -> str | None:
    """Return a setting that is text; None where it is not given."""
    return None if given.get(name) is None else str(given[name])


def limit_tokens(given: Given) -> int | None:
    return None if given.get("limit_tokens") is None else number(given, "limit_tokens", 0)


def check_names(given: Given) -> None:
    """Raise UserError for a setting that is none of ours, where --metadata tells, and for one that is nearly ours: it would be ignored."""
    said = metadata_said()
    for name in given:
        if name in SETTINGS or name in ("tokenizer", "pretrained", "model"):
            continue
        near = nearest(name.replace("-", "_"), SETTINGS, 0.6 if name in said else 0.85)
        if near or name in said:
            raise UserError(
                f"metadata {name!r}: not a setting{near or f'; allowed are {chr(44).join(SETTINGS)},tokenizer'}"
            )


def metadata_said() -> set[str]:
    """Return the names that lm-eval's command line, if that is what runs, has in --metadata for our tasks alone.

    A task is given them mixed with the model's arguments, which can be anything; and settings of other tasks are theirs.
    """
    if not {"lm_eval", "lm-eval"} & {*Path(sys.argv[0]).with_suffix("").parts[-2:]}:
        return set()
    from lm_eval._cli import HarnessCLI

    try:
        said = HarnessCLI().parse_args()
    except SystemExit:
        return set()
    tasks = [name for part in getattr(said, "tasks", None) or [] for name in str(part).split(",")]
    ours = bool(tasks) and all(name.startswith("ssmax_") for name in tasks)
    return {*(getattr(said, "metadata", None) or {})} if ours else set()


def numbers(given: Given, name: str, kind: type[int] | type[float]) -> list[Any]:
    """Return a setting that is one number, a list of them, or text with commas; [] where it is not given."""
    value = given.get(name)
    if value is None:
        return []
    parts = value.split(",") if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else [value]
    try:
        found = [kind(part) for part in parts]
        if not found or any(
            isinstance(part, bool) or float(part) != each for part, each in zip(parts, found, strict=True)
        ):
            raise ValueError(value)
    except (TypeError, ValueError) as error:
        word = "whole numbers" if kind is int else "numbers"
        raise UserError(f"{name} {value!r}: allowed are {word}, one or a list: {name}=[512,1024]") from error
    return found


def number(given: Given, name: str, default: int) -> int:
    """Return a setting that is one whole number. Raises UserError."""
    found = numbers(given, name, int) or [default]
    if len(found) != 1:
        raise UserError(f"{name} {given[name]!r}: allowed is one whole number")
    return int(found[0])

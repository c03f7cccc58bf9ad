"""Our lm-eval tasks: the native probe's prompts and verdicts on any backend, and guards against lm-eval's silent errors."""

import collections
import json
import logging

import pytest
import torch
from architectures import build_small
from conftest import make_tokenizer
from harnessed import HFLM, Instance, SSMaxLM, TaskManager, evaluate, get_model, metrics, ours, stock, tasks, tasks_path
from tiny import build

from ssmax_eval.data.needles import Needle
from ssmax_eval.errors import UserError
from ssmax_eval.harness.documents import interleaved, loss_documents, needle_prompts
from ssmax_eval.harness.requests import EXACT, prompt_of
from ssmax_eval.models.sources import BUNDLED
from ssmax_eval.probes.needle.probe import NeedleProbe
from ssmax_eval.readers.nll import token_nll
from ssmax_eval.readers.snapshots import LEAST
from ssmax_eval.readers.transformers import TransformersReader

pytestmark = pytest.mark.filterwarnings("ignore")
GRID = {"context_lengths": [96, 160], "depth_percents": [0, 50, 100], "trials": 2}
NAMES = [
    "ssmax_needle",
    "ssmax_multikey",
    "ssmax_digits",
    "ssmax_loss",
    "ssmax_attention_mass",
    "ssmax_longctx",
    "ssmax_choice",
]
NAMES += [f"ssmax_needle_{512 << i}" for i in range(7)]


def native(lm, **grid):
    """Return the native probe's rows on a loaded model, by prompt."""
    probe = NeedleProbe(**{key: tuple(value) if isinstance(value, list) else value for key, value in grid.items()})
    return {row["prompt_sha256"]: row for rows in probe(TransformersReader(lm.model, lm.tokenizer)) for row in rows}


def check_verdicts(lm, folder, rows, nll, **grid):
    """Compare sample by sample what a backend says in lm-eval with the native probe's rows of the same model and grid."""
    samples = evaluate(lm, "ssmax_needle", pretrained=str(folder), **grid)["samples"]["ssmax_needle"]
    assert sorted(sample["doc"]["prompt_sha256"] for sample in samples) == sorted(rows)
    for sample in samples:
        row = rows[sample["doc"]["prompt_sha256"]]
        assert sample["acc"] == row["correct"], row["sample"]
        assert sample["nll"] == pytest.approx(row["answer_nll"], abs=nll)


def check_pair(name, **grid):
    """Compare on a bundled model in float32, through lm-eval's own model type and ours; return which verdicts there were."""
    rows = native(ours(BUNDLED / name, dtype="float32"), **grid)
    for make in (stock, ours):
        check_verdicts(make(BUNDLED / name, dtype="float32", batch_size=2), BUNDLED / name, rows, 1e-3, **grid)
    return [row["correct"] for row in rows.values()]


PAIR = pytest.mark.parametrize("name", ["softmax-bible-2m", "ssmax-bible-2m"])


@PAIR
def test_verdicts_are_the_native_probes_sample_by_sample(name):
    """One right and one wrong answer for softmax, both right for SSMax."""
    verdicts = check_pair(name, context_lengths=[128, 2048], depth_percents=[0], trials=1)
    assert verdicts == [True, name == "ssmax-bible-2m"]


@pytest.mark.slow
@PAIR
def test_verdicts_on_a_larger_grid(name):
    verdicts = check_pair(name, context_lengths=[256, 1024, 2048], depth_percents=[0, 25, 50, 75, 100], trials=1)
    assert any(verdicts)
    assert not all(verdicts) or name == "ssmax-bible-2m"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_verdicts_on_smollm2(dtype, smollm2, tmp_path):
    """A pretrained model of other code, saved by transformers. In bfloat16 lm-eval rounds its log-probabilities to that, we do not.

    lm-eval reads every prompt whole. Forked reading, ours in lm-eval too, rounds otherwise in bfloat16: there whole rows are held
    beside lm-eval's own reading, forked ones beside ours.
    """
    smollm2[0].save_pretrained(tmp_path)
    smollm2[1].save_pretrained(tmp_path)
    grid = {"context_lengths": [128, 256], "depth_percents": [0, 50, 100], "trials": 1}
    read = {}
    for make in (stock, ours):
        whole = 512 if make is stock and dtype == "bfloat16" else None
        if whole not in read:
            read[whole] = native(ours(tmp_path, dtype=dtype), **grid, chunk=whole)
        rows = read[whole]
        rounding = 0.2 if make is stock and dtype == "bfloat16" else 2e-3
        check_verdicts(make(tmp_path, dtype=dtype, batch_size=2), tmp_path, rows, rounding, **grid)
    assert any(row["correct"] for row in rows.values())


@pytest.mark.slow
@PAIR
def test_is_greedy_of_stock_is_our_correct_on_many(name):
    """560 prompts a model: lm-eval's own way from text to verdict (loglikelihood), without any code of ours."""
    lm = stock(BUNDLED / name, dtype="float32", max_length=2048, batch_size=8)
    grid = {"context_lengths": [128, 256, 512, 1024], "depth_percents": [0, 25, 50, 75, 100], "trials": 28}
    loaded = tasks("ssmax_needle", pretrained=str(BUNDLED / name), **grid)["tasks"]["ssmax_needle"]
    loaded.build_all_requests()
    rows = native(lm, **grid)
    theirs = lm.loglikelihood(loaded.instances, disable_tqdm=True)
    correct = [rows[each.doc["prompt_sha256"]]["correct"] for each in loaded.instances]
    assert len(correct) == 560
    assert set(correct) == {True, False} or name == "ssmax-bible-2m"
    assert [greedy for _, greedy in theirs] == correct


def test_any_tokenizers_ids_are_the_native_ones(any_tokenizer, monkeypatch):
    """What reaches a backend's scoring, whatever the tokenizer: BOS or none, digits apart or merged, GPT-2's, Llama 3's, Qwen 3's."""
    model = build("Llama", vocab_size=len(any_tokenizer), hidden_size=8, head_dim=2, max_position_embeddings=2048)
    lm = stock(model, tokenizer=any_tokenizer)
    sent = []
    monkeypatch.setattr(lm, "_loglikelihood_tokens", lambda pairs: sent.extend(pairs) or [(-1.0, False)] * len(pairs))
    for task in ("single", "multikey", "digits"):
        sent.clear()
        docs = needle_prompts(tokenizer=any_tokenizer, **GRID | {"task": task, "context_lengths": [256, 320]})["test"]
        lm.exact_loglikelihood([Instance(EXACT, doc, (doc["context"], doc["answer"]), 0, ("t", 0, 1)) for doc in docs])
        probe = NeedleProbe((256, 320), (0.0, 50.0, 100.0), 2, Needle(task), "text" if task != "digits" else "digits")
        expected = [probe.prompt(any_tokenizer, sample) for sample in interleaved(probe)]
        assert [context + answer for _, context, answer in sent] == [prompt.ids for prompt in expected]
        assert [len(answer) for *_, answer in sent] == [prompt.answer_length for prompt in expected]
        if task != "digits":  # text that needs no ids beside it
            assert not any(doc["ids"] for doc in docs)
            assert {doc["expected"] for doc in docs} == {doc["answer"].strip() for doc in docs}


def test_other_ids_are_an_error(checkpoint, tmp_path):
    """A model that adds a BOS of its own, and one with another tokenizer than its task."""
    bos = make_tokenizer("bos")
    with pytest.raises(UserError, match="makes 97 tokens of it, not the 96 .* let add_bos_token in --model_args be"):
        evaluate(stock(checkpoint, tokenizer=bos), "ssmax_needle", pretrained=str(checkpoint), **GRID)
    with pytest.raises(UserError, match="give task and model one tokenizer"):
        evaluate(stock(checkpoint), "ssmax_needle", tokenizer=str(BUNDLED / "ssmax-bible-2m"), **GRID)


@pytest.mark.parametrize(
    ("lengths", "depths"),
    [([96], [0, 50]), ([96, 160], [0, 50]), ([96, 160, 200], [0, 50, 100]), (range(96, 102), [0, 9, 50, 60])],
)
def test_trap_17_limit_takes_a_balanced_part(lengths, depths):
    probe = NeedleProbe(tuple(lengths), tuple(depths), 2)
    order = interleaved(probe)
    assert sorted(order) == sorted(probe.plan())
    for n in range(1, len(order) + 1):
        for part, values in ((0, lengths), (1, depths)):
            counts = collections.Counter(sample[part] for sample in order[:n])
            assert max(counts.values()) - min(counts[value] for value in values) <= 1, (n, part)


def test_trap_17_a_prompt_that_would_be_cut_is_an_error(checkpoint):
    for make in (stock, ours):
        with pytest.raises(UserError, match="prompts of 160 tokens: the model's max_length is 128, .*max_length=160"):
            evaluate(make(checkpoint, max_length=128), "ssmax_needle", pretrained=str(checkpoint), **GRID)
        assert metrics(
            evaluate(make(checkpoint, max_length=160), "ssmax_needle", 2, pretrained=str(checkpoint), **GRID),
            "ssmax_needle",
        )


def test_trap_17_a_length_that_nobody_set_follows_the_prompts(tmp_path, tokenizer):
    """RoPE has no last position, learned positions do."""
    for architecture in ("Llama", "GPT2"):
        build(architecture, vocab_size=1024, max_position_embeddings=128, n_positions=128).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        lm, grid = stock(tmp_path), {"pretrained": str(tmp_path), **GRID}
        if architecture == "GPT2":
            with pytest.raises(UserError, match="has positions for 128 tokens"):
                evaluate(lm, "ssmax_needle", **grid)
            continue
        check_verdicts(lm, tmp_path, native(lm, **GRID), 1e-4, **GRID)
        assert lm.max_length == 128  # other tasks keep the length they had


def test_trap_17_metrics_by_length_are_of_their_own_documents(checkpoint):
    results = evaluate(stock(checkpoint), "ssmax_needle", pretrained=str(checkpoint), **GRID)
    found = metrics(results, "ssmax_needle")
    assert {"acc", "nll", "acc_96", "acc_160"} == {name for name in found if "stderr" not in name}
    assert all(isinstance(value, float) for value in found.values())  # lm-eval writes N/A where it knows no stderr
    for sample in results["samples"]["ssmax_needle"]:
        own, other = sorted([96, 160], key=lambda length: length != sample["doc"]["context_length"])
        assert sample[f"acc_{own}"] == sample["acc"]
        assert f"acc_{other}" not in sample


def test_trap_17_no_stale_requests_from_another_setting(checkpoint, tmp_path, monkeypatch):
    """lm-eval's request cache knows a task's name only; ours neither fill it nor read it."""
    monkeypatch.setattr("lm_eval.caching.cache.PATH", str(tmp_path / "cache"))
    for seed in (0, 1):
        task = tasks("ssmax_needle", pretrained=str(checkpoint), seed=seed, **GRID)["tasks"]["ssmax_needle"]
        task.build_all_requests(cache_requests=True)
        assert {request.doc["seed"] for request in task.instances} == {seed}
    assert not (tmp_path / "cache").exists()


def test_trap_17_yaml_of_every_task_is_found():
    """A broken file would just not be in the list."""
    manager = TaskManager(include_path=str(tasks_path()), include_defaults=False)
    assert sorted(NAMES) == manager.all_tasks
    files = {file.stem for file in tasks_path().glob("*.yaml")}
    assert files == set(NAMES)


def test_the_tasks_of_one_length_have_that_length(checkpoint):
    given = {"pretrained": str(checkpoint), "trials": 1, "depth_percents": [50]}
    loaded = tasks("ssmax_longctx", **given)
    assert len(loaded["tasks"]) == 7
    for name, task in loaded["tasks"].items():
        assert {doc["context_length"] for doc in task.eval_docs} == {int(name.removeprefix("ssmax_needle_"))}
    with pytest.raises(UserError, match="this task is for 512 tokens; take ssmax_needle"):
        tasks("ssmax_longctx", context_lengths=[96], **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"context_length": 512}, "metadata 'context_length': not a setting; did you mean context_lengths?"),
        ({"context_lengths": "many"}, "context_lengths 'many': allowed are whole numbers"),
        ({"context_lengths": [96.5]}, "allowed are whole numbers"),
        ({"context_lengths": []}, "allowed are whole numbers"),
        ({"context_lengths": [20]}, "context length 20: shorter than needle, question and answer"),
        ({"trials": 0}, "trials 0: allowed are 1 to"),
        ({"trials": [1, 2]}, "allowed is one whole number"),
        ({"depth_percents": [101]}, "depth percent 101"),
        ({"task": "triple"}, "task 'triple': allowed are single"),
        ({"haystack": "nowhere"}, "no such file"),
        ({"pretrained": "no/such"}, "tokenizer 'no/such': cannot be loaded"),
        ({"pretrained": None}, "tokenizer: the prompts have exactly as many tokens"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(given, message, checkpoint):
    with pytest.raises(UserError, match=message):
        needle_prompts(**{"pretrained": str(checkpoint), **GRID, **given})


def test_options_that_would_change_prompts_are_an_error(checkpoint):
    task = tasks("ssmax_needle", pretrained=str(checkpoint), **GRID)["tasks"]["ssmax_needle"]
    with pytest.raises(UserError, match="exactly as many tokens as asked for; leave --system_instruction out"):
        task.build_all_requests(system_instruction="x")
    with pytest.raises(UserError, match="brings no chat template; leave --apply_chat_template out"):
        task.build_all_requests(apply_chat_template=True)


def test_a_score_that_is_none_is_an_error(checkpoint):
    task = tasks("ssmax_needle", pretrained=str(checkpoint), **GRID)["tasks"]["ssmax_needle"]
    with pytest.raises(UserError, match="not finite, which is a failure and not a wrong answer"):
        task.process_results(task.eval_docs[0], [(float("nan"), False)])


def test_loss_is_of_the_same_tokens_with_more_and_less_before_them(checkpoint):
    lm = ours(checkpoint)
    grid = {"context_lengths": [64, 128], "documents": 3, "window": 32, "pretrained": str(checkpoint)}
    results = evaluate(lm, "ssmax_loss", **grid)
    docs = loss_documents(**grid)["test"]
    longest = {doc["document"]: doc["ids"] for doc in docs if doc["context_length"] == 128}
    for sample in results["samples"]["ssmax_loss"]:
        doc = sample["doc"]
        assert doc["ids"] == longest[doc["document"]][-doc["context_length"] :]
        nll = token_nll(lm.model, torch.tensor([doc["ids"]]))[0, -32:].mean()
        assert sample["nll"] == pytest.approx(float(nll), abs=1e-4)
    assert {"nll_64", "nll_128"} <= metrics(results, "ssmax_loss").keys()
    theirs = metrics(evaluate(stock(checkpoint), "ssmax_loss", **grid), "ssmax_loss")
    assert theirs["nll_128"] == pytest.approx(metrics(results, "ssmax_loss")["nll_128"], abs=1e-4)


def test_attention_masses_are_the_native_ones_and_stock_refuses(checkpoint):
    lm = ours(checkpoint)
    grid = {"pretrained": str(checkpoint), **GRID}
    samples = evaluate(lm, "ssmax_attention_mass", **grid)["samples"]["ssmax_attention_mass"]
    rows = native(lm, attention_mass=True, **GRID)
    for sample in samples:
        row, found = rows[sample["doc"]["prompt_sha256"]], json.loads(sample["resps"][0][0])
        assert torch.allclose(torch.tensor(found["mass_answer"]), torch.tensor(row["mass_answer"]), atol=1e-5)
        assert sample["mass_answer"] == pytest.approx(max(max(heads) for heads in row["mass_answer"]), abs=1e-5)
    with pytest.raises(
        UserError, match="ssmax_attention_mass: model type HFLM does not show its attention; run it with"
    ):
        evaluate(stock(checkpoint), "ssmax_attention_mass", **grid)


def test_a_prompts_ids_are_checked_by_their_hash(checkpoint):
    lm = stock(checkpoint)
    doc = dict(needle_prompts(pretrained=str(checkpoint), **GRID)["test"][0])
    assert prompt_of(lm, doc).sha256 == doc["prompt_sha256"]
    with pytest.raises(UserError, match="or others"):
        prompt_of(lm, doc | {"context": doc["context"].replace("magic", "secret")})


def test_a_backend_that_takes_text_only_gets_text(checkpoint, caplog):
    """As lm-eval's own dummy, and an API without a tokenizer of its own."""
    logging.getLogger("lm_eval").propagate = True
    dummy = get_model("dummy")()
    dummy.loglikelihood = lambda requests: [(-1.0, True) for each in requests]
    results = evaluate(dummy, "ssmax_needle", 4, pretrained=str(checkpoint), **GRID)
    assert metrics(results, "ssmax_needle")["nll"] == 1
    assert "DummyLM shows no token ids: prompts are sent as text, unchecked" in caplog.text


def test_seams_of_lm_eval(checkpoint):
    """What of lm-eval we lean on, by name; and why its own log-likelihood is not what our tasks ask for."""
    for name in (
        "_get_config",
        "_get_backend",
        "_create_tokenizer",
        "_create_model",
        "_detect_batch_size",
        "_loglikelihood_tokens",
    ):
        assert callable(getattr(HFLM, name)), name
    lm = stock(checkpoint)
    assert lm._max_length is None
    assert lm.max_length == 512
    doc = needle_prompts(pretrained=str(checkpoint), **GRID)["test"][0]
    context, answer = lm._encode_pair(doc["context"], doc["answer"])
    assert doc["context"].endswith(": ")
    assert len(answer) == doc["answer_length"] + 1  # the space is scored too
    assert context + answer == prompt_of(lm, doc).ids


def test_defaults_of_lm_evals_entry_points_change_no_prompt(checkpoint):
    """simple_evaluate's own, evaluate's own, and the command line's; what would change a prompt is refused, whatever says it."""
    from lm_eval import evaluator

    lm = ours(checkpoint, dtype="float32")
    simple = {"tasks": ["ssmax_needle"]}

    def simply(**options):
        manager = TaskManager(
            include_path=str(tasks_path()), include_defaults=False, metadata={"pretrained": str(checkpoint), **GRID}
        )
        return evaluator.simple_evaluate(lm, task_manager=manager, **simple, **options)

    expected = metrics(evaluate(lm, "ssmax_needle", pretrained=str(checkpoint), **GRID), "ssmax_needle")
    assert metrics(simply(), "ssmax_needle") == expected
    assert metrics(simply(num_fewshot=0), "ssmax_needle") == expected
    with pytest.raises(UserError, match="leave --num_fewshot 2 out"):
        simply(num_fewshot=2)
    with pytest.raises(UserError, match="leave --system_instruction out"):
        simply(system_instruction="Be brief.")


def test_an_api_is_told_the_length_that_it_takes():
    """lm-eval keeps one token of an API's max_length for itself."""
    from lm_eval.models.api_models import TemplateAPI

    from ssmax_eval.harness.requests import room_for

    class Backend(TemplateAPI):
        max_length = 255

        def __init__(self):
            pass

        _create_payload = parse_logprobs = parse_generations = lambda *_: None

    with (
        pytest.raises(UserError, match="the model's max_length is 255, .*put max_length=257 "),
        room_for(Backend(), 256),
    ):
        pass


def test_model_args_that_name_no_model():
    with pytest.raises(UserError, match="add --model_args pretrained=MODEL"):
        SSMaxLM()


def test_a_trials_prompts_are_read_forked(checkpoint):
    """Of several tasks together: native verdicts, nll and masses, fewer tokens; recorded, and whole where it does not pay."""
    lm, read = ours(checkpoint, max_length=2048), []
    lm.model.register_forward_pre_hook(
        lambda m, given, options: read.append(options["input_ids"].numel()), with_kwargs=True
    )
    grid = {"context_lengths": [256, 384], "depth_percents": [0, 25, 50, 75, 100], "trials": 2}
    for name, masses in (("ssmax_needle", False), ("ssmax_attention_mass", True)):
        rows = native(lm, attention_mass=masses, **grid)
        lm.reader.forking(384)
        read.clear()
        samples = evaluate(lm, name, pretrained=str(checkpoint), **grid)["samples"][name]
        assert len(samples) == 20
        # masses are proved first, by forwards of their own
        assert masses or sum(read) < 0.8 * sum(sample["doc"]["context_length"] for sample in samples)
        for sample in samples:
            row = rows[sample["doc"]["prompt_sha256"]]
            assert (sample["acc"], sample["nll"]) == (row["correct"], pytest.approx(row["answer_nll"], abs=1e-4))
            if masses:
                found = json.loads(sample["resps"][0][0])
                assert torch.allclose(torch.tensor(found["mass_answer"]), torch.tensor(row["mass_answer"]), atol=1e-5)
        assert lm.setting["preflight"]["forked"] == "as whole"
    read.clear()
    evaluate(lm, "ssmax_needle", pretrained=str(checkpoint), **grid | {"depth_percents": [0]})
    assert sum(read) == sum(2 * length - 2 for length in (256, 384))


def test_a_trials_prompts_are_read_from_snapshots(tokenizer, tmp_path, monkeypatch):
    """Of a recurrent model: native verdicts and nll, fewer tokens, and what was done recorded."""
    monkeypatch.setitem(LEAST, "cpu", 256)
    build_small("mamba2").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lm, read = ours(tmp_path, max_length=2048), []
    lm.model.register_forward_pre_hook(
        lambda m, given, options: read.append(options["input_ids"].numel()), with_kwargs=True
    )
    grid = {"context_lengths": [256, 384], "depth_percents": [0, 25, 50, 75, 100], "trials": 2}
    rows = native(lm, **grid)
    read.clear()
    samples = evaluate(lm, "ssmax_needle", pretrained=str(tmp_path), **grid)["samples"]["ssmax_needle"]
    assert lm.setting["preflight"]["forked"] == "as whole, by snapshots"
    assert sum(read) < 0.8 * sum(sample["doc"]["context_length"] for sample in samples)
    for sample in samples:
        row = rows[sample["doc"]["prompt_sha256"]]
        assert (sample["acc"], sample["nll"]) == (row["correct"], pytest.approx(row["answer_nll"], abs=1e-4))

"""Each named trap's test is seen to fail with its fault put in: the check that the checks can fail."""

import shutil
from pathlib import Path

import pytest
from faulty import run_test

import ssmax_eval
from ssmax_eval.harness import tasks_path
from ssmax_eval.mechanisms.registry import MECHANISMS

INTERFACE, MECHANISMS, ROPE = "attention/interface.py", "attention/laws.py", "models/rope.py"
LOAD, CHECKPOINT = "models/load.py", "models/checkpoint.py"
FAULTS = {
    # name of the trap's test: file, what stands there, the fault
    "test_trap_1_chunked": (
        INTERFACE,
        "return seen.sum(-1).clamp(min=1).float()",
        "return seen.sum(-1).clamp(min=1).float().amax(-1, True)",
    ),
    "test_trap_2_cached": (
        INTERFACE,
        "return seen.sum(-1).clamp(min=1).float()",
        "return torch.arange(1.0, rows + 1)[None]",
    ),
    "test_trap_2_models_off": (
        INTERFACE,
        "if not attention_modules(model) or not model._can_set_attn_implementation():",
        "if False:",
    ),
    "test_trap_3": (INTERFACE, "AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)", "pass"),
    "test_trap_4": (INTERFACE, 'IMPLEMENTATION = "ssmax_eval"', 'IMPLEMENTATION = "ssmax_flash"'),
    "test_trap_5_query": (
        INTERFACE,
        "(query * law(n)[..., None]).to(query.dtype)",
        "query * law(n)[..., None].to(query.dtype)",
    ),
    "test_trap_5_scale": (MECHANISMS, "return self.s.float()[:, None] * n.log()[:, None]", "return n.log()[:, None]"),
    "test_trap_6": (
        INTERFACE,
        "        return known[0]\n",
        "        return math.inf\n",
    ),
    "test_trap_7": (MECHANISMS, "return self.s.float()[:, None] * n.log()[:, None]", "return 1 + 0 * n[:, None]"),
    "test_trap_8_learned": (
        LOAD,
        "model_class.from_pretrained(source.path, **options)",
        'model_class.from_pretrained(source.path, **options)\n            attach(model, config.ssmax["attention"])',
    ),
    "test_trap_8_tensors": (LOAD, 'if of_law := [key for key in unexpected if ".ssmax." in key]:', "if of_law := []:"),
    "test_trap_8_a_law": (CHECKPOINT, '(*info["missing_keys"], *info["unexpected_keys"])', "()"),
    "test_trap_8_missing": (CHECKPOINT, '(*info["missing_keys"], *info["unexpected_keys"])', "()"),
    "test_first_weights": ("training/architecture.py", ", generator=generator)", ")"),
    "test_only_matrices": ("training/trainer.py", "parameter.ndim >= 2", "parameter.ndim >= 1"),
    "test_the_late_swap": ("training/trainer.py", "state.global_step >= self.first_step", "True"),
    "test_held_out": ("training/facts.py", "if city not in HELD_OUT_CITIES", ""),
    "test_a_run_that_was_killed": (
        "training/train.py",
        'train_sampling_strategy="sequential"',
        'train_sampling_strategy="sequential", ignore_data_skip=True',
    ),
    "test_every_answer": ("training/examples.py", "rng.uniform(at, 1)", "rng.uniform(0, 1)"),
    "test_trap_9_equal": (ROPE, "    parameters.update(new)", "    parameters.update(new, rope_theta=10_000.0)"),
    "test_trap_9_record": (ROPE, "(inv_freq[0].double() / inv_freq[last].double())", "(inv_freq[last].double())"),
    "test_trap_9_a_setting": (ROPE, "return not torch.equal(rotation(", "return True or not torch.equal(rotation("),
    "test_trap_10_dynamic_does_not": (ROPE, "if position_ids.min() != 0:", "if True:"),
    "test_trap_12_and_13": ("probes/head.py", "        return with_rows(output, head_rows)", "        return output"),
    "test_trap_13_full": (
        "probes/head.py",
        "rows = max(1, LOGITS_AT_ONCE // (len(model",
        "rows = max(10**9, LOGITS_AT_ONCE // (len(model",
    ),
    "test_trap_16_rows": ("probes/loss.py", "nll[start - 1 : end - 1]", "nll[start:end]"),
    "test_cached_rows": ("attention/recorder.py", "position = rows + (S - T)", "position = rows"),
    "test_rows_sum": ("attention/recorder.py", "<= position[:, None, :, None]", "<= position[:, None, :, None] + 1"),
    "test_trap_10_dynamic_rope_is_not": (ROPE, 'for word in ("dynamic", "longrope")', "for word in ()"),
    "test_chunks_score_as": (
        "probes/attention_mass.py",
        "Recorder(torch.tensor(rows) - start,",
        "Recorder(torch.tensor(rows),",
    ),
    "test_no_forward_reads": ("probes/scoring.py", "*(positions[0] - 1 for positions in read if positions)", "0"),
    "test_a_chunk_is_how": ("probes/needle.py", 'del parameters["chunk"]', 'parameters["chunk"]'),
    "test_out_of_memory_is_tried": ("probes/scoring.py", "self.chunk = smaller\n", "self.chunk, _ = None, smaller\n"),
    "test_the_mask_of_a_chunk": ("models/parts.py", "MASK_ENTRIES // length)", "length)"),
    "test_models_that_sdpa": (
        INTERFACE,
        "if capped or not model._supports_sdpa",
        "if False and not model._supports_sdpa",
    ),
    "test_operations_are_those": ("training/throughput.py", "3 * 2 * 2 * config", "2 * 2 * config"),
    "test_speed_is_of": ("training/throughput.py", 'if line["step"] >= recipe.short_steps', ""),
    "test_trap_15_an_edited": ("data/documents.py", "@dataclass(frozen=True, eq=False)", "@dataclass(frozen=True)"),
    "test_trap_15_every_parameter": ("probes/loss.py", '{"format": FORMAT, **parameters,', '{"format": FORMAT,'),
    "test_masses_equal_eagers_maps": (
        INTERFACE,
        "seen = Seen(query, key",
        "seen = Seen(query / (law(n)[..., None] if law is not None else 1), key",
    ),
    "test_trap_23": (
        INTERFACE,
        "attention_mask > BLOCKED",
        "attention_mask > torch.finfo(attention_mask.dtype).min / 2",
    ),
    "test_needle_and_loss_are": (INTERFACE, "    if not laws:\n", "    if False:\n"),
    "test_what_our_function_cannot": (
        "models/preflight.py",
        "    if not close(own, ours, model.dtype):",
        "    if False:",
    ),
    "test_models_that_are_not_the_same": ("models/parts.py", "if all(close(*pair", "if True or all(close(*pair"),
    "test_longrope_is_read_as": ("probes/scoring.py", "inputs - rows < switch < inputs", "False"),
    "test_logits_that_are_not_finite": ("probes/scoring.py", "    if not finite():", "    if False:"),
    "test_a_model_that_sees": ("models/preflight.py", "    refuse_unless_causal(model, ids)\n", ""),
    "test_layers_that_never_run": ("evaluate.py", "if name in called", ""),
    "test_every_chunk_up_to": ("probes/scoring.py", "if start else None", ""),
    "test_theta_factors_are_an_axis": (ROPE, "    parameters.update(new)", "    pass"),
    "test_texts_of_one_name": ("statistics/series.py", '"text", "text_sha256", ', '"text", '),
    "test_the_exponents_interval_is": ("statistics/heads.py", '"HC3", use_t=True', '"HC3", use_t=False'),
    "test_a_row_with_a_score": (
        "statistics/series.py",
        '(whole, has_mass, rows["error"].isna())',
        "(whole, has_mass, has_mass)",
    ),
    "test_trap_13_of_the_haystack": (
        "probes/scoring.py",
        "slice(-rows, None), **options)",
        "slice(None), **options)",
    ),
    "test_windows_of_a_file": ("data/prompts.py", "before.setstate(rng.getstate())", "pass"),
    "test_trap_14_exactly_l_tokens_and_true_spans": (
        "data/prompts.py",
        "question_start=len(ids) - len(tail)",
        "question_start=len(ids) - len(tail) - 1",
    ),
    "test_few_stretches": ("statistics/paired.py", "if len(sums) < FEWEST:", "if False:"),
    "test_strangers_are": ("statistics/paired.py", "if common.empty:", "balanced = [own, other]\n    if False:"),
    "test_the_sign_flip_test": ("statistics/paired.py", "chance[np.abs(totals) >= ", "chance[np.abs(totals) > "),
    "test_the_level_is_of": (
        "statistics/causes.py",
        'short.groupby([part[name] for name in (*TASK, "subject")])',
        "short.groupby(by)",
    ),
    "test_a_seed_counts_once": ("statistics/seeds.py", "first.setdefault(key, name)", "first[(*key, name)] = name"),
    "test_cells_have_wilsons": ("statistics/grids.py", '1 - CONFIDENCE, "wilson"', '1 - CONFIDENCE, "normal"'),
    "test_the_paired_interval_is_newcombes": ("statistics/paired.py", "max(excess - n / 2, 0)", "max(excess, 0)"),
    "test_mcnemar_is_statsmodels": (
        "statistics/paired.py",
        "binomtest(only, only + only_baseline)",
        'binomtest(only, only + only_baseline, alternative="greater")',
    ),
    "test_holm_is_over": ("statistics/paired.py", 'method="holm"', 'method="bonferroni"'),
    "test_prompts_of_one_haystack": ("statistics/clusters.py", 'if "haystack_start" not in rows or', "if True or"),
    "test_the_interval_of_a_rate": ("statistics/clusters.py", "if units < 2 or np.ptp(values) == 0:", "if units < 2:"),
    "test_trials_of_overlapping": ("statistics/clusters.py", "name.map(lambda each: joined.get(each, each))", "name"),
    "test_a_comparison_is_over": (
        "statistics/paired.py",
        "if part[cluster].duplicated()",
        "if part.index.duplicated()",
    ),
    "test_lengths_of_a_trial": ("statistics/reach.py", "(drawn_trials if by_trial else drawn)", "drawn"),
    "test_an_exponents_errors": ("statistics/heads.py", 'if line["plan"] != BY_TRIAL:', "if True:"),
    "test_plans_are_kept_apart": ("statistics/series.py", "rows = with_plan(", "rows = ("),
    "test_page_and_terminal": ("verdict.py", 'if not line["trials"]:\n        return told', "return told"),
    "test_only_prompts_scored_in_both": (
        "statistics/paired.py",
        'rows["control"].isna() & rows["correct"].notna()',
        'rows["correct"].notna()',
    ),
    "test_the_smallest_difference": ("statistics/paired.py", "beta.ppf(power, least,", "beta.ppf(power, least - 1,"),
    "test_effective_length_is": ("statistics/reach.py", "share * accuracy[:, :1]", "share"),
    "test_seeds_are_the_second": (
        "statistics/seeds.py",
        "stats.t.ppf((1 + CONFIDENCE) / 2, freedom)",
        "stats.norm.ppf((1 + CONFIDENCE) / 2)",
    ),
    "test_causes_rest_on": ("statistics/causes.py", "next((i for i, rank in enumerate(ranks) if rank), ", "min(0, "),
    "test_the_best_theta_of": ("statistics/rope.py", "ascending=[False, True]", "ascending=[True, True]"),
    "test_lengths_go_past": ("probes/defaults.py", "shortest << k", "longest >> k"),
    "test_lengths_end_where": ("probes/defaults.py", "    if ends:", "    if False:"),
    "test_a_limit_keeps_whole_trials": ("probes/budget.py", "limit_tokens // least", "1 + limit_tokens // least"),
    "test_only_what_is_left": ("cost.py", "if not plan.probe.has(sample, done):", "if True:"),
    "test_a_forwards_operations": ("models/shape.py", "4 * sum(pairs)", "2 * sum(pairs)"),
    "test_options_parameters_and": ("api.py", "trials: int = NeedleProbe.trials", "trials: int = 5"),
    "test_the_verdict_matches": ("verdict.py", "line = max(lines, key", "line = min(lines, key"),
    "test_trap_14_exactly": ("data/prompts.py", "else context_length - fixed", "else context_length - 200"),
    "test_trap_14_ids": (
        "data/encoding.py",
        '[f"{self.anchor}{self.joiner}{text}" for text in texts]',
        "[self.anchor + text for text in texts]",
    ),
    "test_trap_15_every_choice": ("evaluate.py", '"rope": asdict(rope),\n    }', "}"),
    "test_trap_15_other_weights": ("evaluate.py", '"fingerprint": each.fingerprint,\n        "dtype"', '"dtype"'),
    "test_trap_15_a_haystack": ("probes/needle.py", '"haystack_sha256": self.source.sha256', '"haystack_sha256": None'),
    "test_trap_15_failures": ("probes/scoring.py", '"correct": None,', '"correct": False,'),
    "test_trap_15_failed": (
        "statistics/grids.py",
        '"correct"].astype("Float64")',
        '"correct"].fillna(False).astype("Float64")',
    ),
    "test_trap_15_logits": ("probes/scoring.py", "if not torch.isfinite(logits).all():", "if False:"),
    "test_trap_17_limit": ("harness/documents.py", "(j + j // both) % len(depths)", "j % len(depths)"),
    "test_trap_17_a_prompt": (
        "harness/requests.py",
        "if own or not isinstance(model",
        "if False and not isinstance(model",
    ),
    "test_trap_17_a_length": ("harness/requests.py", "lm._max_length = tokens", "pass"),
    "test_trap_17_no_stale": ("harness/tasks.py", '"cache_requests": False, ', ""),
    "test_trap_17_a_response": ("harness/model.py", "if made_with != own:", "if False:"),
    "test_trap_17_metrics": ("harness/tasks.py", "{name}_{doc['context_length']}", "{name}_96"),
    "test_other_ids": ("harness/requests.py", 'if prompt.sha256 != doc["prompt_sha256"]:', "if False:"),
    "test_any_tokenizers_ids": (
        "harness/requests.py",
        "prompt.ids[-prompt.answer_length :]",
        "prompt.ids[-prompt.answer_length - 1 :]",
    ),
    "test_only_the_answers": (
        "harness/model.py",
        "< len({tuple(each.ids) for each",
        "<= len({tuple(each.ids) for each",
    ),
    "test_loss_is_of": (
        "harness/documents.py",
        "whole.ids[len(whole.ids) - length + whole.prefix :]",
        "whole.ids[whole.prefix : length]",
    ),
    "test_a_score_that_is": ("harness/tasks.py", "if not all(math.isfinite(value)", "if not all(True"),
    "test_laws_and_rope": ("harness/model.py", "rope.theta_factor, rope.theta,", "1.0, rope.theta,"),
    "test_verdicts_are_the": ("harness/tasks.py", "float(is_greedy)", "float(likelihood > -20)"),
    "test_trap_18": (
        "statistics/grids.py",
        'correct=rows["correct"].astype("Float64")',
        'correct=(rows["predicted"] == rows["expected"]).astype("Float64")',
    ),
}


# whose libraries a process of faulty.py could lack: without a fault they pass there
SOUND = ("test_first_weights", "test_the_exponents_interval_is", "test_theta_factors_are", "test_laws_and_rope")


def copied(folder):
    package = shutil.copytree(Path(ssmax_eval.__file__).parent, folder / "ssmax_eval")
    if not (package / "tasks").exists():  # in an installed package they are inside
        shutil.copytree(tasks_path(), folder / "tasks")
    return package


def file_of(test):
    (file,) = [file for file in Path(__file__).parent.glob("test_*.py") if f"def {test}" in file.read_text()]
    return file


@pytest.mark.slow
@pytest.mark.parametrize("test", SOUND)
def test_without_a_fault_the_tests_pass(test, tmp_path):
    copied(tmp_path)
    code, out = run_test(test, file_of(test), tmp_path)
    assert code in (0, 5), out[-2000:]  # 5: none left, for want of lm-eval


@pytest.mark.slow
@pytest.mark.parametrize("test", FAULTS)
def test_fault_is_caught(test, tmp_path):
    where, right, wrong = FAULTS[test]
    package = copied(tmp_path)
    source = (package / where).read_text()
    assert source.count(right) >= 1, f"{where} no longer holds {right!r}"
    (package / where).write_text(source.replace(right, wrong, 1))
    code, out = run_test(test, file_of(test), tmp_path)
    assert code == 1, f"the fault in {where} was not caught:\n{out[-2000:]}"
    assert " failed" in out
    assert "errors during collection" not in out

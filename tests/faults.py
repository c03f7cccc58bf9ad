"""The faults: for each trap's test, where the trap is and what the package does when it has stepped into it.

A function here is called in its seam's place, what stands there as its first argument (faulty.py); its name says the fault.
"""

import dataclasses
import math
import random
import re
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from faulty import Fault, like
from scipy import stats

from ssmax_eval.errors import UserError

FAULTS: dict[str, Fault] = {}  # by test


def fault(test: str, seam: str, swaps: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register what is decorated as the fault that a test sees."""

    def register(wrong: Callable[..., Any]) -> Callable[..., Any]:
        assert test not in FAULTS, test
        FAULTS[test] = Fault(test, seam, wrong, swaps)
        return wrong

    return register


# mechanisms


@fault("test_differential_is_transformers", "mechanisms.differential.Differential.join")
def heads_that_follow_each_other_are_a_pair(right, self, v):
    return torch.cat([v[:, 0::2], v[:, 1::2]], -1)


@fault("test_blocks_of_rows", "mechanisms.mechanism.chosen")
def rows_of_later_blocks_are_not_kept(right, kept, *rest):
    return right(kept, *rest) if kept is None else kept


@fault("test_what_swaps_a_mechanism", "mechanisms.attach.own_position")
def a_swap_forgets_the_models_position(right, model):
    return None


@fault("test_the_models_dropout", "mechanisms.interface.forward_of")
def dropout_ends_where_sdpa_does(right, *arguments, **options):
    return dataclasses.replace(right(*arguments, **options), dropout=0.0)


@fault("test_edited_helpers", "plans.code_of")
def a_users_code_decides_no_run(right, each, setting):
    return {"attention_source": None}


@fault("test_layers_are_told", "mechanisms.layers.layer_indices")
def layers_are_counted_from_one(right, model):
    return {name: index + 1 for name, index in right(model).items()}


@fault("test_trap_1_chunked", "mechanisms.seen.visible_keys")
def all_rows_of_a_forward_have_one_n(right, seen):
    n = right(seen)
    return n.amax(-1, True).expand_as(n)


@fault("test_trap_2_cached", "mechanisms.seen.visible_keys")
def n_starts_anew_in_each_forward(right, seen):
    return (seen.index + 1).float()[:, None]


def unless_it_says(words):
    """Return a fault that lets pass what a refusal would have named with these words."""

    def lets_it_pass(right, *arguments, **options):
        try:
            return right(*arguments, **options)
        except UserError as error:
            if words not in str(error):
                raise
            return None

    return lets_it_pass


fault("test_trap_2_models_off", "mechanisms.implementation.refuse_unsupported")(unless_it_says("attention interface"))
fault("test_models_that_sdpa", "mechanisms.implementation.refuse_unsupported")(unless_it_says("soft-capping"))


@fault("test_trap_3", "mechanisms.interface.AttentionMaskInterface._global_mapping", swaps=True)
def no_mask_function(right):
    return {name: function for name, function in right.items() if name != "ssmax_eval"}


@fault("test_trap_4", "mechanisms.interface.IMPLEMENTATION", swaps=True)
def a_name_that_transformers_takes_for_flash_attention(right):
    from ssmax_eval.mechanisms import interface

    interface.AttentionInterface.register("ssmax_flash", interface.attention_forward)
    interface.AttentionMaskInterface.register("ssmax_flash", interface.sdpa_mask)
    return "ssmax_flash"


@fault("test_trap_5_query", "mechanisms.scales.QueryScale.query")
def the_scale_is_rounded_too(right, self, q, seen):
    return q * self(seen.n)[..., None].to(q.dtype)


@fault("test_trap_5_scale", "mechanisms.scales.SSMax.forward")
def no_s(right, self, n):
    return n.log().expand(-1, self.layer.heads, -1)


@fault("test_trap_6", "mechanisms.layers.window_of")
def no_window(right, *arguments):
    return math.inf


@fault("test_trap_7", "mechanisms.scales.SSMax.forward")
def n_does_nothing(right, self, n):
    return torch.ones_like(n)


@fault("test_cached_rows", "mechanisms.seen.Seen.mask")
def chosen_rows_stand_at_the_first_keys(right, self):
    keys = torch.arange(self.forward.keys)
    return (keys <= self.index[..., None])[:, None] if isinstance(self.rows, torch.Tensor) else right(self)


@fault("test_rows_sum", "mechanisms.seen.Seen.mask")
def chosen_rows_see_the_next_key(right, self):
    keys = torch.arange(self.forward.keys)
    return (keys <= self.index[..., None] + 1)[:, None] if isinstance(self.rows, torch.Tensor) else right(self)


@fault("test_masses_equal_eagers_maps", "mechanisms.interface.recorded_of")
def queries_are_recorded_unscaled(right, mechanism, query, key, value, output, seen):
    from ssmax_eval.mechanisms.scales import QueryScale
    from ssmax_eval.mechanisms.seen import Seen

    if isinstance(mechanism, QueryScale):
        query = query / mechanism(Seen(seen.forward).n)[..., None]
    return right(mechanism, query, key, value, output, seen)


@fault("test_trap_23", "mechanisms.seen.visible")
def only_the_least_number_blocks(right, mask):
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


@fault("test_needle_and_loss_are", "setting.own_function")
def every_model_runs_through_our_function(right, model, carried):
    from ssmax_eval.mechanisms.implementation import our_function

    return our_function(model)


@fault("test_layers_that_never_run", "setting.Effective.that_ran")
def layers_that_are_there_ran(right, self, called):
    return self


# checkpoints


@fault("test_trap_8_learned", "models.load.load_checkpoint")
def a_mechanism_starts_anew_after_loading(right, *arguments, **options):
    from ssmax_eval.mechanisms.attach import attach

    model = right(*arguments, **options)
    if hasattr(model.config, "ssmax"):
        attach(model, model.config.ssmax["attention"])
    return model


fault("test_trap_8_tensors", "models.load.check_weights")(unless_it_says("names no attention mechanism"))
fault("test_trap_8_a_mechanism", "models.checkpoint.refuse_misfits")(unless_it_says("which does not fit"))
fault("test_trap_8_missing", "models.checkpoint.refuse_misfits")(unless_it_says("which does not fit"))


# position


@fault("test_trap_9_equal", "position.rope.scaled_parameters")
def theta_stays_in_what_is_built(right, *arguments):
    return right(*arguments) | {"rope_theta": 10_000.0}


@fault("test_theta_factors_are_an_axis", "position.rope.scaled_parameters")
def what_is_built_is_unscaled(right, parameters, *rest):
    return dict(parameters)


@fault("test_trap_9_record", "position.rotary.effective_theta")
def theta_upside_down(right, inv_freq):
    return 1 / right(inv_freq)


@fault("test_trap_9_a_setting", "position.rope.had_effect")
def everything_has_an_effect(right, *arguments):
    return True


@fault("test_trap_10_dynamic_does_not", "position.rope.restart_dynamic")
def nothing_is_forgotten(right, *arguments):
    return None


@fault("test_trap_10_dynamic_rope_is_not", "position.rotary.rope_that_turns")
def no_rope_turns(right, model):
    return None


# reading


@fault("test_trap_12_and_13", "readers.head.with_rows")
def every_row_reaches_the_head(right, output, rows):
    return output


@fault("test_trap_13_full", "readers.head.head_nll")
def all_logits_at_once(right, *arguments):
    from ssmax_eval.readers import head

    before, head.LOGITS_AT_ONCE = head.LOGITS_AT_ONCE, 2**60
    try:
        return right(*arguments)
    finally:
        head.LOGITS_AT_ONCE = before


@fault("test_trap_13_of_the_haystack", "readers.answers.logits_of")
def the_whole_prompt_reaches_the_head(right, model, ids, rows, **options):
    return right(model, ids, slice(None), **options)


@fault("test_chunks_score_as", "readers.answers.Recorder")
def rows_are_the_prompts_in_the_last_part_too(right, rows, reduce):
    return right(reduce.__self__.rows, reduce)


@fault("test_no_forward_reads", "readers.answers.last_part")
def the_last_part_is_all(right, row, positions):
    return 0


@fault("test_every_chunk_up_to", "readers.answers.last_part")
def nothing_is_read_ahead_too(right, row, positions):
    class Start(int):
        def __bool__(self):  # so that a cache of no tokens is made
            return True

    return Start(right(row, positions))


@fault("test_longrope_is_read_as", "readers.answers.rope_switch")
def no_answer_is_across_the_switch(right, model):
    return None


@fault("test_trap_15_logits", "readers.answers.torch", swaps=True)
def every_logit_of_an_answer_is_finite(right):
    return like(right, isfinite=lambda logits: torch.ones_like(logits, dtype=torch.bool))


@fault("test_logits_that_are_not_finite", "readers.answers.finite_logits")
def every_logit_of_a_generation_is_finite(right, model):
    return nullcontext(lambda: True)


@fault("test_trap_15_failures", "readers.answers.UNSCORED", swaps=True)
def no_score_is_a_wrong_answer(right):
    right["correct"] = False
    return right


@fault("test_out_of_memory_is_tried", "readers.memory.InMemory.__call__")
def what_fitted_is_forgotten(right, self, prompts):
    before = self.chunk
    try:
        return right(self, prompts)
    finally:
        self.chunk = before


@fault("test_the_mask_of_a_chunk", "readers.parts.MASK_ENTRIES", swaps=True)
def masks_are_for_nothing(right):
    return 2**62


@fault("test_snapshots_score_as", "readers.snapshots.copied")
def branches_write_over_the_trunks_state(right, state):
    return state


@fault("test_a_state_that_branches_share", "readers.forked_proof.close")
def branches_are_always_like_the_whole(right, *arguments):
    return True


@fault("test_rows_from_snapshots", "readers.snapshots.Trail.snapshot")
def the_trunk_is_cut_where_it_is_asked_for(right, self, model, start):
    self.cuts = [start]
    return right(self, model, start)


@fault("test_out_of_memory_on_the_way", "readers.snapshots.Trail.logits")
def a_trunk_is_read_on_from_what_failed(right, self, *rest):
    before = self.at, self.state
    try:
        return right(self, *rest)
    except BaseException:
        self.at, self.state = before
        raise


@fault("test_masses_from_snapshots", "readers.snapshots.empty_cache")
def windows_forget(right, model, keep_all):
    return right(model, False)


@fault("test_models_that_are_not_the_same", "readers.parts.close")
def parts_are_always_like_the_whole(right, *arguments):
    return True


@fault("test_a_users_own_attention", "readers.attention_proof.softmax_of_both")
def our_function_is_not_compared(right, *arguments):
    own, _ = right(*arguments)
    return own, own


@fault("test_a_model_that_sees", "models.causal.refuse_unless_causal")
def rows_may_see_what_comes(right, *arguments):
    return None


# prompts and documents


@fault("test_windows_of_a_file", "data.haystacks.Document.start")
def another_start_is_told(right, self, rng):
    return right(self, random.Random())


@fault("test_trap_14_exactly_l_tokens_and_true_spans", "data.prompts.assemble")
def the_question_starts_a_token_early(right, *arguments, **options):
    prompt = right(*arguments, **options)
    return dataclasses.replace(prompt, question_start=prompt.question_start - 1)


@fault("test_trap_14_exactly", "data.encoding.Encoder.window")
def the_haystack_is_a_token_short(right, self, source, rng, length):
    return right(self, source, rng, length - 1)


@fault("test_trap_14_ids", "data.encoding.Encoder.encode")
def what_joins_pieces_is_encoded_apart(right, self, texts):
    (joiner,) = self._ids([self.joiner])
    return [joiner + ids for ids in self._ids(texts)]


@fault("test_exactly_l_tokens_true_spans_and_the_ids_of_the_template", "data.encoding.Encoder.opened")
def a_chat_begins_with_a_space(right, self, text, ids):
    return ids


@fault("test_templates_that_are_refused", "data.chat.parts")
def a_template_may_say_the_message_twice(right, text, message):
    return tuple(text.split(message)[:2])


WINDOWS = {}


@fault("test_trap_15_an_edited", "probes.loss.probe.windows_of")
def a_source_is_known_by_its_name(right, source, *rest):
    key = (source.reference, source.pack, *rest)
    return WINDOWS[key] if key in WINDOWS else WINDOWS.setdefault(key, right(source, *rest))


# probes


@fault("test_trap_16_rows", "probes.loss.probe.LossProbe.rows")
def bins_are_a_token_late(right, self, sample, window, scores):
    rows = right(self, sample, window, scores)
    for row in rows:
        if row["measure"] == "position":
            row["nll_sum"] = float(scores.nll[row["position_start"] : row["position_end"]].double().sum())
    return rows


@fault("test_key_tokens_are_those", "probes.loss.key_tokens.stretches")
def near_contexts_end_a_token_early(right, length, context):
    return [(start, end - 1 if end - start > 1 else end) for start, end in right(length, context)]


@fault("test_trap_16_documents_are_clusters", "statistics.losses.over_clusters")
def a_mean_of_documents_is_one_of_tokens(right, sums, sizes):
    return right(sums / sizes, sizes**0)


@fault("test_one_judge_for_all_models", "probes.loss.probe.judged")
def each_model_judges_for_itself(right, reader, window, nll, context, judge, chunk):
    return right(reader, window, nll, context, None, chunk)


@fault("test_trap_15_every_parameter", "probes.loss.probe.LossProbe.parameters")
def parameters_are_left_out(right, self):
    return {name: value for name, value in right(self).items() if name in ("format", "text", "text_sha256")}


@fault("test_a_chunk_is_how", "probes.needle.probe.NeedleProbe.parameters")
def the_chunk_is_a_parameter(right, self):
    return right(self) | {"chunk": self.chunk}


@fault("test_trap_15_a_haystack", "probes.needle.probe.NeedleProbe.parameters")
def a_haystack_is_known_by_its_name(right, self):
    return right(self) | {"haystack_sha256": None}


@fault("test_lengths_go_past", "probes.by_model.default_lengths")
def lengths_go_down(right, *arguments):
    first, *others = right(*arguments)
    return tuple(first >> k for k in range(1 + len(others)))


@fault("test_lengths_end_where", "probes.by_model.position_end_of")
def positions_never_end(right, *arguments):
    return None


@fault("test_a_limit_keeps_whole_trials", "probes.budget.within")
def one_trial_more_than_the_limit(right, samples, limit_tokens):
    kept = right(samples, limit_tokens)
    lengths, trials = {sample.context_length for sample in kept}, 1 + len({sample.trial for sample in kept})
    first = sorted({sample.trial for sample in samples})[:trials]
    return [sample for sample in samples if sample.trial in first and sample.context_length in lengths]


@fault("test_options_parameters_and", "commands.probing.parameter")
def another_default(right, option):
    made = right(option)
    return made.replace(default=5) if option.name == "trials" else made


# runs


@fault("test_only_what_is_left", "probes.kind.Probe.names")
def rows_have_other_names(right, self, sample):
    return [f"{name}/" for name in right(self, sample)]


@fault("test_a_forwards_operations", "models.shape.Work.operations")
def attention_multiplies_once(right, self, length, rows=0):
    without = right(dataclasses.replace(self, attention=()), length, rows)
    return (right(self, length, rows) + without) / 2


@fault("test_trap_15_every_choice", "position.position.Position.key")
def position_decides_nothing(right, self):
    return {}


@fault("test_trap_15_other_weights", "plans.run_id_of")
def weights_decide_nothing(right, key):
    return right({name: value for name, value in key.items() if name != "fingerprint"})


# training


@fault("test_first_weights", "training.architecture.build")
def weights_of_no_seed(right, recipe, tokenizer, seed):
    return right(recipe, tokenizer, random.randrange(2**31))


@fault("test_only_matrices", "training.trainer.WeightedTrainer.get_decay_parameter_names")
def vectors_decay(right, self, model):
    return [name for name, parameter in model.named_parameters() if parameter.ndim >= 1]


@fault("test_the_late_swap", "training.trainer.LateMechanism.on_step_begin")
def the_swap_is_early(right, self, *arguments, **options):
    for mechanism in self.mechanisms:
        mechanism.active = True


@fault("test_held_out", "training.facts.TRAIN_CITIES", swaps=True)
def all_cities_are_trained_on(right):
    from ssmax_eval.data.vocabulary import CITIES

    return list(CITIES)


@fault("test_a_run_that_was_killed", "training.train.TrainingArguments")
def a_resumed_run_starts_with_the_first_sequences(right, **options):
    return right(**options, ignore_data_skip=True)


@fault("test_every_answer", "training.examples.Examples.compose")
def questions_come_before_their_fact(right, self, rng, *rest):
    rng.uniform = lambda low, high: random.Random.uniform(rng, 0, high)
    return right(self, rng, *rest)


@fault("test_operations_are_those", "training.throughput.flops_per_token")
def attention_has_no_backward(right, model, length):
    none = right(model, -1)  # without attention: a row of length -1 has (length + 1) / 2 = 0 keys
    return none + (right(model, length) - none) * 2 / 3


@fault("test_speed_is_of", "training.throughput.throughput")
def short_steps_count(right, model, recipe, *rest):
    return right(model, dataclasses.replace(recipe, short_share=0.0), *rest)


# statistics


@fault("test_texts_of_one_name", "statistics.losses.TEXT", swaps=True)
def a_text_is_known_by_its_name(right):
    return [name for name in right if name != "text_sha256"]


@fault("test_the_exponents_interval_is", "statsmodels.regression.linear_model.RegressionResults.get_robustcov_results")
def the_quantile_is_normal(right, self, kind, **options):
    return right(self, kind, **options | {"use_t": False})


@fault("test_an_exponents_errors", "statistics.heads.BY_TRIAL", swaps=True)
def errors_are_of_prompts(right):
    return 0


@fault("test_a_row_with_a_score", "statistics.series.np", swaps=True)
def masses_before_scores(right):
    return like(right, lexsort=lambda keys: right.lexsort((*keys[:2], keys[1])))


@fault("test_plans_are_kept_apart", "statistics.series.with_plan")
def no_plan_is_told(right, rows):
    return rows


@fault("test_few_stretches", "statistics.paired.FEWEST", swaps=True)
def three_texts_are_enough(right):
    return 0


@fault("test_strangers_are", "statistics.paired.of_strangers")
def all_cells_are_one(right, own, other, by):
    own, other = (rows.assign(context_length=0, depth_percent=0) for rows in (own, other))
    return right(own, other, by)


@fault("test_the_sign_flip_test", "statistics.exact.np", swaps=True)
def only_what_is_more_extreme_counts(right):
    def beyond(sums):
        return right.sum(sums) + math.copysign(1, right.sum(sums))

    return like(right, sum=beyond)


@fault("test_the_level_is_of", "statistics.causes.with_causes")
def each_series_has_its_own_level(right, rows, *rest):
    return right(rows.assign(subject=rows["series"]), *rest)


@fault("test_causes_rest_on", "statistics.causes.mass_at")
def the_first_token_counts(right, masses, ranks):
    return right(masses, [1] if isinstance(ranks, list) else ranks)


@fault("test_a_seed_counts_once", "statistics.seeds.once")
def a_seed_counts_twice(right, configurations):
    return configurations


@fault("test_seeds_are_the_second", "statistics.seeds.stats", swaps=True)
def the_quantile_of_seeds_is_normal(right):
    return like(right, t=like(right.t, ppf=lambda share, freedom: right.norm.ppf(share)))


@fault("test_cells_have_wilsons", "statistics.grids.wilson")
def the_interval_is_walds(right, found, scored):
    n = np.maximum(np.asarray(scored, dtype=float), 1)
    share = np.asarray(found) / n
    half = stats.norm.ppf(0.975) * np.sqrt(share * (1 - share) / n)
    return share - half, share + half


@fault("test_the_paired_interval_is_newcombes", "statistics.exact.correlation")
def no_correction_for_continuity(right, both, only, only_baseline, neither):
    product = math.prod([both + only, only_baseline + neither, both + only_baseline, only + neither])
    return (both * neither - only * only_baseline) / math.sqrt(product) if product else 0.0


@fault("test_mcnemar_is_statsmodels", "statistics.exact.mcnemar")
def one_sided(right, only, only_baseline):
    total = only + only_baseline
    return float(stats.binomtest(only, total, alternative="greater").pvalue) if total else 1.0


@fault("test_holm_is_over", "statistics.exact.holm")
def bonferroni(right, values):
    return [min(1.0, p * len(values)) for p in values]


@fault("test_prompts_of_one_haystack", "statistics.clusters.clusters")
def text_is_never_shared(right, rows, by_length=True):
    return right(rows.drop(columns="haystack_start", errors="ignore"), by_length)


@fault("test_the_interval_of_a_rate", "statistics.clusters.np", swaps=True)
def values_that_agree_are_certain(right):
    return like(right, ptp=lambda values: 1.0)


@fault("test_trials_of_overlapping", "statistics.clusters.trials")
def overlapping_trials_are_two(right, rows, within=None):
    from ssmax_eval.statistics.clusters import trial_numbers

    return trial_numbers(rows, within)


@fault("test_a_comparison_is_over", "statistics.paired.of_pairs")
def each_pair_is_its_own_trial(right, pairs, *rest):
    names = [str(i) for i in range(len(pairs))]
    return right(pairs.assign(cluster=names, region=names), *rest)


@fault("test_only_prompts_scored_in_both", "statistics.paired.compare")
def controls_count(right, rows, *rest):
    return right(rows.assign(control=None), *rest)


@fault("test_the_smallest_difference", "statistics.exact.smallest_difference")
def one_prompt_less_would_do(right, units, level=0.05, *rest, **named):
    return right(units, 2 * level, *rest, **named)


@fault("test_lengths_of_a_trial", "statistics.reach.drawn_trials")
def lengths_are_drawn_apart(right, *arguments):
    from ssmax_eval.statistics.reach import drawn

    return drawn(*arguments)


@fault("test_effective_length_is", "statistics.reach.reached")
def a_share_of_everything(right, accuracy, share):
    with np.errstate(all="ignore"):
        return right(accuracy, share / accuracy[:, :1])


@fault("test_the_best_theta_of", "statistics.rope.cells")
def the_worst_theta(right, rows):
    return right(rows).assign(accuracy=lambda cells: -cells["accuracy"])


@fault("test_trap_15_failed", "statistics.grids.accuracies")
def a_failure_is_zero(right, rows, by):
    return right(rows, by).assign(accuracy=lambda cells: cells["accuracy"].fillna(0.0))


@fault("test_trap_18", "statistics.grids.cells")
def answers_are_judged_by_their_text(right, rows):
    return right(rows.assign(correct=rows["predicted"] == rows["expected"]))


# what is told


@fault("test_the_verdict_matches", "verdict.largest")
def the_smallest_is_told(right, lines, train_length):
    return right([min(lines, key=lambda line: (abs(line["difference"]), line["context_length"]))], train_length)


@fault("test_page_and_terminal", "verdict.prompts")
def trials_are_not_told(right, line):
    return right(line | {"trials": 0})


# lm-eval


@fault("test_trap_17_limit", "harness.documents.math", swaps=True)
def the_same_pairs_come_again(right):
    return like(right, lcm=lambda *numbers: 2**62)


@fault("test_loss_is_of", "harness.documents.ending")
def other_tokens_are_scored_in_shorter_documents(right, whole, length):
    return whole.ids[:length]


@fault("test_trap_17_a_prompt", "harness.requests.room_for")
@contextmanager
def a_length_that_was_set_is_nothing(right, lm, tokens):
    own, lm._max_length = lm._max_length, None
    try:
        with right(lm, tokens):
            yield
    finally:
        lm._max_length = own


@fault("test_trap_17_a_length", "harness.requests.room_for")
@contextmanager
def prompts_are_cut(right, lm, tokens):
    own = lm._max_length
    with right(lm, tokens):
        lm._max_length = own
        yield


@fault("test_trap_17_no_stale", "harness.tasks.NeedleTask.build_all_requests")
def requests_are_cached(right, self, **options):
    from lm_eval.api.task import ConfigurableTask

    return ConfigurableTask.build_all_requests(self, **options)


fault("test_trap_17_a_response", "harness.model.SSMaxLM.set_cache_hook")(unless_it_says("another model or setting"))


@fault("test_trap_17_metrics", "harness.tasks.NeedleTask.process_results")
def every_length_is_96(right, self, doc, results):
    return {re.sub(r"_\d+$", "_96", name): value for name, value in right(self, doc, results).items()}


fault("test_a_score_that_is", "harness.tasks.NeedleTask.process_results")(unless_it_says("not finite"))


@fault("test_verdicts_are_the_native", "harness.tasks.NeedleTask.score")
def a_likely_answer_is_right(right, self, doc, answer):
    return right(self, doc, (answer[0], answer[0] > -20))


@fault("test_other_ids", "harness.requests.prompt_of")
def other_ids_will_do(right, lm, doc):
    class Same(str):
        __hash__ = str.__hash__

        def __ne__(self, other):
            return False

    return right(lm, {**doc, "prompt_sha256": Same()})


@fault("test_any_tokenizers_ids", "harness.requests.prompt_of")
def the_answer_is_a_token_longer(right, lm, doc):
    prompt = right(lm, doc)
    return dataclasses.replace(prompt, answer_length=prompt.answer_length + 1)


@fault("test_only_the_answers", "harness.model.SSMaxLM.exact_loglikelihood")
def lm_eval_scores_all_rows(right, self, requests):
    from lm_eval.models.huggingface import HFLM

    from ssmax_eval.harness.model import prompt_of, room_for

    prompts = [prompt_of(self, request.doc) for request in requests]
    pairs = [(None, each.ids[: -each.answer_length], each.ids[-each.answer_length :]) for each in prompts]
    with room_for(self, max(len(each.ids) for each in prompts)):
        return list(HFLM._loglikelihood_tokens(self, pairs))


@fault("test_mechanisms_and_rope", "harness.model.Setting", swaps=True)
def theta_stays(right):
    return like(right, of=lambda *arguments, **options: right.of(*arguments, **options | {"rope_theta_factor": 1.0}))


# the terminal


@fault("test_nothing_of_data", "printable.PrintableStream.write")
def data_reaches_the_terminal(right, self, text):
    return self.inner.write(text)


@fault("test_warnings_are_gathered", "quiet.Messages.emit")
def a_note_is_said_each_time(right, self, record):
    self.noted.clear()
    right(self, record)


@fault("test_progress_counts_all", "cost.operations_of")
def progress_counts_tokens(right, work, parts, all_rows):
    return float(sum(number * (part.stop - part.start) for part, number in parts.items()))


@fault("test_a_log_line_at_each", "progress.Progress.left")
def the_rest_takes_as_long_as_what_is_done(right, self, now):
    return now - self.started


@fault("test_libraries_say_a_full_disk", "disk.is_full")
def only_the_systems_own_words_count(right, error):
    return isinstance(error, OSError)


@fault("test_the_nearest_is_named", "errors.nearest")
def nothing_is_near(right, *given):
    return ""


# what somebody could do to a run, a launch or a page


@fault("test_a_row_that_says_what_cannot_be", "probes.needle.rows.NeedleRow.score", swaps=True)
def a_score_and_a_reason_for_none_go_together(right):
    return None


@fault("test_rows_of_another_setting_are_not_of", "record.shared_columns")
def rows_belong_by_model_and_mechanism_alone(right, record):
    return {name: value for name, value in right(record).items() if name in ("model", "fingerprint", "attention")}


@fault("test_rows_of_another_setting_are_not_gone", "store.Run._refuse")
def a_run_goes_on_with_any_rows(right, self, values, told):
    return None


@fault("test_a_renamed_sample", "store.Run.is_scored")
def as_many_rows_are_the_rows(right, self, samples):
    return right(self, [row["sample"] for row in self.rows()])


@fault("test_a_plan_that_would_lose", "probes.kind.Probe.rows_planned")
def names_are_taken_as_they_are(right, self):
    return [name for sample in self.plan() for name in self.names(sample)]


@fault("test_a_probes_row_that_is", "store.in_words")
def what_is_wrong_is_not_said(right, error):
    return ""


@fault("test_no_models", "models.subjects.subjects")
def no_models_are_run(right, models):
    return right(models) if models else []


@fault("test_categories_and", "statistics.series.uncategorical")
def categories_stay(right, rows):
    return rows


@fault("test_an_option_that_is_given", "commands.options.Once.parse_args")
def the_last_value_counts(right, self, ctx, args):
    return super(type(self), self).parse_args(ctx, args)


@fault("test_a_part_that_fails", "report.section.Found._shown")
def a_part_that_fails_ends_the_page(right, self, show, instead):
    return show()


@fault("test_what_a_user_asks_wrongly", "report.section.UserError", swaps=True)
def a_users_error_is_a_fault_of_the_page(right):
    return KeyError


@fault("test_a_mass_that_is", "probes.needle.sections.prompts.percent")
def any_mass_is_a_percent(right, value):
    return 0 if value is None or math.isnan(value) else int(min(100 * value, 1e300))


@fault("test_a_launch_that_does_not_meet", "progress.said_after")
def nobody_says_what_is_waited_for(right, seconds, note):
    return nullcontext()


@fault("test_a_run_that_could_not_be_read", "store.Run.verify")
def rows_are_packed_unread(right, self):
    return None


@fault("test_a_pack_whose_bytes", "packs.BROKEN", swaps=True)
def only_files_break(right):
    return (OSError, ValueError)


@fault("test_other_zip_files", "results.packed_by_the_way")
def other_zip_files_are_left_out_in_silence(right, pack):
    return []


@fault("test_a_run_in_its_folder", "results.once_each")
def a_run_counts_wherever_it_is(right, runs):
    return [*runs]


@fault("test_the_size_of_packed", "packs.PackedRun.size")
def rows_are_as_small_as_they_are_packed(right, self):
    from ssmax_eval.packs import opened

    with opened(self.pack) as archive:
        return self.entry(archive, "rows.jsonl").compress_size


@fault("test_samples_of_lm_evals_own", "harness.samples.Samples.content")
def samples_have_no_files(right, self, name):
    return None


@fault("test_a_value_is_not_found_inside", "data.prompts.value_spans")
def a_value_is_found_anywhere(right, encoder, answer, text):
    return tuple(encoder.find(answer, value) for value in text.split(", "))


@fault("test_rows_of_a_users_probe_that", "statistics.series.SAMPLE", swaps=True)
def rows_of_other_probes_are_what_they_are(right):
    return ["no such column"]


@fault("test_rows_are_told_by", "rows.TOLD_BY", swaps=True)
def no_probe_says_what_tells_its_rows(right):
    right.clear()
    return right


@fault("test_training_is_on", "report.TRAINING", swaps=True)
def no_training(right):
    from ssmax_eval.report.section import Section

    return type("Nothing", (Section,), {"numbers": lambda self, rows, context: []})()


@fault("test_a_cost_calls", "probes.loss.probe.LossProbe.sample_is", swaps=True)
def documents_are_prompts(right):
    return "prompt"

"""Known-wrong variants of the package, most of them real errors of code that people learn from.

Each mutant replaces one piece of text, which must occur exactly once, and must make the test that it names fail.
When the package changes and a text is gone, write the same mistake into the new code.
"""

from typing import NamedTuple


class Mutant(NamedTuple):
    name: str
    file: str  # in nanoreason/
    old: str
    new: str
    test: str  # the node in tests/ that must fail
    fast: bool = False  # part of the normal suite; the others run with `-m slow`


SAMPLER = "test_sampler.py::test_"
LEARN = "test_learn.py::test_"
MODEL = "test_model.py::test_"
STAR = "test_star.py::test_"
CHECKPOINT = "test_checkpoint.py::test_"
EVALUATE = "test_evaluate.py::test_"
ADDITION = "test_addition.py::test_"
RUN = "test_run.py::test_"
LOSSES = "test_losses.py::test_"
GRPO = "test_grpo.py::test_"
LENGTH = "test_length_rewards.py::test_"
BUDGET = "test_budget.py::test_"
SELECT = "test_select.py::test_"
SFT = "test_sft.py::test_"
PLAY = "test_play.py::test_"
THINKING = "test_thinking.py::test_"
TASKS = "test_tasks.py::test_"
ENVIRONMENT = "test_environment.py::test_"
RESUME = "test_resume.py::test_"
MINIMAL = "test_grpo_minimal.py::test_"
CONFIG = "test_hf_config.py::test_"
TOKENIZER = "test_tokenizer.py::test_"
NUMBERS = "test_numbers.py::test_"
CLAIMS = "test_claims.py::test_"
RESULTS = "test_results.py::test_"
CONSOLE = "test_console.py::test_"
CLI = "test_cli.py::test_a_mistake_ends_in_one_line_that_says_what_is_wrong_and_exit_code_2"
VIEWS = "test_views.py::test_"
REPORT = "test_report.py::test_"
ANALYSIS = "test_analysis.py::test_"
BEHAVIORS = "test_behavior_rules.py::test_"
DOCTOR = "test_doctor.py::test_"
THREADS = "test_threads.py::test_"
PROCESSES = "test_processes.py::test_"
TRANSFER = "test_transfer_test.py::test_"
LORA = "test_lora.py::test_"
MEMORY = "test_memory.py::test_"

CHUNKS = MODEL + "any_cut_into_cached_chunks_with_ragged_positions_equals_one_uncached_pass[llama]"
AGREEMENT = SAMPLER + "stored_logprobs_equal_those_of_the_learner_in_ragged_retired_and_refilled_batches[0.7]"
INDEPENDENCE = SAMPLER + "a_sample_depends_on_no_neighbour_limit_or_order"
GOES_ON = SAMPLER + "a_row_that_goes_on_equals_a_fresh_run_of_the_same_row"
MICRO_BATCHES = LEARN + "the_gradient_does_not_depend_on_the_micro_batch_size[sft_loss-token]"
SIGN_TABLE = LEARN + "clipping_stops_the_gradient_only_of_moves_that_went_far_enough"
KILLED = CHECKPOINT + "a_kill_at_any_moment_of_a_save_leaves_the_old_checkpoint_or_the_new_one[False]"
SFT_RESUME = RESUME + "a_stopped_and_resumed_sft_run_ends_bit_equal_to_one_that_never_stopped"
GRPO_RESUME = GRPO + "a_stopped_and_resumed_run_ends_bit_equal_to_one_that_never_stopped"

MUTANTS = [
    # ------------------------------------------------------------------------------------- what counts in the loss
    Mutant(
        "EOS dropped from the loss when a row is handed back", "sampler.py",
        "        self.n -= 1\n",
        "        row.loss_mask[-1] &= token not in self.eos_ids\n        self.n -= 1\n",
        SAMPLER + "a_row_that_ended_itself_has_its_eos_in_the_loss", fast=True,
    ),
    Mutant(
        "EOS dropped from the loss of a demonstration", "rollout.py",
        "    row.loss_mask += [True] * len(response)\n",
        "    row.loss_mask += [True] * (len(response) - 1) + [False]\n",
        LEARN + "a_demonstration_ends_with_an_eos_that_counts_and_its_prompt_does_not",
    ),
    Mutant(
        "mask inferred from pad ids", "learn.py",
        "loss_mask=padded([row.loss_mask for row in rollouts], False, torch.bool)",
        "loss_mask=padded([[token != pad_id for token in row.tokens] for row in rollouts], False, torch.bool)",
        LEARN + "padding_and_its_value_change_nothing_even_when_it_is_the_eos", fast=True,
    ),
    Mutant(
        "mask of recorded tokens, without those that equal the pad id", "learn.py",
        "model, batch.tokens, batch.loss_mask, temperature, with_entropy=entropy_coef",
        "model, batch.tokens, batch.loss_mask & (batch.tokens != 0), temperature, with_entropy=entropy_coef",
        LEARN + "a_row_whose_only_sampled_token_is_its_eos_still_learns_to_stop",
    ),
    Mutant(
        "forced tokens in the loss", "rollout.py",
        "self.loss_mask += [False] * len(tokens)",
        "self.loss_mask += [True] * len(tokens)",
        LEARN + "forced_tokens_and_the_prompt_are_context_and_never_loss", fast=True,
    ),
    Mutant(
        "the prompt in the loss", "learn.py",
        "* counted for counted in row.loss_mask] for row in rows]",
        "for _ in row.loss_mask] for row in rows]",
        LEARN + "the_weights_of_a_step_sum_to_one",
    ),
    # ------------------------------------------------------------------------------------------------ log-probs
    Mutant(
        "temperature missing in the learner's log-probs", "learn.py",
        "logits.float() / temperature",
        "logits.float()",
        AGREEMENT, fast=True,
    ),
    Mutant(
        "log-probs of the full distribution stored under top-p", "sampler.py",
        "    cdf = probs.cumsum(-1, dtype=exact)\n",
        "    full = (logits / temperature).softmax(-1)\n    cdf = probs.cumsum(-1, dtype=exact)\n"
        "    picked = torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True).clamp(max=probs.shape[1] - 1)\n"
        "    return picked[:, 0], full.gather(-1, picked).log()[:, 0]\n",
        SAMPLER + "under_top_p_the_stored_logprobs_are_those_of_the_truncated_distribution[0.5]",
    ),
    Mutant(
        "no gradient through the prompt that rows share", "learn.py",
        "            self.kv[layer] = k, v\n",
        "            self.kv[layer] = k.detach(), v.detach()\n",
        LEARN + "a_prompt_that_rows_share_is_read_once_and_nothing_else_changes[shape0]",
    ),
    Mutant(
        "rows without an advantage never move anything", "learn.py",
        "        if not may_rest or torch.autograd.grad(loss, logprobs, retain_graph=True)[0].any():\n",
        "        if not may_rest:\n",
        LEARN + "rows_without_an_advantage_still_move_what_does_not_hang_on_it[more1]",
    ),
    Mutant(
        "log-probs shifted by one column", "learn.py",
        "return F.pad(shifted, (1, 0))",
        "return F.pad(shifted, (0, 1))",
        LEARN + "token_logprobs_are_those_of_the_softmax_at_this_temperature[1.0]",
    ),
    Mutant(
        "a token without probability can be drawn", "sampler.py",
        "torch.searchsorted(cdf, target, right=True)",
        "torch.searchsorted(cdf, target, right=False)",
        SAMPLER + "a_token_without_probability_is_never_drawn_not_even_by_the_most_extreme_numbers",
    ),
    Mutant(
        "rounding reaches past the last possible token", "sampler.py",
        "target = torch.minimum(u[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))",
        "target = u[:, None].clamp(min=0.9999999) * 1.000001 * total if (u > 0.9999).any() else u[:, None] * total",
        SAMPLER + "extreme_numbers_draw_a_possible_token_from_a_large_vocabulary_too",
    ),
    # ---------------------------------------------------------------------------------------------- losses, averages
    Mutant(
        "clip inverted for negative advantages", "learn.py",
        "return -torch.minimum(ratio * advantages, clipped * advantages)",
        "a, b = ratio * advantages, clipped * advantages\n"
        "    return -torch.where(advantages >= 0, torch.minimum(a, b), torch.maximum(a, b))",
        SIGN_TABLE, fast=True,
    ),
    Mutant(
        "upper and lower clip exchanged", "learn.py",
        "ratio.clamp(1 - clip_low, 1 + clip_high)",
        "ratio.clamp(1 - clip_high, 1 + clip_low)",
        LEARN + "the_upper_bound_limits_right_answers_and_the_lower_bound_wrong_ones",
    ),
    Mutant(
        "policy loss with the wrong sign", "learn.py",
        "return -torch.minimum(ratio * advantages, clipped * advantages)",
        "return torch.minimum(ratio * advantages, clipped * advantages)",
        LEARN + "one_step_on_a_hand_made_group_moves_right_up_and_wrong_down",
    ),
    Mutant(
        "KL sign", "learn.py",
        "difference = ref_logprobs - logprobs ",
        "difference = logprobs - ref_logprobs ",
        LEARN + "the_mean_of_k1_and_of_k3_is_the_exact_kl", fast=True,
    ),
    Mutant(
        "average per micro-batch", "learn.py",
        "batch = collate([rollouts[i] for i in indices], [weights[i] for i in indices], model.device)",
        "batch = collate([rollouts[i] for i in indices], token_weights([rollouts[i] for i in indices]), model.device)",
        MICRO_BATCHES, fast=True,
    ),
    Mutant(
        "only the last micro-batch counts", "learn.py",
        "        loss.backward()\n",
        "        optimizer.zero_grad()\n        loss.backward()\n",
        MICRO_BATCHES,
    ),
    Mutant(
        "token average in place of the sequence average", "learn.py",
        "each = {root: 1 / (rollouts * max(1, count)) for root, count in counts.items()}",
        "each = dict.fromkeys(counts, 1 / max(1, sum(counts.values())))",
        LEARN + "a_token_of_a_short_row_counts_as_much_as_one_of_a_long_row_only_in_the_token_and_constant_averages",
    ),
    Mutant(
        "standard deviation with divisor G - 1", "learn.py",
        "statistics.pstdev(",
        "statistics.stdev(",
        LEARN + "advantages_of_a_group_have_mean_zero_and_unit_deviation_or_are_all_zero",
    ),
    Mutant(
        "weights touched before a broken loss is noticed", "learn.py",
        "        if not torch.isfinite(loss):\n",
        "        if total:\n            optimizer.step(lr)\n"
        "        if not torch.isfinite(loss):\n",
        LEARN + "a_loss_that_is_not_finite_names_the_sample_and_leaves_every_weight_untouched",
    ),
    Mutant(
        "an epoch draws rows with replacement", "learn.py",
        ".sample(range(len(rows)), len(rows))",
        ".choices(range(len(rows)), k=len(rows))",
        LEARN + "in_epochs_gives_each_row_once_per_epoch_in_a_new_order",
    ),
    # ----------------------------------------------------------------------------------------------------- the model
    Mutant(
        "wrong RoPE position: cached chunks turn as if they began at 0", "model.py",
        "cos, sin = self.rope[:, positions].unsqueeze(2)",
        "cos, sin = self.rope[:, positions - positions[:, :1]].unsqueeze(2)",
        CHUNKS, fast=True,
    ),
    Mutant(
        "RoPE in the interleaved layout", "model.py",
        "x.roll(x.shape[-1] // 2, -1), sin)",
        "x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2), sin)",
        MODEL + "logits_and_every_gradient_equal_those_of_transformers[llama]",
    ),
    Mutant(
        "top-left causal chunk: a cached chunk attends as if it began at 0", "model.py",
        "hidden = slots > positions[..., None]",
        "hidden = slots > (positions - positions[:, :1])[..., None]",
        CHUNKS, fast=True,
    ),
    Mutant(
        "no causal mask", "model.py",
        "is_causal=True",
        "is_causal=False",
        MODEL + "future_tokens_are_invisible_and_past_ones_are_not",
    ),
    Mutant(
        "the long wavelengths of llama3 not stretched", "model.py",
        "frequency = frequency * (keep + (1 - keep) / scaling[\"factor\"])",
        "frequency = frequency * 1.0",
        MODEL + "logits_and_every_gradient_equal_those_of_transformers[llama3-rope]",
    ),
    # --------------------------------------------------------------------------------------------------- the sampler
    Mutant(
        "stale keys used again: what was replaced in a row is not compared", "sampler.py",
        "read = same.index(False) if False in same else len(same)",
        "read = len(same)",
        SAMPLER + "keys_of_tokens_that_were_replaced_are_not_used_again",
    ),
    Mutant(
        "a row that goes on reads everything again", "sampler.py",
        "self.read[slot] = min(read, length - 1)",
        "self.read[slot] = 0",
        SAMPLER + "a_row_that_goes_on_reads_only_its_new_tokens",
    ),
    Mutant(
        "a row that goes on draws its first numbers again", "sampler.py",
        "uniforms(row.seed, row.draws, end - length)",
        "uniforms(row.seed, 0, end - length)",
        SAMPLER + "a_retracted_token_does_not_give_its_number_back",
    ),
    Mutant(
        "numbers belong to slots, not to rows", "sampler.py",
        "uniforms(row.seed, row.draws, end - length)",
        "uniforms(slot, row.draws, end - length)",
        INDEPENDENCE,
    ),
    Mutant(
        "keys stay behind when a row changes its slot", "sampler.py",
        "for stored in [*self._per_slot(), self.cache.kv.transpose(0, 2)]:",
        "for stored in self._per_slot():",
        AGREEMENT,
    ),
    Mutant(
        "keys lost when the cache grows", "model.py",
        "        self.kv[keep] = old[keep]\n",
        "",
        AGREEMENT,
    ),
    Mutant(
        "the prompt of a group read once per row", "sampler.py",
        "if tuple(row.tokens) in source:",
        "if False:",
        SAMPLER + "the_prompt_of_a_group_is_read_once",
    ),
    Mutant(
        "budget off by one", "sampler.py",
        "return self.blocked[token] | (self.position[:n] + 1 >= self.end[:n])",
        "return self.blocked[token] | (self.position[:n] >= self.end[:n])",
        SAMPLER + "a_row_without_a_budget_of_its_own_has_the_samplers",
    ),
    Mutant(
        "the models weights may change under a sampler", "sampler.py",
        "            if weight._version != version or owner.get(name) is not weight:\n",
        "            if False:\n",
        SAMPLER + "an_optimizer_step_counts_as_a_change_of_weights",
    ),
    Mutant(
        "the models weights may change between two rows", "sampler.py",
        "        self._check_weights()  # whoever has the rows in between may have trained on them\n",
        "",
        SAMPLER + "weights_that_change_between_two_rows_are_an_error_however_they_change[an optimizer step]", fast=True,
    ),
    Mutant(
        "weights that were replaced count as unchanged", "sampler.py",
        "if weight._version != version or owner.get(name) is not weight:",
        "if weight._version != version:",
        SAMPLER + "weights_that_change_between_two_rows_are_an_error_however_they_change[replaced weights]",
    ),
    # ------------------------------------------------------------------------------------------ resume, checkpoints
    Mutant(
        "resume off by one", "recipes/sft.py",
        "first = state.get(\"step\", 0)",
        "first = state.get(\"step\", -1) + 1",
        SFT_RESUME, fast=True,
    ),
    Mutant(
        "a resumed run repeats its last round", "recipes/star.py",
        "[\"round\"] + 1",
        "[\"round\"]",
        RESUME + "a_resumed_star_run_goes_on_with_the_round_behind_its_last_checkpoint",
    ),
    Mutant(
        "lines behind the last checkpoint logged twice", "run.py",
        "if line[\"step\"] <= step",
        "if line[\"step\"] <= step + 1000",
        SFT_RESUME,
    ),
    Mutant(
        "the optimizer's moments not restored", "checkpoint.py",
        "        optimizer.restore(parameter, of_it)\n",
        "        optimizer.restore(parameter, {})\n",
        SFT_RESUME,
    ),
    Mutant(
        "the old checkpoint removed before the new one is written", "checkpoint.py",
        "    temporary.mkdir(parents=True)\n",
        "    temporary.mkdir(parents=True)\n    shutil.rmtree(folder, ignore_errors=True)\n",
        KILLED,
    ),
    Mutant(
        "a checkpoint written in place", "checkpoint.py",
        "temporary, old = folder.with_name(folder.name + \".tmp\"), folder",
        "temporary, old = folder, folder",
        KILLED,
    ),
    # ------------------------------------------------------------------------------------------------------- STaR
    Mutant(
        "hint kept in the stored prompt", "recipes/star.py",
        "demonstration(tokenizer, problem, task.clean(one.text))",
        "demonstration(tokenizer, one.row.problem, task.clean(one.text))",
        STAR + "a_rationalized_trace_is_stored_without_its_hint", fast=True,
    ),
    Mutant(
        "everything rationalized, solved problems too", "recipes/star.py",
        "failed = [one.row.problem for one in scored if not one.right]",
        "failed = [one.row.problem for one in scored]",
        STAR + "only_what_failed_is_rationalized_each_problem_with_its_own_answer_as_the_hint",
    ),
    Mutant(
        "each round goes on from the last policy", "recipes/star.py",
        "copy.deepcopy(base if config.restart else policy)",
        "copy.deepcopy(policy)",
        STAR + "each_round_fine_tunes_the_base_and_leaves_it_unchanged_bit_for_bit",
    ),
    Mutant(
        "the base itself is fine-tuned", "recipes/star.py",
        "copy.deepcopy(base if config.restart else policy)",
        "base if config.restart else policy",
        STAR + "each_round_fine_tunes_the_base_and_leaves_it_unchanged_bit_for_bit",
    ),
    Mutant(
        "wrong traces kept as well", "recipes/star.py",
        "for one in scored if one.right]",
        "for one in scored]",
        STAR + "without_rationalization_exactly_the_solved_problems_are_kept",
    ),
    # ---------------------------------------------------------------------------------------- tasks and measuring
    Mutant(
        "the carry is forgotten", "tasks/addition.py",
        "divmod(int(left[column]) + int(right[column]) + carry, 10)",
        "divmod(int(left[column]) + int(right[column]), 10)",
        ADDITION + "a_scratchpad_always_ends_in_the_right_answer_and_every_line_says_what_was_done",
    ),
    Mutant(
        "test sums are trained on", "arithmetic.py",
        "while is_test(a, b) != (split == \"test\"):",
        "while is_test(a, b) < (split == \"test\"):",
        ADDITION + "no_sum_of_the_test_split_occurs_in_any_other_split_over_many_items",
    ),
    Mutant(
        "seeds made by sums", "rollout.py",
        "hashlib.blake2b(\"/\".join(map(str, parts)).encode(), digest_size=8).digest()",
        "sum(ord(letter) for part in parts for letter in str(part)).to_bytes(8, 'little')",
        ADDITION + "different_splits_hold_different_problems",
    ),
    Mutant(
        "a right answer is taken for valid work", "tasks/addition.py",
        "return trimmed(response) == problem.solution",
        "return answer_of(response) == problem.answer",
        EVALUATE + "lenient_marks_ask_for_the_answer_and_strict_ones_for_the_work_too",
    ),
    Mutant(
        "pass@k with replacement", "evaluate.py",
        "return 1.0 - math.comb(n - c, k) / math.comb(n, k) if k <= n else 1.0",
        "return 1.0 - (1 - c / n) ** k",
        EVALUATE + "pass_at_k_is_the_share_of_all_subsets_of_k_that_hold_a_right_answer",
    ),
    Mutant(
        "no answer has a vote", "evaluate.py",
        " if answers[i] is not None)",
        ")",
        EVALUATE + "maj_at_n_is_the_majority_of_all_answers_with_ties_shared_and_no_vote_for_no_answer",
    ),
    Mutant(
        "a half-written last line ends the run", "run.py",
        "enumerate(lines[:-1], 1)",
        "enumerate(lines, 1)",
        RUN + "a_last_line_that_a_kill_cut_in_half_is_left_out_and_cleared_by_a_rewind",
    ),
    # ------------------------------------------------------------------------------------------- GRPO and its family
    Mutant(
        "groups without variance blown up by rounding", "learn.py",
        "return max(rewards) - min(rewards) <= EQUAL",
        "return max(rewards) == min(rewards)",
        LOSSES + "a_group_without_variance_has_no_advantages_even_where_rounding_differs",
    ),
    Mutant(
        "deviation of the batch in place of the group's", "learn.py",
        "statistics.pstdev(group if divide_by == \"group\" else everything)",
        "statistics.pstdev(everything)",
        LOSSES + "advantages_by_hand_for_every_divisor",
    ),
    Mutant(
        "GSPO's ratio a product, not a mean over tokens", "learn.py",
        " / mask.sum(1, keepdim=True).clamp(min=1)  # (B, 1)",
        "  # (B, 1)",
        LOSSES + "gspo_by_hand_with_the_ratio_of_the_whole_row",
    ),
    Mutant(
        "forced tokens in GSPO's ratio", "learn.py",
        "mean = (log_ratio * mask).sum(1, keepdim=True)",
        "mean = log_ratio.sum(1, keepdim=True)",
        LOSSES + "the_ratio_of_a_row_is_the_mean_over_its_loss_tokens_alone",
    ),
    Mutant(
        "CISPO cuts at the bound itself, not at 1 + bound", "learn.py",
        "return -ratio.clamp(max=1 + clip_high).detach()",
        "return -ratio.clamp(max=clip_high).detach()",
        LOSSES + "losses_and_gradients_by_hand[cispo, right]",
    ),
    Mutant(
        "a gradient through CISPO's weight", "learn.py",
        "return -ratio.clamp(max=1 + clip_high).detach()",
        "return -ratio.clamp(max=1 + clip_high)",
        LOSSES + "losses_and_gradients_by_hand[cispo, wrong]",
    ),
    Mutant(
        "the two-sided cap forgotten", "learn.py",
        "    ratio = ratio.clamp(max=cap)\n",
        "",
        LOSSES + "losses_and_gradients_by_hand[two-sided, wrong]",
    ),
    Mutant(
        "KL subtracted from the loss", "learn.py",
        "loss = loss + self.kl_coef * self.kl(",
        "loss = loss - self.kl_coef * self.kl(",
        LOSSES + "without_advantages_a_step_on_the_whole_loss_brings_the_policy_closer_to_its_reference",
        fast=True,
    ),
    Mutant(
        "k2 corrected by a ratio that has a gradient", "learn.py",
        "ratio.detach() if self.kl_estimator == \"k2\" else ratio",
        "ratio",
        LOSSES + "corrected_by_the_ratio_the_kl_gradient_is_exact_for_any_old_policy",
    ),
    Mutant(
        "k3 corrected by a ratio without a gradient", "learn.py",
        "ratio.detach() if self.kl_estimator == \"k2\" else ratio",
        "ratio.detach()",
        LOSSES + "corrected_by_the_ratio_the_kl_gradient_is_exact_for_any_old_policy",
    ),
    Mutant(
        "the ratio of the policy with itself: no gradient at all", "learn.py",
        "return logprobs.detach() if self.on_policy else batch.old_logprobs",
        "return logprobs if self.on_policy else batch.old_logprobs",
        LOSSES + "losses_and_gradients_by_hand[on-policy]", fast=True,
    ),
    Mutant(
        "the sampler's weight upside down", "learn.py",
        "policy_ratio(old, batch.sampler_logprobs)",
        "policy_ratio(batch.sampler_logprobs, old)",
        LOSSES + "the_weight_between_sampler_and_learner_is_cut_and_leaves_the_kl_alone",
    ),
    Mutant(
        "the sampler's weight on the KL too", "learn.py",
        "self.kl_coef * self.kl(logprobs, old, batch.ref_logprobs)",
        "self.kl_coef * self.kl(logprobs, old, batch.ref_logprobs) * policy_ratio(old, batch.sampler_logprobs)",
        LOSSES + "the_weight_between_sampler_and_learner_is_cut_and_leaves_the_kl_alone",
    ),
    Mutant(
        "entropy punished instead of rewarded", "learn.py",
        "losses = losses - entropy_coef * entropy * batch.weights",
        "losses = losses + entropy_coef * entropy * batch.weights",
        LOSSES + "the_entropy_bonus_raises_the_entropy",
    ),
    Mutant(
        "the entropy bonus not averaged like the loss", "learn.py",
        "losses = losses - entropy_coef * entropy * batch.weights",
        "losses = losses - entropy_coef * entropy / batch.loss_mask.sum()",
        LOSSES + "the_gradient_and_all_metrics_of_the_whole_loss_do_not_depend_on_the_micro_batches",
    ),
    Mutant(
        "metrics averaged over micro-batches, not over tokens", "learn.py",
        "measured.setdefault(name, []).append(value[batch.loss_mask].float())",
        "measured.setdefault(name, []).append(value[batch.loss_mask].float().mean()[None])",
        LOSSES + "the_gradient_and_all_metrics_of_the_whole_loss_do_not_depend_on_the_micro_batches",
    ),
    Mutant(
        "the temperature forgotten in the gradient of a chunk", "learn.py",
        "scatter_add_(1, targets[part, None], d_logp).div_(ctx.temperature)",
        "scatter_add_(1, targets[part, None], d_logp)",
        LOSSES + "in_chunks_log_probs_entropy_and_every_gradient_are_those_of_the_plain_head[0.7]",
    ),
    Mutant(
        "all logits in one chunk", "learn.py",
        "ctx.rows, ctx.no_token = temperature, max(1, CHUNK_LOGITS // len(weight))",
        "ctx.rows, ctx.no_token = temperature, len(targets)",
        LOSSES + "at_the_vocabulary_of_qwen_no_tensor_holds_all_logits_and_the_gradient_is_the_same",
    ),
    Mutant(
        "groups without variance kept by dynamic sampling", "recipes/grpo.py",
        "kept += [group for group in new if not (refills and is_flat(group))]",
        "kept += new",
        GRPO + "dynamic_sampling_replaces_flat_groups_by_new_problems_and_gives_up_in_time",
    ),
    Mutant(
        "refills ask the problems of the next step", "recipes/grpo.py",
        "first = ((step - 1) * (1 + refills) + attempt) * config.prompts",
        "first = (step - 1 + attempt) * config.prompts",
        GRPO + "dynamic_sampling_replaces_flat_groups_by_new_problems_and_gives_up_in_time",
    ),
    Mutant(
        "every minibatch the same rows", "recipes/grpo.py",
        "roots = order[part :: config.updates_per_rollout]",
        "roots = order[:: config.updates_per_rollout]",
        GRPO + "every_epoch_deals_all_rows_out_once_in_a_new_order",
    ),
    Mutant(
        "cut rows leave before the baseline is taken", "recipes/grpo.py",
        "    rewards = [[row.reward for row in group] for group in groups]\n",
        "    groups = [[row for row in group if row.stop_reason != \"length\"] for group in groups]\n"
        "    groups = [group for group in groups if group]\n"
        "    rewards = [[row.reward for row in group] for group in groups]\n",
        GRPO + "cut_rows_are_filtered_after_the_groups_baseline_was_taken",
    ),
    Mutant(
        "rows that stay count more for those that were cut", "recipes/grpo.py",
        "weights=token_weights(minibatch, loss.average, constant, rollouts),",
        "weights=token_weights(minibatch, loss.average, constant),",
        GRPO + "the_overlong_filter_does_not_rescale_the_gradient_of_the_rows_that_stay[sequence]",
    ),
    Mutant(
        "Dr. GRPO's constant is the budget of the step", "recipes/grpo.py",
        "loss.length_constant or config.max_new_tokens.largest",
        "loss.length_constant or config.max_new_tokens.at(step)",
        GRPO + "dr_grpos_constant_does_not_change_with_the_budgets_schedule",
    ),
    Mutant(
        "refills ask for whole rollouts", "recipes/grpo.py",
        "missing = range(first, first + config.prompts - len(kept))",
        "missing = range(first, first + config.prompts)",
        GRPO + "dapo_asks_as_many_new_problems_as_groups_were_flat_until_its_refills_are_used_up",
    ),
    Mutant(
        "k2 is measured as k3", "learn.py",
        "estimate = kl_estimate(logprobs, ref_logprobs, self.kl_estimator)",
        "estimate = kl_estimate(logprobs, ref_logprobs)",
        GRPO + "k2_and_k3_are_put_into_the_loss_and_not_taken_out_of_the_reward[k2]",
    ),
    Mutant(
        "--steps 0 leaves nothing to read", "recipes/grpo.py",
        "if fresh and (config.eval_samples or not config.steps):",
        "if fresh and config.eval_samples:",
        GRPO + "no_steps_only_measure",
    ),
    Mutant(
        "GRPO on one screen averages over tokens", "recipes/grpo_minimal.py",
        'token_weights(rows, "sequence")',
        'token_weights(rows, "token")',
        MINIMAL + "three_steps_equal_those_of_grpo_bit_for_bit",
    ),
    Mutant(
        "GRPO on one screen writes its lines twice when it is resumed", "recipes/grpo_minimal.py",
        "    run.rewind(-1)",
        "    run.rewind(config.steps)",
        MINIMAL + "a_run_that_was_stopped_is_done_again_as_a_whole",
    ),
    Mutant(
        "k1 in the reward and in the loss", "learn.py",
        "if self.kl_coef and self.kl_estimator != \"k1\":",
        "if self.kl_coef:",
        GRPO + "k1_is_taken_out_of_the_reward_and_not_put_into_the_loss",
    ),
    Mutant(
        "the reference not restored on resume", "recipes/grpo.py",
        "            reference, _ = load_checkpoint(run.folder / \"reference\", policy.device)\n",
        "            reference = copy.deepcopy(policy)\n",
        GRPO_RESUME + "[update-10-False]",
    ),
    Mutant(
        "the reference replaced by a policy that no checkpoint holds", "recipes/grpo.py",
        "is_due(step, config.save_every) or replaces_reference(config, step):",
        "is_due(step, config.save_every):",
        GRPO_RESUME + "[update-8-False]",
    ),
    Mutant(
        "an algorithm overrides an explicit switch", "run.py",
        "changes.setdefault(id(owner), {})[part] = values[flag]\n    objects",
        "changes.setdefault(id(owner), {}).setdefault(part, getattr(owner, part))\n    objects",
        RUN + "the_flags_of_an_algorithm_change_what_they_name_and_leave_the_rest_as_it_sets_it",
    ),
    Mutant(
        "an answer without tags is accepted under a template", "tasks/wrappers.py",
        "self.task.reward(problem, extract_tagged(response) or \"\")",
        "self.task.reward(problem, response)",
        TASKS + "a_template_puts_answers_in_tags_and_leaves_tags_that_are_missing_on_purpose",
    ),
    Mutant(
        "text behind the answer is good form", "prompts.py",
        "not (parts[0] or parts[4].strip() or parts[8])",
        "not (parts[0] or parts[4].strip())",
        GRPO + "the_format_is_each_tag_once_in_order_with_nothing_around",
    ),
    # ----------------------------------------------------------------------------------------- length, repetition
    Mutant(
        "the ends of the cosine exchanged, as the paper's appendix has it", "rewards.py",
        "return end + (start - end) *",
        "return start + (end - start) *",
        LENGTH + "the_defaults_order_responses_as_the_paper_wants_them",
    ),
    Mutant(
        "a right answer at the limit keeps its reward", "rewards.py",
        "        if scored.exceeds(self.margin):\n            return self.exceed\n",
        "        if scored.exceeds(self.margin) and not scored.right:\n            return self.exceed\n",
        LENGTH + "the_defaults_order_responses_as_the_paper_wants_them",
    ),
    Mutant(
        "a verifier that errs judges the same answer now so, now so", "rewards.py",
        'seed_of("noisy", scored.row.problem.prompt, answer)',
        'seed_of("noisy", scored.row.problem.prompt, scored.text)',
        LENGTH + "a_verifier_errs_as_often_as_it_says_and_judges_the_same_answer_alike[0.5-0.0]",
    ),
    Mutant(
        "LCPO-Max scaled into [-1, 1] before it is halved", "rewards.py",
        "min(1.0, max(0.0, self.alpha * spare + self.delta))",
        "(min(1.0, max(-1.0, self.alpha * spare)) + 1) / 2",
        LENGTH + "lcpo_max_pays_right_answers_alone_and_less_the_longer_they_are_within_0_and_1",
    ),
    Mutant(
        "only the last token of a repeated n-gram is punished", "rewards.py",
        "rewards[first : first + n] = [penalty] * n",
        "rewards[first + n - 1] = penalty",
        LENGTH + "a_token_is_punished_once_where_some_n_gram_over_it_was_there_before",
    ),
    Mutant(
        "the return of a token without its own reward", "rewards.py",
        "returns[t] = following = rewards[t] + gamma * following",
        "returns[t], following = gamma * following, rewards[t] + gamma * following",
        LENGTH + "token_advantages_by_hand",
    ),
    # ------------------------------------------------------------------------------------------- budgets, curation
    Mutant(
        "the announcement of a cut also behind a close", "forcing.py",
        "if thought.cut and forcing.announce:",
        "if forcing.announce:",
        BUDGET + "a_model_that_closes_by_itself_gets_the_answer_tag_and_no_announcement",
    ),
    Mutant(
        "behind a wait it may close at once", "forcing.py",
        "    row.min_tokens = len(row.tokens) + 1\n",
        "",
        BUDGET + "behind_a_wait_it_cannot_close_at_once_but_one_token_later_it_can",
    ),
    Mutant(
        "the closing token stays before the wait", "forcing.py",
        "            take_back_close(tokenizer, row, thought.start)\n",
        "            row.stop_reason = \"\"\n",
        BUDGET + "wait_takes_the_place_of_the_close_so_often_as_asked_and_the_next_close_stands",
    ),
    Mutant(
        "every wait has the whole budget again and nothing is cut", "forcing.py",
        "                thought.waits += 1\n",
        "                thought.waits += 1\n                row.max_new_tokens = len(row.response) + forcing.budget\n",
        BUDGET + "words_count_against_the_budget_and_a_row_that_is_cut_leaves_the_loop",
    ),
    Mutant(
        "what one attempt fails is difficult", "recipes/select.py",
        "[any(one.right for one in judge(config.task, tokenizer, [group]))",
        "[all(one.right for one in judge(config.task, tokenizer, [group]))",
        SELECT + "difficult_is_what_none_of_the_attempts_solves",
    ),
    Mutant(
        "the shortest trace has rank 0", "recipes/select.py",
        "sorted(pool, key=length, reverse=True):",
        "sorted(pool, key=length):",
        SELECT + "within_a_domain_the_weights_halve_from_rank_to_rank_of_length",
    ),
    Mutant(
        "the answer is looked for in the thinking as well", "recipes/budget.py",
        "tokenizer.decode(thought.row.tokens[thought.end :])",
        "tokenizer.decode(thought.row.tokens[thought.start :])",
        BUDGET + "what_stands_in_the_thinking_is_no_answer",
    ),
    Mutant(
        "the best of k counts one sample's tokens", "recipes/budget.py",
        '"accuracy": statistics.fmean(shares), "thinking": k * mean,',
        '"accuracy": statistics.fmean(shares), "thinking": k * mean if kind == "majority" else mean,',
        BUDGET + "rejection_takes_the_first_sample_that_fits_and_the_majority_votes",
    ),
    Mutant(
        "a suppressed word stays so", "recipes/budget.py",
        "    finally:\n        model.no_token = no_token\n",
        "    finally:\n        pass\n",
        BUDGET + "a_suppressed_word_is_never_sampled_and_afterwards_it_can_be_again",
    ),
    Mutant(
        "waiting compared with votes that take more tokens", "experiments/s1.py",
        "[at_tokens(votes, tokens) for tokens, _ in runs]",
        "[max(a for _, a in votes) for tokens, _ in runs]",
        CLAIMS + "waiting_is_compared_with_votes_at_as_many_tokens",
    ),
    Mutant(
        "the responses to one problem count as independent", "recipes/budget.py",
        "by_problem.setdefault(row.problem.prompt, [])",
        "by_problem.setdefault(id(row), [])",
        BUDGET + "the_standard_error_counts_problems_not_responses",
    ),
    Mutant(
        "a problem that the task hands out twice counts as two", "recipes/budget.py",
        "by_problem.setdefault(row.problem.prompt, [])",
        "by_problem.setdefault(id(row.problem), [])",
        BUDGET + "the_standard_error_counts_problems_not_responses",
    ),
    Mutant(
        "too long and too short cancel in the miss", "recipes/budget.py",
        "statistics.fmean(abs(length - target) for length in lengths) / target",
        "abs(statistics.fmean(length - target for length in lengths)) / target",
        BUDGET + "a_line_at_a_target_by_hand",
    ),
    Mutant(
        "one response per problem, whatever `repeats` says", "recipes/budget.py",
        "prompt_rows(tokenizer, problems, config.repeats,",
        "prompt_rows(tokenizer, problems, 1,",
        BUDGET + "every_problem_is_answered_so_often_as_repeats_says",
    ),
    Mutant(
        "broken traces are chosen too", "recipes/select.py",
        "good = [trace for trace in traces if is_well_formed(trace.text)]",
        "good = traces",
        SELECT + "each_way_to_choose_gives_what_it_names[random]",
    ),
    Mutant(
        "a policy of a data file claims the task of the settings", "recipes/sft.py",
        "extra = load_extra(config.base) if config.data else task_flags(flatten(config))",
        "extra = task_flags(flatten(config))",
        SFT + "a_policy_of_a_file_is_for_the_task_of_its_base",
    ),
    Mutant(
        "too long demonstrations are cut", "recipes/sft.py",
        "kept = [row for row in rows if len(row.tokens) <= context]",
        "kept = [row for row in rows if not row.retract(max(0, len(row.tokens) - context))]",
        SFT + "problems_without_solution_and_too_long_ones_are_dropped_and_counted",
    ),
    Mutant(
        "lines of a data file end at any separator", "recipes/sft.py",
        "enumerate(text.split(\"\\n\"), 1)",
        "enumerate(text.splitlines(), 1)",
        SFT + "line_separators_inside_texts_and_a_byte_order_mark_are_no_faults",
    ),
    Mutant(
        "forced tokens are shown as the model's own", "rollout.py",
        "if sampled else f\"«{tokenizer.decode(tokens)}»\"",
        "if True else f\"«{tokenizer.decode(tokens)}»\"",
        PLAY + "a_thought_is_shown_as_it_comes_with_what_was_forced_in_marks",
    ),
    Mutant(
        "a person is told the search of a drawn problem", "play.py",
        "task.told(row.problem)\n",
        "row.problem.solution\n",
        PLAY + "without_the_word_in_its_vocabulary_a_model_is_kept_from_stopping_all_the_same",
    ),
    # ------------------------------------------------------------------------------------ sums with thinking, R1
    Mutant(
        "an error forgotten in the result", "tasks/thinking.py",
        "result = spaced(\"1\" * carry + result)",
        "result = spaced(a + b)",
        THINKING + "one_pass_is_wrong_as_often_as_its_columns_slip_and_checking_pays",
    ),
    Mutant(
        "re-checks end after the second pass, agree or not", "tasks/thinking.py",
        "if results[-1] in results[:-1] and draw.random() >= habits.extra_recheck_prob:",
        "if len(results) > 1 and draw.random() >= habits.extra_recheck_prob:",
        THINKING + "solutions_are_in_the_format_and_read_back_as_what_they_are[recheck]",
    ),
    Mutant(
        "the first of several answers counts", "prompts.py",
        "if opened != 1 or closed != 1 or end < start:",
        "if not opened or not closed or end < start:",
        THINKING + "only_what_stands_in_the_one_answer_is_judged",
    ),
    Mutant(
        "the raised budget is not used by the rollout", "recipes/grpo.py",
        "refills, cap = config.algorithm.max_refills, config.max_new_tokens.at(step)",
        "refills, cap = config.algorithm.max_refills, config.max_new_tokens.first",
        GRPO + "the_budget_rises_in_the_middle_of_a_run",
    ),
    Mutant(
        "pass@k of held-out rows grouped across problems", "environment.py",
        "groups = [scored[i : i + k] for i in range(0, len(scored), k)]",
        "groups = [scored[i :: len(scored) // k] for i in range(len(scored) // k)]",
        ENVIRONMENT + "samples_are_counted_by_problem_vote_and_difficulty",
    ),
    Mutant(
        "Countdown practises on the held-out split", "tasks/countdown.py",
        "kind = split if split in SPLITS else \"train\"",
        "kind = split if split in SPLITS else \"test_inputs\"",
        TASKS + "no_test_problem_is_ever_practised",
    ),
    Mutant(
        "wrong traces slip into rejection sampling", "recipes/select.py",
        "[t for t in good if t.right in wanted and (",
        "[t for t in good if (",
        SELECT + "what_is_kept_of_a_teacher_is_right_or_wrong_as_asked_in_the_format_and_in_the_modes",
    ),
    Mutant(
        "re-checks compared over all difficulties at once", "experiments/r1.py",
        'r.last(arm, f"eval/accuracy/{names.long}/{n}") - r.last(arm, f"eval/accuracy/{names.short}/{n}")',
        'r.last(arm, f"eval/accuracy/{names.long}") - r.last(arm, f"eval/accuracy/{names.short}")',
        CLAIMS + "re_checks_are_compared_with_single_passes_at_equal_difficulty",
    ),
    Mutant(
        "the rank correlation over the whole training", "experiments/r1.py",
        'where = ("accuracy", ROLLOUT), {"step": lambda step: step <= PRESETS[preset].rise}',
        'where = ("accuracy", ROLLOUT), {}',
        CLAIMS + "length_and_accuracy_are_compared_while_they_are_expected_to_rise",
    ),
    Mutant(
        "lines logged into a file that a rewind has replaced", "run.py",
        "        for file in self._files.values():  # they would go on writing into the files that are replaced\n"
        "            file.close()\n"
        "        self._files.clear()\n",
        "",
        RUN + "rewinding_drops_exactly_the_lines_of_later_steps",
    ),
    Mutant(
        "RL on the student compared at fewer tokens", "experiments/r1.py",
        'if line.get("num_tokens", 0) >= spent]',
        'if line.get("num_tokens", 0) <= spent]',
        CLAIMS + "the_student_is_compared_at_as_many_sampled_tokens_as_the_teacher_wrote",
    ),
    Mutant(
        "accuracy lost since its best counted from the start", "experiments/longcot.py",
        "return r.of_series(best, arm, \"accuracy\") - r.late",
        "return r.early(arm, \"accuracy\") - r.late",
        CLAIMS + "what_is_lost_since_the_best_is_nothing_while_accuracy_rises",
    ),
    Mutant(
        "claims judged by the mean of seeds that disagree", "experiments/results.py",
        "        elif opposite:",
        "        elif False and opposite:",
        RESULTS + "a_claim_is_judged_seed_by_seed",
    ),
    Mutant(
        "a seed without a number counts as one that agrees", "experiments/results.py",
        "if not values or missing:",
        "if not values:",
        RESULTS + "a_seed_without_a_number_is_not_a_seed_that_agrees",
    ),
    Mutant(
        "a job's settings are not part of what it is", "experiments/reproduce.py",
        'json.dumps([settings, code_hash(),',
        'json.dumps([{}, code_hash(),',
        RESULTS + "a_finished_job_is_its_settings",
    ),
    Mutant(
        "a barrier: a job waits for all that started before it", "experiments/reproduce.py",
        "return_when=FIRST_COMPLETED",
        'return_when="ALL_COMPLETED"',
        RESULTS + "a_job_starts_as_soon_as_its_own_base_is_done_without_waiting_for_others",
    ),
    # ------------------------------------------------------------------ checkpoints of others, numbers without end
    Mutant(
        "truncation and padding of a tokenizer file obeyed", "tokenizer.py",
        "        backend.no_truncation()\n        backend.no_padding()\n        eos_id",
        "        eos_id",
        TOKENIZER + "truncation_and_padding_in_a_tokenizer_file_are_not_obeyed_and_are_saved_again",
    ),
    Mutant(
        "truncation of a tokenizer file lost at saving", "tokenizer.py",
        "            if truncation:\n",
        "            if False:\n",
        TOKENIZER + "truncation_and_padding_in_a_tokenizer_file_are_not_obeyed_and_are_saved_again",
    ),
    Mutant(
        "rope_parameters before rope_scaling", "hf_config.py",
        'name = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"',
        'name = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"',
        CONFIG + "the_rotary_embedding_is_the_one_that_transformers_takes_from_the_same_file",
    ),
    Mutant(
        "the rope's base beside the dict before the one in it", "hf_config.py",
        'rope.get("rope_theta", raw.get("rope_theta", 10000.0))',
        'raw.get("rope_theta", rope.get("rope_theta", 10000.0))',
        CONFIG + "the_rotary_embedding_is_the_one_that_transformers_takes_from_the_same_file",
    ),
    Mutant(
        "llama3's first context beside the dict ignored", "hf_config.py",
        '    if "original_max_position_embeddings" in raw:\n',
        "    if False:\n",
        CONFIG + "the_rotary_embedding_is_the_one_that_transformers_takes_from_the_same_file",
    ),
    Mutant(
        "is_causal ignored", "hf_config.py",
        '    "is_causal": (True,),\n',
        "",
        CONFIG + "what_is_not_computed_here_is_refused_by_name",
    ),
    Mutant(
        "sliding layers taken for full ones", "hf_config.py",
        'any(each != "full_attention" for each in types)',
        "False",
        CONFIG + "what_is_not_computed_here_is_refused_by_name",
    ),
    Mutant(
        "the Qwens' kv heads guessed", "hf_config.py",
        'kv_heads = 32 if kind != "llama" and "num_key_value_heads" not in raw else heads',
        "kv_heads = heads",
        CONFIG + "what_a_config_leaves_out_is_filled_in_as_transformers_does",
    ),
    Mutant(
        "qwen3's head size guessed", "hf_config.py",
        'head_dim = 128 if kind == "qwen3" else ',
        "head_dim = ",
        CONFIG + "what_a_config_leaves_out_is_filled_in_as_transformers_does",
    ),
    Mutant(
        "any text is true", "model.py",
        "            if not isinstance(getattr(self, name), bool):\n",
        "            if False:\n",
        CONFIG + "what_is_not_computed_here_is_refused_by_name",
    ),
    Mutant(
        "no bound on the number of layers", "model.py",
        '"num_hidden_layers": 1 << 10,',
        '"num_hidden_layers": 1 << 40,',
        CONFIG + "ten_million_layers_are_refused_before_memory_is_taken",
    ),
    Mutant(
        "an index beside a single file counts", "checkpoint.py",
        'if (path / "model.safetensors").exists() or not index.exists():',
        "if not index.exists():",
        CHECKPOINT + "an_index_left_beside_a_single_file_does_not_count",
    ),
    Mutant(
        "the last shard that holds a weight counts", "checkpoint.py",
        "if twice := tensors.keys() & part.keys():",
        "if twice := set():",
        CHECKPOINT + "one_weight_in_two_shards_is_refused_by_name",
    ),
    Mutant(
        "shards in other folders", "checkpoint.py",
        "PureWindowsPath(name).name != name or ",
        "",
        CHECKPOINT + "a_shard_outside_the_folder_or_without_a_name_is_refused",
    ),
    Mutant(
        "shards in other folders of other systems", "checkpoint.py",
        "PureWindowsPath(name).name != name",
        "Path(name).name != name",
        CHECKPOINT + "a_shard_outside_the_folder_or_without_a_name_is_refused",
    ),
    Mutant(
        "only the first declared EOS", "tokenizer.py",
        "tuple(dict.fromkeys([eos_id, *more_eos_ids]))",
        "(eos_id,)",
        TOKENIZER + "every_declared_eos_ends_a_text",
    ),
    Mutant(
        "special_tokens_map.json ignored", "tokenizer.py",
        "for path in (own, legacy):",
        "for path in (own,):",
        TOKENIZER + "the_eos_is_the_one_that_transformers_finds",
    ),
    Mutant(
        "special_tokens_map.json before a listing tokenizer_config.json", "tokenizer.py",
        "if path.exists() and not (path == legacy and listed):",
        "if path.exists():",
        TOKENIZER + "the_eos_is_the_one_that_transformers_finds",
    ),
    Mutant(
        "an empty list of EOS accepted", "tokenizer.py",
        "    if not ids:\n",
        "    if False:\n",
        TOKENIZER + "an_eos_id_that_is_none_is_one_line_that_names_file_and_value",
    ),
    Mutant(
        "only one EOS id stops a row", "sampler.py",
        "*self.eos_ids]] = True",
        "*self.eos_ids[:1]]] = True",
        NUMBERS + "every_eos_id_ends_a_row_and_is_in_the_loss",
    ),
    Mutant(
        "a second EOS behind a demonstration", "rollout.py",
        "if ends and (not response or response[-1] not in tokenizer.eos_ids):",
        "if ends:",
        NUMBERS + "a_demonstration_that_ends_itself_gets_no_second_eos",
    ),
    Mutant(
        "tied although the file has two", "checkpoint.py",
        "and not torch.equal(tensors[EMBEDDING], tensors[HEAD]):",
        "and False:",
        CHECKPOINT + "tied_weights_with_a_head_in_the_file_are_what_transformers_makes_of_them",
    ),
    Mutant(
        "chat template and other files lost at saving", "tokenizer.py",
        ", **self.files}",
        "}",
        CHECKPOINT + "what_was_not_changed_survives_saving_byte_for_byte",
    ),
    Mutant(
        "fields of config.json lost at saving", "checkpoint.py",
        "huggingface_config(model.config, tokenizer, model.stored_config)",
        "huggingface_config(model.config, tokenizer)",
        CHECKPOINT + "what_was_not_changed_survives_saving_byte_for_byte",
    ),
    Mutant(
        "the stored precision written over float32 weights", "hf_config.py",
        '    stored.pop("dtype", None)',
        '    stored.pop("-", None)',
        CONFIG + "what_a_config_says_beyond_the_shape_is_saved_again",
    ),
    Mutant(
        "BOS twice", "tokenizer.py",
        "return ids if ids[: len(self.prefix)] == self.prefix else self.prefix + ids",
        "return self.prefix + ids",
        TOKENIZER + "a_prompt_begins_with_what_the_tokenizers_own_rules_put_there_once",
    ),
    Mutant(
        "a rule's EOS taken for BOS", "tokenizer.py",
        "probe.ids[: probe.sequence_ids.index(0)]",
        "[i for i, s in zip(probe.ids, probe.sequence_ids, strict=True) if s is None]",
        TOKENIZER + "a_bos_that_is_also_the_eos_stands_before_a_prompt_and_not_behind_it",
    ),
    Mutant(
        "rows without BOS", "rollout.py",
        "tokenizer.encode_prompt(problem.prompt)",
        "tokenizer.encode(problem.prompt)",
        TOKENIZER + "the_prompt_of_a_row_begins_with_bos_and_its_response_does_not",
    ),
    Mutant(
        "a vocabulary's size counted", "tokenizer.py",
        "self.valid_ids[-1] + 1",
        "len(self.valid_ids)",
        TOKENIZER + "the_size_of_a_vocabulary_with_gaps_is_its_largest_id_and_one",
    ),
    Mutant(
        "a text completed by the token that is it alone", "tokenizer.py",
        "return piece.startswith(endings) or text in piece or",
        "return text in piece or",
        TOKENIZER + "a_text_is_completed_by_every_token_that_can_end_it_and_by_no_other",
    ),
    Mutant(
        "ids without a token sampled", "sampler.py",
        "        if self.model.no_token is not None:\n",
        "        if False:\n",
        NUMBERS + "ids_without_a_token_are_never_drawn_and_the_learner_agrees",
    ),
    Mutant(
        "ids without a token in the learner's sum", "learn.py",
        "                logits = logits.masked_fill(no_token, NEVER)\n",
        "                pass\n",
        NUMBERS + "ids_without_a_token_have_probability_0_no_entropy_and_no_gradient[False]",
    ),
    Mutant(
        "ids without a token in the sum of the chunks", "learn.py",
        "(logits if ctx.no_token is None else",
        "(logits if True else",
        NUMBERS + "ids_without_a_token_have_probability_0_no_entropy_and_no_gradient[True]",
    ),
    Mutant(
        "ids without a token not looked for at loading", "checkpoint.py",
        "    if len(tokenizer.valid_ids) < V:",
        "    if False:",
        CHECKPOINT + "ids_without_a_token_are_known_after_loading",
    ),
    Mutant(
        "loaded tensors stay mapped to their file", "checkpoint.py",
        "tensor.to(dtype or tensor.dtype, copy=True)",
        "tensor.to(dtype or tensor.dtype)",
        CHECKPOINT + "the_tensors_of_a_loaded_checkpoint_do_not_hang_on_its_files",
    ),
    Mutant(
        "weights that are not finite saved", "checkpoint.py",
        "        if not tensor.isfinite().all():\n            raise FloatingPointError",
        "        if False:\n            raise FloatingPointError",
        CHECKPOINT + "weights_that_are_not_finite_are_neither_saved_nor_loaded",
    ),
    Mutant(
        "weights that are not finite loaded", "checkpoint.py",
        "            if not tensor.isfinite().all():\n                raise ValueError",
        "            if False:\n                raise ValueError",
        CHECKPOINT + "weights_that_are_not_finite_are_neither_saved_nor_loaded",
    ),
    Mutant(
        "rows of logits that are not finite handed back", "sampler.py",
        "            if math.isnan(logprob):\n",
        "            if False:\n",
        NUMBERS + "logits_that_are_not_finite_are_an_error_that_names_the_row",
    ),
    Mutant(
        "a logit of -inf taken for a choice", "sampler.py",
        "        logprob += broken\n",
        "",
        NUMBERS + "logits_that_are_not_finite_are_an_error_that_names_the_row",
    ),
    Mutant(
        "the CDF summed in float32", "sampler.py",
        "cdf = probs.cumsum(-1, dtype=exact)",
        "cdf = probs.cumsum(-1)",
        NUMBERS + "each_token_of_a_long_tail_has_its_own_numbers",
    ),
    Mutant(
        "numbers of 24 bits", "sampler.py",
        "return first + np.float64(2**-24) * second",
        "return first.astype(np.float64)",
        NUMBERS + "a_rows_numbers_tell_more_tokens_apart_than_there_are",
    ),
    Mutant(
        "checksums not compared", "checkpoint.py",
        "checksum(path / name) == value",
        "True",
        CHECKPOINT + "a_flipped_bit_in_a_tensor_is_refused",
    ),
    Mutant(
        "a training state without a step is step 0", "checkpoint.py",
        "    if counter not in state:\n",
        "    state.setdefault(counter, 0)\n    if False:\n",
        CHECKPOINT + "a_training_state_that_does_not_say_where_the_run_stood_is_refused",
    ),
    Mutant(
        "a negative step accepted", "checkpoint.py",
        "if type(state[counter]) is not int or state[counter] < 0:",
        "if type(state[counter]) is not int:",
        CHECKPOINT + "a_training_state_that_does_not_say_where_the_run_stood_is_refused",
    ),
    Mutant(
        "weights readable for the owner alone", "checkpoint.py",
        '        if path.suffix == ".safetensors":',
        "        if False:",
        CHECKPOINT + "every_file_has_the_mode_that_the_umask_gives",
    ),
    Mutant(
        "renamed before the weights are on the disk", "checkpoint.py",
        "for path in (*files, temporary / SUMS, temporary):",
        "for path in (temporary / SUMS, temporary):",
        CHECKPOINT + "everything_is_on_the_disk_before_the_folder_gets_its_name",
    ),
    # --------------------------------------------------------------- stop texts, rollouts of several rows, settings
    Mutant(
        "a stop text is only seen where its one token stands", "sampler.py",
        "return tokenizer.ids_that_complete(text)",
        "return tuple(tokenizer.encode(text)[-1:])",
        SAMPLER + "a_stop_text_ends_a_row_however_it_is_spelled_and_is_not_cut_from_it", fast=True,
    ),
    Mutant(
        "every token that could complete a stop text stops", "sampler.py",
        "if not self.stop or self._ends(slot)]",
        "]",
        SAMPLER + "a_token_that_only_could_have_completed_the_text_is_not_handed_out",
    ),
    Mutant(
        "a candidate at the budget's end is called a stop", "sampler.py",
        "bool(self.candidates[token]) and completes(self.tokenizer, row.response, self.stop)",
        "bool(self.candidates[token])",
        SAMPLER + "at_the_budgets_end_a_row_says_whether_it_completed_the_text_or_was_cut",
    ),
    Mutant(
        "min_tokens holds back stop ids and EOS alone", "sampler.py",
        "closed = self.blocked & (",
        "closed = self.stops & (",
        SAMPLER + "min_tokens_keeps_a_stop_text_from_being_completed",
    ),
    Mutant(
        "a stop text that was there before stops again", "sampler.py",
        "any(now.count(text) > before.count(text) for text in stop)",
        "any(text in now for text in stop)",
        SAMPLER + "the_last_token_of_a_text_is_always_among_those_that_may_complete_it",
    ),
    Mutant(
        "spawned rows are forgotten", "sampler.py",
        "sampler.submit(again)",
        "sampler.submit([other for other in again if other is row])",
        SAMPLER + "rows_that_on_stop_spawns_are_sampled_too_and_their_parent_waits_for_them",
    ),
    Mutant(
        "gradients of sharded parameters are means over the processes", "sharding.py",
        "            module.set_gradient_divide_factor(1.0)  # the average over a step is in its weights already\n",
        "",
        PROCESSES + "two_processes_with_sharded_parameters_leave_what_one_leaves[threads]",
    ),
    Mutant(
        "what a process does only to keep up with the others counts", "learn.py",
        "        batch.weights.mul_(counts)\n",
        "",
        PROCESSES + "two_processes_with_sharded_parameters_leave_what_one_leaves[one_row]",
    ),
    Mutant(
        "an erased block is in no loss", "rollout.py",
        "[False] * keep + self.loss_mask[keep:]",
        "[False] * len(self.tokens)",
        THREADS + "every_sampled_token_is_in_the_loss_of_one_row_and_no_other", fast=True,
    ),
    Mutant(
        "what stands before an erased block is in its loss too", "rollout.py",
        "[False] * keep + self.loss_mask[keep:]",
        "list(self.loss_mask)",
        THREADS + "every_sampled_token_is_in_the_loss_of_one_row_and_no_other",
    ),
    Mutant(
        "an erased block forgets with what log-probs it was drawn", "rollout.py",
        "[0.0] * keep + self.logprobs[keep:]",
        "[0.0] * len(self.tokens)",
        THREADS + "logprobs_of_all_rows_of_a_family_are_those_of_the_learner",
    ),
    Mutant(
        "joins in the loss, as if the parent had said them", "threads.py",
        "        row.force(tokens)\n",
        "        for token in tokens:\n            row.sampled(token, 0.0)\n",
        THREADS + "every_sampled_token_is_in_the_loss_of_one_row_and_no_other", fast=True,
    ),
    Mutant(
        "children are not learnt from", "recipes/grpo.py",
        "roots), [row for root in roots for row in root.family]",
        "roots), list(roots)",
        THREADS + "a_step_of_grpo_rewards_parents_and_gives_their_advantage_to_all_they_spawned",
    ),
    Mutant(
        "the critical path does not wait for children", "threads.py",
        "max([thread.clock, *(child.clock for child in last.children)])",
        "max([thread.clock, *(child.start for child in last.children)])",
        THREADS + "a_parent_waits_for_its_children_and_goes_on_behind_their_join",
    ),
    Mutant(
        "a parent's keys are given away while it waits", "threads.py",
        "        self.sampler.hold(row)\n",
        "",
        THREADS + "the_prefix_of_a_parent_is_read_once_where_there_is_room_for_it",
    ),
    Mutant(
        "a join is read for what the parent has said", "search_threads.py",
        "read_trace(numbers, target, without_joins(before)).tree",
        "read_trace(numbers, target, before).tree",
        "test_search_threads.py::test_a_node_is_looked_up_in_what_the_parent_has_said_itself_before_a_join_and_behind_it",
    ),
    Mutant(
        "a thread has an advantage of its own", "learn.py",
        "[[row.root.advantage] for row in rollouts]",
        "[[row.advantage] for row in rollouts]",
        LEARN + "threads_have_the_advantage_of_their_root", fast=True,
    ),
    Mutant(
        "weights count rows, not rollouts", "learn.py",
        "    rollouts = len(counts) if rollouts is None else rollouts\n",
        "    rollouts = len(rows) if rollouts is None else rollouts\n",
        LEARN + "weights_count_rollouts_and_not_rows", fast=True,
    ),
    Mutant(
        "a step without a token that counts still steps", "learn.py",
        "    if not any(any(row.loss_mask) for row in rollouts):\n",
        "    if False:\n",
        LEARN + "a_step_without_a_token_that_counts_is_an_error_before_any_weight_or_moment_changes",
    ),
    Mutant(
        "metrics of minibatches averaged evenly", "recipes/grpo.py",
        "sum(values[name] * values[\"num_tokens\"] for values in found) / tokens",
        "sum(values[name] for values in found) / len(found)",
        LEARN + "metrics_over_updates_are_weighted_by_their_tokens_and_maxima_are_maxima",
    ),
    Mutant(
        "NaN is within every range", "run.py",
        "        if math.isnan(value) or (math.isinf(value) and not self.infinite):\n            return False\n"
        "        return (value > self.low if self.low_open else value >= self.low) and value <= self.high",
        "        return not (value <= self.low if self.low_open else value < self.low) and not value > self.high",
        RUN + "every_number_has_one_range_and_what_lies_outside_is_refused_in_one_line_that_names_the_flag[grpo]",
    ),
    Mutant(
        "two tasks share one object, so that their flags are one", "run.py",
        "{name: copy.deepcopy(getattr(config, name)) for name in known}",
        "{name: getattr(config, name) for name in known}",
        RUN + "a_second_task_starts_from_the_first_one_and_is_another_object",
    ),
    Mutant(
        "what is said of the task is not said of the test's", "run.py",
        "            values.setdefault(name + flag.removeprefix(like), values[flag])\n",
        "            pass\n",
        RUN + "a_second_task_starts_from_the_first_one_and_is_another_object",
    ),
    Mutant(
        "numbers rounded to six digits in config.json", "run.py",
        "return repr(value) if isinstance(value, float) and float(short) != value == value else short",
        "return short",
        RUN + "numbers_are_stored_without_rounding",
    ),
    Mutant(
        "resuming names only some of what changed", "run.py",
        "k not in free and v != before.get(k)",
        "k not in free and \".\" not in k and v != before.get(k)",
        RUN + "resuming_lists_all_settings_that_changed_with_what_they_were_and_are",
    ),
    Mutant(
        "a schedule changes one step late", "run.py",
        "for start, value in self.changes if start <= step)",
        "for start, value in self.changes if start < step)",
        RUN + "a_schedule_changes_at_its_steps_and_is_read_back_as_it_is_shown", fast=True,
    ),
    # --------------------------------------------------------------------------- folders, consoles, wrong settings
    Mutant(
        "a checkpoint without its settings is taken for an empty folder", "run.py",
        "if left := [name for name in LEFT if (folder / name).exists()]:",
        "if left := []:",
        CONSOLE + "a_checkpoint_without_its_settings_is_neither_gone_on_from_nor_overwritten",
    ),
    Mutant(
        "resuming a mistyped folder starts from zero", "run.py",
        "    if config.resume and before is None:\n",
        "    if False:\n",
        CONSOLE + "resume_where_there_is_no_run_is_refused_and_where_it_never_began_is_not", fast=True,
    ),
    Mutant(
        "a shortened log is gone on from in silence", "run.py",
        "if logged and len(kept) != (before := logged.get(name)):",
        "if logged and len(kept) > (before := logged.get(name)):",
        CONSOLE + "a_log_that_is_shorter_than_its_checkpoint_knows_is_told_and_the_run_goes_on[cut]",
    ),
    Mutant(
        "the lines of a log before a stop are not counted", "run.py",
        "            self.logged[name] = len(kept)\n",
        "",
        RESUME + "a_run_stopped_at_every_other_step_still_ends_bit_equal",
    ),
    Mutant(
        "a console without a character ends a run", "console.py",
        "        except UnicodeEncodeError:\n",
        "        except UnicodeDecodeError:\n",
        CONSOLE + "what_a_console_cannot_show_is_replaced[ascii-? wait ?]",
    ),
    Mutant(
        "workers go on after ctrl-c", "experiments/reproduce.py",
        "            process.terminate()\n",
        "            pass\n",
        CONSOLE + "workers_end_with_their_parent_and_ctrl_c_lets_their_jobs_put_down_where_they_are[ctrl-c]",
    ),
    Mutant(
        "more workers than jobs", "experiments/reproduce.py",
        "    workers = min(workers, len(jobs))\n",
        "",
        CONSOLE + "one_worker_per_core_that_may_be_used_and_none_without_a_job",
    ),
    Mutant(
        "as many workers as the machine has cores, not the process", "experiments/reproduce.py",
        'len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1',
        "(os.cpu_count() or 1) + 1",
        CONSOLE + "one_worker_per_core_that_may_be_used_and_none_without_a_job",
    ),
    Mutant(
        "a config made in python is not checked", "run.py",
        "        check_settings(config)\n        stored_settings",
        "        stored_settings",
        RUN + "a_config_made_in_python_is_checked_before_its_run_begins",
    ),
    Mutant(
        "true is a whole number", "run.py",
        "if not isinstance(value, allowed) or (isinstance(value, bool) and plain_kind is not bool):",
        "if not isinstance(value, allowed):",
        RUN + "a_config_made_in_python_is_checked_before_its_run_begins",
    ),
    Mutant(
        "the worked examples may push out all that was kept", "recipes/star.py",
        "if config.prompt_set and fixed_rows(config) == config.rows_per_step:",
        "if False:",
        CLI + "[no row for new traces]",
    ),
    # -------------------------------------------------------------------------------------- what runs leave to be seen
    Mutant(
        "a response that is partly right is shown as right", "look.py",
        'lambda line: line.get("right") == 1,',
        'lambda line: line.get("right", 0) > 0,',
        VIEWS + "what_is_right_or_wrong_is_so_by_the_verdict_and_partly_right_is_wrong",
    ),
    Mutant(
        "truncated shows what ended by itself", "look.py",
        'lambda line: line.get("stop_reason") == "length",',
        'lambda line: line.get("stop_reason") != "length",',
        VIEWS + "only_the_right_the_wrong_or_the_truncated_responses[truncated-wanted2]", fast=True,
    ),
    Mutant(
        "groups of a test and of a rollout with the same number are one", "look.py",
        '(line.get("kind"), line.get("group"), line.get("prompt"))',
        '(line.get("group"), line.get("prompt"))',
        VIEWS + "samples_of_one_prompt_that_were_sampled_apart_are_groups_of_their_own",
    ),
    Mutant(
        "responses of all steps are shown as those of the newest", "look.py",
        'return step, [line for line in lines if line["step"] == step]',
        "return step, lines",
        VIEWS + "the_newest_step_is_shown_group_by_group_with_rewards_by_name_and_advantages",
    ),
    Mutant(
        "an even width of smoothing takes one neighbour more", "experiments/figure.py",
        "i + (width + 1) // 2])",
        "i + width // 2 + 1])",
        VIEWS + "smoothing_takes_as_many_neighbours_as_it_says[2-wanted1]",
    ),
    Mutant(
        "a mean of metrics drops lines that lack one of them", "plot.py",
        "if values := [point[name] for name in names if name in point]:",
        "if all(name in point for name in names) and (values := [point[name] for name in names]):",
        VIEWS + "a_mean_of_metrics_is_of_those_that_a_line_has",
    ),
    Mutant(
        "a text can close the element of the data of a report", "report.py",
        '.replace("<", "\\\\u003c")',
        "",
        REPORT + "no_text_leaves_the_data",
    ),
    Mutant(
        "thinning a report keeps the first samples", "report_samples.py",
        "groups[(2 * i + 1) * len(groups) // (2 * count)]",
        "groups[i]",
        REPORT + "too_many_samples_are_thinned_by_whole_groups_evenly_and_in_one_line",
    ),
    Mutant(
        "methods that were asked for different things share an axis", "report.py",
        'axis, x = "asked: " + line["method"], line.get("asked")',
        'axis, x = "asked", line.get("asked")',
        REPORT + "what_was_asked_of_a_method_is_an_axis_of_its_own_and_a_metric_that_is_missing_a_gap",
    ),
    Mutant(
        "the tokens of a response are logged without an end", "environment.py",
        "told = sum(tokens <= left for tokens in spent)",
        "told = len(rows)",
        ENVIRONMENT + "tokens_are_logged_up_to_a_bound_and_the_responses_always",
    ),
    Mutant(
        "only the first rows of a group are logged", "environment.py",
        "judge(task, tokenizer, [rows])",
        "judge(task, tokenizer, [rows[:1]])",
        ENVIRONMENT + "so_few_whole_groups_are_logged_taken_evenly_from_all[9-4-numbers3]",
    ),
    Mutant(
        "samples are logged before the advantages are known", "recipes/grpo.py",
        '        compute_advantages(config, policy, reference, groups)\n'
        '            log_samples(run, step, "rollout", config.task, tokenizer, groups, rewarded=True, policy=policy,\n'
        '                        temperature=config.temperature)  # fmt: skip\n',
        '        log_samples(run, step, "rollout", config.task, tokenizer, groups, rewarded=True, policy=policy,\n'
        '                        temperature=config.temperature)  # fmt: skip\n'
        '            compute_advantages(config, policy, reference, groups)\n',
        GRPO + "every_metric_is_there_at_every_step_and_they_agree_with_each_other",
    ),
    Mutant(
        "the logged raw value of a reward has its weight in it", "environment.py",
        "one.row.reward_parts[name] = value",
        "one.row.reward_parts[name] = reward.weight * value",
        ENVIRONMENT + "a_logged_response_says_all_that_is_known_of_it",
    ),
    Mutant(
        "the time left counts the steps before a resumption as done now", "run.py",
        "clock(seconds / (self.done - self.first) * (self.total - self.done))",
        "clock(seconds / self.done * (self.total - self.done))",
        RUN + "a_resumed_run_is_as_fast_as_it_has_been_since",
    ),
    Mutant(
        "a line of progress at every update", "run.py",
        "elif not sys.stderr.isatty() and time.monotonic() - max(_last_line, _running[0].started) >= LINE_SECONDS:",
        "elif not sys.stderr.isatty():",
        RUN + "without_a_terminal_a_line_comes_every_few_seconds_with_what_is_known", fast=True,
    ),
    # ------------------------------------------------------------------------------------ analyses of what changed
    Mutant(
        "the two directions of the KL exchanged", "analysis.py",
        "kl, reverse_kl = (policy_logs.exp() * ratio).sum(-1), -(base_logs.exp() * ratio).sum(-1)",
        "reverse_kl, kl = (policy_logs.exp() * ratio).sum(-1), -(base_logs.exp() * ratio).sum(-1)",
        ANALYSIS + "the_two_directions_differ_and_each_is_what_its_name_says",
    ),
    Mutant(
        "the absolute value of the log-ratio, as in the released analysis", "analysis.py",
        "(policy_said - base_said)[:, 0]",
        "(policy_said - base_said)[:, 0].abs()",
        ANALYSIS + "kl_both_ways_ratio_and_ranks_of_hand_made_distributions",
    ),
    Mutant(
        "a token counts itself in its rank", "analysis.py",
        "((logs > said).sum(-1)", "((logs >= said).sum(-1)",
        ANALYSIS + "kl_both_ways_ratio_and_ranks_of_hand_made_distributions",
    ),
    Mutant(
        "padding is pooled", "analysis.py",
        "states.double().masked_fill(~real[..., None], 0.0)", "states.double()",
        ANALYSIS + "pooled_states_are_means_over_a_texts_own_tokens_never_over_padding",
    ),
    Mutant(
        "principal components of states that are not centred", "analysis.py",
        "torch.linalg.svd(before - before.mean(0), full_matrices=False)",
        "torch.linalg.svd(before, full_matrices=False)",
        ANALYSIS + "pca_shift_equals_that_of_the_covariance_matrix",
    ),
    Mutant(
        "layers cancel before norms are taken", "analysis.py",
        "distances = [float(move.norm()) for move in moves]",
        "distances = [float(torch.stack(moves).mean(0).norm())] * len(moves)",
        ANALYSIS + "layers_that_move_apart_do_not_cancel_where_norms_are_taken_first",
    ),
    Mutant(
        "the answer counts as part of the thought", "behavior_rules.py",
        "END_OF_THOUGHT.split(response, 1)[0].partition(OPEN)", "response.partition(OPEN)",
        BEHAVIORS + "dots_empty_thoughts_and_steps_straight_ahead_show_none",
    ),
    Mutant(
        "a solution said again gives something up", "behavior_rules.py",
        "again = solved and (step.result == target or way in tried)", "again = False",
        BEHAVIORS + "of_attempts_read_attempts_counts_the_same",
    ),
    Mutant(
        "a path goes on from the latest pool that has its first numbers", "behavior_rules.py",
        "fits = next((j for j in possible if goes_on(pools[j], steps, i, text)), possible[0] if possible else None)",
        "fits = possible[0] if possible else None",
        BEHAVIORS + "a_calculation_goes_on_from_the_pool_that_what_follows_it_needs_too",
    ),
    Mutant(
        "every word for a check counts, not every checked calculation", "behavior_rules.py",
        "slots = {bisect.bisect_right(ends, hit.end()) for hit in",
        "slots = {bisect.bisect_right(ends, hit.end()) and hit.end() for hit in",
        BEHAVIORS + "texts_and_their_opposites", fast=True,
    ),
    Mutant(
        "what is made forward counts as backward", "behavior_rules.py",
        "if target not in made and (uses or explains):", "if uses or explains:",
        BEHAVIORS + "texts_and_their_opposites",
    ),
    # ------------------------------------------------------------------------------------------------- the doctor
    Mutant(
        "a gradient that is not logged is taken for 0", "doctor_rules.py",
        '(is_finite(norm := line.get("grad_norm")) and abs(norm) < 1e-9)',
        'abs(line.get("grad_norm") or 0.0) < 1e-9',
        DOCTOR + "a_dead_gradient_is_told_by_its_cause",
    ),
    Mutant(
        "a fall is measured from the first steps, not from the best ones", "curves.py",
        "return (reward.best - reward.last) / one",
        "return (reward.first - reward.last) / one",
        DOCTOR + "what_rose_and_fell_again_in_small_steps_is_told_apart_from_a_wrong_sign",
    ),
    # --------------------------------------------------------------------------------------------------- transfer
    Mutant(
        "arms are compared where one of them never came", "experiments/transfer.py",
        "reached = min(map(max, found))", "reached = max(map(max, found))",
        CLAIMS + "transfer_is_compared_where_two_arms_are_as_accurate_on_the_target", fast=True,
    ),
    Mutant(
        "the policy is sampled in place of its teacher", "recipes/grpo.py",
        "collect(config, step, teacher, tokenizer)", "collect(config, step, policy, tokenizer)",
        TRANSFER + "a_teacher_is_sampled_in_place_of_the_policy",
    ),
    # --------------------------------------------------------------------------------------------- adapters, moments
    Mutant(
        "alpha is not divided by the rank", "lora.py",
        "alpha / rank, True",
        "alpha / 1, True",
        LORA + "a_layer_is_w_x_plus_alpha_over_r_b_a_x",
    ),
    Mutant(
        "the base is trained beside its adapters", "lora.py",
        "    model.requires_grad_(False)\n",
        "",
        LORA + "only_adapters_get_gradients_moments_and_steps",
    ),
    Mutant(
        "the reference of adapters is the policy itself", "recipes/grpo.py",
        "        with switched_off(reference):\n",
        "        if True:\n",
        LORA + "the_reference_is_the_base_without_a_copy",
    ),
    Mutant(
        "adapters that were switched off stay off after an error", "lora.py",
        "    try:\n        yield\n    finally:\n        for layer in layers:\n            layer.on = True\n",
        "    yield\n    for layer in layers:\n        layer.on = True\n",
        LORA + "switched_off_it_is_the_base_to_the_bit_and_then_on_again_even_after_an_error",
    ),
    Mutant(
        "the adapter is saved before the policy that it is merged into", "memory.py",
        "    if memory.lora and last:\n",
        "    if memory.lora and last:\n"
        "        save_checkpoint(folder / 'adapter', policy, tokenizer, optimizer, state, extra=extra, base=base)\n",
        LORA + "a_run_that_was_stopped_and_resumed_ends_bit_equal[save_checkpoint]",
    ),
    Mutant(
        "moments in bfloat16 rounded to the nearest", "optim.py",
        "((x.view(torch.int32) + noise) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)",
        "x.to(torch.bfloat16)",
        MEMORY + "a_second_moment_in_bfloat16_fades_as_it_should",
    ),
]  # fmt: skip

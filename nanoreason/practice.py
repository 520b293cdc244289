"""What a policy practises on: problems that are posed, sampled, judged by weighted rewards, and measured.

    PracticeConfig --posed--> problems --sample--> rows --judge--> rewards, row by row, part by part
                   --held_out--> problems nobody practises on --measure--> accuracy, pass@k, maj@k, format, length

Which task, which template and which rewards are settings; reinforcement learning (`recipes/grpo.py`) and distillation
(`recipes/distill.py`) add what they do with the rows.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

from nanoreason.evaluate import maj_at_k, pass_at_k
from nanoreason.learn import FLAT, discounted_returns
from nanoreason.model import Transformer
from nanoreason.rewards import (
    accuracy_reward,
    classic_reward,
    closing_ids,
    cosine_reward,
    extract_tagged,
    format_reward,
    lcpo_reward,
    overlong_reward,
    repetition_penalties,
    repetition_reward,
    with_template,
)
from nanoreason.rollout import Problem, Rollout, Task, prompt_rows, response_text, seed_of
from nanoreason.run import RunConfig, progress
from nanoreason.sampler import Sampler
from nanoreason.search import ThinkingCountdown
from nanoreason.tasks.addition import Addition, ThinkingAddition, asked, test_sums, thinking_sums
from nanoreason.tasks.countdown import Countdown
from nanoreason.tokenizer import TextTokenizer


@dataclass
class PracticeConfig(RunConfig):
    """Problems, responses and rewards: the settings that all recipes share whose policy learns from its own samples."""

    # problems and rewards
    task: str = "addition"  # addition (on a scratchpad), thinking (sums in R1's tags) or countdown
    digits: tuple[int, ...] = (1, 2, 3)  # lengths of the sums
    inputs: int = 3  # countdown: how many numbers are given
    answer_form: str = "operations"  # countdown: operations or expression
    unsolvable: float = 0.0  # chance that the stated answer of a sum to practise on is none that a response can give
    template: str = "none"  # how they are asked: none (as the task does), skeleton (User: ... Assistant:) or r1
    accuracy_weight: float = 1.0  # of the verifier's verdict, 1 or 0, in the reward
    format_weight: float = 0.0  # of the right use of the tags, 1 or 0, in the reward; needs a template
    asked: str = "none"  # "Think for (maximum) N tokens." in the prompt: none, exact, max, or both, each half the time
    asked_tokens: tuple[int, ...] = (8, 96)  # smallest and largest N, drawn evenly; it counts the whole response
    length_reward: str = "none"  # shape of the verdict by length: none, classic (0 where cut), cosine or lcpo (for N)
    lcpo_alpha: float = 0.012  # lcpo: price of a token; times the range of N it is about one right answer (L1: 1.17)
    lcpo_delta: float = 0.5  # lcpo: value of a right answer with exactly the maximum
    cosine_right: tuple[float, float] = (2.0, 1.0)  # cosine: value of a right response of length 0, of max_new_tokens
    cosine_wrong: tuple[float, float] = (-10.0, 0.0)  # the same of a wrong one (a flag that starts with - needs an =)
    cosine_exceed: float = -10.0  # cosine: value where max_new_tokens is reached, right or wrong
    length_margin: int = 0  # tokens before max_new_tokens that count as reaching it (the paper's code: 16 of 14336)
    repetition: str = "none"  # n-grams that come again: none, dense (rewards of tokens) or sparse (of the response)
    repetition_n: int = 40  # N of the n-grams, in tokens; what a sound response says twice should be shorter
    repetition_penalty: float = -0.05  # dense: of each token of a repeated n-gram; sparse: times their share
    repetition_gamma: float = 0.99  # dense: discount of a penalty for the tokens before it
    overlong_share: float = 0.0  # soft punishment falling from 0 to -1 in the last share of max_new_tokens; 0: none
    # responses
    temperature: float = 1.0  # of the sampling; the learner's log-probs are those of this distribution
    max_new_tokens: int = 64  # response tokens after which a row is cut; a worked 3-digit sum needs 49
    # measuring
    eval_digits: tuple[int, ...] = (1, 2, 3)  # lengths that are tested
    eval_problems: int = 80  # held-out sums per length
    eval_samples: int = 0  # samples of each as in a rollout, before the first step too: pass@k, maj@k; 0: greedy only


# ------------------------------------------------------------------------------------------------------ the task


def task_of(config: PracticeConfig) -> Task:
    """Who poses and judges. This and the three functions below are all that a new task needs."""
    if config.task == "countdown":
        return ThinkingCountdown(Countdown(config.inputs, form=config.answer_form))
    return ThinkingAddition(config.digits) if config.task == "thinking" else Addition(config.digits)


def posed(config: PracticeConfig, purpose: str, index: int) -> Problem:
    """Problem `index` for a purpose, such as "rl" (to practise on) or "preflight" (to measure the base on)."""
    if config.unsolvable:  # the prompt does not tell which ones
        problem = posed(replace(config, unsolvable=0.0), purpose, index)
        lost = random.Random(seed_of("unsolvable", purpose, config.seed, index)).random() < config.unsolvable
        return replace(problem, answer=f"not {problem.answer}") if lost else problem
    if config.task == "countdown":  # its splits are named, and their problems come without an end
        return task_of(config).problem("train", seed_of(purpose, config.seed, index))
    return with_target(config, task_of(config).problem(f"{purpose}-{config.seed}", index), f"{purpose}-{index}")


def held_out(config: PracticeConfig) -> list[Problem]:
    """What no run practises on."""
    if config.task == "countdown":
        return [task_of(config).problem("test_inputs", i) for i in range(config.eval_problems)]
    problems = (thinking_sums if config.task == "thinking" else test_sums)(config.eval_digits, config.eval_problems)
    return [with_target(config, problem, f"held-out-{i}") for i, problem in enumerate(problems)]


def with_target(config: PracticeConfig, problem: Problem, name: str) -> Problem:
    """The problem with a number of tokens to think for (L1), if the settings say so: drawn evenly, by its name."""
    if config.asked == "none":
        return problem
    draw = random.Random(seed_of("target", config.seed, name))
    kind = draw.choice(["exact", "max"]) if config.asked == "both" else config.asked
    return asked(problem, kind, draw.randint(*config.asked_tokens))


def difficulty(problem: Problem) -> int:
    """The digits of a sum, the numbers of a Countdown."""
    return problem.info["digits"] if "digits" in problem.info else len(problem.info["numbers"])


# ------------------------------------------------------------------------------------------------ sample and judge


def sample(
    config: PracticeConfig, policy: Transformer, words: TextTokenizer, problems: list[Problem], group_size: int,
    seed: int, temperature: float | None = None,
) -> list[Rollout]:  # fmt: skip
    """Finished rows, group by group. They end with EOS, with their budget or, under a template, with </answer>."""
    sampler = Sampler(
        policy, eos_id=words.eos_ids, max_new_tokens=config.max_new_tokens,
        temperature=config.temperature if temperature is None else temperature,
        stop_ids=() if config.template == "none" else closing_ids(words),
    )  # fmt: skip
    rows = prompt_rows(words, [with_template(problem, config.template) for problem in problems], group_size, seed)
    sampler.submit(rows)
    with progress(total=len(rows), desc="sample", unit="row") as bar:
        for row in sampler:
            if row.stop_reason == "stop" and "</answer>" not in response_text(words, row):
                sampler.submit([row])  # a token that could have completed the tag, and did not
            else:
                bar.update()
    return rows


def judge(config: PracticeConfig, words: TextTokenizer, rows: list[Rollout]) -> dict[str, list[float]]:
    """Sets each row's reward, the weighted sum of its parts. Returns the parts and, whatever its weight, accuracy."""
    tags = config.template != "none"
    parts = {"accuracy": (accuracy_reward(task_of(config), tags), config.accuracy_weight)}
    if tags:
        parts["format"] = (format_reward, config.format_weight)
    if config.overlong_share:
        buffer = max(1, round(config.overlong_share * config.max_new_tokens))
        parts["overlong"] = (overlong_reward(config.max_new_tokens, buffer), 1.0)
    if config.length_reward != "none":  # in place of the bare verdict, which is still measured
        verdict, limit, margin = parts["accuracy"][0], config.max_new_tokens, config.length_margin
        shaped = classic_reward(verdict, limit, margin)
        if config.length_reward == "lcpo":
            shaped = lcpo_reward(verdict, config.lcpo_alpha, config.lcpo_delta)
        elif config.length_reward == "cosine":
            ends = config.cosine_right, config.cosine_wrong, config.cosine_exceed
            shaped = cosine_reward(verdict, limit, *ends, margin)
        parts |= {"accuracy": (verdict, 0.0), config.length_reward: (shaped, config.accuracy_weight)}
    if config.repetition == "sparse":
        parts["repetition"] = (repetition_reward(config.repetition_n, config.repetition_penalty), 1.0)
    columns = {name: [getattr(row.problem, name) for row in rows] for name in ("answer", "solution", "info")}
    prompts = [row.problem.prompt for row in rows]
    completions = [response_text(words, row) for row in rows]
    values = {
        name: function(prompts, completions, completion_ids=[row.response for row in rows], **columns)
        for name, (function, _) in parts.items()
    }
    for i, row in enumerate(rows):
        row.reward = sum(weight * values[name][i] for name, (_, weight) in parts.items())
    if config.repetition == "dense":  # not in the reward: what its tokens earned is added to their advantages
        values["repetition"] = []
        for row in rows:
            penalties = repetition_penalties(row.response, config.repetition_n, config.repetition_penalty)
            row.token_advantages = [0.0] * row.prompt_len + discounted_returns(penalties, config.repetition_gamma)
            values["repetition"].append(sum(penalties))
    return values


def is_flat(group: list[Rollout]) -> bool:
    """Whether all rewards are equal, so that nothing in the group is better than the rest."""
    return max(row.reward for row in group) - min(row.reward for row in group) <= FLAT


def describe(
    config: PracticeConfig, words: TextTokenizer, groups: list[list[Rollout]], parts: dict[str, list[float]]
) -> dict[str, float]:
    """Metrics of all that was sampled, discarded groups included, under TRL's names where it has one."""
    rows = [row for group in groups for row in group]
    lengths = [len(row.response) for row in rows]
    cut = [row.stop_reason == "length" for row in rows]

    def mean_length(chosen: Callable[[int], bool]) -> float:
        some = [lengths[i] for i in range(len(rows)) if chosen(i)]
        return statistics.fmean(some) if some else 0.0

    return {
        "reward": statistics.fmean(row.reward for row in rows),
        "reward_std": statistics.fmean(statistics.pstdev(row.reward for row in group) for group in groups),
        "frac_reward_zero_std": statistics.fmean(is_flat(group) for group in groups),
        **{f"rewards/{name}/mean": statistics.fmean(values) for name, values in parts.items()},
        "accuracy": statistics.fmean(parts["accuracy"]),
        "groups": len(groups),
        "completions/mean_length": statistics.fmean(lengths),
        "completions/min_length": min(lengths),
        "completions/max_length": max(lengths),
        "completions/mean_terminated_length": mean_length(lambda i: not cut[i]),
        "completions/mean_length_correct": mean_length(lambda i: parts["accuracy"][i] == 1),
        "completions/mean_length_wrong": mean_length(lambda i: parts["accuracy"][i] < 1),
        "completions/clipped_ratio": statistics.fmean(cut),
        "completions/repetition": repeated_share(config, rows),
        "tokens": sum(lengths),
        **traits(config, [response_text(words, row) for row in rows], parts["accuracy"]),
    }


def repeated_share(config: PracticeConfig, rows: list[Rollout]) -> float:
    """The share of a response's N-grams that repeat an earlier one, its mean; N is the penalty's, used or not."""
    ids = [row.response for row in rows]
    return statistics.fmean(repetition_reward(config.repetition_n, 1.0)(ids, ids, completion_ids=ids))


def traits(config: PracticeConfig, texts: list[str], right: list[float]) -> dict[str, float]:
    """The means of what the task reads in the responses; for traits named mode/... also the accuracy in that mode."""
    task = task_of(config)
    if not hasattr(task, "traits"):
        return {}
    found = [task.traits(text) for text in texts]
    means = {name: statistics.fmean(values[name] for values in found) for name in found[0]}
    for name in [name for name in means if name.startswith("mode/") and means[name]]:
        chosen = [verdict for values, verdict in zip(found, right, strict=True) if values[name]]
        means[name.replace("mode/", "accuracy/")] = statistics.fmean(chosen)
    return means


# ------------------------------------------------------------------------------------------------------ measuring


def measure(config: PracticeConfig, policy: Transformer, words: TextTokenizer) -> dict[str, float]:
    """Accuracy on held-out problems by difficulty: {"acc/2": ...}, greedily; with --eval-samples also sampled."""
    rows = sample(config, policy, words, held_out(config), 1, 0, temperature=0.0)
    accuracy = judge(config, words, rows)["accuracy"]
    right: dict[int, list[float]] = {}
    for row, value in zip(rows, accuracy, strict=True):
        right.setdefault(difficulty(row.problem), []).append(value)
    greedy = {f"acc/{n}": statistics.fmean(values) for n, values in sorted(right.items())}
    return greedy | (measure_samples(config, policy, words) if config.eval_samples else {})


def measure_samples(config: PracticeConfig, policy: Transformer, words: TextTokenizer) -> dict[str, float]:
    """Held-out problems as the policy is trained, at its temperature and budget: eval/pass@k, eval/maj@k, format,
    length, traits, and by difficulty n the accuracy eval/accuracy/n and that of single modes eval/accuracy/MODE/n."""
    # As R1 measures: greedy decoding repeats itself, so pass@1 is the mean over k samples. The numbers of a row depend
    # on its problem and place alone, so policies are compared on the same ones.
    k = config.eval_samples
    rows = sample(config, policy, words, held_out(config), k, seed_of("held-out"))
    parts = judge(config, words, rows)
    texts, right = [response_text(words, row) for row in rows], parts["accuracy"]
    groups = [slice(i, i + k) for i in range(0, len(rows), k)]
    votes = [extract_tagged(text) for text in texts]
    metrics = {f"pass@{n}": statistics.fmean(pass_at_k(k, int(sum(right[g])), n) for g in groups)
               for n in (1, 2, 4, 8, 16, 32, 64) if n <= k}  # fmt: skip
    metrics[f"maj@{k}"] = statistics.fmean(maj_at_k(votes[g], [bool(r) for r in right[g]], k) for g in groups)
    metrics |= {
        "format": statistics.fmean(parts["format"]),
        "mean_length": statistics.fmean(len(row.response) for row in rows),
        "clipped_ratio": statistics.fmean(row.stop_reason == "length" for row in rows),
        "repetition": repeated_share(config, rows),
        **traits(config, texts, right),
    }
    for n in sorted({difficulty(row.problem) for row in rows}):
        chosen = [i for i, row in enumerate(rows) if difficulty(row.problem) == n]
        some = traits(config, [texts[i] for i in chosen], [right[i] for i in chosen])
        metrics[f"accuracy/{n}"] = statistics.fmean(right[i] for i in chosen)
        metrics |= {f"{name}/{n}": value for name, value in some.items() if name.split("/")[0] in ("mode", "accuracy")}
    return {f"eval/{name}": value for name, value in metrics.items()}

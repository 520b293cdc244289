"""What a policy practises on and is tested on: problems -> samples -> verdicts and rewards -> metrics.

    task.problem --sample--> groups of rows --compute_rewards--> row.reward, one Scored per row --rollout_metrics--> log
    task.test_problems --evaluate--> greedy accuracy by difficulty; pass@k, maj@k, length, format of samples
    a few whole groups --log_samples--> samples.jsonl, a line per response: what `python -m nanoreason look` shows

Nothing here knows which task it is: a task is an object (`rollout.Task`), rewards are objects (`rewards.py`).
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from nanoreason import processes
from nanoreason.evaluate import maj_at_k, pass_at_k
from nanoreason.learn import compute_logprobs, is_zero_variance
from nanoreason.model import Transformer
from nanoreason.prompts import END, is_well_formed
from nanoreason.rewards import Reward, Scored, repeated_share
from nanoreason.rollout import (
    Problem,
    Rollout,
    Task,
    marked_text,
    prompt_groups,
    prompt_row,
    response_text,
    seed_of,
    stops_of,
    token_ends,
)
from nanoreason.run import Run
from nanoreason.sampler import Sampler, generate
from nanoreason.sharding import whole
from nanoreason.threads import Threads
from nanoreason.tokenizer import TextTokenizer

MOST_REWARD = 1e30  # its square is still a number, as the deviation of a group needs it
REPEAT_N = 8  # tokens of the n-grams that `repetition` counts where no reward names another number
FOLLOWED = 8  # held-out problems of which one response is kept at every test, to be compared over the training
LOGGED_TOKENS = 2048  # of a logged step, at 15 to 20 bytes each: about as much as all texts of the step
SAMPLED_GROUPS, SAMPLED_ROWS = 3, 32  # of a logged step: so many groups, but no more than one beyond so many responses


def check_words(tokenizer: TextTokenizer, split: str = "train", **tasks: Task | None) -> None:
    """ValueError that names the flag if a task has no problems in its split, which is "test" for `eval_task`, or a
    policy no words for them: before anything is trained."""
    for name, task in tasks.items():
        if task is None:
            continue
        flag = name.replace("_", "-")
        try:
            problem = task.problem("test" if name == "eval_task" else split, 0)
        except ValueError as error:
            raise ValueError(f"--{flag}: {error}") from None
        try:
            prompt_row(tokenizer, problem)
        except ValueError as error:
            lacks = "has no words for its chats" if "chat" in problem.info else "does not know the words of its prompts"
            raise ValueError(f"--{flag}: the model {lacks} ({error})") from None


def sample(
    task: Task, policy: Transformer, tokenizer: TextTokenizer, problems: list[Problem], *, group_size: int = 1,
    seed: int = 0, temperature: float = 1.0, max_new_tokens: int | None = None, name: str = "sample",
) -> list[list[Rollout]]:  # fmt: skip
    """Finished rows, one group per problem. They end with EOS, with a stop text of the task or with their budget. What
    they spawned, where the task lets them, is in their `family`.

    max_new_tokens   of the response; None: as many as the task says a right one can have, else what the context allows
    """
    groups = prompt_groups(tokenizer, problems, group_size, seed)
    rows = [row for group in groups for row in group]
    for row in rows:
        budget = task.max_tokens(row.problem) if max_new_tokens is None else max_new_tokens
        row.max_new_tokens = policy.config.max_position_embeddings if budget is None else budget
    sampler = Sampler(whole(policy), tokenizer, stop=stops_of(task), temperature=temperature)
    own = [row for group in processes.mine(groups) for row in group]
    generate(sampler, own, Threads(task, sampler) if task.spawn else None, name=name)
    exchange(groups)
    return groups


# What sampling changes in a row, its children aside.
SAMPLED = ("tokens", "loss_mask", "logprobs", "prompt_len", "seed", "draws", "max_new_tokens", "stop_reason", "counted")


def exchange(groups: list[list[Rollout]]) -> None:
    """Gives every process the rows that the others have sampled of their shares of the groups."""
    if processes.count() == 1:
        return
    own = [[written(row) for row in group] for group in processes.mine(groups)]
    for rank, said in enumerate(processes.gather(json.dumps(own))):
        if rank != processes.rank():
            for group, lines in zip(processes.of_rank(groups, rank), json.loads(said), strict=True):
                for row, line in zip(group, lines, strict=True):
                    read_into(row, line)


def written(row: Rollout) -> dict[str, Any]:
    line = {name: getattr(row, name) for name in SAMPLED}
    return {**line, "prompt": row.problem.prompt, "children": [written(child) for child in row.children]}


def read_into(row: Rollout, line: dict[str, Any]) -> Rollout:
    for name in SAMPLED:
        setattr(row, name, line[name])
    for child in line["children"]:  # of its problem no more than the prompt is known here
        problem = Problem(child["prompt"], row.problem.answer)
        row.children.append(read_into(Rollout(problem, [], [], [], 0, parent=row), child))
    return row


# --------------------------------------------------------------------------------------------- verdicts and rewards


def judge(task: Task, tokenizer: TextTokenizer, groups: list[list[Rollout]], limit: int | None = None) -> list[Scored]:
    """One Scored per row, group after group: its text, the task's verdict and what the task counts in it.

    limit   response tokens after which rows were cut; None: each row's own budget
    """
    scored = []
    for row in (row for group in groups for row in group):
        text = response_text(tokenizer, row)
        verdict, counted = task.reward(row.problem, text), {**task.metrics(row.problem, text), **row.counted}
        scored.append(Scored(row, text, verdict, row.max_new_tokens if limit is None else limit, counted))
    return scored


def reward_name(reward: Reward) -> str:
    """
    >>> from nanoreason.rewards import DenseRepetition
    >>> reward_name(DenseRepetition())
    'dense_repetition'
    """
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(reward).__name__).lower()


def compute_rewards(scored: list[Scored], rewards: Sequence[Reward]) -> dict[str, list[float]]:
    """Sets each row's reward, the weighted sum of its parts, and returns the parts {name: a value per row}.

    A reward of tokens (`of_tokens`) is no part of the sum: weighted, it becomes the row's token_advantages. ValueError
    names the reward and the row where a value is not finite.
    """
    parts: dict[str, list[float]] = {}
    for one in scored:
        one.row.reward, one.row.reward_parts, one.row.token_advantages = 0.0, {}, None
    for reward in rewards:
        name = unused(reward_name(reward), parts)
        parts[name] = [finite(reward(one), name, i, one) for i, one in enumerate(scored)]
        for i, (one, value) in enumerate(zip(scored, parts[name], strict=True)):
            one.row.reward_parts[name] = value
            if not hasattr(reward, "of_tokens"):
                one.row.reward = finite(one.row.reward + reward.weight * value, f"{name} times its weight", i, one)
                continue
            values = [finite(reward.weight * value, f"{name} of tokens", i, one) for value in reward.of_tokens(one)]
            if len(values) != one.tokens:
                raise ValueError(f"the reward {name} has {len(values)} values for {one.tokens} tokens {at_row(i, one)}")
            before = one.row.token_advantages or [0.0] * len(one.row.tokens)
            added = [0.0] * one.row.prompt_len + values
            one.row.token_advantages = [a + b for a, b in zip(before, added, strict=True)]
    return parts


def finite(value: float, name: str, i: int, one: Scored) -> float:
    """The value as a float; ValueError names the reward and the row if it is none, or too large to be summed."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"the reward {name} is {value!r}, which is no number, {at_row(i, one)}") from None
    if not abs(number) < MOST_REWARD:  # NaN is not
        raise ValueError(f"the reward {name} is {number} {at_row(i, one)}")
    return number


def at_row(i: int, one: Scored) -> str:
    return f"for row {i} (prompt {one.row.problem.prompt[:60]!r}, response {one.text[:60]!r})"


def unused(name: str, names: Collection[str]) -> str:
    """The name, numbered where others have it already.

    >>> unused("cosine", ["accuracy"]), unused("cosine", ["cosine", "cosine_2"])
    ('cosine', 'cosine_3')
    """
    numbered = (f"{name}_{n}" for n in range(2, len(names) + 3))
    return name if name not in names else next(other for other in numbered if other not in names)


# ---------------------------------------------------------------------------------------------------------- metrics


def mean(values: Sequence[float]) -> float:
    """0 of nothing."""
    return statistics.fmean(values) if values else 0.0


def is_flat(group: list[Rollout]) -> bool:
    return is_zero_variance([row.reward for row in group])


def rollout_metrics(
    groups: list[list[Rollout]], scored: list[Scored], parts: dict[str, list[float]], repeat_n: int = REPEAT_N
) -> dict[str, float]:
    """Metrics of all that was sampled, discarded groups included, under TRL's names where it has one."""
    lengths = [one.tokens for one in scored]
    cut = [one.row.stop_reason == "length" for one in scored]

    def mean_length(chosen: Callable[[int], bool]) -> float:
        return mean([lengths[i] for i in range(len(scored)) if chosen(i)])

    return {
        "reward": mean([one.row.reward for one in scored]),
        "reward_std": mean([statistics.pstdev(row.reward for row in group) for group in groups]),
        "frac_reward_zero_std": mean([is_flat(group) for group in groups]),
        **{f"rewards/{name}/mean": mean(values) for name, values in parts.items()},
        "accuracy": mean([one.verdict for one in scored]),
        "groups": len(groups),
        "completions/mean_length": mean(lengths),
        "completions/min_length": min(lengths),
        "completions/max_length": max(lengths),
        "completions/mean_terminated_length": mean_length(lambda i: not cut[i]),
        "completions/mean_length_correct": mean_length(lambda i: scored[i].right),
        "completions/mean_length_wrong": mean_length(lambda i: not scored[i].right),
        "completions/clipped_ratio": mean(cut),
        "completions/repetition": mean([repeated_share(one.row.response, repeat_n) for one in scored]),
        "tokens": sum(len(row.response) for one in scored for row in one.row.family),
        **task_metrics(scored),
    }


def task_metrics(scored: list[Scored]) -> dict[str, float]:
    """The means of what the task counts in the responses; of each mode/... also the accuracy in that mode."""
    names = scored[0].metrics if scored else {}
    means = {name: mean([one.metrics[name] for one in scored]) for name in names}
    for name in [name for name in means if name.startswith("mode/") and means[name]]:
        means[name.replace("mode/", "accuracy/")] = mean([one.verdict for one in scored if one.metrics[name]])
    return means


def by_difficulty(task: Task, scored: list[Scored]) -> dict[int, list[Scored]]:
    """The responses to problems of each difficulty, the easiest first."""
    found: dict[int, list[Scored]] = {}
    for one in scored:
        found.setdefault(task.difficulty(one.row.problem), []).append(one)
    return dict(sorted(found.items()))


# ---------------------------------------------------------------------------------------------- samples to be read


def logged_groups(groups: int, largest: int, count: int = SAMPLED_GROUPS) -> int:
    """How many of that many groups are logged: `count`, fewer where they would be more than SAMPLED_ROWS responses, but
    one at least. Groups of one, as greedy tests have them, are not cut."""
    return min(groups, max(1, min(count, SAMPLED_ROWS // largest if largest > 1 else count)))


def log_samples(
    run: Run, step: int, kind: str, task: Task, tokenizer: TextTokenizer, groups: Sequence[list[Rollout]], *,
    count: int = SAMPLED_GROUPS, rewarded: bool = False, verdict: Callable[[Rollout], float] | None = None,
    policy: Transformer | None = None, temperature: float = 1.0, **more: str,
) -> None:  # fmt: skip
    """Write a few whole groups of finished rows into samples.jsonl, a line per response: see `sample_line`.

    kind       what the rows are: rollout, greedy test, ...
    count      groups, taken evenly from all of them, so that every difficulty of an ordered list is there (fewer where
               they are large: `logged_groups`)
    rewarded   whether the rows have rewards and advantages
    verdict    of a row, where it is not what the task says of the whole response
    policy     that sampled the rows, with `temperature`: of tokens also the entropy is written, by one more forward
    more       what else the lines should say

    The first responses of each group also tell of their tokens (`token_line`), as far as LOGGED_TOKENS go.
    """
    count = logged_groups(len(groups), max(map(len, groups), default=1), count)
    left = LOGGED_TOKENS
    for part in range(count):
        number = (2 * part + 1) * len(groups) // (2 * count)  # the middle of each of `count` equal parts
        rows = groups[number]
        spent = list(itertools.accumulate(len(row.response) for row in rows))
        told = sum(tokens <= left for tokens in spent)  # so many rows tell of their tokens
        left -= spent[told - 1] if told else 0
        entropies = compute_logprobs(policy, rows[:told], temperature, 4096, entropies=True) if policy and told else []
        for i, one in enumerate(judge(task, tokenizer, [rows])):
            if verdict is not None:
                one = replace(one, verdict=verdict(one.row))
            line = sample_line(task, tokenizer, one, rewarded)
            if i < told and one.row.draws:
                line |= token_line(tokenizer, one.row, rewarded)
                line |= {"entropies": in_response(one.row, entropies[i])} if policy else {}
            run.sample(step, kind=kind, group=number, **line, **more)


def sample_line(task: Task, tokenizer: TextTokenizer, one: Scored, rewarded: bool) -> dict:
    """What samples.jsonl says of one response, the same names in every recipe.

    answer       what would be right; empty where the task does not know it
    tokens       of the response, its EOS included
    stop_reason  eos, stop, or length where it was truncated
    right        the verdict; valid: also through valid work
    rewards      {reward: its raw value}, reward: their weighted sum, advantage: within the group; None without rewards
    marked       the response with what was forced on the policy in «», where something was
    """
    row = one.row
    line = {
        "difficulty": task.difficulty(row.problem),
        "prompt": row.problem.prompt,
        "answer": task.told(row.problem),
        "response": one.text,
        "tokens": one.tokens,
        "stop_reason": row.stop_reason,
        "right": float(one.verdict),
        "valid": float(one.verdict * task.work_is_valid(row.problem, one.text)),
        "reward": row.reward if rewarded else None,
        "rewards": dict(row.reward_parts) if rewarded else {},
        "advantage": row.advantage if rewarded else None,
    }
    if not all(row.loss_mask[row.prompt_len :]):
        line["marked"] = marked_text(tokenizer, row, row.prompt_len)
    return line


def token_line(tokenizer: TextTokenizer, row: Rollout, rewarded: bool) -> dict:
    """What samples.jsonl says of the tokens of a response, a list with a value per token under each name.

    token_ends         characters of the response up to the end of each token; an EOS has none
    logprobs           under the distribution that it was drawn from
    token_advantages   what a reward of tokens adds to the row's advantage, where there is one
    """
    tokens = row.response
    ended = bool(tokens) and tokens[-1] in tokenizer.eos_ids
    ends = token_ends(tokenizer, tokens[:-1] if ended else tokens)
    line: dict = {"token_ends": ends + ends[-1:] if ended and ends else ends or [0] * len(tokens)}
    line["logprobs"] = in_response(row, row.logprobs)
    if rewarded and any(row.token_advantages or ()):
        line["token_advantages"] = in_response(row, row.token_advantages)
    return line


def in_response(row: Rollout, values: Sequence[float]) -> list[float | None]:
    """A row's values for the tokens of its response, rounded to be logged; None where a token was forced."""
    pairs = list(zip(values, row.loss_mask, strict=True))[row.prompt_len :]
    return [round(value, 3) or 0 if sampled else None for value, sampled in pairs]


# ------------------------------------------------------------------------------------------------------- evaluation


def evaluate(
    task: Task, policy: Transformer, tokenizer: TextTokenizer, problems: int, *, max_new_tokens: int | None = None,
    samples: int = 0, temperature: float = 1.0, repeat_n: int = REPEAT_N, run: Run | None = None, step: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Greedy accuracy on `problems` held-out problems of each difficulty; with `samples` also sampled.

    acc/N           right answers among the problems of difficulty N
    acc_strict/N    right answers through valid work
    acc_lenient/N   right answers, however they are written (`Task.is_right_leniently`)
    eval/...        of `samples` responses to each problem: see `sampled_metrics`
    eval/greedy_length   tokens of the greedy ones

    A few of the responses are written into the samples of `run`, where one is given, as those of `step`.
    """
    held_out = task.test_problems(problems)
    groups = sample(task, policy, tokenizer, held_out, temperature=0.0, max_new_tokens=max_new_tokens, name="test")
    scored = judge(task, tokenizer, groups)
    metrics = {}
    for n, some in by_difficulty(task, scored).items():
        metrics[f"acc/{n}"] = mean([one.verdict for one in some])
        strict = [one.verdict * task.work_is_valid(one.row.problem, one.text) for one in some]
        metrics[f"acc_strict/{n}"] = mean(strict)
        metrics[f"acc_lenient/{n}"] = lenient_accuracy(task, some)
    if run is not None:
        log_samples(run, step, "greedy test", task, tokenizer, groups)
    if not samples:
        return metrics
    # As R1 measures: greedy decoding repeats itself, so pass@1 is the mean over k samples. The numbers of a row depend
    # on its problem and place alone, so policies are compared on the same ones.
    groups = sample(task, policy, tokenizer, held_out, group_size=samples, seed=seed_of("held-out"),
                    temperature=temperature, max_new_tokens=max_new_tokens, name="test")  # fmt: skip
    if run is not None:
        log_samples(run, step, "sampled test", task, tokenizer, groups)
        followed = [group[:1] for group in groups[:FOLLOWED]]
        log_samples(run, step, "one sample each", task, tokenizer, followed, count=FOLLOWED, split="test")
    found = {"greedy_length": mean([one.tokens for one in scored])}
    found |= sampled_metrics(task, judge(task, tokenizer, groups), samples, repeat_n)
    return metrics | {f"eval/{name}": value for name, value in found.items()}


def lenient_accuracy(task: Task, scored: list[Scored]) -> float:
    return mean([float(task.is_right_leniently(one.row.problem, one.text)) for one in scored])


def sampled_metrics(task: Task, scored: list[Scored], k: int, repeat_n: int = REPEAT_N) -> dict[str, float]:
    """Of k responses to each problem, one problem after another: pass@n for n up to k, maj@k, accuracy_lenient,
    mean_length, stopped_length (of those that ended by themselves), format, clipped_ratio, repetition, what the task
    counts, and by difficulty N accuracy/N and of its modes accuracy/MODE/N."""
    groups = [scored[i : i + k] for i in range(0, len(scored), k)]
    right = [sum(one.right for one in group) for group in groups]
    metrics = {f"pass@{n}": mean([pass_at_k(k, c, n) for c in right]) for n in (1, 2, 4, 8, 16, 32, 64) if n <= k}
    votes = [[task.answer(one.text) for one in group] for group in groups]
    metrics[f"maj@{k}"] = mean([
        maj_at_k(vote, [one.right for one in group], k) for vote, group in zip(votes, groups, strict=True)
    ])  # fmt: skip
    metrics["accuracy_lenient"] = lenient_accuracy(task, scored)
    if END in task.stop:
        metrics["format"] = mean([is_well_formed(one.text) for one in scored])
    metrics |= {
        "mean_length": mean([one.tokens for one in scored]),
        "stopped_length": mean([one.tokens for one in scored if one.row.stop_reason != "length"]),
        "clipped_ratio": mean([one.row.stop_reason == "length" for one in scored]),
        "repetition": mean([repeated_share(one.row.response, repeat_n) for one in scored]),
        **task_metrics(scored),
    }
    for n, some in by_difficulty(task, scored).items():
        metrics[f"accuracy/{n}"] = mean([one.verdict for one in some])
        for name, value in task_metrics(some).items():
            if name.split("/")[0] in ("mode", "accuracy"):
                metrics[f"{name}/{n}"] = value
    return metrics

"""Rewards: small frozen dataclasses that turn one judged response into a number.

    row --text, the task's verdict, the token limit--> Scored --each reward--> value * weight, summed into row.reward

`--rewards accuracy,format:0.1,cosine` chooses them and their weights, `--rewards.cosine.exceed=-5` sets a field, and
`--rewards path/to/file.py:Mine` takes one of your own: a frozen dataclass with a weight and `__call__(scored)`. The
verdict is computed once, by the task. A reward never raises, whatever the text; `trl_reward` makes it one of TRL's.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from nanoreason.prompts import extract_answer, is_well_formed
from nanoreason.rollout import Problem, Rollout, Task, seed_of
from nanoreason.run import Positive, Range, Share


@dataclass(frozen=True)
class Scored:
    """One finished response and what is known about it."""

    row: Rollout
    text: str  # the response without its EOS
    verdict: float  # the task's: 1.0 right, else less
    limit: int  # response tokens after which the row was or would have been cut
    metrics: Mapping[str, float] = field(default_factory=dict)  # what the task counts in the text

    @property
    def right(self) -> bool:
        return self.verdict == 1

    @property
    def tokens(self) -> int:
        """Of the response, EOS included."""
        return len(self.row.response)

    def exceeds(self, margin: int = 0) -> bool:
        """Whether it was cut, by the limit or by the context, or comes within `margin` tokens of the limit.

        A response that ends by itself with its last allowed token counts too: one token more would have been cut.
        """
        # <exercise cosine>
        return self.row.stop_reason == "length" or self.tokens + margin >= self.limit
        # </exercise cosine>


@dataclass(frozen=True)
class Accuracy:
    """The verdict itself."""

    weight: float = 1.0

    def __call__(self, scored: Scored) -> float:
        return scored.verdict


@dataclass(frozen=True)
class Format:
    """1 if the response is <think>...</think> <answer>...</answer>, each tag once, nothing around them; else 0."""

    weight: float = 1.0

    def __call__(self, scored: Scored) -> float:
        return float(is_well_formed(scored.text))


@dataclass(frozen=True)
class Strict:
    """The verdict, but -1 for a response that is not in the format, even if it is right (SimpleRL-Zoo, 2503.18892)."""

    weight: float = 1.0

    def __call__(self, scored: Scored) -> float:
        return scored.verdict if is_well_formed(scored.text) else -1.0


@dataclass(frozen=True)
class Noisy:
    """The verdict of a verifier that errs: some wrong answers pass, some right ones do not; cut at the limit: 0.

    The same answer to the same problem is always judged alike. A response without an answer never passes.
    """

    weight: float = 1.0
    accept: Share = 0.0  # of the wrong answers, how many pass
    reject: Share = 0.0  # of the right answers, how many do not

    def __call__(self, scored: Scored) -> float:
        answer = extract_answer(scored.text)
        if answer is None or scored.exceeds():
            return 0.0
        draw = random.Random(seed_of("noisy", scored.row.problem.prompt, answer)).random()
        return float(draw >= self.reject if scored.right else draw < self.accept)


@dataclass(frozen=True)
class Overlong:
    """DAPO's soft overlong punishment (2503.14476, eq. 13): 0, then falling in a line to -1 at the limit."""

    weight: float = 1.0
    share: Annotated[float, Range(0, 1, low_open=True)] = 0.2  # of the limit, in which it falls

    def __call__(self, scored: Scored) -> float:
        buffer = max(1, round(self.share * scored.limit))
        return -min(1.0, max(0, scored.tokens - (scored.limit - buffer)) / buffer)


class Reward(Protocol):
    """What all of them are."""

    weight: float

    def __call__(self, scored: Scored) -> float: ...


# ------------------------------------------------------------------------------- length: verdicts shaped by tokens


@dataclass(frozen=True)
class Classic:
    """1 if right, 0 if wrong, and 0 where the limit is reached (Demystifying Long CoT, 2502.03373, section 4.1).

    It is silent about length up to the limit, so that thinking may grow into it.
    """

    weight: float = 1.0
    margin: Annotated[int, Range(0)] = 0  # tokens before the limit that count as reaching it

    def __call__(self, scored: Scored) -> float:
        return float(scored.right and not scored.exceeds(self.margin))


@dataclass(frozen=True)
class Cosine:
    """Half a cosine wave from a value at length 0 to a value at the limit L_max (Demystifying Long CoT, section 4.2).

        r_L + (r_0 - r_L) (1 + cos(pi L / L_max)) / 2        (r_0, r_L) = `right` or `wrong`
        `exceed`                                             where L + margin reaches L_max, even if right

    With the default values a short right answer is worth more than a long one, and a long wrong one costs less than a
    short one: think on where you do not know. The slope is 0 at both ends and steepest in the middle.
    """

    # DIFFERS from the paper in print: its appendix defines CosFn(t, T, low, high) and its text calls it with (r_0, r_L)
    # as (low, high), which taken literally exchanges the ends. This is what its prose, figures and code agree on.
    # DIFFERS from the paper's code: its margin is 16 tokens of 14,336; tiny windows need all of theirs.
    weight: float = 1.0
    right: tuple[float, float] = (2.0, 1.0)  # value of a right response of length 0, of the limit's length
    wrong: tuple[float, float] = (-10.0, 0.0)  # the same of a wrong one (a value that starts with - needs an =)
    exceed: float = -10.0  # value where the limit is reached, right or wrong
    margin: Annotated[int, Range(0)] = 0  # tokens before the limit that count as reaching it

    def __call__(self, scored: Scored) -> float:
        # <exercise cosine>
        if scored.exceeds(self.margin):
            return self.exceed
        start, end = self.right if scored.right else self.wrong
        return end + (start - end) * (1 + math.cos(math.pi * scored.tokens / scored.limit)) / 2
        # </exercise cosine>


@dataclass(frozen=True)
class Lcpo:
    """The reward of L1 (2503.04697) for prompts that ask for N tokens; `AskedLength` puts N into `info`.

        kind exact   [right] - alpha * |N - tokens|
        kind max     [right] * clip(alpha * (N - tokens) + delta, 0, 1)

    alpha * (range of N) is about 1.2 in the paper: the worst miss costs what a right answer brings. Exact in a group of
    equal verdicts has nothing but the length term, and dividing by the group's deviation makes it a full signal however
    small alpha is. Max: delta keeps a right answer that is a little too long better than a wrong one.
    """

    # DIFFERS from the paper's code: that one scales the product into [-1, 1] before it halves it, which doubles alpha,
    # and its run script for Max selects no length reward at all. These are the paper's formulas.
    weight: float = 1.0
    alpha: Annotated[float, Range(0)] = 0.012  # price of a token; times the range of N it is about one right answer
    delta: Share = 0.5  # max: value of a right answer with exactly N tokens

    def __call__(self, scored: Scored) -> float:
        info = scored.row.problem.info
        if "target_tokens" not in info:
            raise ValueError("the reward lcpo needs problems whose info has target_tokens: a task in asked_length")
        # <exercise lengths>
        spare = info["target_tokens"] - scored.tokens
        if info.get("kind", "exact") == "max":
            return min(1.0, max(0.0, self.alpha * spare + self.delta)) if scored.right else 0.0
        return float(scored.right) - self.alpha * abs(spare)
        # </exercise lengths>


# ------------------------------------------------------------------------------------------------------ repetition


def repeated_share(tokens: list[int], n: int) -> float:
    """The share of the n-grams of `tokens` (T) that repeat an earlier one.

    >>> repeated_share([1, 2, 3], 2), repeated_share([5, 5, 5, 5, 5], 2), repeated_share([1], 2)
    (0.0, 0.75, 0.0)
    """
    grams = [tuple(tokens[first : first + n]) for first in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def repetition_penalties(tokens: list[int], n: int, penalty: float) -> list[float]:
    """tokens (T) -> one reward per token (T): `penalty` for each token of an n-gram that was there before, else 0.

    Demystifying Long CoT, algorithm 1: the first occurrence is free, and a token in several repeated n-grams gets the
    penalty once.

    >>> repetition_penalties([1, 2, 3, 1, 2, 3, 4], n=2, penalty=-1.0)
    [0.0, 0.0, 0.0, -1.0, -1.0, -1.0, 0.0]
    >>> repetition_penalties([5, 5, 5], n=2, penalty=-1.0)  # the repeated 2-gram overlaps the first one
    [0.0, -1.0, -1.0]
    """
    rewards = [0.0] * len(tokens)
    seen: set[tuple[int, ...]] = set()
    for first in range(len(tokens) - n + 1):
        gram = tuple(tokens[first : first + n])
        if gram in seen:
            rewards[first : first + n] = [penalty] * n
        seen.add(gram)
    return rewards


def discounted_returns(rewards: list[float], gamma: float) -> list[float]:
    """rewards of tokens (T) -> what follows from each of them on (T): G_t = sum over l of gamma^l r_{t+l}.

    The token that earned a reward gets all of it, those before it less and less. `Rollout.token_advantages` takes G, so
    that the advantage of token t is A + G_t (the multi-reward GAE of Demystifying Long CoT at lambda 1: each kind of
    reward with its own discount, all in one sum). G is neither centred nor divided: a penalty has its size in units of
    A, also in a group whose rewards are all equal.

    >>> discounted_returns([0.0, -1.0, -1.0, 0.0], gamma=0.5)
    [-0.75, -1.5, -1.0, 0.0]
    """
    # DIFFERS from the paper: PPO subtracts a critic's V(s_t) from the sum of all kinds. GRPO has no critic; the group's
    # mean stands in for it in A, and nothing does in G_t, which changes the variance and not the expected gradient.
    returns, following = [0.0] * len(rewards), 0.0
    for t in reversed(range(len(rewards))):
        returns[t] = following = rewards[t] + gamma * following
    return returns


@dataclass(frozen=True)
class Repetition:
    """`penalty` times the share of the response's n-grams that repeat an earlier one (the sparse form; TRL has it over
    words). One number for the whole response, which does not say where it repeats itself."""

    weight: float = 1.0
    n: Positive = 40  # tokens of an n-gram; what a sound response says twice should be shorter
    penalty: float = -1.0

    def __call__(self, scored: Scored) -> float:
        return self.penalty * repeated_share(scored.row.response, self.n)


@dataclass(frozen=True)
class DenseRepetition:
    """`penalty` for each token of a repeated n-gram (Demystifying Long CoT, section 4.4): a reward of tokens.

    It is no part of `row.reward`: what a token earned is added to the advantages of that token and those before it.
    """

    weight: float = 1.0
    n: Positive = 40  # tokens of an n-gram
    penalty: float = -0.05  # of each token
    gamma: Share = 0.99  # discount of a penalty for the tokens before it

    def __call__(self, scored: Scored) -> float:
        return sum(repetition_penalties(scored.row.response, self.n, self.penalty))

    def of_tokens(self, scored: Scored) -> list[float]:
        """Discounted rewards of the response's tokens."""
        return discounted_returns(repetition_penalties(scored.row.response, self.n, self.penalty), self.gamma)


@dataclass(frozen=True)
class Metric:
    """One of the numbers that the task counts in a response (`Task.metrics`), such as a search's `rating`."""

    weight: float = 1.0
    name: str = ""  # of the number

    def __call__(self, scored: Scored) -> float:
        return scored.metrics.get(self.name, 0.0)


REWARDS = {
    "accuracy": Accuracy,
    "format": Format,
    "strict": Strict,
    "noisy": Noisy,
    "overlong": Overlong,
    "classic": Classic,
    "cosine": Cosine,
    "lcpo": Lcpo,
    "repetition": Repetition,
    "dense_repetition": DenseRepetition,
    "metric": Metric,
}


# ------------------------------------------------------------------------------------------------- TRL's interface


def text_of(completion: str | list | None) -> str:
    """A completion as text; TRL gives those of a chat as a list of messages, whose content may come in parts."""
    if isinstance(completion, list):
        last = completion[-1] if completion else None
        completion = last.get("content") if isinstance(last, dict) else None
    if isinstance(completion, list):
        completion = "".join(str(part.get("text") or "") for part in completion if isinstance(part, dict))
    return completion if isinstance(completion, str) else ""


NO_ANSWER = "(the data set states no answer)"  # not "": that is what an empty response says


def problem_of(prompt: str, columns: Mapping, i: int, count: int) -> Problem:
    """Row i of the data set's columns as a Problem; ValueError says in one line what cannot be one."""

    def column(name: str) -> Any:
        values = columns.get(name)
        if values is None:
            return None
        if not isinstance(values, (list, tuple)) or len(values) != count:
            raise ValueError(f"the column {name} must be a list of {count} values, one for each completion")
        return values[i]

    answer, solution, info = column("answer"), column("solution"), column("info")
    if answer is None and info is None:
        raise ValueError(
            f"row {i} has neither an answer nor info: the data set needs one of these columns to be judged"
        )
    if not isinstance(answer, (str, int, float, type(None))):
        raise ValueError(f"the column answer must hold texts, row {i} has {answer!r:.40}")
    if not isinstance(info, (Mapping, type(None))):
        raise ValueError(f"the column info must hold dicts, row {i} has {info!r:.40}")
    known = {key: value for key, value in (info or {}).items() if value is not None}  # `datasets` fills up with None
    return Problem(prompt, NO_ANSWER if answer is None else str(answer), str(solution or ""), known)


def trl_reward(reward: Reward, task: Task, max_tokens: int) -> Callable[..., list[float]]:
    """The reward as one of TRL's `reward_funcs`: (prompts, completions, completion_ids, **columns) -> one float each.

    The columns are the fields of `Problem` as far as the data set has them: answer, solution, info. `max_tokens` is the
    trainer's max_completion_length. A completion of that many tokens counts as cut. ValueError where the columns do not
    hold what the task judges by.
    """

    def function(prompts, completions, completion_ids=None, **columns) -> list[float]:
        if completion_ids is None or len(completion_ids) != len(completions):
            raise ValueError(
                f"completion_ids: the token ids of {len(completions)} completions are needed, as TRL has it"
            )
        values = []
        for i, (completion, ids) in enumerate(zip(completions, completion_ids, strict=True)):
            problem = problem_of(text_of(prompts[i]), columns, i, len(completions))
            ids, text = list(ids or ()), text_of(completion)
            row = Rollout(problem, ids, [True] * len(ids), [0.0] * len(ids), 0,
                          stop_reason="length" if len(ids) >= max_tokens else "eos")  # fmt: skip
            try:
                scored = Scored(row, text, task.reward(problem, text), max_tokens, task.metrics(problem, text))
            except (KeyError, TypeError) as error:
                raise ValueError(
                    f"the task {type(task).__name__} cannot judge row {i}: the column info must hold {error}"
                ) from error
            values.append(float(reward(scored)))
        return values

    function.__name__ = type(reward).__name__.lower()  # TRL logs it
    return function

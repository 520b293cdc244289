"""The vocabulary of the project: Problem, Rollout, Batch, Task. Read this first.

    Problem --Sampler--> Rollout --collate--> Batch --update--> new weights

A `Rollout` is one ragged row: plain Python lists, no padding. Whether a token counts in the loss is recorded at
the moment the token is appended (sampled: yes; prompt or forced: no) and never inferred from token values, so
pad = eos is harmless, EOS is always trained, and forced tokens ("Wait", a child's answer) are context, not loss.

SFT data is a Rollout that the policy did not sample but should have (`demonstration`), so STaR's filter,
best-of-n, distillation and GRPO are all list comprehensions over `list[Rollout]`.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from nanoreason.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Problem:
    """What a task hands out. `solution` is a full worked response (empty where the task knows none)."""

    prompt: str
    answer: str
    solution: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)


class Task:
    """A source of problems and their verifier. The first three methods make a task; the others have defaults.

    A task is a frozen dataclass that a config holds, and its fields are flags: `--task countdown --task.inputs 4`.
    `problem` is pure: item `index` of a split is a function of (the task's fields, split, index) alone. Split "test" is
    held out; every other name is a stream of problems of its own to train on. `reward`, `answer`, `metrics` and `clean`
    are total: whatever text a model writes, they never raise and never evaluate it as code.
    """

    stop: tuple[str, ...] = ()  # texts that end a response, EOS aside
    spawn: tuple[str, str] | None = None  # texts that open and close a block of spawns (`threads.py`); None: no threads

    def tokenizer(self) -> TextTokenizer:
        """The vocabulary that all of this task's texts are made of."""
        raise NotImplementedError

    def problem(self, split: str, index: int) -> Problem:
        raise NotImplementedError

    def reward(self, problem: Problem, response: str) -> float:
        """The verdict: 1.0 if the response is right, else 0.0."""
        raise NotImplementedError

    def difficulty(self, problem: Problem) -> int:
        """By which accuracies are listed, such as the number of digits."""
        return 0

    def domain(self, problem: Problem) -> Hashable:
        """The kind of problem, for whoever wants many kinds; sortable."""
        return self.difficulty(problem)

    def metrics(self, problem: Problem, response: str) -> dict[str, float]:
        """What else is worth counting in a response; always the same names. mode/...: 1 in one of several modes."""
        return {}

    def is_right_leniently(self, problem: Problem, response: str) -> bool:
        """Whether a judge who overlooks how the answer is written takes it too: reported beside the verdict."""
        return self.reward(problem, response) == 1

    def answer(self, response: str) -> str | None:
        """What the response votes for in a majority, the same text for the same answer; None: it has no vote."""
        return " ".join(response.split()) or None

    def work_is_valid(self, problem: Problem, response: str) -> bool:
        """Whether the work before the answer is right too, where the task can tell."""
        return True

    def max_tokens(self, problem: Problem) -> int | None:
        """Response tokens after which the problem cannot be solved any more; None: not known."""
        return None

    def test_problems(self, count: int) -> list[Problem]:
        """`count` held-out problems, of each difficulty where the task has several."""
        return [self.problem("test", index) for index in range(count)]

    def levels(self) -> list[Task]:
        """The task cut into one task per difficulty, for whoever practises equally on each."""
        return [self]

    def hint(self, problem: Problem) -> Problem:
        """The same problem with its answer in the prompt, as STaR's rationalization asks it."""
        raise ValueError(f"the task {type(self).__name__} has no hints: rationalization needs its method `hint`")

    def told(self, problem: Problem) -> str:
        """What a person is told who asks for a right answer; empty: not known."""
        return problem.answer

    def clean(self, response: str) -> str:
        """What of a right response is worth imitating."""
        return response

    def spawned(self, problem: Problem, response: str) -> list[Problem]:
        """The children that the block asks for in which a response ends, each once, in order; total."""
        return []

    def joined(self, children: list[Problem], responses: list[str]) -> str:
        """What a parent reads of its children in the place of its block; total, whatever they say."""
        return ""

    def parse(self, text: str) -> Problem:
        """The problem that a person has typed; ValueError says what it should look like."""
        raise ValueError(f"the task {type(self).__name__} takes no typed problems: leave it empty for a drawn one")


def stops_of(task: Task) -> tuple[str, ...]:
    """All texts at which a sampler hands a task's rows back: those that end a response, and what closes a block."""
    return (*task.stop, *(task.spawn or ())[1:])  # no method: a wrapper would hand it on to the task inside


@dataclass(eq=False)  # two rows with equal contents are still two rows
class Rollout:
    """One prompt and everything that was appended to it. All lists have length T, index t is about `tokens[t]`."""

    problem: Problem
    tokens: list[int]
    loss_mask: list[bool]  # True: the policy chose this token
    logprobs: list[float]  # under the distribution the token was drawn from; 0.0 where it was not drawn
    prompt_len: int
    seed: int = 0  # names the row's own stream of random numbers
    draws: int = 0  # how many of them are used up; a retracted token does not give its number back
    max_new_tokens: int | None = None  # budget for the response, forced tokens included; None: the sampler's
    stop_reason: str = ""  # "" running or never sampled, "eos", "stop" (a stop id), "length" (budget or context)
    reward: float = 0.0
    advantage: float = 0.0
    reward_parts: dict[str, float] = field(default_factory=dict)  # {reward: its raw value}, before its weight
    token_advantages: list[float] | None = None  # added to `advantage`, token by token; None: nothing
    old_logprobs: list[float] | None = None  # the learner's own for this row before the first update; None: `logprobs`
    ref_logprobs: list[float] | None = None  # under the reference model; None: no reference
    min_tokens: int = 0  # while the row has fewer tokens than this, no stop id and no EOS can be drawn
    parent: Rollout | None = None  # the row that spawned this one; its reward and advantage are the root's
    children: list[Rollout] = field(default_factory=list, repr=False)  # whose parent this is: spawned by it, or erased
    counted: dict[str, float] = field(default_factory=dict)  # what was counted while it was sampled, for the metrics

    @property
    def response(self) -> list[int]:
        return self.tokens[self.prompt_len :]

    @property
    def root(self) -> Rollout:
        """The row that the whole rollout began with: itself, unless it was spawned."""
        return self if self.parent is None else self.parent.root

    @property
    def family(self) -> list[Rollout]:
        """The row and all that come from it: every token that the policy sampled for it is in one of them, once."""
        return [self, *(row for child in self.children for row in child.family)]

    def sampled(self, token: int, logprob: float) -> None:
        """Append a token that the policy drew."""
        # <exercise mask>
        self.tokens.append(token)
        self.loss_mask.append(True)
        self.logprobs.append(logprob)
        self.draws += 1
        # </exercise mask>

    def force(self, tokens: list[int]) -> None:
        """Append tokens that the policy did not choose: context, never loss."""
        # <exercise mask>
        self.tokens += tokens
        self.loss_mask += [False] * len(tokens)
        self.logprobs += [0.0] * len(tokens)
        # </exercise mask>

    def retract(self, count: int = 1) -> None:
        """Take back the last `count` tokens of the response; the prompt cannot be retracted."""
        keep = len(self.tokens) - count
        if count < 0 or keep < self.prompt_len:
            raise ValueError(f"cannot retract {count} tokens: the response has {len(self.tokens) - self.prompt_len}")
        # <exercise mask>
        del self.tokens[keep:], self.loss_mask[keep:], self.logprobs[keep:]
        self.stop_reason = ""
        # </exercise mask>

    def erase(self, count: int) -> None:
        """Take the last `count` tokens back out of the context, but not out of the loss: they become a child that has
        this row up to there as its prompt, with the log-probs that they were drawn with."""
        keep = len(self.tokens) - count
        self.children.append(
            Rollout(self.problem, list(self.tokens), [False] * keep + self.loss_mask[keep:],
                    [0.0] * keep + self.logprobs[keep:], keep, self.seed, stop_reason=self.stop_reason, parent=self)
        )  # fmt: skip
        self.retract(count)


@dataclass
class Batch:
    """Padded tensors of some rollouts; column t of every (B, T) tensor is about `tokens[:, t]`.

    Rows are right-padded, so causal attention alone hides the padding: there is no attention mask.
    """

    tokens: torch.Tensor  # (B, T) int64
    loss_mask: torch.Tensor  # (B, T) bool
    old_logprobs: torch.Tensor  # (B, T) float32, of the policy that the ratio compares with
    weights: torch.Tensor  # (B, T) float32, how much each token counts; sums to 1 over the whole step
    advantages: torch.Tensor  # (B, 1) float32, or (B, T) where some row has advantages of single tokens
    sampler_logprobs: torch.Tensor  # (B, T) float32, of the distribution that each token was drawn from
    ref_logprobs: torch.Tensor  # (B, T) float32, of the reference; 0 where there is none


def seed_of(*parts: Any) -> int:
    """A 64-bit seed from names and numbers, the same on every machine.

    Sums such as `seed + index` make streams of neighbouring seeds overlap; hashing the whole name does not.

    >>> seed_of("star", 1, "round", 3) == seed_of("star", 1, "round", 3) != seed_of("star", 1, "round", 4)
    True
    """
    return int.from_bytes(hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest(), "little")


def prompt_row(tokenizer, problem: Problem, seed: int = 0, max_new_tokens: int | None = None) -> Rollout:
    """A row that holds only its prompt, ready for `Sampler.submit`: as a chat, if info["chat"] is a system message."""
    chat = problem.info.get("chat")
    tokens = tokenizer.encode_prompt(problem.prompt) if chat is None else tokenizer.encode_chat(problem.prompt, chat)
    return Rollout(problem, tokens, [False] * len(tokens), [0.0] * len(tokens), len(tokens), seed,
                   max_new_tokens=max_new_tokens)  # fmt: skip


def prompt_groups(tokenizer, problems: list[Problem], group_size: int = 1, seed: int = 0) -> list[list[Rollout]]:
    """One group of `group_size` rows per problem, each row with its own random numbers."""
    return [
        [prompt_row(tokenizer, problem, seed_of(seed, p, g)) for g in range(group_size)]
        for p, problem in enumerate(problems)
    ]


def prompt_rows(tokenizer, problems: list[Problem], group_size: int = 1, seed: int = 0) -> list[Rollout]:
    """The rows of all groups, one after another."""
    return [row for group in prompt_groups(tokenizer, problems, group_size, seed) for row in group]


def demonstration(tokenizer, problem: Problem, text: str | None = None) -> Rollout:
    """The row the policy should have sampled: `text` (default: the problem's solution), then EOS, all in the loss.

    A text that says its own end (an EOS written out, as in data made with a chat template) gets no second one, and a
    solution that is broken off (`problem.info["unfinished"]`) gets none: it would teach to stop in the middle.
    """
    row = prompt_row(tokenizer, problem)
    response = tokenizer.encode(problem.solution if text is None else text)
    ends = text is not None or not problem.info.get("unfinished")
    if ends and (not response or response[-1] not in tokenizer.eos_ids):
        response.append(tokenizer.eos_id)
    row.tokens += response
    row.loss_mask += [True] * len(response)
    row.logprobs += [0.0] * len(response)
    row.stop_reason = "eos" if ends else "length"
    return row


def marked_text(tokenizer, row: Rollout, start: int) -> str:
    """The row from token `start` on; each stretch of forced tokens in «», EOS left out."""
    parts: list[tuple[bool, list[int]]] = []
    for token, sampled in zip(row.tokens[start:], row.loss_mask[start:], strict=True):
        if token in tokenizer.eos_ids:
            continue
        if not parts or parts[-1][0] != sampled:
            parts.append((sampled, []))
        parts[-1][1].append(token)
    return " ".join(
        tokenizer.decode(tokens) if sampled else f"«{tokenizer.decode(tokens)}»" for sampled, tokens in parts
    )


def response_text(tokenizer, row: Rollout) -> str:
    """The response as text, without the EOS that closed it."""
    tokens = row.response
    return tokenizer.decode(tokens[:-1] if tokens and tokens[-1] in tokenizer.eos_ids else tokens)


def token_ends(tokenizer, tokens: list[int]) -> list[int]:
    """Where each token ends in `tokenizer.decode(tokens)`, in characters, so that a text can be cut into its tokens.

    What a token adds is seen from the few before it: decoding every prefix would be quadratic. A character that is
    spelt by several tokens may be counted to any of them.
    """
    ends, end = [], 0
    for t in range(len(tokens)):
        near = tokens[max(0, t - 4) : t + 1]
        end += len(tokenizer.decode(near)) - (len(tokenizer.decode(near[:-1])) if t else 0)
        ends.append(end)
    most = len(tokenizer.decode(tokens))
    return [min(end, most) for end in itertools.accumulate(ends, max)]

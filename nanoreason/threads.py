"""Threads that spawn and join (Adaptive Parallel Reasoning, Pan et al., 2025), as an `on_stop` of the sampling loop.

    parent  <think> spawn A ; B join      stops; its children are submitted, and run in the same batch as all else
    child   36 from 4 2 7 <think> ... <answer> none </answer>          a row of its own: no copy of the parent's context
    parent  <think> A no wait B , ... yes                              the join stands where the block stood
            </think> <answer> ... </answer>                            sampled: it goes on behind it

As in the paper the block is erased from the parent's context; here it stays in the loss (`Rollout.erase`), so that
every token that was sampled for a rollout is in exactly one row of its `family`. The keys of what stood before it are
still in the cache. What is not as it should be ends in a defined join, never in an error:

    a spawn that is malformed, that stood there before, or that is one too many     is not run and not joined
    a block of which nothing is left                                               a join of nothing, at once
    a child that runs into its limit, or answers nothing                            a child that found nothing
    a block too many or too deep; a join for which there is no room                 the thread ends as cut (length)

Clocks count sampled tokens: `clock` is the longest chain of tokens that had to wait for one another (the paper's
sequential tokens), in which of all children of a block only the longest counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from nanoreason.rollout import Problem, Rollout, Task, prompt_row, response_text, seed_of
from nanoreason.sampler import Sampler


@dataclass(eq=False)
class Round:
    """One block of spawns of a thread, from its stop to its join."""

    start: int  # the parent's clock when it spawned
    children: list[Thread]
    block: str  # what the parent said
    join: str = ""  # what it reads instead; empty until all children have ended
    end: int = 0  # the clock at the join


@dataclass(eq=False)
class Thread:
    """One contiguous row with its clock; a child knows its parent, a parent its rounds."""

    row: Rollout
    parent: Thread | None = None
    start: int = 0  # the clock when it was spawned
    clock: int = 0  # and now
    drawn: int = 0  # of its own tokens, how many the clock has counted
    running: int = 0  # children that its block waits for
    rounds: list[Round] = field(default_factory=list)

    @property
    def depth(self) -> int:
        return 0 if self.parent is None else 1 + self.parent.depth

    def below(self) -> Iterator[Thread]:
        """All threads that come from it, not it."""
        for one in self.rounds:
            for child in one.children:
                yield child
                yield from child.below()


class Threads:
    """`generate(sampler, rows, Threads(task, sampler))`: the rows' responses may spawn, as far as `task.limits` allow.

    When a row has ended, its `counted` holds, as numbers per rollout: threads/children, threads/rounds,
    threads/empty_rounds (blocks of which no child was left), threads/sequential_tokens (critical path),
    threads/total_tokens (of all threads), threads/child_tokens (mean, 0 without children) and threads/cut_children
    (that ran into their limit).
    """

    def __init__(self, task: Task, sampler: Sampler):
        self.task, self.sampler, self.limits = task, sampler, task.limits
        self.opening, self.closing = task.spawn
        self.of: dict[Rollout, Thread] = {}  # the thread of each row that has stopped or was spawned

    def __call__(self, row: Rollout) -> list[Rollout]:
        thread = self.of.setdefault(row, Thread(row))
        # <exercise threads>
        thread.clock, thread.drawn = thread.clock + row.draws - thread.drawn, row.draws
        # </exercise threads>
        if row.stop_reason == "stop" and self.text(row).rstrip().endswith(self.closing):
            return self.spawn(thread)
        return self.end(thread)

    def text(self, row: Rollout) -> str:
        return self.sampler.tokenizer.decode(row.response)

    def spawn(self, thread: Thread) -> list[Rollout]:
        """Erase the block in which the row ends; returns the rows of its children."""
        row, limits = thread.row, self.limits
        if thread.depth >= limits.depth or len(thread.rounds) >= limits.rounds:
            return self.cut(thread)
        response = self.text(row)
        problems = self.task.spawned(row.problem, response)[: limits.children]
        size = self.block_size(row)
        block = self.sampler.tokenizer.decode(row.tokens[len(row.tokens) - size :])
        row.erase(size)
        children = [self.child(thread, k, problem) for k, problem in enumerate(problems)]
        children = [child for child in children if len(child.row.tokens) < self.sampler.context]
        thread.rounds.append(Round(thread.clock, children, block))
        thread.running = len(children)
        if not children:
            return self.join(thread)
        self.sampler.hold(row)
        for child in children:
            self.of[child.row] = child
            row.children.append(child.row)
        return [child.row for child in children]

    def block_size(self, row: Rollout) -> int:
        """Tokens from the last opening of a block on; where there is none, those of the closing alone."""
        tokens, decode = row.response, self.sampler.tokenizer.decode
        keep = len(tokens) - 1
        while keep > 0 and self.closing not in decode(tokens[keep:]):
            keep -= 1
        closing, keep = keep, len(tokens) - 1
        while keep > 0 and self.opening not in decode(tokens[keep:]):
            keep -= 1
        return len(tokens) - (keep if self.opening in decode(tokens[keep:]) else closing)

    def child(self, thread: Thread, place: int, problem: Problem) -> Thread:
        """Its random numbers follow from the problem, the sample and the path of the thread alone."""
        seed = seed_of(thread.row.seed, "thread", len(thread.rounds), place)
        budget = self.limits.tokens or thread.row.max_new_tokens
        row = prompt_row(self.sampler.tokenizer, problem, seed, budget)
        row.parent = thread.row
        return Thread(row, thread, thread.clock, thread.clock)

    def join(self, thread: Thread) -> list[Rollout]:
        """All children of its last block have ended: it reads what they found, and goes on."""
        row, last = thread.row, thread.rounds[-1]
        # <exercise threads>
        problems = [child.row.problem for child in last.children]
        # What a child that was cut has said is no answer, even if it looks like one.
        responses = ["" if child.row.stop_reason == "length" else response_text(self.sampler.tokenizer, child.row)
                     for child in last.children]  # fmt: skip
        last.join = self.task.joined(problems, responses)
        last.end = thread.clock = max([thread.clock, *(child.clock for child in last.children)])
        tokens = self.sampler.tokenizer.encode(last.join)
        budget = self.sampler.max_new_tokens if row.max_new_tokens is None else row.max_new_tokens
        if len(row.tokens) + len(tokens) >= min(row.prompt_len + budget, self.sampler.context):
            return self.cut(thread)
        row.force(tokens)
        return [row]
        # </exercise threads>

    def cut(self, thread: Thread) -> list[Rollout]:
        thread.row.stop_reason = "length"
        return self.end(thread)

    def end(self, thread: Thread) -> list[Rollout]:
        """The thread says no more; the last child of a block brings its parent back."""
        # <exercise threads>
        if thread.parent is None:
            thread.row.counted = count(thread)
            return []
        thread.parent.running -= 1
        return [] if thread.parent.running else self.join(thread.parent)
        # </exercise threads>


def count(root: Thread) -> dict[str, float]:
    """What `Threads` says of a rollout that has ended; always the same names."""
    # <exercise threads>
    threads = [root, *root.below()]
    drawn = [thread.drawn for thread in threads]
    children = len(threads) - 1
    return {
        "threads/children": float(children),
        "threads/rounds": float(len(root.rounds)),
        "threads/empty_rounds": float(sum(not one.children for thread in threads for one in thread.rounds)),
        "threads/sequential_tokens": float(root.clock),
        "threads/total_tokens": float(sum(drawn)),
        "threads/child_tokens": sum(drawn[1:]) / max(1, children),
        "threads/cut_children": float(sum(thread.row.stop_reason == "length" for thread in threads[1:])),
    }
    # </exercise threads>

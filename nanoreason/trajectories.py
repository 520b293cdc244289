"""How a policy searches on Countdown: its greedy trajectories judged, and set beside those of the twelve strategies.

    problems --policy--> rows --strict reader--> readings --> solved, nodes, errors, share cut off    (one split)
                                    |--> alignment of states and of correctness                       (each strategy)

The measures are those of Stream of Search (Gandhi et al., 2024), section 4 and 5, with the reader of `search` in place
of the released one.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nanoreason.evaluate import respond
from nanoreason.model import Transformer
from nanoreason.rollout import Problem, Rollout, response_text, seed_of
from nanoreason.run import RunConfig
from nanoreason.search import ERRORS, MIXTURE, STRATEGIES, Reading, StreamOfSearch, generate, replay, search, write
from nanoreason.tasks.countdown import Countdown, count_solutions
from nanoreason.tokenizer import TextTokenizer

SPLITS = ("test_inputs", "test_targets")


@dataclass
class SearchConfig(RunConfig):
    """What training and improving a searcher have in common: the problems, the searches, and the tests."""

    inputs: int = 3  # numbers of a problem, 2 to 6
    max_input: int = 99  # the largest of them
    targets: tuple[int, ...] = (10, 100)  # smallest and largest target; a tenth of them is held out
    strategies: tuple[str, ...] = ()  # one is drawn evenly for each problem; empty: the paper's mixture of all twelve
    eval_problems: int = 200  # held-out problems per split
    hard_problems: int = 200  # training problems that the drawn strategy failed on, and as many that all twelve did

    def task(self) -> StreamOfSearch:
        if len(self.targets) != 2:
            raise ValueError(f"targets: the smallest and the largest, not {self.targets}")
        return StreamOfSearch(Countdown(self.inputs, self.max_input, self.targets))

    def mixture(self) -> dict[str, float]:
        """{strategy: how often it is drawn}"""
        return dict.fromkeys(self.strategies, 1 / len(self.strategies)) if self.strategies else dict(MIXTURE)


# ------------------------------------------------------------------------------------------------------ judging


def attempts(
    model: Transformer, words: TextTokenizer, task: StreamOfSearch, problems: list[Problem], **how
) -> tuple[list[Rollout], list[Reading]]:
    """One trajectory per problem (`group_size` of them if asked for) up to the model's context, and its reading."""
    context = model.config.max_position_embeddings  # a row's budget is what its prompt leaves of it
    rows = respond(model, words, problems, budget=lambda problem: context, **how)
    return rows, [task.read(row.problem, response_text(words, row)) for row in rows]


def summary(rows: list[Rollout], readings: list[Reading]) -> dict[str, float]:
    """Means over trajectories. `cut`: the share that ran out of budget."""
    nodes = [reading.nodes for reading in readings if reading.solved]
    return {
        "acc": statistics.fmean(reading.solved for reading in readings),
        "acc_lenient": statistics.fmean(reading.lenient for reading in readings),
        "nodes": statistics.fmean(reading.nodes for reading in readings),
        "nodes_solved": statistics.fmean(nodes) if nodes else 0.0,
        "tokens": statistics.fmean(len(row.response) for row in rows),
        "cut": statistics.fmean(row.stop_reason == "length" for row in rows),
        **{f"errors/{kind}": statistics.fmean(reading.errors[kind] for reading in readings) for kind in ERRORS},
    }


def state_alignment(ours: Sequence[Reading], theirs: Sequence[Reading]) -> float:
    """The mean over problems of |A & B| / max(|A|, |B|), A and B the valid states that the two trajectories explore."""
    shares = [len(a.states & b.states) / max(len(a.states), len(b.states)) for a, b in zip(ours, theirs, strict=True)]
    return statistics.fmean(shares)


def correctness_alignment(ours: Sequence[Reading], theirs: Sequence[Reading]) -> float:
    """Pearson's correlation of who solves which problem; 0 if one of them solves all or none."""
    a, b = ([float(reading.solved) for reading in readings] for readings in (ours, theirs))
    return 0.0 if min(a) == max(a) or min(b) == max(b) else statistics.correlation(a, b)


# -------------------------------------------------------------------------------------------- symbolic searches


class Symbolic(NamedTuple):
    """One strategy's search, judged like a model's."""

    reading: Reading
    tokens: int  # of the response, its EOS included


def symbolic(words: TextTokenizer, task: StreamOfSearch, problems: list[Problem], strategy: str) -> list[Symbolic]:
    found = []
    for i, problem in enumerate(problems):
        numbers, target = problem.info["numbers"], problem.info["target"]
        events = list(search(numbers, target, strategy, seed_of("measured", i)))
        length = len(words.encode(write(events, task.language))) + 1
        found.append(Symbolic(replay(numbers, target, events), length))
    return found


def hard_problems(config: SearchConfig) -> tuple[list[Problem], list[Problem]]:
    """The first training problems whose drawn strategy failed, and the first on which each of the twelve fails.

    "Drawn" is the strategy of the very demonstration that `generate` makes of the problem: see the paper's section 5.
    """
    # DIFFERS from the released code: the search gives up where such problems are too rare; it returns fewer then.
    task, drawn, difficult, wanted = config.task(), [], [], config.hard_problems
    for start in range(0, 60 * wanted, 100):
        for trajectory in generate(task, "train", start, 100, config.mixture(), workers=1, seed=config.seed):
            if trajectory.solved:
                continue
            drawn.append(trajectory.problem)
            if len(difficult) < wanted and not any(solves(trajectory.problem, name) for name in STRATEGIES):
                difficult.append(trajectory.problem)
        if min(len(drawn), len(difficult)) >= wanted:
            break
    return drawn[:wanted], difficult


def solves(problem: Problem, strategy: str, seed: int = 0) -> bool:
    numbers, target = problem.info["numbers"], problem.info["target"]
    return replay(numbers, target, list(search(numbers, target, strategy, seed))).solved


# --------------------------------------------------------------------------------------------------- measuring


def held_out(config: SearchConfig, split: str) -> list[Problem]:
    task = config.task()
    return [task.translate(problem) for problem in task.countdown.unique_problems(split, config.eval_problems)]


def measure(config: SearchConfig, model: Transformer, words: TextTokenizer, full: bool = False) -> dict[str, float]:
    """Greedy trajectories on both held-out splits: {"acc/test_inputs": ..., "errors/arithmetic/test_targets": ...}.

    `full` adds the shares solved of the training problems on which symbolic search failed, and for each strategy on
    `test_inputs` its own accuracy, without limit and within the policy's context, and its alignments with the policy.
    """
    task, metrics = config.task(), {}
    readings = {}
    problems = {split: held_out(config, split) for split in SPLITS}
    if full:
        problems["unsolved"], problems["difficult"] = hard_problems(config)
    for split in filter(problems.get, problems):
        rows, readings[split] = attempts(model, words, task, problems[split], name=split)
        metrics |= {f"{name}/{split}": value for name, value in summary(rows, readings[split]).items()}
    if not full:
        return metrics
    for split in SPLITS:
        chances = [count_solutions(problem.info["numbers"], problem.info["target"])[1] for problem in problems[split]]
        metrics[f"chance/{split}"] = statistics.fmean(chances)
        budgets = [model.config.max_position_embeddings - len(words.encode_prompt(p.prompt)) for p in problems[split]]
        for name in STRATEGIES:
            theirs = symbolic(words, task, problems[split], name)
            within = [one.reading.solved and one.tokens <= most for one, most in zip(theirs, budgets, strict=True)]
            metrics[f"symbolic/{name}/{split}"] = statistics.fmean(one.reading.solved for one in theirs)
            metrics[f"symbolic_within/{name}/{split}"] = statistics.fmean(within)
            metrics[f"symbolic_nodes/{name}/{split}"] = statistics.fmean(one.reading.nodes for one in theirs)
            their_readings = [one.reading for one in theirs]
            metrics[f"states/{name}/{split}"] = state_alignment(readings[split], their_readings)
            metrics[f"correctness/{name}/{split}"] = correctness_alignment(readings[split], their_readings)
    return metrics

"""How a searcher searches on Countdown: its greedy trajectories judged, and set beside those of the twelve strategies.

    problems --policy--> rows --strict reader--> readings --> solved, nodes, errors, share cut off    (one split)
                                    |--> alignment of states and of correctness                       (each strategy)

The measures are those of Stream of Search (Gandhi et al., 2024), sections 4 and 5, with the reader of `search.py` in
place of the released one. What accuracy costs is measured besides, on new inputs: of greedy trajectories within smaller
budgets (`budget/TOKENS/...`), of the best of n samples at temperature 1 (`best/N/...`, an oracle chooses), and of the
strategies and of random paths (`symbolic_budget/...`, `random_best/...`). No training.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nanoreason.checkpoint import load_checkpoint
from nanoreason.countdown import count_solutions
from nanoreason.environment import check_words, log_samples, sample
from nanoreason.evaluate import mean_pass_at_k
from nanoreason.model import Transformer
from nanoreason.rollout import Problem, Rollout, Task, response_text, seed_of
from nanoreason.run import AnyRows, Rows, Run, RunConfig, chosen, pick_device, say, table
from nanoreason.search import ERRORS, STRATEGIES, Reading, optimal_path, replay, search, write
from nanoreason.tasks import TASKS, StreamOfSearch
from nanoreason.tasks.countdown import SPLITS as ALL_SPLITS
from nanoreason.tokenizer import TextTokenizer

SPLITS = ALL_SPLITS[1:]  # test_inputs, test_targets
BUDGETS = (40, 80, 160, 320, 640, 1280, 2560)  # tokens of a trajectory, as far as the context reaches
BEST_OF = (1, 2, 4, 8, 16, 32, 64)  # n, as far as there are samples


@dataclass
class SearchTestConfig(RunConfig):
    """A trained searcher measured on held-out Countdown problems, beside the symbolic strategies."""

    out: str = "runs/search-test"  # folder of this run: config.json, metrics.jsonl, samples.jsonl
    base: str = "data/checkpoints/countdown-search"  # checkpoint folder of the searcher
    task: Task = chosen(TASKS, StreamOfSearch(inputs=3, max_input=50))  # the problems and the strategies beside it
    problems: Rows = 200  # held-out problems per split
    hard_problems: AnyRows = 200  # training problems that the drawn strategy failed on, and as many that all twelve did
    samples: AnyRows = 0  # sampled trajectories besides, of each of the first `sampled_problems`; 0: greedy ones alone
    sampled_problems: Rows = 100  # new inputs
    trained_on: str = ""  # the stream of problems that it was trained on; empty: sft-SEED


PRESETS = {
    "cpu": SearchTestConfig(),
    "tiny": SearchTestConfig(task=StreamOfSearch(3, 9, (10, 40)), problems=6, hard_problems=4, sampled_problems=4),
    "gpu": SearchTestConfig(task=StreamOfSearch(), problems=500, sampled_problems=500),
}


def run(config: SearchTestConfig) -> dict:
    """Measure; returns the line of metrics."""
    if not isinstance(config.task, StreamOfSearch):
        raise ValueError("--task search is the only one whose trajectories can be read")
    model, tokenizer = load_checkpoint(config.base, pick_device(config.device))
    check_words(tokenizer, task=config.task)
    run = Run(config)
    run.rewind(-1)
    metrics = measure(config, model, tokenizer, run)
    run.log(0, **metrics)
    run.close()
    shown = [[split, *(f"{metrics[f'{name}/{split}']:.2f}" for name in ("acc", "nodes", "cut"))] for split in SPLITS]
    say(table(["split", "solved", "nodes", "cut off"], shown))
    return metrics


# ------------------------------------------------------------------------------------------------------ judging


def trajectories(
    model: Transformer, tokenizer: TextTokenizer, task: StreamOfSearch, problems: list[Problem], name: str
) -> tuple[list[Rollout], list[Reading]]:
    """One greedy trajectory per problem up to the model's context, and its reading."""
    rows = [row for (row,) in sample(task, model, tokenizer, problems, temperature=0.0, name=name)]
    return rows, [task.read(row.problem, response_text(tokenizer, row)) for row in rows]


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


@functools.lru_cache(maxsize=256)  # it depends on the problem alone, and every arm of a section asks again
def symbolic(task: StreamOfSearch, split: str, count: int, strategy: str) -> list[Symbolic]:
    """The searches of one strategy on the first `count` problems of a split."""
    found = []
    for i, problem in enumerate(task.unique_problems(split, count)):
        numbers, target = problem.info["numbers"], problem.info["target"]
        events = list(search(numbers, target, strategy, seed_of("measured", i)))
        length = len(task.tokenizer().encode(write(events, task.language))) + 1
        found.append(Symbolic(replay(numbers, target, events), length))
    return found


def hard_problems(task: StreamOfSearch, stream: str, wanted: int) -> tuple[list[Problem], list[Problem]]:
    """The first problems of a stream whose drawn strategy failed, and the first on which each of the twelve fails.

    "Drawn" is the strategy of the very demonstration that the stream holds of the problem: the paper's section 5.
    """
    # DIFFERS from the released code: the search gives up where such problems are too rare; it returns fewer then.
    drawn, difficult = [], []
    for index in range(60 * wanted):
        problem = task.problem(stream, index)
        if problem.info["solved"]:
            continue
        drawn.append(problem)
        if len(difficult) < wanted and not any(solves(problem, name) for name in STRATEGIES):
            difficult.append(problem)
        if min(len(drawn), len(difficult)) >= wanted:
            break
    return drawn[:wanted], difficult


def solves(problem: Problem, strategy: str, seed: int = 0) -> bool:
    numbers, target = problem.info["numbers"], problem.info["target"]
    return replay(numbers, target, list(search(numbers, target, strategy, seed))).solved


# ------------------------------------------------------------------------------------------- what accuracy costs


def within_budgets(solved: Sequence[bool], tokens: Sequence[int], context: int) -> dict[str, float]:
    """{"40/acc": ..., "40/tokens": ...}: trajectories that are cut at each of BUDGETS, and the mean of their tokens."""
    found = {}
    for budget in (b for b in BUDGETS if b <= context):
        found[f"{budget}/acc"] = statistics.fmean(ok and n <= budget for ok, n in zip(solved, tokens, strict=True))
        found[f"{budget}/tokens"] = statistics.fmean(min(n, budget) for n in tokens)
    return found


def best_of(right: Sequence[Sequence[bool]], tokens: float) -> dict[str, float]:
    """{"4/acc": ..., "4/tokens": ...}: whether one of n samples is right, unbiased, and the tokens of all n; `right`
    holds the verdicts on the samples of each problem, `tokens` is the mean of a single one."""
    most = min(map(len, right))
    found = {}
    for n in (n for n in BEST_OF if n <= most):
        found[f"{n}/acc"] = mean_pass_at_k(right, n)
        found[f"{n}/tokens"] = n * tokens
    return found


def chance(problem: Problem) -> float:
    """How often a random legal path solves it."""
    return count_solutions(problem.info["numbers"], problem.info["target"])[1]


def random_best_of(
    problems: list[Problem], chances: list[float], tokenizer: TextTokenizer, language: str
) -> dict[str, float]:
    """The same of random legal paths, written as optimal ones are; `chances`: of one of them, on each problem."""
    tokens = []
    for problem in problems:
        path = write(optimal_path(*map(problem.info.get, ("numbers", "target", "operations"))), language)
        tokens.append(len(tokenizer.encode(path)) + 1)  # and EOS
    length = statistics.fmean(tokens)
    return {f"{n}/acc": statistics.fmean(1 - (1 - p) ** n for p in chances) for n in BEST_OF} | {
        f"{n}/tokens": n * length for n in BEST_OF
    }


def costs(
    config: SearchTestConfig, model: Transformer, tokenizer: TextTokenizer, problems: list[Problem],
    chances: list[float], rows: list[Rollout], readings: list[Reading],
) -> dict[str, float]:  # fmt: skip
    """Accuracy and tokens on new inputs; `chances` are of random paths, `rows` greedy trajectories with `readings`."""
    task, context = config.task, model.config.max_position_embeddings

    def named(name: str, numbers: dict[str, float]) -> dict[str, float]:
        return {f"{name}/{key}": value for key, value in numbers.items()}

    found = named("budget", within_budgets([r.solved for r in readings], [len(row.response) for row in rows], context))
    mixed: dict[str, float] = {}
    for name, weight in task.mixture().items():
        searches = symbolic(task, SPLITS[0], config.problems, name)
        solved, tokens = [one.reading.solved for one in searches], [one.tokens for one in searches]
        numbers = within_budgets(solved, tokens, BUDGETS[-1])
        mixed = {key: mixed.get(key, 0.0) + weight * value for key, value in numbers.items()}
    found |= named("symbolic_budget", mixed)
    found |= named("random_best", random_best_of(problems, chances, tokenizer, task.language))
    if config.samples:
        chosen = problems[: config.sampled_problems]
        groups = sample(task, model, tokenizer, chosen, group_size=config.samples, seed=config.seed, name="best of n")
        right = [[task.reward(row.problem, response_text(tokenizer, row)) == 1 for row in group] for group in groups]
        found |= named("best", best_of(right, statistics.fmean(len(row.response) for group in groups for row in group)))
    return found


# --------------------------------------------------------------------------------------------------- measuring


def measure(config: SearchTestConfig, model: Transformer, tokenizer: TextTokenizer, run: Run) -> dict[str, float]:
    """{"acc/test_inputs": ..., "errors/arithmetic/test_targets": ...} of greedy trajectories on both held-out splits,
    the shares solved of the training problems on which symbolic search failed, and for each strategy its own accuracy,
    without limit and within the policy's context, and its alignments with the policy."""
    task, metrics, readings = config.task, {}, {}
    problems = {split: task.unique_problems(split, config.problems) for split in SPLITS}
    chances = {split: [chance(problem) for problem in problems[split]] for split in SPLITS}
    stream = config.trained_on or f"sft-{config.seed}"
    problems["unsolved"], problems["difficult"] = hard_problems(task, stream, config.hard_problems)
    for split in filter(problems.get, problems):
        rows, readings[split] = trajectories(model, tokenizer, task, problems[split], split)
        if split == SPLITS[0]:
            metrics |= costs(config, model, tokenizer, problems[split], chances[split], rows, readings[split])
        metrics |= {f"{name}/{split}": value for name, value in summary(rows, readings[split]).items()}
        log_samples(run, 0, split, task, tokenizer, [[row] for row in rows])
    for split in SPLITS:
        metrics[f"chance/{split}"] = statistics.fmean(chances[split])
        budgets = [model.config.max_position_embeddings - len(tokenizer.encode(p.prompt)) for p in problems[split]]
        for name in STRATEGIES:
            theirs = symbolic(task, split, config.problems, name)
            within = [one.reading.solved and one.tokens <= most for one, most in zip(theirs, budgets, strict=True)]
            metrics[f"symbolic/{name}/{split}"] = statistics.fmean(one.reading.solved for one in theirs)
            metrics[f"symbolic_within/{name}/{split}"] = statistics.fmean(within)
            metrics[f"symbolic_nodes/{name}/{split}"] = statistics.fmean(one.reading.nodes for one in theirs)
            their_readings = [one.reading for one in theirs]
            metrics[f"states/{name}/{split}"] = state_alignment(readings[split], their_readings)
            metrics[f"correctness/{name}/{split}"] = correctness_alignment(readings[split], their_readings)
    return metrics

"""How well one model scales with the length of its thinking, by several ways to set it (s1, L1); no training.

Budgets and continuations that are forced (`forcing.py`), lengths that the prompt asks for, rejection sampling by
length, and the majority of several samples: see METHODS. Every setting of a method is one line of metrics.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from nanoreason import evaluate
from nanoreason.checkpoint import load_checkpoint
from nanoreason.environment import check_words, log_samples
from nanoreason.evaluate import maj_at_k, pass_at_k
from nanoreason.forcing import Forcing, Thought, think
from nanoreason.model import Transformer
from nanoreason.prompts import ANSWER, CLOSE, OPEN, asked
from nanoreason.rollout import Problem, Rollout, Task, prompt_rows, seed_of
from nanoreason.run import (
    Count,
    Positive,
    Progress,
    Rate,
    Rows,
    Run,
    RunConfig,
    check_rows,
    chosen,
    pick_device,
    say,
    table,
)
from nanoreason.sampler import Sampler, generate
from nanoreason.tasks import TASKS, Attempts, HardAttempts, ThinkingAddition
from nanoreason.tasks.wrappers import Templated
from nanoreason.tokenizer import TextTokenizer

NO_LIMIT = 1 << 30  # tokens; as good as none, and a number in JSON
VOTES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # of so many samples, as far as there are
COUNTED = ("attempts", "attempts/new", "found")  # what of the task's metrics explains an accuracy, where it has them


@dataclass
class BudgetConfig(RunConfig):
    """How well a model that thinks in tags scales with the length of its thinking, by several ways to set it."""

    out: str = "runs/budget"  # folder of this run: config.json, metrics.jsonl, samples.jsonl
    base: str = ""  # checkpoint folder of the model that is measured; needed
    # task
    task: Task = chosen(TASKS, Templated(ThinkingAddition((1, 2))))  # what it is asked
    problems: Rows = 150  # held-out problems, of each difficulty where the task has several
    repeats: Rows = 1  # thoughts per problem in every run
    # methods (forcing, until, wait, words, suppressed, tokens, steps, class, samples, exact, max, free, truncated, s1)
    methods: tuple[str, ...] = ("forcing", "wait")  # ways to make a thought shorter or longer
    temperature: Rate = 1.0  # of the thinking; answers are greedy
    budgets: tuple[Positive, ...] = (8, 16, 32, 48, 64, 96)  # thinking tokens; for L1's those of the whole response
    waits: tuple[Count, ...] = (0, 1, 2, 3, 4, 5, 6)  # how often it is kept from closing
    longest: Count = 0  # tokens of a thought that is kept from closing, or sampled freely; 0: what the context allows
    words: tuple[str, ...] = ("wait", "Hmm", "Alternatively", "but", "")  # what is appended then; empty: nothing
    step_tokens: Positive = 24  # tokens that a step of the prompt is taken to have (s1: 100)
    class_tokens: Positive = 48  # tokens that a short thought may have
    samples: Rows = 8  # free responses per problem, for rejection sampling, voting and the best of k
    answer_tokens: Positive = 8  # of an answer, its closing tag included


ATTEMPTS = BudgetConfig(  # all held-out problems of three numbers; an attempt has 13 tokens, an answer 12
    task=Attempts(), problems=232, repeats=2, budgets=(16, 32, 64, 96, 128, 192, 256, 384),
    waits=(0, 1, 2, 3, 4, 6, 8, 12, 16), longest=384, step_tokens=16, class_tokens=96, samples=16, answer_tokens=16,
)  # fmt: skip
PRESETS = {
    "cpu": ATTEMPTS,
    "tiny": replace(ATTEMPTS, problems=4, repeats=1, budgets=(16, 32, 48), waits=(0, 2, 4, 8), longest=96,
                    words=("wait", ""), samples=4),
    "gpu": replace(ATTEMPTS, task=HardAttempts(), problems=1000, step_tokens=22, answer_tokens=24, samples=64),
}  # fmt: skip


def check_config(config: BudgetConfig) -> None:
    """What no single setting tells; ValueError says in one line what is wrong."""
    if unknown := [name for name in config.methods if name not in METHODS]:
        raise ValueError(f"--methods {unknown[0]}: use {', '.join(METHODS)}")
    if not config.methods or len(set(config.methods)) < len(config.methods):
        raise ValueError(f"--methods {','.join(config.methods)}: at least one, each once, of {', '.join(METHODS)}")
    if not config.base:
        raise ValueError("--base is needed: a checkpoint folder")
    for method in config.methods:
        setting = {"wait": "waits", "words": "words", "class": "class_tokens"}.get(method, "budgets")
        if not getattr(config, setting):
            raise ValueError(f"--{setting} is empty, but --methods {method} goes through its values")
    check_rows(problems=config.problems, repeats=config.repeats)
    check_rows(problems=config.problems, samples=config.samples if "samples" in config.methods else 1)


def run(config: BudgetConfig) -> dict:
    """Every run of every method is one line of metrics; returns the last one."""
    check_config(config)
    model, tokenizer = load_checkpoint(config.base, pick_device(config.device))
    check_words(tokenizer, "test", task=config.task)
    for word in config.words if "words" in config.methods else ():
        try:
            tokenizer.encode(word)
        except ValueError as error:
            raise ValueError(f"--words {word}: {error}") from None
    run = Run(config)
    run.rewind(-1)  # it is measured again as a whole
    lines: list[dict] = []
    with Progress(len(config.methods), "budget", "methods") as progress:
        for name in config.methods:
            for line, examples in METHODS[name](config, model, tokenizer):
                lines.append({"method": name, **line})
                run.log(len(lines), **lines[-1])
                log_samples(run, len(lines), f"{name} {line['asked']}", config.task, tokenizer, examples,
                            verdict=lambda row: row.reward)  # fmt: skip
            progress.update()
    run.close()
    names = ["method", "asked", "accuracy", "thinking", "cut"]
    say(table(names, [[f"{line[name]:.2f}" if isinstance(line[name], float) else str(line[name]) for name in names]
                      for line in lines]))  # fmt: skip
    return run.last_line()


Lines = Iterator[tuple[dict, list[list[Rollout]]]]  # one line per run, and its rows: their rewards are their verdicts


def asked_problems(config: BudgetConfig, kind: str = "", amount: int | str = 0) -> list[Problem]:
    """The held-out problems, with a sentence about the thinking if `kind` names one."""
    template = config.task
    inner = template.task if isinstance(template, Templated) else template
    problems = inner.test_problems(config.problems)
    problems = [asked(problem, kind, amount) if kind else problem for problem in problems]
    if isinstance(template, Templated):
        return [template.wrap(problem, "test", i) for i, problem in enumerate(problems)]
    return problems


def forced(
    config: BudgetConfig, model: Transformer, tokenizer: TextTokenizer, forcing: Forcing, problems: list[Problem],
    group_size: int = 0,
) -> list[Thought]:  # fmt: skip
    """`group_size` finished thoughts per problem, `config.repeats` if it is 0, with their verdicts as rewards."""
    seed = seed_of(config.seed, "budget")  # the same random numbers in every run: what differs is what was forced
    how = dict(temperature=config.temperature, answer_tokens=config.answer_tokens, seed=seed,
               group_size=group_size or config.repeats)  # fmt: skip
    thoughts = think(model, tokenizer, problems, forcing, **how)
    for thought in thoughts:
        thought.row.reward = float(is_right(config, tokenizer, thought))
    return thoughts


def rows_of(thoughts: list[Thought]) -> list[list[Rollout]]:
    """Groups of one."""
    return [[thought.row] for thought in thoughts]


def said(tokenizer: TextTokenizer, thought: Thought) -> str:
    """The text behind the thinking."""
    return tokenizer.decode(thought.row.tokens[thought.end :]).removeprefix(CLOSE)


def is_right(config: BudgetConfig, tokenizer: TextTokenizer, thought: Thought) -> bool:
    return config.task.reward(thought.row.problem, said(tokenizer, thought)) == 1


def line_of(
    config: BudgetConfig, tokenizer: TextTokenizer, thoughts: list[Thought], asked_for: int | str, most: float, **more
) -> dict:
    """Means over thoughts. `within`: the share of single thoughts that have no more than `most` tokens."""
    right = [thought.row.reward == 1 for thought in thoughts]
    counts = [config.task.metrics(t.row.problem, tokenizer.decode(t.row.response)) for t in thoughts]
    digits = [config.task.difficulty(thought.row.problem) for thought in thoughts]
    line = {
        "asked": asked_for,
        "most": most,
        "accuracy": statistics.fmean(right),
        "accuracy_se": standard_error([thought.row for thought in thoughts], right),
        "thinking": statistics.fmean(thought.tokens for thought in thoughts),
        "within": statistics.fmean(thought.tokens <= most for thought in thoughts),
        "cut": statistics.fmean(thought.cut for thought in thoughts),
        "waits": statistics.fmean(thought.waits for thought in thoughts),
        **{name: statistics.fmean(found[name] for found in counts) for name in COUNTED if name in counts[0]},
        **more,
    }
    for n in sorted(set(digits)):
        line[f"accuracy/{n}"] = statistics.fmean(r for r, d in zip(right, digits, strict=True) if d == n)
        line[f"thinking/{n}"] = statistics.fmean(t.tokens for t, d in zip(thoughts, digits, strict=True) if d == n)
    return line


def standard_error(rows: list[Rollout], right: list[bool]) -> float:
    """Of the mean, by problem: thoughts about the same problem, which a small task may hand out twice, are no
    independent evidence of how hard problems are."""
    by_problem: dict[str, list[bool]] = {}
    for row, one in zip(rows, right, strict=True):
        by_problem.setdefault(row.problem.prompt, []).append(one)
    return evaluate.standard_error([statistics.fmean(some) for some in by_problem.values()])


def by_forcing(config: BudgetConfig, model: Transformer, tokenizer: TextTokenizer) -> Lines:
    """Budgets as upper bounds: cut, never kept going."""
    for budget in config.budgets:
        thoughts = forced(config, model, tokenizer, Forcing(budget), asked_problems(config))
        yield line_of(config, tokenizer, thoughts, budget, budget), rows_of(thoughts)


def by_until(config: BudgetConfig, model: Transformer, tokenizer: TextTokenizer) -> Lines:
    """Budgets in both directions: kept going until the budget is used up, then cut. L1's baseline (100 waits)."""
    for budget in config.budgets:
        thoughts = forced(config, model, tokenizer, Forcing(budget, waits=100), asked_problems(config))
        yield line_of(config, tokenizer, thoughts, budget, budget), rows_of(thoughts)


def by_wait(config: BudgetConfig, model: Transformer, tokenizer: TextTokenizer) -> Lines:
    """Kept from closing 0, 1, 2, ... times."""
    for waits in config.waits:
        thoughts = forced(config, model, tokenizer, Forcing(config.longest, waits), asked_problems(config))
        yield line_of(config, tokenizer, thoughts, waits, NO_LIMIT), rows_of(thoughts)


def by_words(config: BudgetConfig, model: Transformer, tokenizer: TextTokenizer) -> Lines:
    """Other words than "wait", twice each (s1, table 4)."""
    for word in config.words:
        thoughts = forced(config, model, tokenizer, Forcing(config.longest, 2, word), asked_problems(config))
        yield line_of(config, tokenizer, thoughts, word or "(none)", NO_LIMIT), rows_of(thoughts)


def by_suppressed(config: BudgetConfig, model: Transformer, tokenizer: TextTokenizer) -> Lines:
    """The first of the words ("wait") cannot be sampled: the model closes sooner, or finds another way on."""
    no_token, mask = model.no_token, torch.zeros(model.config.vocab_size, dtype=torch.bool, device=model.device)
    mask[tokenizer.encode(config.words[0])[0]] = True
    model.no_token = mask if no_token is None else mask | no_token
    try:
        thoughts = forced(config, model, tokenizer, Forcing(0), asked_problems(config))
        yield line_of(config, tokenizer, thoughts, f"not {config.words[0]}", NO_LIMIT), rows_of(thoughts)
    finally:
        model.no_token = no_token


def by_tokens(config: BudgetConfig, model: Transformer, tokenizer: TextTokenizer) -> Lines:
    """A number of tokens in the prompt, not enforced and enforced (s1's token-conditional control)."""
    for budget in config.budgets:
        for limit in (0, budget):
            thoughts = forced(config, model, tokenizer, Forcing(limit), asked_problems(config, "max", budget))
            yield line_of(config, tokenizer, thoughts, budget, budget, enforced=limit > 0), rows_of(thoughts)


def by_steps(config: BudgetConfig, model: Transformer, tokenizer: TextTokenizer) -> Lines:
    """A number of steps in the prompt, that the model counts down; not enforced and enforced."""
    for steps in sorted({max(1, round(budget / config.step_tokens)) for budget in config.budgets}):
        most = steps * config.step_tokens
        for limit in (0, most):
            thoughts = forced(config, model, tokenizer, Forcing(limit), asked_problems(config, "steps", steps))
            yield line_of(config, tokenizer, thoughts, steps, most, enforced=limit > 0), rows_of(thoughts)


def by_class(config: BudgetConfig, model: Transformer, tokenizer: TextTokenizer) -> Lines:
    for name, most in (("short", config.class_tokens), ("long", NO_LIMIT)):
        thoughts = forced(config, model, tokenizer, Forcing(0), asked_problems(config, "class", name))
        yield line_of(config, tokenizer, thoughts, name, most), rows_of(thoughts)


def by_samples(config: BudgetConfig, model: Transformer, tokenizer: TextTokenizer) -> Lines:
    """Free samples, then: the first that fits a budget (rejection sampling), the majority of k, and the best of k as
    the task's own verdict chooses it, which no vote can exceed. The tokens of all k count."""
    G = config.samples
    thoughts = forced(config, model, tokenizer, Forcing(config.longest), asked_problems(config), G)
    groups = [thoughts[i : i + G] for i in range(0, len(thoughts), G)]
    for budget in config.budgets:
        # Where none of the samples fits, the shortest has to do: `within` says how often it does not.
        fitting = [[i for i, thought in enumerate(group) if thought.tokens <= budget] for group in groups]
        chosen = [
            group[fits[0]] if fits else min(group, key=lambda thought: thought.tokens)
            for group, fits in zip(groups, fitting, strict=True)
        ]
        tries = statistics.fmean(fits[0] + 1 if fits else G for fits in fitting)
        yield line_of(config, tokenizer, chosen, budget, budget, kind="rejection", tries=tries), rows_of(chosen)
    mean = statistics.fmean(thought.tokens for thought in thoughts)
    marks = [
        ([config.task.answer(said(tokenizer, t)) for t in group], [t.row.reward == 1 for t in group])
        for group in groups
    ]
    for k in (k for k in VOTES if k <= G):
        votes = {
            "majority": [maj_at_k(answers, right, k, draws=20) for answers, right in marks],
            "best": [pass_at_k(G, sum(right), k) for _, right in marks],
        }
        for kind, shares in votes.items():
            yield {"asked": k, "most": NO_LIMIT, "accuracy": statistics.fmean(shares), "thinking": k * mean,
                   "within": 1.0, "cut": 0.0, "kind": kind}, [[t.row for t in group] for group in groups]  # fmt: skip


def by_target(config: BudgetConfig, model: Transformer, tokenizer: TextTokenizer, kind: str) -> Lines:
    """A number of tokens in the prompt that the whole response should have: L1's prompts and its measures.

    `error`: the mean of (tokens - target) / target, in which too long and too short cancel; `mae`: of its size;
    `tokens/K`: of the responses to problems of kind K (`Task.domain`). An exact response is cut at twice its target.
    """
    context = model.config.max_position_embeddings
    for target in config.budgets:
        # A model without control is asked as the exact one is, and left alone (free) or cut where it should have ended.
        problems = asked_problems(config, "max" if kind == "max" else "exact", target)
        rows = prompt_rows(tokenizer, problems, config.repeats, seed_of(config.seed, "budget"))
        for row in rows:
            row.max_new_tokens = {"exact": 2 * target, "truncated": target}.get(kind, context)
        generate(Sampler(model, tokenizer, temperature=config.temperature, stop=config.task.stop), rows)
        right = [config.task.reward(row.problem, tokenizer.decode(row.response)) == 1 for row in rows]
        for row, is_so in zip(rows, right, strict=True):
            row.reward = float(is_so)
        groups = [rows[i : i + config.repeats] for i in range(0, len(rows), config.repeats)]
        yield target_line(config, rows, right, target), groups


def by_s1(config: BudgetConfig, model: Transformer, tokenizer: TextTokenizer) -> Lines:
    """Budget forcing as L1 compares with it: kept going until the response is as long as its target, then an answer."""
    tags = len(tokenizer.encode(f"{OPEN} {CLOSE} {ANSWER}")) + config.answer_tokens
    for target in config.budgets:
        forcing = Forcing(max(1, target - tags), waits=100)
        thoughts = forced(config, model, tokenizer, forcing, asked_problems(config, "exact", target))
        right = [thought.row.reward == 1 for thought in thoughts]
        yield target_line(config, [thought.row for thought in thoughts], right, target), rows_of(thoughts)


def target_line(config: BudgetConfig, rows: list[Rollout], right: list[bool], target: int) -> dict:
    lengths = [len(row.response) for row in rows]
    line = {
        "asked": target,
        "most": target,
        "accuracy": statistics.fmean(right),
        "accuracy_se": standard_error(rows, right),
        "thinking": statistics.fmean(lengths),  # of the whole response, as L1 counts
        "cut": statistics.fmean(row.stop_reason == "length" for row in rows),
        "error": statistics.fmean(lengths) / target - 1,
        "mae": statistics.fmean(abs(length - target) for length in lengths) / target,
        "within": statistics.fmean(length <= target for length in lengths),
    }
    kinds = [config.task.domain(row.problem) for row in rows]
    for kind in sorted(set(kinds)):
        some, name = [i for i, k in enumerate(kinds) if k == kind], str(kind).strip("()").replace(", ", ",")
        line[f"accuracy/{name}"] = statistics.fmean(right[i] for i in some)
        line[f"tokens/{name}"] = statistics.fmean(lengths[i] for i in some)
    return line


METHODS = {
    "forcing": by_forcing,
    "until": by_until,
    "wait": by_wait,
    "words": by_words,
    "suppressed": by_suppressed,
    "tokens": by_tokens,
    "steps": by_steps,
    "class": by_class,
    "samples": by_samples,
    **{kind: functools.partial(by_target, kind=kind) for kind in ("exact", "max", "free", "truncated")},
    "s1": by_s1,
}

"""What a training on one task changed in all others: the kept checkpoints of a run, measured beside their base.

    BASE, each of TRAINED/STEP --a sample of each problem, T = 1--> accuracies, rank shift, style leak, shifted words,
                                                                    KL both ways;  prompts -> PCA shift;  weights

A line of metrics per checkpoint, under its step; without TRAINED one line of the base: accuracies and style leak.
Names end in a group of the suite (target, other, non), `acc/` also in a task. The measures are `analysis.py`'s, the
protocol is that of "Does Math Reasoning Improve General LLM Capabilities?" (2507.00432). No training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from nanoreason.analysis import pca_shift, pooled_states, shifted_words, style_leak_rate, token_shifts
from nanoreason.checkpoint import load_checkpoint
from nanoreason.environment import check_words, judge, mean, sample
from nanoreason.evaluate import forgetting
from nanoreason.model import Transformer
from nanoreason.rollout import Rollout, Task, response_text
from nanoreason.run import Positive, Rows, Run, RunConfig, chosen, pick_device, say, table
from nanoreason.tasks import TASKS
from nanoreason.tasks.suite import MARKERS, Suite
from nanoreason.tokenizer import TextTokenizer

WORDS = 8  # shifted words that are logged of each group


@dataclass
class TransferTestConfig(RunConfig):
    """Measure a base, or the kept checkpoints of a run that began from it, on all tasks of a suite."""

    out: str = "runs/transfer-test"  # folder of this run: config.json, metrics.jsonl
    base: str = ""  # checkpoint folder of the base; needed
    trained: str = ""  # folder of kept checkpoints, OUT/kept of a run with --keep; empty: the base is measured alone
    task: Task = chosen(TASKS, Suite())  # the suite, and which of its tasks is the target
    problems: Rows = 200  # held-out problems of each task, where small ones repeat some; one response to each
    analysed: Rows = 40  # of these, how many distributions, ranks and hidden states are made of; three at least
    max_new_tokens: Positive = 256  # response tokens after which a row is cut


PRESETS = {
    "cpu": TransferTestConfig(),
    "tiny": TransferTestConfig(problems=4, analysed=3, max_new_tokens=16),
    "gpu": TransferTestConfig(problems=1000, analysed=100),
}


def run(config: TransferTestConfig) -> dict:
    """Measure; returns the last line of metrics."""
    if not isinstance(config.task, Suite):
        raise ValueError("--task suite is the only one whose tasks are in groups")
    if not config.base:
        raise ValueError("--base is needed: the checkpoint folder that the trained ones are compared with")
    if not 3 <= config.analysed <= config.problems:
        raise ValueError(f"--analysed {config.analysed}: from 3 to --problems {config.problems}")
    steps = kept_steps(Path(config.trained)) if config.trained else []
    base, tokenizer = load_checkpoint(config.base, pick_device(config.device))
    check_words(tokenizer, task=config.task)
    before = Texts(config, base, tokenizer)
    run = Run(config)
    run.rewind(-1)
    if not steps:
        run.log(0, **accuracies(config.task, before.right), **leaks(config.task, tokenizer, before))
    for step in steps:
        policy, theirs = load_checkpoint(Path(config.trained) / str(step), base.device)
        if not theirs.has_ids_of(tokenizer):
            raise ValueError(f"{config.trained}/{step} and {config.base} have different vocabularies")
        run.log(step, **measure(config, base, before, policy, tokenizer))
    run.close()
    last = run.last_line()
    say(table(["step", "target", "other", "non"], [[str(last["step"]), *(f"{last[f'acc/{group}']:.2f}" for group in
                                                                      ("target", "other", "non"))]]))  # fmt: skip
    return last


def kept_steps(folder: Path) -> list[int]:
    """The steps whose checkpoints are in the folder, in order; ValueError if there are none."""
    steps = sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal()) if folder.is_dir() else []
    if not steps:
        raise ValueError(f"--trained {folder} holds no checkpoints: train with --keep, as --keep 5,10,20")
    return steps


class Texts:
    """What a model answers to the same held-out problems of every task: {task: ...}, at temperature 1."""

    def __init__(self, config: TransferTestConfig, model: Transformer, tokenizer: TextTokenizer):
        self.rows: dict[str, list[Rollout]] = {}
        self.right: dict[str, float] = {}
        for name, task in config.task.tasks().items():
            problems = task.test_problems(config.problems)
            groups = sample(task, model, tokenizer, problems, seed=config.seed, max_new_tokens=config.max_new_tokens)
            self.right[name] = mean([one.verdict for one in judge(task, tokenizer, groups)])
            self.rows[name] = [row for (row,) in groups]


def accuracies(suite: Suite, right: dict[str, float]) -> dict[str, float]:
    """Of every task, and the mean of each group."""
    found = {f"acc/{name}": value for name, value in right.items()}
    return found | {f"acc/{group}": mean([right[name] for name in names]) for group, names in suite.groups().items()}


def leaks(suite: Suite, tokenizer: TextTokenizer, texts: Texts) -> dict[str, float]:
    """Of each group the share of all responses with a marker."""
    return {
        f"leak/{group}": style_leak_rate(
            [response_text(tokenizer, row) for name in names for row in texts.rows[name]], MARKERS
        )
        for group, names in suite.groups().items()
    }


def measure(
    config: TransferTestConfig, base: Transformer, before: Texts, policy: Transformer, tokenizer: TextTokenizer
) -> dict:
    """All numbers of one checkpoint.

    forgotten     mean loss of accuracy on the tasks that are not the target (`evaluate.forgetting`)
    kl/GROUP      D(policy || base) per token of the policy's samples, exact, in nats; kl_estimate: one sample's
    base_kl       D(base || policy) per token of the base's samples of the target
    rank, changed/GROUP   mean rank shift of a token of the policy's samples; tokens of another rank per response
    leak, length/GROUP    share of the responses with a marker; their tokens over those of the base
    pca, pca_relative, pca_paper/GROUP, distance   shift of hidden states, of weights (Euclidean)
    """
    after, own = Texts(config, policy, tokenizer), config.task.groups()
    numbers: dict = accuracies(config.task, after.right) | leaks(config.task, tokenizer, after)
    others = [*own["other"], *own["non"]]
    numbers["forgotten"] = forgetting([before.right[n] for n in others], [after.right[n] for n in others])
    (target,) = own["target"]
    at_base = token_shifts(base, policy, before.rows[target][: config.analysed])
    numbers["base_kl"] = at_base.mean(at_base.reverse_kl)
    for group, names in own.items():
        rows = [row for name in names for row in after.rows[name][: config.analysed]]
        shifts = token_shifts(base, policy, rows)
        lengths = [mean([len(row.response) for name in names for row in texts.rows[name]]) for texts in (after, before)]
        prompts = [row.tokens[: row.prompt_len] for row in rows]
        moved = pca_shift(pooled_states(base, prompts), pooled_states(policy, prompts))
        found = {
            "kl": shifts.mean(shifts.kl),
            "kl_estimate": shifts.mean(shifts.log_ratio),
            "rank": shifts.mean(shifts.rank_shift),
            "changed": float((shifts.rank_shift != 0).sum()) / len(rows),
            "length": lengths[0] / max(1.0, lengths[1]),
            "pca": moved.distance,
            "pca_relative": mean(moved.relative),
            "pca_paper": moved.of_means,
            "words": [[word.word, word.structure, word.count, word.gained]
                      for word in shifted_words(shifts, tokenizer)[:WORDS]],
        }  # fmt: skip
        numbers |= {f"{name}/{group}": value for name, value in found.items()}
    pairs = zip(base.parameters(), policy.parameters(), strict=True)
    numbers["distance"] = math.sqrt(sum(float((a - b).detach().square().sum()) for a, b in pairs))
    return numbers

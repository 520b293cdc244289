"""Test a checkpoint: accuracy by difficulty, pass@k, maj@k, length; no training.

python -m nanoreason eval CHECKPOINT [--task ...] [--samples 8]
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from nanoreason.checkpoint import load_checkpoint
from nanoreason.environment import check_words, evaluate
from nanoreason.play import for_checkpoint
from nanoreason.rollout import Task
from nanoreason.run import AnyRows, Count, Rate, Rows, RunConfig, check_rows, chosen, pick_device, say, table
from nanoreason.tasks import TASKS


@dataclass
class EvalConfig(RunConfig):
    """Test a checkpoint on held-out problems."""

    # evaluation
    task: Task | None = chosen(TASKS, None)  # what it is asked; empty: the task that the checkpoint was trained on
    problems: Rows = 100  # held-out problems of each difficulty
    samples: AnyRows = 8  # responses to each, for pass@k and maj@k; 0: greedy only
    temperature: Rate = 1.0  # of these samples
    max_new_tokens: Count = 0  # response tokens after which a row is cut; 0: what the task or the context allows


def main(argv: list[str]) -> int:
    prog = "python -m nanoreason eval CHECKPOINT"
    as_json, argv = "--json" in argv, [flag for flag in argv if flag != "--json"]
    checkpoint, config = for_checkpoint(EvalConfig(), argv, prog, "[--json]")
    check_rows(problems=config.problems, samples=config.samples)
    model, tokenizer = load_checkpoint(checkpoint, pick_device(config.device))
    check_words(tokenizer, "test", task=config.task)
    metrics = evaluate(config.task, model, tokenizer, config.problems, max_new_tokens=config.max_new_tokens or None,
                       samples=config.samples, temperature=config.temperature)  # fmt: skip
    if as_json:
        print(json.dumps(metrics))
    else:
        say(table(["metric", "value"], [[name, f"{value:.3f}"] for name, value in metrics.items()]))
    return 0

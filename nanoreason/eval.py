"""Test a checkpoint: accuracy by difficulty, pass@k, maj@k, length; no training.

python -m nanoreason eval CHECKPOINT [--task ...] [--samples 8]
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from nanoreason.checkpoint import load_checkpoint
from nanoreason.environment import evaluate
from nanoreason.play import task_of
from nanoreason.rollout import Task
from nanoreason.run import Count, Positive, Rate, RunConfig, chosen, parse_config, pick_device, say, table
from nanoreason.tasks import TASKS


@dataclass
class EvalConfig(RunConfig):
    """Test a checkpoint on held-out problems."""

    # evaluation
    task: Task | None = chosen(TASKS, None)  # what it is asked; empty: the task that the checkpoint was trained on
    problems: Positive = 100  # held-out problems of each difficulty
    samples: Count = 8  # responses to each, for pass@k and maj@k; 0: greedy only
    temperature: Rate = 1.0  # of these samples
    max_new_tokens: Count = 0  # response tokens after which a row is cut; 0: what the task or the context allows


def main(argv: list[str]) -> int:
    prog = "python -m nanoreason eval CHECKPOINT"
    checkpoint, flags = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("", argv)
    as_json, flags = "--json" in flags, [flag for flag in flags if flag != "--json"]
    config = EvalConfig()
    if checkpoint and not any(flag.split("=")[0] == "--task" for flag in flags):
        config.task = task_of(checkpoint)
    config = parse_config({"default": config}, flags, prog)
    if not checkpoint:
        raise ValueError(f"usage: {prog} [--json] [--flag value ...]: a checkpoint folder is missing")
    model, tokenizer = load_checkpoint(checkpoint, pick_device(config.device))
    metrics = evaluate(config.task, model, tokenizer, config.problems, max_new_tokens=config.max_new_tokens or None,
                       samples=config.samples, temperature=config.temperature)  # fmt: skip
    if as_json:
        print(json.dumps(metrics))
    else:
        say(table(["metric", "value"], [[name, f"{value:.3f}"] for name, value in metrics.items()]))
    return 0

"""Distillation and rejection sampling (DeepSeek-R1, 2501.12948, 2.3 and 2.4): a policy learns what another wrote.

    rows = teacher samples `samples` responses to each of `problems` problems
    kept = rows that are right and in the format                     (R1's rejection sampling; no logits are compared)
    student = base fine-tuned on kept, loss on the response alone

With a small base this is R1's distillation. With the teacher's own base it is the third stage of R1's pipeline, which
goes back to the base instead of on from the teacher. With `modes` and `most` it is the cold start: a few hundred
long and readable traces. The sampled rows stay in OUT/demonstrations.jsonl, one line {"prompt", "response"} each, so
that `train.py sft --data` reads them too.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass

from nanoreason.checkpoint import load_checkpoint, resume, save_checkpoint
from nanoreason.learn import fit, in_epochs, make_optimizer
from nanoreason.model import Transformer
from nanoreason.practice import PracticeConfig, judge, posed, sample, task_of
from nanoreason.rollout import Problem, demonstration, response_text, seed_of
from nanoreason.run import Run, RunConfig, pick_device, read_jsonl, replace_text, say, table
from nanoreason.tokenizer import TextTokenizer

KEEP = ("right", "wrong", "all")
TASKS = ("thinking", "countdown")


@dataclass
class DistillConfig(RunConfig):
    """Distillation: sample a teacher, keep what is right, fine-tune a base on it. Also R1's cold start and stage 3."""

    out: str = "runs/distill"  # folder of this run: config.json, metrics.jsonl, demonstrations.jsonl, checkpoints
    teacher: str = ""  # checkpoint folder of the policy that is sampled; needed
    base: str = ""  # checkpoint folder of the model that learns, of the same vocabulary; needed
    task: str = "thinking"  # thinking (sums in R1's tags) or countdown
    digits: tuple[int, ...] = (2, 3)  # lengths of the sums
    inputs: int = 3  # countdown: how many numbers are given
    # sampling
    problems: int = 400  # problems that the teacher answers
    samples: int = 4  # responses to each
    temperature: float = 1.0  # of the sampling
    max_new_tokens: int = 112  # response tokens after which a row is cut, and then not kept
    keep: str = "right"  # right, wrong (a control) or all; always in the format
    modes: tuple[str, ...] = ()  # keep rows that think so: direct, steps, recheck, of Countdown search; (): all
    most: int = 0  # rows that are kept at most, the first ones; 0: all
    # fine-tuning
    steps: int = 150  # optimizer steps
    lr: float = 1e-3  # peak learning rate
    decay: bool = True  # cosine to a tenth of it; --no-decay: constant
    warmup: int = 10  # steps of warm-up
    rows_per_step: int = 32  # rows of an update
    micro_tokens: int = 2048  # tokens of a micro-batch: speed, not the result
    save_every: int = 50  # steps between checkpoints
    log_every: int = 10  # steps between lines of metrics.jsonl


PRESETS = {
    "cpu": DistillConfig(),
    "tiny": DistillConfig(
        digits=(1,), problems=12, samples=2, max_new_tokens=48, steps=4, warmup=1, rows_per_step=8, save_every=2,
        log_every=1,
    ),
    "gpu": DistillConfig(problems=8000, steps=1000, rows_per_step=128, micro_tokens=32768, save_every=200),
}  # fmt: skip


def run(config: DistillConfig) -> dict:
    """Sample, keep, fine-tune; returns the last line of metrics. The student is left in OUT/policy."""
    if not (config.teacher and config.base):
        raise ValueError("--teacher and --base are needed: the checkpoint folders of who is sampled and of who learns")
    for name, known in (("keep", KEEP), ("task", TASKS)):
        if getattr(config, name) not in known:
            raise ValueError(f"--{name} {getattr(config, name)}: one of {', '.join(known)}")
    device = pick_device(config.device)
    student, words = load_checkpoint(config.base, device)
    run = Run(config)
    optimizer = make_optimizer(student)
    first = resume(run.folder / "policy", student, optimizer).get("step", 0)
    file = run.folder / "demonstrations.jsonl"
    run.rewind(first if file.exists() else -1)
    if not file.exists():
        teacher, their_words = load_checkpoint(config.teacher, device)
        if their_words.backend.get_vocab() != words.backend.get_vocab():
            raise ValueError(f"teacher {config.teacher} and base {config.base} have different vocabularies")
        lines, metrics = keep(config, teacher, words)
        run.log(0, **metrics)
        replace_text(file, "".join(json.dumps(line) + "\n" for line in lines))
    rows = [demonstration(words, Problem(line["prompt"], "", line["response"])) for line in read_jsonl(file)]

    def after(step: int, metrics: dict) -> None:
        done = step + 1
        if done == config.steps or done % config.log_every == 0:
            run.log(done, **metrics)
        if done == config.steps or done % config.save_every == 0:
            save_checkpoint(run.folder / "policy", student, words, optimizer, {"step": done})

    fit(student, optimizer, in_epochs(rows, config.rows_per_step, config.seed), steps=config.steps, first_step=first,
        lr=config.lr, warmup=config.warmup, decay=config.decay, micro_tokens=config.micro_tokens, after=after,
        name="distill")  # fmt: skip
    run.close()
    first_line, *_, last = read_jsonl(run.folder / "metrics.jsonl")
    names = ["accuracy", "kept", "kept_length", "tokens"]
    say(table([*names, "loss"], [[*(f"{first_line[name]:.2f}" for name in names), f"{last['loss']:.3f}"]]))
    return last


def keep(config: DistillConfig, teacher: Transformer, words: TextTokenizer) -> tuple[list[dict], dict[str, float]]:
    """What the teacher writes and the filter leaves, and how much that is. ValueError if nothing is left."""
    how = PracticeConfig(
        seed=config.seed, task=config.task, digits=config.digits, inputs=config.inputs, template="skeleton",
        temperature=config.temperature, max_new_tokens=config.max_new_tokens,
    )  # fmt: skip
    problems = [posed(how, "distill", i) for i in range(config.problems)]
    rows = sample(how, teacher, words, problems, config.samples, seed_of(config.seed, "distill"))
    parts = judge(how, words, rows)
    right, neat, task = parts["accuracy"], parts["format"], task_of(how)
    texts = [response_text(words, row) for row in rows]
    wanted = {"right": (1.0,), "wrong": (0.0,), "all": (0.0, 1.0)}[config.keep]
    kept = [
        i
        for i, text in enumerate(texts)
        if neat[i] and right[i] in wanted
        if not config.modes or any(task.traits(text).get(f"mode/{mode}") for mode in config.modes)
    ][: config.most or None]
    if not kept:
        raise ValueError(
            f"none of {len(rows)} responses is kept: sample more (--problems, --samples) or ask for less (--keep, "
            f"--modes). Of them {statistics.fmean(right):.3f} are right, {statistics.fmean(neat):.3f} in the format"
        )
    metrics = {
        "accuracy": statistics.fmean(right),
        "format": statistics.fmean(neat),
        "kept": len(kept),
        "kept_length": statistics.fmean(len(rows[i].response) for i in kept),
        "tokens": sum(len(row.response) for row in rows),
    }
    return [{"prompt": rows[i].problem.prompt, "response": texts[i]} for i in kept], metrics

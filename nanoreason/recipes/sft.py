"""Supervised fine-tuning: maximise the log-probability of demonstrations, from random weights or from a checkpoint.

    for step 1..S:  rows = demonstrations(step);  loss = -mean log p(response token | what stands before it)

The demonstrations are a task's own worked solutions, or the lines {"prompt": ..., "response": ...} of a JSONL file.
From random weights this is the pretraining of every base here; Stream of Search is `--task search`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from nanoreason.checkpoint import found, load_checkpoint, load_extra, resume, save_checkpoint
from nanoreason.environment import check_words, evaluate
from nanoreason.learn import fit, in_epochs, make_optimizer
from nanoreason.memory import MEMORY, Memory, check_memory, prepare, resumed_from, save_policy
from nanoreason.model import LARGEST, ModelConfig, Transformer, small_config
from nanoreason.plan_memory import Work, base_of
from nanoreason.rollout import Problem, Rollout, Task, demonstration, seed_of
from nanoreason.run import (
    AnyRows,
    Count,
    Decay,
    LearningRate,
    Positive,
    Range,
    Rows,
    Run,
    RunConfig,
    check,
    check_rows,
    chosen,
    flatten,
    is_due,
    pick_device,
    say,
    table,
    task_flags,
)
from nanoreason.tasks import TASKS, Addition, Attempts
from nanoreason.tasks.attempts import BASE_MIXTURE
from nanoreason.tokenizer import TextTokenizer, load_tokenizer


@dataclass
class SftConfig(RunConfig):
    """Supervised fine-tuning on a task's worked solutions, or on a JSONL file of prompts and responses."""

    out: str = "runs/sft"  # folder of this run: config.json, metrics.jsonl, samples.jsonl, checkpoints
    # task
    task: Task = chosen(TASKS, Addition())  # whose solutions are learnt
    data: str = ""  # JSONL file of {"prompt", "response"} instead; needs --base
    distinct: AnyRows = 0  # different problems per difficulty; 0: never the same one twice on purpose
    # model
    base: str = ""  # checkpoint folder to start from; empty: random weights of the shape below
    family: Literal["llama", "qwen2", "qwen3"] = "qwen3"  # qwen3 normalizes queries and keys: far steadier
    width: Annotated[int, Range(2, LARGEST["hidden_size"])] = 96  # D, the model's width
    layers: Annotated[int, Range(1, LARGEST["num_hidden_layers"])] = 3  # transformer blocks
    heads: Annotated[int, Range(1, LARGEST["num_attention_heads"])] = 4  # query heads
    kv_heads: Annotated[int, Range(1, LARGEST["num_key_value_heads"])] = 2  # each serves heads / kv_heads query heads
    context: Annotated[int, Range(1, LARGEST["max_position_embeddings"])] = 256  # longest row in tokens
    # optimization
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: on the matrices, and adamw on the rest
    steps: Count = 800  # optimizer steps
    rows_per_step: Rows = 64  # rows of an update
    lr: LearningRate = 2e-3  # peak learning rate
    decay: Decay = "linear"  # of the learning rate: none, cosine (to a tenth) or linear (to 0)
    warmup: Count = 20  # steps of warm-up
    micro_tokens: Positive = 1024  # tokens of a micro-batch: speed, not the result; small ones stay in a CPU cache
    memory: Memory = chosen(MEMORY, Memory())  # what is kept in memory, and in which form
    # evaluation
    eval_task: Task | None = chosen(TASKS, None, like="task")  # what is tested; empty: the task
    eval_problems: AnyRows = 100  # held-out problems of each difficulty
    eval_samples: AnyRows = 0  # samples of each besides: pass@k, maj@k, length, what the task counts; 0: greedy only
    eval_tokens: Count = 0  # tokens of a tested response; 0: as many as the task says, else what the context allows
    eval_every: Count = 0  # steps between tests; 0: only at the end
    log_every: Positive = 20  # steps between lines of metrics.jsonl
    save_every: Positive = 100  # steps between checkpoints
    keep: tuple[Positive, ...] = ()  # steps after which the policy is kept besides, in OUT/kept/STEP


PRESETS = {
    "cpu": SftConfig(),
    "attempts": SftConfig(  # the base that all sections on attempts share: 6 million tokens
        task=Attempts(shares=BASE_MIXTURE), context=512, optimizer="muon", steps=1600, lr=5e-3, save_every=50,
        eval_problems=232, eval_samples=2, eval_tokens=256, eval_every=200,
    ),
    "tiny": SftConfig(
        task=Addition((1, 2)), width=32, layers=2, heads=2, kv_heads=1, context=64, steps=20, warmup=2,
        rows_per_step=16, save_every=10, log_every=5, eval_problems=8,
    ),
    "gpu": SftConfig(
        width=256, layers=6, heads=8, kv_heads=4, steps=2000, lr=1e-3, rows_per_step=128, micro_tokens=32768,
        eval_problems=500,
    ),
}  # fmt: skip


def check_config(config: SftConfig) -> None:
    """What no single setting tells; ValueError says in one line what is wrong."""
    if config.data and not config.base:
        raise ValueError("--data needs --base: the checkpoint whose tokenizer knows the file's words")
    check_memory(config.memory, config.base, config.optimizer)
    check_rows(eval_problems=config.eval_problems, eval_samples=config.eval_samples)
    if not config.base and (config.width % config.heads or config.width // config.heads % 2):
        raise ValueError(f"--width {config.width} must be an even multiple of --heads {config.heads}")
    if not config.base and config.heads % config.kv_heads:
        raise ValueError(f"--heads {config.heads} must be a multiple of --kv-heads {config.kv_heads}")


def fresh_shape(config: SftConfig, tokenizer: TextTokenizer) -> ModelConfig:
    return small_config(config.width, config.layers, config.heads, tokenizer.vocab_size, config.context,
                        kv_heads=config.kv_heads, model_type=config.family)  # fmt: skip


def workload(config: SftConfig) -> Work:
    """What `--plan` is asked about: a step on demonstrations of the mean length of some. No weight is read."""
    check_config(config)
    tokenizer = load_tokenizer(found(config.base)) if config.base else config.task.tokenizer()
    shape, size = base_of(config.base) if config.base else (fresh_shape(config, tokenizer), 0)
    context = shape.max_position_embeddings
    if config.data:
        rows = file_rows(config, tokenizer, context, read_problems(Path(config.data)))(0)
    else:
        check_words(tokenizer, task=config.task)
        rows = task_rows(config, tokenizer, context, Counter())(0)
    prompt, whole = (round(sum(lengths) / len(rows)) for lengths in
                     ([row.prompt_len for row in rows], [len(row.tokens) for row in rows]))  # fmt: skip
    return Work(shape, len(rows), prompt, max(1, whole - prompt), config.micro_tokens, config.memory, file_bytes=size,
                muon=config.optimizer == "muon")  # fmt: skip


def run(config: SftConfig) -> dict:
    """Train, test, and leave the model in OUT/policy; returns the last line of metrics."""
    check_config(config)
    problems = read_problems(Path(config.data)) if config.data else []
    device = pick_device(config.device)
    if config.base:
        model, tokenizer = load_checkpoint(config.base, device)
    else:
        tokenizer = config.task.tokenizer()
        model = Transformer(fresh_shape(config, tokenizer), seed_of(config.seed, "sft")).to(device)
    prepare(model, config.memory, seed_of(config.seed, "adapters"))
    context, counts = model.config.max_position_embeddings, Counter()
    if problems:
        rows_of = file_rows(config, tokenizer, context, problems)
    else:
        rows_of = task_rows(config, tokenizer, context, counts)
    check_words(tokenizer, task=None if problems else config.task)
    check_words(tokenizer, eval_task=None if problems or not config.eval_problems else config.eval_task)
    if config.eval_problems and not problems and config.eval_task is None:
        check_words(tokenizer, "test", task=config.task)
    run = Run(config)
    optimizer = make_optimizer(model, config.optimizer, moments=config.memory.moments)
    folder = run.folder / resumed_from(config.memory)
    state = resume(folder, model, optimizer, tokenizer)
    first = state.get("step", 0)
    for name, value in state.get("counts", {}).items():
        check(value, Count, f"{folder / 'training.json'}: {name}")
        counts[name] = value
    run.rewind(first if first else -1, state.get("logged") if first else None)

    extra = load_extra(config.base) if config.data else task_flags(flatten(config))  # a file does not say its task

    def finish(done: int, metrics: dict) -> None:
        """Test, log and save where it is due."""
        last = done == config.steps
        tested = last or is_due(done, config.eval_every)
        if tested and config.eval_problems and not config.data:
            metrics = metrics | evaluate(
                config.eval_task or config.task, model, tokenizer, config.eval_problems,
                max_new_tokens=config.eval_tokens or None, samples=config.eval_samples, run=run, step=done,
            )  # fmt: skip
        if tested or is_due(done, config.log_every):
            shares = {"dropped_share": counts["dropped"] / counts["problems"]} if counts["problems"] else {}
            run.log(done, **metrics, **counts, **shares)
        if done in config.keep:  # first: a run that is stopped in between does the step again
            save_checkpoint(run.folder / "kept" / str(done), model, tokenizer, base=config.base, extra=extra)
        if last or is_due(done, config.save_every):
            state = {"step": done, "counts": dict(counts), "logged": run.logged}
            save_policy(run.folder, config.memory, model, tokenizer, optimizer, state, base=config.base, extra=extra,
                        last=last)  # fmt: skip

    if first == config.steps == 0:
        finish(0, {})  # only to measure
    for done, metrics in fit(
        model, optimizer, rows_of, steps=config.steps, first_step=first, lr=config.lr, warmup=config.warmup,
        decay=config.decay, micro_tokens=config.micro_tokens,
    ):  # fmt: skip
        finish(done, metrics)
    run.close()
    last = run.last_line()
    names = [name for name in last if name.startswith("acc/")] or [name for name in ("loss",) if name in last]
    say(table(["step", *names], [[str(last["step"]), *(f"{last[name]:.2f}" for name in names)]]))
    return last


# --------------------------------------------------------------------------------------------------- demonstrations


def task_rows(
    config: SftConfig, tokenizer: TextTokenizer, context: int, counts: Counter
) -> Callable[[int], list[Rollout]]:
    """The rows of each step, made of the task's solutions.

    A problem without a solution, and one that does not fit into the context, is dropped and counted, never cut: a cut
    one would teach to stop, or to go on, in the middle. `counts` has problems, rows, dropped (they do not fit; what
    is neither a row nor dropped had no solution) and tokens_seen.
    """

    def fitting(problems: list[Problem]) -> list[Rollout]:
        rows = [demonstration(tokenizer, problem) for problem in problems if problem.solution]
        kept = [row for row in rows if len(row.tokens) <= context]
        if not kept:
            raise ValueError(f"no solution of {len(problems)} problems fits into the context of {context} tokens")
        tokens = sum(len(row.response) for row in kept)
        counts.update(problems=len(problems), rows=len(kept), dropped=len(rows) - len(kept), tokens_seen=tokens)
        return kept

    if config.distinct:  # the very problems that STaR practises on, with their solutions
        levels = config.task.levels()
        pool = [level.problem(f"train-{k}", i) for k, level in enumerate(levels) for i in range(config.distinct)]
        rows = fitting(pool)
        counts.clear()  # the pool is seen again and again: there is nothing to count step by step
        return in_epochs(rows, config.rows_per_step, config.seed)

    def rows_of(step: int) -> list[Rollout]:
        indices = range(step * config.rows_per_step, (step + 1) * config.rows_per_step)
        return fitting([config.task.problem(f"sft-{config.seed}", i) for i in indices])

    return rows_of


def file_rows(
    config: SftConfig, tokenizer: TextTokenizer, context: int, problems: list[tuple[int, Problem]]
) -> Callable[[int], list[Rollout]]:
    """The rows of each step, made of the file's lines (number, problem); ValueError names a line that does not fit."""
    rows = []
    for line, problem in problems:
        try:
            rows.append(demonstration(tokenizer, problem))
        except ValueError as error:
            raise ValueError(f"{config.data}, line {line}: {error}") from None
        if not rows[-1].prompt_len:
            raise ValueError(f"{config.data}, line {line}: its prompt has no tokens, there is nothing to respond to")
        if (length := len(rows[-1].tokens)) > context:
            raise ValueError(f"{config.data}, line {line}: {length} tokens, more than the context of {context}")
    return in_epochs(rows, config.rows_per_step, config.seed)


def read_problems(path: Path) -> list[tuple[int, Problem]]:
    """The lines {"prompt": ..., "response": ...} of a JSONL file, with their numbers; ValueError names a bad one."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # a byte order mark is no part of the first line
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}") from None
    problems = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON strings may hold U+2028
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):  # no JSON; nested too deep
                row = None
            if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("prompt", "response")):
                raise ValueError(f'{path}, line {number}: not a JSON object with the texts "prompt" and "response"')
            problems.append((number, Problem(row["prompt"], "", row["response"])))
    if not problems:
        raise ValueError(f"{path} holds no demonstrations")
    return problems

"""Stream of Search (Gandhi et al., 2024): a transformer from random weights learns to search from searches as text.

    for step 1..S:
        problems = the next training problems
        rows     = for each, one search by a strategy drawn from the mixture, dead ends and failures included
                   (`--data correct`: only the searches that succeeded; `--data op`: the optimal path instead)
        loss     = -mean log p(response token | what stands before it)

Every problem is new, so there are no epochs. A search that does not fit into the context is dropped and counted, never
cut: a cut one would teach to stop, or to go on, in the middle. The test is greedy and judged by the strict reader.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from nanoreason.checkpoint import resume, save_checkpoint
from nanoreason.learn import fit, make_optimizer
from nanoreason.model import Transformer, small_config
from nanoreason.rollout import Rollout, demonstration, seed_of
from nanoreason.run import Run, pick_device, read_jsonl, say, table
from nanoreason.search import generate, tokenizer
from nanoreason.tokenizer import TextTokenizer
from nanoreason.trajectories import SPLITS, SearchConfig, measure

DATA = ("sos", "correct", "op")
WINDOW = 64  # steps whose searches are written in one go


@dataclass
class SosConfig(SearchConfig):
    """Supervised learning of search on Countdown, from streams of search or from optimal paths."""

    out: str = "runs/sos"  # folder of this run: config.json, metrics.jsonl, checkpoints
    data: str = "sos"  # sos: searches as they went; correct: only those that succeeded; op: optimal paths
    workers: int = 1  # processes that write searches; 0: one per core
    width: int = 96  # D, the model's width
    layers: int = 3  # transformer blocks
    heads: int = 4  # attention heads
    context: int = 320  # longest row in tokens; longer searches are dropped
    steps: int = 7500  # optimizer steps
    rows_per_step: int = 12  # problems of an update
    lr: float = 2e-3  # peak learning rate, cosine to a tenth
    warmup: int = 50  # steps of warm-up
    micro_tokens: int = 640  # tokens of a micro-batch: speed, not the result; small ones stay in a CPU cache
    save_every: int = 100  # steps between checkpoints
    log_every: int = 20  # steps between lines of metrics.jsonl; save_every is a multiple of it
    eval_every: int = 2500  # steps between tests on held-out problems; 0: only at the end


SHORT = ("bfs2-sum", "bfs2-mult", "bfs3-sum", "bfs3-mult", "bfs4-sum", "bfs4-mult")
PRESETS = {
    "cpu": SosConfig(max_input=50, strategies=SHORT),
    "tiny": SosConfig(
        max_input=9, targets=(10, 40), eval_problems=6, hard_problems=4, width=32, layers=2, heads=2, context=128,
        steps=12, rows_per_step=8, warmup=2, save_every=6, log_every=2, eval_every=6,
    ),
    "gpu": SosConfig(
        inputs=4, eval_problems=500, workers=0, width=384, layers=8, heads=6, context=2048, steps=6000,
        rows_per_step=64, lr=1e-3, warmup=200, micro_tokens=65536, save_every=500, log_every=50, eval_every=2000,
    ),
}  # fmt: skip


def run(config: SosConfig) -> dict:
    """Train, test, and leave the model in OUT/policy; returns the last line of metrics."""
    if config.data not in DATA:
        raise ValueError(f"--data {config.data}: one of {', '.join(DATA)}")
    if config.save_every % config.log_every:
        raise ValueError(f"--save-every {config.save_every} is no multiple of --log-every {config.log_every}")
    run = Run(config)
    words = tokenizer()
    shape = small_config(config.width, config.layers, config.heads, words.vocab_size, config.context)
    model = Transformer(shape, seed_of(config.seed, "sos")).to(pick_device(config.device))
    optimizer = make_optimizer(model)
    state = resume(run.folder / "policy", model, optimizer)
    first, seen = state.get("step", 0), Counter(state.get("seen", {}))
    run.rewind(first)

    def after(step: int, metrics: dict) -> None:
        done = step + 1
        last = done == config.steps
        if last or (config.eval_every and done % config.eval_every == 0):
            metrics = metrics | measure(config, model, words, full=last)
        if last or done % config.log_every == 0 or len(metrics) > 4:
            run.log(done, **metrics, **seen, dropped_share=seen["dropped"] / seen["problems"])
        if last or done % config.save_every == 0:
            save_checkpoint(run.folder / "policy", model, words, optimizer, {"step": done, "seen": dict(seen)})

    fit(model, optimizer, demonstrations(config, words, seen), steps=config.steps, first_step=first, lr=config.lr,
        warmup=config.warmup, decay=True, micro_tokens=config.micro_tokens, after=after, name=config.data)  # fmt: skip
    run.close()
    last = read_jsonl(run.folder / "metrics.jsonl")[-1]
    report = [[split, *(f"{last[f'{name}/{split}']:.2f}" for name in ("acc", "nodes", "cut"))] for split in SPLITS]
    say(table(["split", "solved", "nodes", "cut off"], report))
    return last


def demonstrations(config: SosConfig, words: TextTokenizer, seen: Counter) -> Callable[[int], list[Rollout]]:
    """The rows of each step, a function of the step alone; `seen` counts problems, rows, dropped rows and tokens."""
    # DIFFERS from the paper: one pass over new problems instead of ten over 500,000; the prompt is not in the loss; EOS
    # is; a search beyond the context is dropped, where the released code trains on its pieces as if they were whole.
    task = config.task()

    @lru_cache(maxsize=1)
    def window(number: int) -> list[tuple]:
        """(problem, text, whether it was solved) for WINDOW steps."""
        size = WINDOW * config.rows_per_step
        if config.data == "op":
            problems = [task.problem("train", i) for i in range(number * size, (number + 1) * size)]
            return [(problem, problem.solution, True) for problem in problems]
        workers = config.workers or None
        found = generate(task, "train", number * size, size, config.mixture(), workers, config.seed)
        return [(trajectory.problem, trajectory.text, trajectory.solved) for trajectory in found]

    def rows_of(step: int) -> list[Rollout]:
        first = step % WINDOW * config.rows_per_step
        found = window(step // WINDOW)[first : first + config.rows_per_step]
        kept = [(problem, text) for problem, text, solved in found if solved or config.data != "correct"]
        rows = [demonstration(words, problem, text) for problem, text in kept]
        fitting = [row for row in rows if len(row.tokens) <= config.context]
        if not fitting:
            raise ValueError(f"step {step}: none of {len(found)} searches is of use: a longer --context would be")
        seen.update(
            problems=len(found), rows=len(fitting), dropped=len(rows) - len(fitting),
            tokens_seen=sum(len(row.response) for row in fitting),
        )  # fmt: skip
        return fitting

    return rows_of

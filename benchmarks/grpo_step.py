"""One GRPO step beside TRL's GRPOTrainer, and the memory of log-probs at a large vocabulary.

    python benchmarks/grpo_step.py                  all parts
    python benchmarks/grpo_step.py fixed            8 prompts x 16 samples x 128 tokens: time and peak memory of a step
    python benchmarks/grpo_step.py heavy            the same with heavy-tailed lengths
    python benchmarks/grpo_step.py head             8 x 512 log-probs at a vocabulary of 151,936: memory, gradient
    python benchmarks/grpo_step.py --quick          few tokens, ours alone, to see that it runs; nothing is written

Both sides have the same weights, prompts, lengths, reward, loss and learning rate. TRL runs with its default settings
(bf16 autocast and gradient checkpointing on every device) in 4 micro-batches of 32 rows; ours is the recipe's step with
its default micro-batch, in float32 on a CPU. Ours runs between TRL's steps, in the same process, so that both meet the
same neighbours; printed are medians and the range. With one thread the clock is the process's CPU time. `log-probs` is
the policy's forward pass, `update` all the rest: advantages, backward pass, optimizer. Peak memory (on a CPU only on
Linux) is that of a new process above what it held before its first step.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from sample import QWEN, TINY, heavy_tailed, twin
from timing import clock_for, write_results
from transformers import LogitsProcessor, PreTrainedTokenizerFast

from nanoreason import learn
from nanoreason.model import ModelConfig, Transformer, small_config
from nanoreason.recipes.grpo import GrpoConfig, compute_advantages, update_policy
from nanoreason.rollout import Problem, prompt_groups
from nanoreason.run import Schedule, pick_device
from nanoreason.sampler import Sampler
from nanoreason.tokenizer import word_tokenizer

PROMPTS, GROUP, PROMPT_TOKENS, NEW_TOKENS = 8, 16, 24, 128
LENGTHS = {
    "fixed": [NEW_TOKENS] * PROMPTS * GROUP,
    "heavy": heavy_tailed(PROMPTS * GROUP, 80, NEW_TOKENS),
}
TARGETS = {"fixed": 1.7, "heavy": 2.8}  # wanted ratios to TRL's step
HEAD_TOKENS = 8 * 512
QUICK_LENGTHS = [1 + i % 3 for i in range(PROMPTS * GROUP)]
QUICK_MODEL = small_config(16, 1, 2, TINY.vocab_size, 64, model_type="qwen3")
WORDS = word_tokenizer([f"w{i}" for i in range(1, TINY.vocab_size)])
PROBLEMS = [
    Problem(" ".join(f"w{1 + (7 * p + 5 * t) % (TINY.vocab_size - 1)}" for t in range(PROMPT_TOKENS)), "")
    for p in range(PROMPTS)
]


def reward(completion_ids: list[int]) -> float:
    return sum(token % 2 for token in completion_ids) / len(completion_ids)


class Stopwatch:
    """Seconds by phase of one step at a time."""

    def __init__(self, clock: Callable[[], float]):
        self.clock, self.phases = clock, dict.fromkeys(("generation", "log-probs"), 0.0)

    def timed(self, phase: str, function: Callable) -> Callable:
        def wrapped(*args, **kwargs):
            started = self.clock()
            found = function(*args, **kwargs)
            self.phases[phase] += self.clock() - started
            return found

        return wrapped

    def start(self) -> None:
        self.phases = dict.fromkeys(self.phases, 0.0)
        self.started = self.clock()

    def stop(self) -> dict[str, float]:
        total = self.clock() - self.started
        return {"step": total, **self.phases, "update": total - sum(self.phases.values())}


# --------------------------------------------------------------------------------------------------- the two sides


class Ours:
    """The recipe's step, its rows cut at the given lengths."""

    def __init__(self, model: Transformer, lengths: list[int], watch: Stopwatch):
        self.model, self.lengths, self.watch, self.steps = model, lengths, watch, 0
        self.optimizer = learn.make_optimizer(model)
        self.config = GrpoConfig(
            algorithm=learn.Algorithm(average="token"), prompts=PROMPTS, group_size=GROUP, lr=1e-6, warmup=0,
            max_new_tokens=Schedule(NEW_TOKENS),
        )  # fmt: skip
        self.generate = watch.timed("generation", lambda rows: Sampler(self.model, eos_id=None).finish(rows))

    def step(self) -> dict[str, float]:
        self.watch.start()
        groups = prompt_groups(WORDS, PROBLEMS, GROUP, seed=self.steps)
        rows = [row for group in groups for row in group]
        for row, length in zip(rows, self.lengths, strict=True):
            row.max_new_tokens = length
        self.generate(rows)
        for row in rows:
            row.reward = reward(row.response)
        self.steps += 1
        original = learn.logprobs_and_entropy
        learn.logprobs_and_entropy = self.watch.timed("log-probs", original)
        try:
            compute_advantages(self.config, self.model, None, groups)
            update_policy(self.config, self.steps, self.model, self.optimizer, groups)
        finally:
            learn.logprobs_and_entropy = original
        assert [len(row.response) for row in rows] == self.lengths
        return self.watch.stop()


class EndAt(LogitsProcessor):
    """EOS exactly at each row's length, and nowhere before; a row of the full length is cut without one."""

    def __init__(self, lengths: list[int]):
        self.lengths = torch.tensor(lengths)

    def __call__(self, input_ids, scores):
        ends = self.lengths.to(scores.device) == input_ids.shape[1] - PROMPT_TOKENS + 1
        ends &= self.lengths.to(scores.device) < NEW_TOKENS
        scores[:, WORDS.eos_id] = -torch.inf
        scores[ends] = -torch.inf
        scores[ends, WORDS.eos_id] = 0.0
        return scores


def run_trl(model: Transformer, lengths: list[int], watch: Stopwatch, steps: int, between: Callable, before: Callable):
    """`steps` steps of TRL; `before()` each one, and `between(seconds by phase)` after it."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            before()
            watch.start()

        def on_step_end(self, *_, **__):
            between(watch.stop())

    seen = []

    def reward_function(completion_ids, **_):
        seen.append(sorted(map(len, completion_ids)))
        return [reward(ids) for ids in completion_ids]

    reference = twin(model).train()
    for config in (reference.config, reference.generation_config):  # by default a Llama also ends at token 2
        config.bos_token_id, config.eos_token_id, config.pad_token_id = None, WORDS.eos_id, WORDS.eos_id
    generate = watch.timed("generation", reference.generate)
    reference.generate = lambda **kwargs: generate(**kwargs, logits_processor=[EndAt(lengths)])
    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=PROMPTS * GROUP // 4,
            gradient_accumulation_steps=4, num_generations=GROUP, max_completion_length=NEW_TOKENS,
            use_cpu=model.device.type == "cpu", report_to="none", save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = GRPOTrainer(
            reference,
            reward_funcs=reward_function,
            args=settings,
            train_dataset=Dataset.from_list([{"prompt": problem.prompt} for problem in PROBLEMS]),
            processing_class=PreTrainedTokenizerFast(
                tokenizer_object=WORDS.backend, eos_token=WORDS.eos_token, pad_token=WORDS.eos_token
            ),
            callbacks=[Clock()],
        )
        name = "_get_per_token_logps_and_entropies"
        setattr(trainer, name, watch.timed("log-probs", getattr(trainer, name)))
        with redirect_stdout(sys.stderr):  # the trainer prints its logs
            trainer.train()
    assert seen == [sorted(lengths)] * steps


# --------------------------------------------------------------------------------------------------------- a step


def time_steps(part: str, repeat: int, device: torch.device, with_trl: bool) -> list[str]:
    clock, target = clock_for(device), TARGETS[part]
    ours = Ours(Transformer(TINY).to(device), LENGTHS[part], Stopwatch(clock))
    found: dict[str, list[dict[str, float]]] = {"TRL": [], "ours": []}

    def between(trl_step: dict[str, float]) -> None:
        found["TRL"].append(trl_step)
        found["ours"].append(ours.step())

    if with_trl:
        run_trl(Transformer(TINY).to(device), LENGTHS[part], Stopwatch(clock), 1 + repeat, between, lambda: None)
    else:
        found = {"ours": [ours.step() for _ in range(1 + repeat)]}
    lines = []
    for name, steps in found.items():
        memory = child("step", part, name, str(device))["bytes"] / 1e6
        lines.append(
            f"{part:<6} {name:<5} {medians(steps[1:])}  peak memory {memory:,.0f} MB"
        )  # the first one warms up
    if with_trl:
        ratios = [trl["step"] / our["step"] for trl, our in zip(found["TRL"][1:], found["ours"][1:], strict=True)]
        of_all = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"
        lines.append(f"{part:<6} TRL / ours: {of_all}  target {target}")
    return lines


def medians(steps: list[dict[str, float]]) -> str:
    median = {phase: statistics.median(step[phase] for step in steps) for phase in steps[0]}
    totals = [step["step"] for step in steps]
    phases = "  ".join(f"{phase} {seconds:.2f}" for phase, seconds in median.items() if phase != "step")
    return f"{median['step']:6.2f} s ({min(totals):.2f}..{max(totals):.2f})  {phases}"


# --------------------------------------------------------------------------------------------------------- memory


class PeakMemory:
    """Bytes held at most since it was made, above what was held then: of the GPU, or of this process on Linux."""

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the largest size so far becomes the present one
            self.before = self._largest()

    @staticmethod
    def _largest() -> int:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])

    def bytes(self) -> int:
        largest = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else self._largest()
        return largest - self.before


def child(*words: str) -> dict:
    """What a new process finds out: its peak memory is its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", *words]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        sys.exit(f"{' '.join(words)}: {answer.stderr[-2000:]}")
    return json.loads(answer.stdout.splitlines()[-1])


def memory_of_a_step(part: str, name: str, device: str) -> dict[str, float]:
    model, watch, peak = Transformer(TINY).to(device), Stopwatch(time.perf_counter), []
    if name == "ours":
        ours = Ours(model, LENGTHS[part], watch)
        peak.append(PeakMemory(model.device))
        ours.step()
    else:
        run_trl(model, LENGTHS[part], watch, 1, lambda _: None, lambda: peak.append(PeakMemory(model.device)))
    return {"bytes": peak[0].bytes()}


def memory_of_the_head(name: str, device: str, out: str, tokens: int = HEAD_TOKENS, shape: ModelConfig = QWEN) -> dict:
    """Forward and backward pass of the log-probs of some tokens; the gradient is left in the file `out`."""
    generator = torch.Generator().manual_seed(0)
    V, D = shape.vocab_size, shape.hidden_size
    hidden = torch.randn(tokens, D, generator=generator).to(device).requires_grad_()
    weight = torch.randn(V, D, generator=generator).mul_(D**-0.5).to(device).requires_grad_()
    targets = torch.randint(V, (tokens,), generator=generator).to(device)
    started, peak = time.process_time(), PeakMemory(hidden.device)
    if name == "full":
        logprobs = -F.cross_entropy(F.linear(hidden, weight), targets, reduction="none")
    else:
        logprobs = learn.ChunkedHead.apply(hidden, weight, targets, 1.0)[0]
    logprobs.sum().backward()
    found = {"bytes": peak.bytes(), "seconds": time.process_time() - started}
    torch.save((hidden.grad.cpu(), weight.grad.cpu()), out)
    return found


def head(device: torch.device, measure: Callable = lambda *words: child("head", *words)) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        found = {name: measure(name, str(device), f"{folder}/{name}") for name in ("full", "chunked")}
        pairs = zip(*(torch.load(f"{folder}/{name}", weights_only=True) for name in found), strict=True)
        errors = [((a - b).abs().max() / a.abs().max()).item() for a, b in pairs]
    lines = [
        f"{name:<8} {answer['bytes'] / 1e6:>6,.0f} MB, forward and backward {answer['seconds']:.1f} s"
        for name, answer in found.items()
    ]
    if found["full"]["bytes"] > 1e6:
        ratio = found["chunked"]["bytes"] / found["full"]["bytes"]
        lines.append(f"chunked / full memory: {ratio:.3f}  target < 0.25")
    return [*lines, f"largest difference of gradients / largest gradient: {max(errors):.1e}  target < 1e-5"]


def quick(device: torch.device) -> list[str]:
    """A step of a very small model, and a small head, in this process."""
    ours = Ours(Transformer(QUICK_MODEL).to(device), QUICK_LENGTHS, Stopwatch(clock_for(device)))
    return [medians([ours.step()]), *head(device, lambda *words: memory_of_the_head(*words, 8, QUICK_MODEL))]


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="of fixed, heavy, head (default: all)")
    parser.add_argument("--repeat", type=int, default=5, help="steps that are timed, after one to warm up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="few tokens, without TRL")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args(words)
    torch.set_num_threads(flags.threads)
    if flags.child:
        kind, *arguments = flags.parts
        with redirect_stdout(sys.stderr):
            answer = {"step": memory_of_a_step, "head": memory_of_the_head}[kind](*arguments)
        print(json.dumps(answer))
        return
    unknown = [part for part in flags.parts if part not in (*LENGTHS, "head")]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}: use fixed, heavy, head")
    device = pick_device(flags.device)
    if flags.quick:
        write_results("GRPO step", quick(device), device, keep=False)
        return
    try:
        import trl

        versions = f"beside TRL {trl.__version__}"
    except ImportError:
        trl, versions = None, "ours alone (for the comparison: pip install trl)"
    parts = flags.parts or [*LENGTHS, "head"]
    lines = [line for part in parts if part in LENGTHS for line in time_steps(part, flags.repeat, device, bool(trl))]
    if lines:
        write_results("GRPO step", [versions, *lines], device)
    if "head" in parts:
        title = f"Log-probs of {HEAD_TOKENS} tokens, width {QWEN.hidden_size}, vocabulary {QWEN.vocab_size:,}"
        write_results(title, head(device), device)


if __name__ == "__main__":
    main()

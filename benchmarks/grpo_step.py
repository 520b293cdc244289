"""One GRPO step beside TRL's GRPOTrainer, and the memory of log-probs at a large vocabulary.

    python benchmarks/grpo_step.py                  all parts
    python benchmarks/grpo_step.py fixed            8 prompts x 16 samples x 128 tokens: time and peak memory of a step
    python benchmarks/grpo_step.py heavy            the same with heavy-tailed lengths
    python benchmarks/grpo_step.py head             8 x 512 log-probs at a vocabulary of 151,936: memory, gradient

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
from transformers import LogitsProcessor, PreTrainedTokenizerFast

from nanoreason import learn
from nanoreason.model import Transformer
from nanoreason.recipes.grpo import GrpoConfig, compare, improve, with_algorithm
from nanoreason.rollout import Problem, prompt_rows
from nanoreason.run import device_name
from nanoreason.sampler import Sampler
from nanoreason.tokenizer import word_tokenizer

PROMPTS, GROUP, PROMPT_TOKENS, NEW_TOKENS = 8, 16, 24, 128
LENGTHS = {
    "fixed": [NEW_TOKENS] * PROMPTS * GROUP,
    "heavy": heavy_tailed(PROMPTS * GROUP, 80, NEW_TOKENS),
}
TARGETS = {"fixed": 1.7, "heavy": 2.8}  # wanted ratios to TRL's step
HEAD_TOKENS = 8 * 512
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
        config = GrpoConfig(
            base="none", average="token", kl_coef=0.0, prompts=PROMPTS, group_size=GROUP, lr=1e-6, warmup=0,
            max_new_tokens=NEW_TOKENS,
        )  # fmt: skip
        self.config = with_algorithm(config)
        self.generate = watch.timed("generation", lambda rows: Sampler(self.model, eos_id=None).finish(rows))

    def step(self) -> dict[str, float]:
        self.watch.start()
        rows = prompt_rows(WORDS, PROBLEMS, GROUP, seed=self.steps)
        for row, length in zip(rows, self.lengths, strict=True):
            row.max_new_tokens = length
        self.generate(rows)
        for row in rows:
            row.reward = reward(row.response)
        original = learn.logprobs_and_entropy
        learn.logprobs_and_entropy = self.watch.timed("log-probs", original)
        try:
            compare(self.config, self.model, None, rows)
            improve(self.config, self.steps, self.model, self.optimizer, rows)
        finally:
            learn.logprobs_and_entropy = original
        assert [len(row.response) for row in rows] == self.lengths
        self.steps += 1
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


def time_steps(part: str, repeat: int, device: torch.device, clock: Callable[[], float], with_trl: bool) -> None:
    model = Transformer(TINY).to(device)
    ours = Ours(model, LENGTHS[part], Stopwatch(clock))
    found: dict[str, list[dict[str, float]]] = {"TRL": [], "ours": []}

    def between(trl_step: dict[str, float]) -> None:
        found["TRL"].append(trl_step)
        found["ours"].append(ours.step())

    if with_trl:
        run_trl(Transformer(TINY).to(device), LENGTHS[part], Stopwatch(clock), 1 + repeat, between, lambda: None)
    else:
        found = {"ours": [ours.step() for _ in range(1 + repeat)]}
    for name, steps in found.items():
        steps = steps[1:]  # the first one warms up
        median = {phase: statistics.median(step[phase] for step in steps) for phase in steps[0]}
        totals = [step["step"] for step in steps]
        line = f"{part:<6} {name:<5} {median.pop('step'):6.2f} s ({min(totals):.2f}..{max(totals):.2f})  "
        line += "  ".join(f"{phase} {seconds:.2f}" for phase, seconds in median.items())
        print(line, flush=True)
    if with_trl:
        ratios = [trl["step"] / our["step"] for trl, our in zip(found["TRL"][1:], found["ours"][1:], strict=True)]
        print(
            f"{part:<6} TRL / ours: {statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"
            f"  target {TARGETS[part]}",
            flush=True,
        )
    for name in found:
        print(
            f"{part:<6} {name:<5} peak memory {child('step', part, name, str(device))['bytes'] / 1e6:.0f} MB",
            flush=True,
        )


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


def memory_of_the_head(name: str, device: str, out: str) -> dict[str, float]:
    """Forward and backward pass of the log-probs of HEAD_TOKENS tokens; the gradient is left in the file `out`."""
    generator = torch.Generator().manual_seed(0)
    V, D = QWEN.vocab_size, QWEN.hidden_size
    hidden = torch.randn(HEAD_TOKENS, D, generator=generator).to(device).requires_grad_()
    weight = torch.randn(V, D, generator=generator).mul_(D**-0.5).to(device).requires_grad_()
    targets = torch.randint(V, (HEAD_TOKENS,), generator=generator).to(device)
    started, peak = time.process_time(), PeakMemory(hidden.device)
    if name == "full":
        logprobs = -F.cross_entropy(F.linear(hidden, weight), targets, reduction="none")
    else:
        logprobs = learn.ChunkedHead.apply(hidden, weight, targets, 1.0)[0]
    logprobs.sum().backward()
    found = {"bytes": peak.bytes(), "seconds": time.process_time() - started}
    torch.save((hidden.grad.cpu(), weight.grad.cpu()), out)
    return found


def head(device: torch.device) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = {name: child("head", name, str(device), f"{folder}/{name}") for name in ("full", "chunked")}
        pairs = zip(*(torch.load(f"{folder}/{name}", weights_only=True) for name in found), strict=True)
        errors = [((a - b).abs().max() / a.abs().max()).item() for a, b in pairs]
    for name, answer in found.items():
        print(
            f"head   {name:<8} {HEAD_TOKENS} tokens, width {QWEN.hidden_size}, vocabulary {QWEN.vocab_size:,}: "
            f"{answer['bytes'] / 1e6:,.0f} MB, forward and backward {answer['seconds']:.0f} s"
        )
    ratio = found["chunked"]["bytes"] / found["full"]["bytes"]
    print(f"head   chunked / full memory: {ratio:.3f}  target < 0.25")
    print(f"head   largest difference of gradients / largest gradient: {max(errors):.1e}  target < 1e-5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="of fixed, heavy, head (default: all)")
    parser.add_argument("--repeat", type=int, default=5, help="steps that are timed, after one to warm up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    if flags.child:
        kind, *words = flags.parts
        with redirect_stdout(sys.stderr):
            answer = {"step": memory_of_a_step, "head": memory_of_the_head}[kind](*words)
        print(json.dumps(answer))
        return
    unknown = [part for part in flags.parts if part not in (*LENGTHS, "head")]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}: use fixed, heavy, head")
    device = torch.device(flags.device)
    clock = time.process_time if device.type == "cpu" and flags.threads == 1 else time.perf_counter
    try:
        import trl

        versions = f"TRL {trl.__version__}"
    except ImportError:
        trl, versions = None, "no TRL (for the comparison: pip install trl), ours alone"
    print(f"{device_name(device)}, {flags.threads} thread(s), torch {torch.__version__}, {versions}")
    for part in flags.parts or [*LENGTHS, "head"]:
        if part == "head":
            head(device)
        else:
            time_steps(part, flags.repeat, device, clock, trl is not None)


if __name__ == "__main__":
    main()

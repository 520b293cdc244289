"""python docs/one_step.py: writes the numbers of docs/one-step.md, the page that walks through one GRPO step.

    python docs/one_step.py --breakpoints > .pdbrc      the stops of the page as breakpoints, at the lines of today
    python -m pdb docs/one_step.py --step               the same step in the debugger, which reads .pdbrc

The page's text is written by people; what stands between `<!-- numbers NAME -->` and `<!-- end -->` is made here. The
step is the real one, `grpo_minimal.grpo_step`: the functions that it calls are watched, and what they were given and
gave back is what the page shows. The sampled tokens are the same on every machine, as no random number comes near a
border between two tokens; of the other numbers the last digit may differ.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from nanoreason import learn, optim, rollout, sampler  # noqa: E402
from nanoreason.checkpoint import load_checkpoint  # noqa: E402
from nanoreason.learn import compute_logprobs, make_optimizer  # noqa: E402
from nanoreason.recipes import grpo_minimal  # noqa: E402
from nanoreason.rollout import Rollout, response_text  # noqa: E402
from nanoreason.run import table  # noqa: E402
from nanoreason.tasks import Attempts, attempts  # noqa: E402

PAGE = ROOT / "docs" / "one-step.md"
CONFIG = grpo_minimal.GrpoMinimalConfig(
    base=str(ROOT / "data" / "checkpoints" / "attempts-0"), task=Attempts(), prompts=2, group_size=4, max_new_tokens=40,
    lr=3e-4, seed=0,
)  # fmt: skip


class Stop(NamedTuple):
    """A place of the tour: a breakpoint on the line of `function` that has `line`."""

    function: Callable
    line: str

    @property
    def place(self) -> str:
        return f"{self.file}:{self.function.__qualname__}"

    @property
    def file(self) -> str:
        return Path(inspect.getsourcefile(inspect.unwrap(self.function))).relative_to(ROOT).as_posix()

    def number(self) -> int:
        """Of the line in the file, today; ValueError if the function has no such line."""
        lines, start = inspect.getsourcelines(self.function)
        found = [start + i for i, text in enumerate(lines) if self.line in text]
        if not found:
            raise ValueError(f"{self.place} has no line with {self.line!r}: the page is older than the source")
        return found[0]


STOPS = {
    "problem": Stop(attempts.Attempts.problem, "return kind(self, posed, draw)"),
    "prompt": Stop(rollout.prompt_row, "return Rollout("),
    "draw": Stop(sampler.Sampler._decode, "token, logprob = draw("),
    "record": Stop(sampler.Sampler._retire, "row.sampled(token, logprob)"),
    "verdict": Stop(grpo_minimal.grpo_step, "row.reward = task.reward("),
    "advantage": Stop(grpo_minimal.grpo_step, "row.advantage = "),
    "weights": Stop(learn.token_weights, "return [[each"),
    "batch": Stop(learn.collate, "return Batch("),
    "logprobs": Stop(learn.logprobs_and_entropy, "logprobs = -F.cross_entropy"),
    "loss": Stop(grpo_minimal.loss, "return -ratio"),
    "gradient": Stop(learn.update, "loss.backward()"),
    "step": Stop(optim.AdamW._move, "torch._foreach_addcdiv_"),
}


# ------------------------------------------------------------------------------------------------- one step, watched


class Seen(NamedTuple):
    """What the step was given and what it made."""

    policy: Any
    tokenizer: Any
    groups: list[list[Rollout]]
    metrics: dict[str, float]
    calls: dict[str, list[tuple[tuple, dict, Any]]]  # {function: (arguments, keywords, result) of each call}
    before: list[list[float]]  # log-probs of every row under the old weights, and under the new ones
    after: list[list[float]]
    norm: tuple[torch.Tensor, torch.Tensor]  # the weight of the last norm (D,), before and after


@contextlib.contextmanager
def watched(*places: tuple[Any, str]) -> Iterator[dict]:
    """{name: calls} of functions that are looked up in a module, while this is open."""
    calls: dict[str, list] = {name: [] for _, name in places}
    real = [(owner, name, getattr(owner, name)) for owner, name in places]

    def watch(name: str, function: Callable) -> Callable:
        def call(*arguments, **keywords):
            result = function(*arguments, **keywords)
            calls[name].append((arguments, keywords, result))
            return result

        return call

    for owner, name, function in real:
        setattr(owner, name, watch(name, function))
    try:
        yield calls
    finally:
        for owner, name, function in real:
            setattr(owner, name, function)


def load() -> tuple:
    torch.set_num_threads(1)
    policy, tokenizer = load_checkpoint(CONFIG.base)
    return policy, tokenizer, make_optimizer(policy)


def look() -> Seen:
    policy, tokenizer, optimizer = load()
    old = policy.model.norm.weight.detach().clone()
    frozen, _ = load_checkpoint(CONFIG.base)
    places = ((sampler, "draw"), (learn, "collate"), (learn, "logprobs_and_entropy"), (grpo_minimal, "loss"),
              (grpo_minimal, "token_weights"))  # fmt: skip
    with watched(*places) as calls:
        groups, metrics = grpo_minimal.grpo_step(CONFIG, 0, policy, tokenizer, optimizer)
    rows = [row for group in groups for row in group]
    before, after = (compute_logprobs(model, rows, 1.0, 4096) for model in (frozen, policy))
    return Seen(policy, tokenizer, groups, metrics, calls, before, after, (old, policy.model.norm.weight.detach()))


# -------------------------------------------------------------------------------------------------------- the numbers


def rounded(value: float, digits: int = 2) -> str:
    """Without a minus before zero."""
    text = f"{value:.{digits}f}"
    return text if float(text) else text.lstrip("-")


def some(values: torch.Tensor, digits: int) -> str:
    return "  ".join(rounded(float(value), digits).rjust(digits + 3) for value in values[:4])


def shaped(name: str, shape: tuple | torch.Size, letters: str, more: str = "") -> str:
    """A line such as `hidden  (8, 44, 96)  (B, T - 1, D)`."""
    return f"{name:18}{'(' + ', '.join(map(str, shape)) + ')':14}{letters:16}{more}".rstrip()


def problem(seen: Seen) -> str:
    """Stop 1."""
    found = seen.groups[0][0].problem
    return (
        f"prompt   {found.prompt!r}\n"
        f"answer   {found.answer!r}, the target: any list of operations that makes it is right\n"
        f"numbers  {found.info['numbers']}\n"
        f"chance   {rounded(found.info['chance'])}, how often a random attempt is right"
    )


def prompt(seen: Seen) -> str:
    """Stop 2."""
    row = seen.groups[0][0]
    tokens = row.tokens[: row.prompt_len]
    words = [seen.tokenizer.decode([token]) for token in tokens]
    return (
        f"tokens      {tokens}\nwords       {words}\nloss_mask   {row.loss_mask[: row.prompt_len]}\n"
        f"prompt_len  {row.prompt_len}"
    )


def draw(seen: Seen) -> str:
    """Stop 3: what the second decode step drew in slot 0; the first draws <think> everywhere."""
    (logits, u, temperature, *_), _, (tokens, logprobs) = seen.calls["draw"][1]
    probs = (logits[0] / temperature).softmax(-1)
    cdf, drawn = probs.cumsum(-1), int(tokens[0])
    rows = []
    for token in sorted(probs.topk(5).indices.tolist()):
        part = f"{rounded(float(cdf[token] - probs[token]))} .. {rounded(float(cdf[token]))}"
        rows.append([str(token), seen.tokenizer.decode([token]), rounded(float(probs[token])), part])
    return "\n".join([
        shaped("logits", logits.shape, "(n, V)", "n rows are alive"),
        shaped("u", u.shape, "(n,)"),
        "",
        table(["token", "word", "probability", "its part of [0, 1)"], rows),
        f"u = {rounded(float(u[0]))} draws token {drawn}, {seen.tokenizer.decode([drawn])!r}: "
        f"log-prob {rounded(float(logprobs[0]))}",
    ])  # fmt: skip


def responses(seen: Seen) -> str:
    """Stop 4: every row, with its reward."""
    lines = ["problem  tokens  stop_reason  reward  response"]
    for p, group in enumerate(seen.groups):
        for row in group:
            text = response_text(seen.tokenizer, row)
            said = text if len(text) <= 80 else f"{text[:37]} ... {text[-38:]}"
            lines.append(f"{p:7}  {len(row.response):6}  {row.stop_reason:11}  {row.reward:6.0f}  {said}")
    return "\n".join(lines)


def advantages(seen: Seen) -> str:
    """Stop 6."""
    lines = []
    for p, group in enumerate(seen.groups):
        lines.append(f"problem {p}  reward    " + " ".join(f"{row.reward:6.0f}" for row in group))
        lines.append("           advantage " + " ".join(f"{rounded(row.advantage):>6}" for row in group))
    return "\n".join(lines)


def weights(seen: Seen) -> str:
    """Stop 7."""
    (rows, _), _, made = seen.calls["token_weights"][0]
    lengths = sorted({len(row.response): max(weights) for row, weights in zip(rows, made, strict=True)}.items())
    return "\n".join([
        f"rows {len(rows)}, sampled tokens {sum(len(row.response) for row in rows)}, "
        f"sum of all weights {rounded(sum(map(sum, made)))}",
        *(f"a token of a row of {n:2} tokens: 1 / ({len(rows)} * {n}) = {rounded(value, 5)}" for n, value in lengths),
    ])  # fmt: skip


def batch(seen: Seen) -> str:
    """Stop 8."""
    made = seen.calls["collate"][0][2]
    return "\n".join([
        shaped("tokens", made.tokens.shape, "(B, T)", "int64"),
        shaped("loss_mask", made.loss_mask.shape, "(B, T)", f"bool, {int(made.loss_mask.sum())} are True"),
        shaped("sampler_logprobs", made.sampler_logprobs.shape, "(B, T)", "float32"),
        shaped("weights", made.weights.shape, "(B, T)", f"float32, sum {rounded(float(made.weights.sum()))}"),
        shaped("advantages", made.advantages.shape, "(B, 1)", "float32, one of a row"),
    ])  # fmt: skip


def logprobs(seen: Seen) -> str:
    """Stop 9."""
    (model, tokens, mask, _), _, (found, _) = seen.calls["logprobs_and_entropy"][0]
    (B, T), M = tokens.shape, int(mask[:, 1:].sum())
    D, V = model.config.hidden_size, model.config.vocab_size
    apart = float((found.detach() - seen.calls["collate"][0][2].sampler_logprobs).abs().max())
    return "\n".join([
        shaped("tokens[:, :-1]", (B, T - 1), "(B, T - 1)"),
        shaped("hidden", (B, T - 1, D), "(B, T - 1, D)"),
        shaped("hidden[picked]", (M, D), "(M, D)"),
        shaped("logits", (M, V), "(M, V)"),
        shaped("logprobs", found.shape, "(B, T)", "0 where nothing counts"),
        f"learner and sampler agree to {'' if apart < 1e-4 else 'NOT '}1e-4",
    ])  # fmt: skip


def columns(seen: Seen) -> str:
    """Stop 10: the (B, T) tensors at the row of the right response, a line per column t."""
    (rows, *_), _, made = seen.calls["collate"][0]
    (found, _), _, losses = seen.calls["loss"][0]
    found, losses = found.detach(), losses.detach()
    b = next(i for i, row in enumerate(rows) if row.reward == 1)
    lines = []
    for t in range(len(rows[b].tokens)):
        token = int(made.tokens[b, t])
        numbers = made.sampler_logprobs[b, t], found[b, t], made.weights[b, t], losses[b, t]
        shown = [rounded(float(value), digits) for value, digits in zip(numbers, (2, 2, 4, 2), strict=True)]
        lines.append([str(t), str(token), seen.tokenizer.decode([token]), str(bool(made.loss_mask[b, t])), *shown])
    names = ["t", "tokens", "word", "loss_mask", "sampler_logprobs", "logprobs", "weights", "loss"]
    return f"{table(names, lines)}\n\nloss of the step = (loss * weights).sum() = {rounded(seen.metrics['loss'], 4)}"


def gradient(seen: Seen) -> str:
    """Stop 11."""
    weight = seen.policy.model.norm.weight
    return "\n".join([
        f"grad_norm, over all weights: {rounded(seen.metrics['grad_norm'])}",
        shaped("model.norm.weight", weight.shape, "(D,)", "its first four entries:"),
        f"gradient  {some(weight.grad, 4)}",
    ])  # fmt: skip


def step(seen: Seen) -> str:
    """Stop 12."""
    before, after = seen.norm
    return (
        f"lr = {CONFIG.lr:g} / 5 = {CONFIG.lr / 5:g} in the first of five steps of warm-up\n\n"
        f"before    {some(before, 5)}\nafter     {some(after, 5)}\nmoved     {some(after - before, 5)}"
    )


def changes(seen: Seen) -> str:
    """Mean log-prob of a token of each response under the old and the new weights."""
    lines = []
    rows = [(p, row) for p, group in enumerate(seen.groups) for row in group]
    for (p, row), old, new in zip(rows, seen.before, seen.after, strict=True):
        n = len(row.response)
        way = "up" if sum(new) > sum(old) else "down"
        means = [rounded(sum(values) / n, 3) for values in (old, new)]
        lines.append([str(p), f"{row.reward:.0f}", rounded(row.advantage), *means, way if row.advantage else ""])
    return table(["problem", "reward", "advantage", "before", "after", ""], lines)


BLOCKS = {made.__name__: made for made in (problem, prompt, draw, responses, advantages, weights, batch, logprobs,
                                           columns, gradient, step, changes)}  # fmt: skip
BLOCK = re.compile(r"(<!-- numbers (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
STOP = re.compile(r"(<!-- stop (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def stop(name: str) -> str:
    place = STOPS[name]
    lines, start = inspect.getsourcelines(place.function)
    return (
        f"**Stop** in `{place.file}`, `{place.function.__qualname__}`:\n\n    {lines[place.number() - start].strip()}\n"
    )


def renewed(page: str, seen: Seen) -> str:
    """The page with the numbers of this step and the stops of today's source."""
    page = STOP.sub(lambda found: found[1] + stop(found[2]) + "\n" + found[3], page)
    return BLOCK.sub(lambda found: f"{found[1]}```\n{BLOCKS[found[2]](seen).rstrip()}\n```\n{found[3]}", page)


def main(flags: list[str]) -> int:
    if flags == ["--breakpoints"]:
        print("\n".join(f"tbreak {place.file}:{place.number()}" for place in STOPS.values()))
    elif flags == ["--step"]:
        grpo_minimal.grpo_step(CONFIG, 0, *load())
    elif not flags:
        PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8"), look()), encoding="utf-8", newline="\n")
        print(f"wrote {PAGE.relative_to(ROOT).as_posix()}")
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

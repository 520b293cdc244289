"""Budget forcing (s1, Muennighoff et al., 2025, section 3.1): a thinking model made to think less, or more.

    <think>                      appended
    ... thinking ...             sampled, until the model closes its thinking or the budget is used up
        it closes:               the closing token is taken back, "wait" is appended, it goes on; `waits` times at most
        it closes once more:     </think> <answer> is appended
        the budget is used up:   a line end, </think> <answer>, "Final Answer:" are appended
    ... answer </answer>         sampled, greedily

Two things are easy to get wrong. Right behind a "wait" the model must not close again (its closing tokens cannot be
drawn there), and the announcement "Final Answer:" belongs to the cut alone, not to a model that closed by itself.

As a recipe: how well one model scales with forced budgets, forced continuations and what else there is to make it
think for longer or shorter (`METHODS`); no training.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from nanoreason.checkpoint import load_checkpoint
from nanoreason.evaluate import maj_at_k
from nanoreason.model import Transformer
from nanoreason.rewards import closing_ids, extract_answer, extract_tagged, with_template
from nanoreason.rollout import Problem, Rollout, prompt_rows, seed_of
from nanoreason.run import Run, RunConfig, pick_device, read_jsonl, say, table
from nanoreason.sampler import Sampler
from nanoreason.tasks.addition import asked, digits_of, thinking_sums
from nanoreason.tokenizer import TextTokenizer

NO_LIMIT = 1 << 30  # tokens; as good as none, and a number in JSON
OPEN, CLOSE, ANSWER, END = "<think>", "</think>", "<answer>", "</answer>"


@dataclass(frozen=True)
class Forcing:
    """What is forced on the thinking of a row."""

    budget: int  # thinking tokens at most, forced words included; 0: what the context allows
    waits: int = 0  # how often the model is kept from closing its thinking
    word: str = "wait"  # what is appended instead; "": nothing, it only may not close
    # DIFFERS from the paper: the tiny vocabularies have no words for its line end "\n" and its "Final Answer:".
    line_end: str = ""  # before the closing tag of a cut, unless the thinking already ends in it
    announce: str = ""  # behind <answer> of a cut


@dataclass(eq=False)
class Thought:
    """A row with what happened to it. Its thinking is row.tokens[start:end]; forced tokens are not in its loss mask."""

    row: Rollout
    start: int  # behind <think>
    end: int = 0  # before the tokens that close the thinking
    waits: int = 0  # how often it was kept from closing
    cut: bool = False  # by the budget
    done: bool = False  # the answer is there, or its budget is used up

    @property
    def tokens(self) -> int:
        """Of the thinking, forced words included."""
        return self.end - self.start


def deliberate(
    model: Transformer, words: TextTokenizer, rows: list[Rollout], forcing: Forcing, *, temperature: float = 1.0,
    answer_tokens: int = 16,
) -> Iterator[Thought]:  # fmt: skip
    """Each row as often as something happened to it: its thinking was kept going or ended, its answer is there.

    `temperature` is that of the thinking; the answer is greedy. ValueError where the context leaves no room to think.
    """
    close = words.encode(f"{CLOSE} {ANSWER}")
    wait = words.encode(forcing.word)
    thoughts: dict[int, Thought] = {}
    for row in rows:
        row.force(words.encode(OPEN))
        thoughts[id(row)] = Thought(row, start=len(row.tokens))
        used = len(row.tokens) + len(close) + len(words.encode(forcing.line_end + forcing.announce)) + answer_tokens
        room = model.config.max_position_embeddings - used
        if room < 1:
            raise ValueError(
                f"a prompt of {row.prompt_len} tokens leaves no room to think: {row.problem.prompt[:40]!r}"
            )
        row.max_new_tokens = len(row.response) + min(forcing.budget or room, room)

    # The evaluation code gives every continuation the whole budget again and cuts the total afterwards. What remains is
    # what one budget for all leaves, because a token does not depend on later ones: so there is one budget for all.
    sampler = Sampler(model, eos_id=words.eos_ids, temperature=temperature, stop_ids=closing_ids(words, CLOSE))
    sampler.submit(rows)
    for row in sampler:
        thought = thoughts[id(row)]
        if row.stop_reason == "stop" and CLOSE not in words.decode(row.tokens[thought.start :]):
            sampler.submit([row])  # a token that could have completed the tag, and did not
            continue
        thought.cut = row.stop_reason == "length"
        if not thought.cut:
            take_back_close(words, row, thought.start)
            room = row.max_new_tokens - len(row.response) - len(wait)
            # DIFFERS from the released code: no word for which, or behind which, there is no room any more.
            if thought.waits < forcing.waits and room > 0:
                thought.waits += 1
                row.force(wait)
                row.go_on_until = len(row.tokens) + 1
                sampler.submit([row])
                yield thought
                continue
        thought.end = len(row.tokens)
        if (
            thought.cut
            and forcing.line_end
            and not words.decode(row.tokens[thought.start :]).endswith(forcing.line_end)
        ):
            row.force(words.encode(forcing.line_end))
        row.force(close)
        if thought.cut and forcing.announce:
            row.force(words.encode(forcing.announce))
        yield thought

    answers = {id(row): len(row.tokens) for row in rows}
    sampler = Sampler(model, eos_id=words.eos_ids, temperature=0.0, stop_ids=closing_ids(words, END))
    for row in rows:
        row.max_new_tokens = len(row.response) + answer_tokens
    sampler.submit(rows)
    for row in sampler:
        if row.stop_reason == "stop" and END not in words.decode(row.tokens[answers[id(row)] :]):
            sampler.submit([row])
            continue
        thoughts[id(row)].done = True
        yield thoughts[id(row)]


def take_back_close(words: TextTokenizer, row: Rollout, start: int) -> None:
    """Retract what closed the thinking: the EOS, or all tokens of </think>, which may be several (byte-pair)."""
    if row.stop_reason == "eos":
        row.retract()
        return
    keep = len(row.tokens)
    thinking = len(words.decode(row.tokens[start:]).split(CLOSE)[0])
    while keep > start and len(words.decode(row.tokens[start:keep])) > thinking:
        keep -= 1
    row.retract(len(row.tokens) - keep)


def think(
    model: Transformer, words: TextTokenizer, problems: list[Problem], forcing: Forcing, *, temperature: float = 1.0,
    group_size: int = 1, seed: int = 0, answer_tokens: int = 16,
) -> list[Thought]:  # fmt: skip
    """`group_size` finished thoughts per problem, in the problems' order."""
    rows = prompt_rows(words, problems, group_size, seed)
    how = dict(temperature=temperature, answer_tokens=answer_tokens)
    done = {id(thought.row): thought for thought in deliberate(model, words, rows, forcing, **how) if thought.done}
    return [done[id(row)] for row in rows]


# ------------------------------------------------------------------------------------------------- as a recipe


@dataclass
class BudgetConfig(RunConfig):
    """How well a model that thinks in tags scales with the length of its thinking, by several ways to set it."""

    out: str = "runs/budget"  # folder of this run: config.json, metrics.jsonl, samples.jsonl
    base: str = ""  # checkpoint folder of the model that is measured; needed
    methods: tuple[str, ...] = ("forcing", "wait")  # forcing, until, wait, words, tokens, steps, class, samples, and
    # of L1: exact, max, free, truncated, s1
    digits: tuple[int, ...] = (1, 2)  # lengths of the sums
    problems: int = 150  # held-out sums per length
    temperature: float = 1.0  # of the thinking; answers are greedy
    budgets: tuple[int, ...] = (8, 16, 32, 48, 64, 96)  # thinking tokens; for L1's methods those of the whole response
    waits: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6)  # how often it is kept from closing
    words: tuple[str, ...] = ("wait", "Hmm", "Alternatively", "")  # what is appended then; empty: nothing
    step_tokens: int = 24  # tokens that a step of the prompt is taken to have (s1: 100)
    class_tokens: int = 48  # tokens that a short thought may have
    samples: int = 8  # free responses per problem, for rejection sampling and majority voting
    answer_tokens: int = 8  # of an answer, its closing tag included


PRESETS = {
    "cpu": BudgetConfig(),
    "tiny": BudgetConfig(problems=6, budgets=(4, 8, 16), waits=(0, 1), words=("wait", ""), samples=4),
    "gpu": BudgetConfig(digits=(2, 3), problems=1000, budgets=(8, 16, 32, 64, 96, 128, 160)),
}


def run(config: BudgetConfig) -> dict:
    """Every run of every method is one line of metrics; returns the last one."""
    unknown = [name for name in config.methods if name not in METHODS]
    if unknown or not config.base:
        raise ValueError(
            f"--methods {unknown[0]}: use {', '.join(METHODS)}" if unknown else "--base is needed: a checkpoint folder"
        )
    model, words = load_checkpoint(config.base, pick_device(config.device))
    run = Run(config)
    run.rewind(-1)  # it is measured again as a whole
    lines: list[dict] = []
    for name in config.methods:
        for line, example in METHODS[name](config, model, words):
            lines.append({"method": name, **line})
            run.log(len(lines), **lines[-1])
            run.sample(len(lines), method=name, text=words.decode(example.tokens))
    run.close()
    names = ["method", "asked", "accuracy", "thinking", "cut"]
    say(table(names, [[f"{line[name]:.2f}" if isinstance(line[name], float) else str(line[name]) for name in names]
                      for line in lines]))  # fmt: skip
    return read_jsonl(run.folder / "metrics.jsonl")[-1]


Lines = Iterator[tuple[dict, Rollout]]  # one line per run, and a row to look at


def posed(config: BudgetConfig, kind: str = "", amount: int | str = 0) -> list[Problem]:
    """The held-out sums in the template, with a sentence about the thinking if `kind` names one."""
    sums = thinking_sums(config.digits, config.problems)
    return [with_template(asked(problem, kind, amount) if kind else problem, "skeleton") for problem in sums]


def forced(
    config: BudgetConfig, model: Transformer, words: TextTokenizer, forcing: Forcing, problems: list[Problem],
    group_size: int = 1,
) -> list[Thought]:  # fmt: skip
    seed = seed_of(config.seed, "budget")  # the same random numbers in every run: what differs is what was forced
    how = dict(temperature=config.temperature, answer_tokens=config.answer_tokens, seed=seed, group_size=group_size)
    return think(model, words, problems, forcing, **how)


def answer_of(words: TextTokenizer, thought: Thought) -> str | None:
    return extract_answer(words.decode(thought.row.tokens[thought.end :]).removeprefix(CLOSE))


def is_right(words: TextTokenizer, thought: Thought) -> bool:
    return answer_of(words, thought) == thought.row.problem.answer


def line_of(words: TextTokenizer, thoughts: list[Thought], asked_for: int | str, most: float, **more) -> dict:
    """Means over thoughts. `within`: the share of single thoughts that have no more than `most` tokens."""
    right = [is_right(words, thought) for thought in thoughts]
    digits = [digits_of(thought.row.problem) for thought in thoughts]
    line = {
        "asked": asked_for,
        "most": most,
        "accuracy": statistics.fmean(right),
        "thinking": statistics.fmean(thought.tokens for thought in thoughts),
        "within": statistics.fmean(thought.tokens <= most for thought in thoughts),
        "cut": statistics.fmean(thought.cut for thought in thoughts),
        "waits": statistics.fmean(thought.waits for thought in thoughts),
        **more,
    }
    for n in sorted(set(digits)):
        line[f"accuracy/{n}"] = statistics.fmean(r for r, d in zip(right, digits, strict=True) if d == n)
        line[f"thinking/{n}"] = statistics.fmean(t.tokens for t, d in zip(thoughts, digits, strict=True) if d == n)
    return line


def by_forcing(config: BudgetConfig, model: Transformer, words: TextTokenizer) -> Lines:
    """Budgets as upper bounds: cut, never kept going."""
    for budget in config.budgets:
        thoughts = forced(config, model, words, Forcing(budget), posed(config))
        yield line_of(words, thoughts, budget, budget), thoughts[-1].row


def by_until(config: BudgetConfig, model: Transformer, words: TextTokenizer) -> Lines:
    """Budgets in both directions: kept going until the budget is used up, then cut. L1's baseline (100 waits)."""
    for budget in config.budgets:
        thoughts = forced(config, model, words, Forcing(budget, waits=100), posed(config))
        yield line_of(words, thoughts, budget, budget), thoughts[-1].row


def by_wait(config: BudgetConfig, model: Transformer, words: TextTokenizer) -> Lines:
    """Kept from closing 0, 1, 2, ... times."""
    for waits in config.waits:
        thoughts = forced(config, model, words, Forcing(0, waits), posed(config))
        yield line_of(words, thoughts, waits, NO_LIMIT), thoughts[-1].row


def by_words(config: BudgetConfig, model: Transformer, words: TextTokenizer) -> Lines:
    """Other words than "wait", twice each (s1, table 4)."""
    for word in config.words:
        thoughts = forced(config, model, words, Forcing(0, 2, word), posed(config))
        yield line_of(words, thoughts, word or "(none)", NO_LIMIT), thoughts[-1].row


def by_tokens(config: BudgetConfig, model: Transformer, words: TextTokenizer) -> Lines:
    """A number of tokens in the prompt, not enforced and enforced (s1's token-conditional control)."""
    for budget in config.budgets:
        for limit in (0, budget):
            thoughts = forced(config, model, words, Forcing(limit), posed(config, "max", budget))
            yield line_of(words, thoughts, budget, budget, enforced=limit > 0), thoughts[-1].row


def by_steps(config: BudgetConfig, model: Transformer, words: TextTokenizer) -> Lines:
    """A number of steps in the prompt, that the model counts down; not enforced and enforced."""
    for steps in sorted({max(1, round(budget / config.step_tokens)) for budget in config.budgets}):
        most = steps * config.step_tokens
        for limit in (0, most):
            thoughts = forced(config, model, words, Forcing(limit), posed(config, "steps", steps))
            yield line_of(words, thoughts, steps, most, enforced=limit > 0), thoughts[-1].row


def by_class(config: BudgetConfig, model: Transformer, words: TextTokenizer) -> Lines:
    for name, most in (("short", config.class_tokens), ("long", NO_LIMIT)):
        thoughts = forced(config, model, words, Forcing(0), posed(config, "class", name))
        yield line_of(words, thoughts, name, most), thoughts[-1].row


def by_samples(config: BudgetConfig, model: Transformer, words: TextTokenizer) -> Lines:
    """Free samples, then: the first that fits a budget (rejection sampling), and the majority of the first k."""
    G = config.samples
    thoughts = forced(config, model, words, Forcing(0), posed(config), G)
    groups = [thoughts[i : i + G] for i in range(0, len(thoughts), G)]
    for budget in config.budgets:
        # Where none of the samples fits, the shortest has to do: `within` says how often it does not.
        fitting = [[i for i, thought in enumerate(group) if thought.tokens <= budget] for group in groups]
        chosen = [
            group[fits[0]] if fits else min(group, key=lambda thought: thought.tokens)
            for group, fits in zip(groups, fitting, strict=True)
        ]
        tries = statistics.fmean(fits[0] + 1 if fits else G for fits in fitting)
        yield line_of(words, chosen, budget, budget, kind="rejection", tries=tries), chosen[-1].row
    mean = statistics.fmean(thought.tokens for thought in thoughts)
    marks = [([answer_of(words, t) for t in group], [is_right(words, t) for t in group]) for group in groups]
    k = 1
    while k <= G:
        accuracy = statistics.fmean(maj_at_k(answers, right, k, draws=20) for answers, right in marks)
        yield {"asked": k, "most": NO_LIMIT, "accuracy": accuracy, "thinking": k * mean, "within": 1.0,
               "cut": 0.0, "kind": "majority"}, groups[0][0].row  # fmt: skip
        k *= 2


def by_target(config: BudgetConfig, model: Transformer, words: TextTokenizer, kind: str) -> Lines:
    """A number of tokens in the prompt that the whole response should have: L1's prompts and its measures.

    `error`: the mean of (tokens - target) / target, in which too long and too short cancel; `mae`: of its size;
    `tokens/N`: of the responses to sums of N digits. An exact response is cut at twice its target (section 5).
    """
    context = model.config.max_position_embeddings
    for target in config.budgets:
        # A model without control is asked as the exact one is, and left alone (free) or cut where it should have ended.
        problems = posed(config, "max" if kind == "max" else "exact", target)
        rows = prompt_rows(words, problems, 1, seed_of(config.seed, "budget"))
        for row in rows:
            row.max_new_tokens = {"exact": 2 * target, "truncated": target}.get(kind, context)
        sampler = Sampler(model, eos_id=words.eos_ids, temperature=config.temperature, stop_ids=closing_ids(words, END))
        sampler.submit(rows)
        for row in sampler:
            if row.stop_reason == "stop" and END not in words.decode(row.response):
                sampler.submit([row])
        right = [extract_tagged(words.decode(row.response)) == row.problem.answer for row in rows]
        yield target_line(rows, right, target), rows[-1]


def by_s1(config: BudgetConfig, model: Transformer, words: TextTokenizer) -> Lines:
    """Budget forcing as L1 compares with it: kept going until the response is as long as its target, then an answer."""
    tags = len(words.encode(f"{OPEN} {CLOSE} {ANSWER}")) + config.answer_tokens
    for target in config.budgets:
        forcing = Forcing(max(1, target - tags), waits=100)
        thoughts = forced(config, model, words, forcing, posed(config, "exact", target))
        yield target_line([t.row for t in thoughts], [is_right(words, t) for t in thoughts], target), thoughts[-1].row


def target_line(rows: list[Rollout], right: list[bool], target: int) -> dict:
    lengths = [len(row.response) for row in rows]
    line = {
        "asked": target,
        "most": target,
        "accuracy": statistics.fmean(right),
        "thinking": statistics.fmean(lengths),  # of the whole response, as L1 counts
        "cut": statistics.fmean(row.stop_reason == "length" for row in rows),
        "error": statistics.fmean(lengths) / target - 1,
        "mae": statistics.fmean(abs(length - target) for length in lengths) / target,
        "within": statistics.fmean(length <= target for length in lengths),
    }
    for n in sorted({digits_of(row.problem) for row in rows}):
        some = [i for i, row in enumerate(rows) if digits_of(row.problem) == n]
        line[f"accuracy/{n}"] = statistics.fmean(right[i] for i in some)
        line[f"tokens/{n}"] = statistics.fmean(lengths[i] for i in some)
    return line


METHODS = {
    "forcing": by_forcing,
    "until": by_until,
    "wait": by_wait,
    "words": by_words,
    "tokens": by_tokens,
    "steps": by_steps,
    "class": by_class,
    "samples": by_samples,
    **{kind: functools.partial(by_target, kind=kind) for kind in ("exact", "max", "free", "truncated")},
    "s1": by_s1,
}

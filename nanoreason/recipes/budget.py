"""Budget forcing (s1, Muennighoff et al., 2025, section 3.1): a thinking model made to think less, or more.

    <think>                      appended
    ... thinking ...             sampled, until the model closes its thinking or the budget is used up
        it closes:               the closing token is taken back, "wait" is appended, it goes on       up to `waits` times
        it closes once more:     </think> <answer>                                                     appended
        the budget is used up:   a line end, </think> <answer>, "Final Answer:"                        appended
    ... answer </answer>         sampled, greedily

Two things are easy to get wrong. Right behind a "wait" the model must not close again (its closing tokens cannot be
drawn there), and the announcement "Final Answer:" belongs to the cut alone, not to a model that closed by itself.

As a recipe: how well one model scales with forced budgets, forced continuations and what else there is to make it
think for longer or shorter (`METHODS`); no training.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from nanoreason.model import Transformer
from nanoreason.rewards import closing_ids
from nanoreason.rollout import Problem, Rollout, prompt_rows
from nanoreason.sampler import Sampler
from nanoreason.tokenizer import TextTokenizer

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
    """Each row as often as something happened to it: its thinking was kept going or ended, its answer is there (`done`).

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
    sampler = Sampler(model, eos_id=words.eos_id, temperature=temperature, stop_ids=closing_ids(words, CLOSE))
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
    sampler = Sampler(model, eos_id=words.eos_id, temperature=0.0, stop_ids=closing_ids(words, END))
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
    """Retract what closed the thinking: the EOS, or all tokens of </think> (a byte-pair vocabulary cuts it in several)."""
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

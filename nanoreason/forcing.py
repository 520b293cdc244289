"""Budget forcing (s1, Muennighoff et al., 2025, section 3.1): a thinking model made to think less, or more.

    <think>                      appended
    ... thinking ...             sampled, until the model closes its thinking or the budget is used up
        it closes:               the closing token is taken back, "wait" is appended, it goes on; `waits` times at most
        it closes once more:     </think> <answer> is appended
        the budget is used up:   a line end, </think> <answer>, "Final Answer:" are appended
    ... answer </answer>         sampled, greedily

Two things are easy to get wrong. Right behind a "wait" the model must not close again (its closing tokens cannot be
drawn there), and the announcement "Final Answer:" belongs to the cut alone, not to a model that closed by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nanoreason.model import Transformer
from nanoreason.prompts import ANSWER, CLOSE, END, OPEN
from nanoreason.rollout import Problem, Rollout, prompt_rows
from nanoreason.sampler import Sampler, generate
from nanoreason.tokenizer import TextTokenizer


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


def keep_going(tokenizer: TextTokenizer, row: Rollout, word: list[int], budget: int) -> bool:
    """Append the word to a row that was about to end and let it go on, if its budget leaves room behind the word.

    The row may not end right behind the word. `budget` is that of the response.
    """
    # DIFFERS from the released code: no word for which, or behind which, there is no room any more.
    # <exercise forcing>
    if len(row.response) + len(word) >= budget:
        return False
    row.force(word)
    row.min_tokens = len(row.tokens) + 1
    return True
    # </exercise forcing>


def deliberate(
    model: Transformer, tokenizer: TextTokenizer, rows: list[Rollout], forcing: Forcing, *, temperature: float = 1.0,
    answer_tokens: int = 16, watch: Callable[[Thought], None] = lambda thought: None,
) -> list[Thought]:  # fmt: skip
    """Let each row think under `forcing` and then answer; the finished thoughts, in the order of the rows.

    `temperature` is that of the thinking; the answer is greedy. `watch(thought)` is called whenever something has
    happened to a thought. ValueError where the context leaves no room to think.
    """
    close, wait = tokenizer.encode(f"{CLOSE} {ANSWER}"), tokenizer.encode(forcing.word)
    thoughts: dict[int, Thought] = {}
    for row in rows:
        row.force(tokenizer.encode(OPEN))
        thoughts[id(row)] = Thought(row, start=len(row.tokens))
        ending = len(close) + len(tokenizer.encode(forcing.line_end + forcing.announce)) + answer_tokens
        room = model.config.max_position_embeddings - len(row.tokens) - ending
        if room < 1:
            raise ValueError(
                f"a prompt of {row.prompt_len} tokens leaves no room to think: {row.problem.prompt[:40]!r}"
            )
        row.max_new_tokens = len(row.response) + min(forcing.budget or room, room)

    def on_close(row: Rollout) -> list[Rollout]:
        thought = thoughts[id(row)]
        # <exercise forcing>
        thought.cut = row.stop_reason == "length"
        if not thought.cut:
            take_back_close(tokenizer, row, thought.start)
            if thought.waits < forcing.waits and keep_going(tokenizer, row, wait, row.max_new_tokens):
                thought.waits += 1
                watch(thought)
                return [row]
        thought.end = len(row.tokens)
        if forcing.line_end and thought.cut:
            if not tokenizer.decode(row.tokens[thought.start :]).endswith(forcing.line_end):
                row.force(tokenizer.encode(forcing.line_end))
        row.force(close)
        if thought.cut and forcing.announce:
            row.force(tokenizer.encode(forcing.announce))
        watch(thought)
        return []
        # </exercise forcing>

    def on_answer(row: Rollout) -> list[Rollout]:
        thoughts[id(row)].done = True
        watch(thoughts[id(row)])
        return []

    # The evaluation code gives every continuation the whole budget again and cuts the total afterwards. What remains is
    # what one budget for all leaves, because a token does not depend on later ones: so there is one budget for all.
    generate(Sampler(model, tokenizer, temperature=temperature, stop=(CLOSE,)), rows, on_close, name="think")
    for row in rows:
        row.max_new_tokens = len(row.response) + answer_tokens
    generate(Sampler(model, tokenizer, temperature=0.0, stop=(END,)), rows, on_answer, name="answer")
    return [thoughts[id(row)] for row in rows]


def take_back_close(tokenizer: TextTokenizer, row: Rollout, start: int) -> None:
    """Retract what closed the thinking: the EOS, or all tokens of </think>, which may be several (byte-pair)."""
    if row.stop_reason == "eos":
        row.retract()
        return
    keep = len(row.tokens)
    thinking = len(tokenizer.decode(row.tokens[start:]).split(CLOSE)[0])
    while keep > start and len(tokenizer.decode(row.tokens[start:keep])) > thinking:
        keep -= 1
    row.retract(len(row.tokens) - keep)


def think(
    model: Transformer, tokenizer: TextTokenizer, problems: list[Problem], forcing: Forcing, *,
    temperature: float = 1.0, group_size: int = 1, seed: int = 0, answer_tokens: int = 16,
) -> list[Thought]:  # fmt: skip
    """`group_size` finished thoughts per problem, in the problems' order."""
    rows = prompt_rows(tokenizer, problems, group_size, seed)
    return deliberate(model, tokenizer, rows, forcing, temperature=temperature, answer_tokens=answer_tokens)

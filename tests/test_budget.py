"""Budget forcing token by token: a scripted model whose every next token is known, in each branch of the loop."""

import pytest
import torch

from nanoreason.forcing import Forcing, deliberate, think
from nanoreason.model import Transformer, small_config
from nanoreason.rollout import Problem, prompt_row
from nanoreason.tokenizer import char_tokenizer, word_tokenizer

WORDS = word_tokenizer(
    ["\n", "<think>", "</think>", "<answer>", "</answer>", "wait", "hmm", "Final", "Answer:", *"abcdq"]
)
SPELT = char_tokenizer("</>thinkaswer bcq!W")  # every tag is several tokens, "<" and ">" occur in the text as well


class Scripted(Transformer):
    """Continues its prompt with the given texts, in turn: text i is read from where the i-th forced tokens end.

    What follows position p is `plan[p]`, a list of tokens by preference; the first is all but certain.
    """

    def __init__(self, words, context: int = 64):
        super().__init__(small_config(8, 1, 1, words.vocab_size, context), 0)
        self.plan: dict[int, list[int]] = {}

    def forward(self, tokens, positions=None, cache=None):
        logits = torch.full((*tokens.shape, self.config.vocab_size), -1000.0)
        for row, position in enumerate(positions[:, -1].tolist()):
            for rank, token in enumerate(self.plan[position + 1]):
                logits[row, -1, token] = -50.0 * rank
        return logits


def script(words, text: str, instead: dict[int, str] | None = None, context: int = 64) -> Scripted:
    """A model that writes the token of `text` at each position of it; `instead`: second choices where it may not."""
    model = Scripted(words, context)
    for position, token in enumerate(words.encode(text.replace("EOS", words.eos_token))):
        model.plan[position] = [token]
    for position, other in (instead or {}).items():
        model.plan[position].append(words.encode(other)[0])
    return model


def played(model, words, forcing, prompt: str = "q", temperature: float = 0.0, **how):
    """(text, forced tokens in it, thought) of one row."""
    row = prompt_row(words, Problem(prompt, ""))
    (thought,) = deliberate(model, words, [row], forcing, temperature=temperature, **how)
    assert thought.row is row and thought.done
    forced = [
        words.decode([t]) for t, chosen in zip(row.response, row.loss_mask[row.prompt_len :], strict=True) if not chosen
    ]
    return words.decode(row.tokens), forced, thought


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_closes_by_itself_gets_the_answer_tag_and_no_announcement(temperature):
    forcing = Forcing(10, line_end="\n", announce="Final Answer:")
    text = "q <think> a b </think> <answer> c </answer> d"
    got, forced, thought = played(script(WORDS, text), WORDS, forcing, temperature=temperature)
    assert got == text.removesuffix(" d")  # it ends with its answer
    assert forced == ["<think>", "</think>", "<answer>"]
    assert (thought.tokens, thought.waits, thought.cut) == (2, 0, False)
    assert thought.row.stop_reason == "stop"


def test_a_used_up_budget_cuts_the_thinking_and_announces_the_answer():
    forcing = Forcing(3, line_end="\n", announce="Final Answer:")
    got, forced, thought = played(
        script(WORDS, "q <think> a b c \n </think> <answer> Final Answer: d </answer>"), WORDS, forcing
    )
    assert got == "q <think> a b c\n</think> <answer> Final Answer: d </answer>"
    assert forced == ["<think>", "\n", "</think>", "<answer>", "Final", "Answer:"]
    assert (thought.tokens, thought.waits, thought.cut) == (3, 0, True)


def test_a_cut_that_falls_on_a_line_end_gets_no_second_one():
    got, forced, _ = played(
        script(WORDS, "q <think> a b \n </think> <answer> d </answer>"), WORDS, Forcing(3, line_end="\n")
    )
    assert got == "q <think> a b\n</think> <answer> d </answer>"
    assert forced == ["<think>", "</think>", "<answer>"]


def test_a_closing_token_that_is_the_last_of_the_budget_is_a_close_and_one_later_is_a_cut():
    text = "q <think> a b </think> <answer> c </answer>"
    for budget, cut in ((3, False), (2, True)):
        got, _, thought = played(script(WORDS, text), WORDS, Forcing(budget))
        assert got == text
        assert (thought.tokens, thought.cut) == (2, cut)


def test_wait_takes_the_place_of_the_close_so_often_as_asked_and_the_next_close_stands():
    model = script(WORDS, "q <think> a </think> b </think> <answer> c </answer>")
    # position 3 is where it closes first; there "wait" is put, and it goes on at position 4
    got, forced, thought = played(model, WORDS, Forcing(10, waits=1))
    assert got == "q <think> a wait b </think> <answer> c </answer>"
    assert forced == ["<think>", "wait", "</think>", "<answer>"]
    assert (thought.tokens, thought.waits, thought.cut) == (3, 1, False)


def test_behind_a_wait_it_cannot_close_at_once_but_one_token_later_it_can():
    model = script(WORDS, "q <think> a </think> </think> </think> <answer> c </answer>", instead={4: "d"})
    got, _, thought = played(model, WORDS, Forcing(10, waits=1))
    assert got == "q <think> a wait d </think> <answer> c </answer>"
    assert thought.waits == 1
    model = script(WORDS, "q <think> a EOS EOS </think> <answer> c </answer>", instead={4: "d"})
    got, _, _ = played(model, WORDS, Forcing(10, waits=1), temperature=1.0)
    assert got == "q <think> a wait d </think> <answer> c </answer>"


def test_without_a_word_it_is_only_kept_from_closing():
    model = script(WORDS, "q <think> a </think> </think> <answer> c </answer>", instead={3: "d"})
    got, forced, thought = played(model, WORDS, Forcing(10, waits=1, word=""))
    assert got == "q <think> a d </think> <answer> c </answer>"
    assert forced == ["<think>", "</think>", "<answer>"]
    assert (thought.tokens, thought.waits) == (2, 1)


def test_words_count_against_the_budget_and_a_row_that_is_cut_leaves_the_loop():
    model = script(WORDS, "q <think> a </think> b b b b </think> <answer> c </answer>")
    got, _, thought = played(model, WORDS, Forcing(6, waits=5))
    assert got == "q <think> a wait b b b b </think> <answer> c </answer>"
    assert (thought.tokens, thought.waits, thought.cut) == (6, 1, True)


def test_no_word_is_appended_where_nothing_could_follow_it():
    text = "q <think> a b </think> <answer> c </answer>"
    got, _, thought = played(script(WORDS, text), WORDS, Forcing(3, waits=1))
    assert got == text
    assert (thought.tokens, thought.waits, thought.cut) == (2, 0, False)


def test_another_word_of_several_tokens():
    model = script(WORDS, "q <think> a </think> a b </think> <answer> c </answer>")
    got, forced, thought = played(model, WORDS, Forcing(10, waits=1, word="hmm wait"))
    assert got == "q <think> a hmm wait b </think> <answer> c </answer>"
    assert thought.tokens == 4 and forced[1:3] == ["hmm", "wait"]


def test_eos_while_it_thinks_is_a_close_and_is_taken_back():
    model = script(WORDS, "q <think> a EOS b EOS <answer> c </answer>")
    got, _, thought = played(model, WORDS, Forcing(10, waits=1))
    assert got == "q <think> a wait b </think> <answer> c </answer>"
    assert WORDS.eos_id not in thought.row.tokens


def test_an_answer_that_does_not_end_is_cut_at_its_own_budget():
    model = script(WORDS, "q <think> a </think> <answer> c c c c c c c")
    got, _, thought = played(model, WORDS, Forcing(10), answer_tokens=4)
    assert got == "q <think> a </think> <answer> c c c c"
    assert thought.row.stop_reason == "length" and not thought.cut


def test_without_a_budget_the_context_is_one_that_leaves_room_for_the_answer():
    model = script(WORDS, "q <think>" + " a" * 13 + " </think> <answer> c c c", context=20)
    got, _, thought = played(model, WORDS, Forcing(0), answer_tokens=3)
    assert thought.tokens == 20 - 2 - 2 - 3 and thought.cut
    with pytest.raises(ValueError, match="no room to think"):
        played(model, WORDS, Forcing(0), prompt="q" + " q" * 15, answer_tokens=3)


def test_tags_of_several_tokens_are_found_in_the_text_and_taken_back_whole():
    text = "q<think>a>b</think>"
    model = script(SPELT, text)  # the first ">" completes no tag
    start = len(SPELT.encode("q<think>a>b"))
    for position, token in enumerate(SPELT.encode("Wc</think> <answer>a>!</answer>"), start):
        model.plan[position] = [token]
    plan = dict(model.plan)
    for position, token in enumerate(SPELT.encode("</think>"), start):  # once, then the plan above holds
        plan[position] = [token]

    class Once(Scripted):
        def forward(self, tokens, positions=None, cache=None):
            last = int(positions[0, -1])
            self.plan = plan if not self.closed else model.plan
            self.closed = self.closed or last + 2 == start + len("</think>")
            return super().forward(tokens, positions, cache)

    once = Once(SPELT)
    once.closed = False
    got, forced, thought = played(once, SPELT, Forcing(40, waits=1, word="W"))
    assert got == "q<think>a>bWc</think> <answer>a>!</answer>"
    assert "".join(forced) == "<think>W</think> <answer>"
    assert thought.tokens == len("a>bWc")


def test_many_rows_come_back_in_order_and_within_their_budget(make_model):
    """Of a model with strong opinions: every branch at once, control is complete, nothing forced is in the loss."""
    model = make_model(3, vocab_size=WORDS.vocab_size, max_position_embeddings=64)
    problems = [Problem(text, "") for text in ("q", "q a", "a b", "d")] * 5
    for budget in (1, 4, 12, 30):
        thoughts = think(model, WORDS, problems, Forcing(budget, waits=2), group_size=2, answer_tokens=5)
        assert [t.row.problem.prompt for t in thoughts] == [p.prompt for p in problems for _ in range(2)]
        close = WORDS.encode("</think> <answer>")
        for thought in thoughts:
            row = thought.row
            assert 0 <= thought.tokens <= budget and thought.waits <= 2
            assert thought.cut == (thought.tokens == budget) or thought.tokens == budget
            assert row.tokens[row.prompt_len] == WORDS.id_of("<think>")
            assert row.tokens[thought.end : thought.end + 2] == close
            inside = row.tokens[thought.start : thought.end]
            assert WORDS.id_of("</think>") not in inside and WORDS.eos_id not in inside
            forced = [t for t, m in zip(inside, row.loss_mask[thought.start : thought.end], strict=True) if not m]
            assert forced == [WORDS.id_of("wait")] * thought.waits
    assert {t.waits for t in thoughts} == {0, 1, 2} and {t.cut for t in thoughts} == {True, False}

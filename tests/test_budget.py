"""Budget forcing token by token: a scripted model whose every next token is known, in each branch of the loop.

Then the recipe that measures a model by it and by its rivals.
"""

from pathlib import Path

import pytest
import torch

from nanoreason.__main__ import main
from nanoreason.checkpoint import save_checkpoint
from nanoreason.evaluate import control, performance, scaling
from nanoreason.forcing import Forcing, Thought, deliberate, think
from nanoreason.model import Transformer, small_config
from nanoreason.recipes import budget
from nanoreason.recipes.budget import BudgetConfig
from nanoreason.rollout import Problem, prompt_row
from nanoreason.run import read_jsonl
from nanoreason.tasks import ThinkingAddition
from nanoreason.tasks.thinking import thinking_tokenizer
from nanoreason.tasks.wrappers import Templated
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
    for limit, cut in ((3, False), (2, True)):
        got, _, thought = played(script(WORDS, text), WORDS, Forcing(limit))
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
    for limit in (1, 4, 12, 30):
        thoughts = think(model, WORDS, problems, Forcing(limit, waits=2), group_size=2, answer_tokens=5)
        assert [t.row.problem.prompt for t in thoughts] == [p.prompt for p in problems for _ in range(2)]
        close = WORDS.encode("</think> <answer>")
        for thought in thoughts:
            row = thought.row
            assert 0 <= thought.tokens <= limit and thought.waits <= 2
            assert thought.cut == (thought.tokens == limit) or thought.tokens == limit
            assert row.tokens[row.prompt_len] == WORDS.id_of("<think>")
            assert row.tokens[thought.end : thought.end + 2] == close
            inside = row.tokens[thought.start : thought.end]
            assert WORDS.id_of("</think>") not in inside and WORDS.eos_id not in inside
            forced = [t for t, m in zip(inside, row.loss_mask[thought.start : thought.end], strict=True) if not m]
            assert forced == [WORDS.id_of("wait")] * thought.waits
    assert {t.waits for t in thoughts} == {0, 1, 2} and {t.cut for t in thoughts} == {True, False}


# ---------------------------------------------------------------------------------------------------- the recipe

THINKING = thinking_tokenizer()


def test_control_scaling_and_performance_by_hand():
    assert control([10, 30, 60], [16, 16, 64]) == pytest.approx(2 / 3)
    assert control([10, 30, 60], [64] * 3, least=20) == pytest.approx(2 / 3)
    # slopes: (0.5-0.2)/20 = 0.015, (0.4-0.2)/40 = 0.005, (0.4-0.5)/20 = -0.005; their mean is 0.005 per token
    assert scaling([10, 30, 50], [0.2, 0.5, 0.4], per=100) == pytest.approx(50.0)
    assert scaling([30, 10, 50], [0.5, 0.2, 0.4], per=100) == pytest.approx(50.0)  # in any order
    assert scaling([10, 30, 50], [0.2, 0.5, 0.4], per=1000) == pytest.approx(500.0)
    assert scaling([10, 10], [0.2, 0.9]) == 0.0 and scaling([10, 10, 20], [0.2, 0.4, 0.4]) == pytest.approx(100.0)
    assert performance([0.2, 0.5, 0.4]) == 0.5


def thought(text: str, tokens: int, answer: str = "1") -> Thought:
    """A finished thought of so many tokens that ends in `text`."""
    row = prompt_row(THINKING, Problem("1 + 0", answer, info={"digits": 1}))
    row.tokens += THINKING.encode("<think> " + "so " * tokens + f"</think> <answer> {text}")
    start = row.prompt_len + 1
    return Thought(row, start, start + tokens, done=True)


def test_an_answer_counts_only_where_it_is_closed_and_alone():
    for text, right in (("1 </answer>", True), ("2 </answer>", False), ("1", False), ("1 <answer> 1 </answer>", False)):
        assert budget.is_right(BudgetConfig(), THINKING, thought(text, 3)) == right


def test_rejection_takes_the_first_sample_that_fits_and_the_majority_votes(monkeypatch):
    """Two problems of four samples: (tokens, answer); 1 is right."""
    samples = [[(30, 1), (10, 2), (12, 1), (8, 2)], [(20, 1), (25, 1), (40, 2), (30, 1)]]
    thoughts = [thought(f"{answer} </answer>", tokens) for group in samples for tokens, answer in group]
    monkeypatch.setattr(budget, "forced", lambda *how: thoughts)
    config = budget.BudgetConfig(budgets=(8, 12, 30), samples=4, problems=1)
    lines = [line for line, _ in budget.by_samples(config, None, THINKING)]
    rejection = [line for line in lines if line["kind"] == "rejection"]
    # budget 8: 4th sample (wrong); none fits, the shortest (right). 12: 2nd (wrong); the shortest. 30: 1st of each
    assert [line["accuracy"] for line in rejection] == [0.5, 0.5, 1.0]
    assert [line["thinking"] for line in rejection] == [14, 15, 25]
    assert [line["tries"] for line in rejection] == [4, 3, 1]
    assert [line["within"] for line in rejection] == [0.5, 0.5, 1.0]
    majority = [line for line in lines if line["kind"] == "majority"]
    assert [line["asked"] for line in majority] == [1, 2, 4]
    assert [line["thinking"] for line in majority] == pytest.approx([175 / 8, 175 / 4, 175 / 2])
    assert majority[-1]["accuracy"] == 0.75  # 2:2 is half right, 3:1 is right


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """A model that has learnt nothing: every branch of every method, whatever it writes."""
    folder = tmp_path_factory.mktemp("base") / "policy"
    save_checkpoint(folder, Transformer(small_config(32, 2, 2, THINKING.vocab_size, 256), 1), THINKING)
    return str(folder)


def test_every_method_leaves_lines_with_what_it_asked_and_what_came(base, tmp_path):
    flags = ["--methods", ",".join(budget.METHODS), "--problems", "3", "--out", str(tmp_path / "run")]
    assert main(["budget", "--preset", "tiny", "--base", base, *flags]) == 0
    lines = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert {line["method"] for line in lines} == set(budget.METHODS)
    for line in lines:
        assert 0 <= line["accuracy"] <= 1
        if line["method"] in ("forcing", "until") or line.get("enforced"):
            assert line["within"] == 1.0 and line["thinking"] <= line["most"]
        if line["method"] == "until":
            assert line["most"] - 1 <= line["thinking"]  # a "wait" that nothing could follow is not appended
        if line["method"] in ("exact", "max", "free", "truncated", "s1"):
            assert line["error"] == pytest.approx(line["thinking"] / line["asked"] - 1)
        if line["method"] == "truncated":
            assert line["within"] == 1.0
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert len(read_jsonl(tmp_path / "run" / "samples.jsonl")) == len(lines)


def test_a_measurement_that_is_resumed_is_made_again_and_gives_the_same(base, tmp_path):
    flags = ["budget", "--preset", "tiny", "--base", base, "--out", str(tmp_path / "run"), "--methods", "wait,samples"]
    assert main(flags) == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert main(flags) == 2  # it already holds a run
    assert main([*flags, "--resume"]) == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_what_is_asked_stands_before_the_template_and_the_problems_are_the_same():
    config = BudgetConfig(task=Templated(ThinkingAddition((2,))), problems=4)
    plain = budget.asked_problems(config)
    for kind, amount, words in (("max", 16, "Think for maximum 1 6 tokens."), ("steps", 3, "Think for 3 steps"),
                                ("class", "long", "Think long"), ("exact", 8, "Think for 8 tokens.")):  # fmt: skip
        asked = budget.asked_problems(config, kind, amount)
        for problem, before in zip(asked, plain, strict=True):
            assert problem.prompt == before.prompt.replace(" Assistant:", f" {words} Assistant:")
            assert problem.answer == before.answer
    bare = budget.asked_problems(BudgetConfig(task=ThinkingAddition((2,)), problems=4))
    assert [f"User: {problem.prompt} Assistant:" for problem in bare] == [problem.prompt for problem in plain]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--base", ""], "--base is needed"),
        (["--methods", "forcing,magic"], "--methods magic: use forcing, until, wait"),
        (["--budgets", "8,0"], "--budgets 0: must be at least 1"),
        (["--samples", "0"], "--samples 0: must be at least 1"),
        (["--task", "addition"], "vocabulary"),
        (["--words", "banana", "--methods", "words"], "banana"),
    ],
)
def test_a_wrong_setting_is_one_clear_error(flags, message, base, tmp_path, capsys):
    command = ["budget", "--preset", "tiny", "--base", base, "--out", str(tmp_path / "run"), *flags]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_model_that_knows_sums_is_more_often_right_with_more_thinking(tmp_path):
    """The shipped one: cut after 4 tokens it has to guess, with 48 it works two digits out."""
    folder = str(Path(__file__).parent.parent / "data" / "checkpoints" / "thinking-addition")
    flags = ["--base", folder, "--task.digits", "2", "--problems", "40", "--budgets", "4,48", "--methods", "forcing"]
    assert main(["budget", *flags, "--out", str(tmp_path / "run")]) == 0
    short, long = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert long["accuracy"] > short["accuracy"] + 0.1 and short["cut"] > long["cut"]

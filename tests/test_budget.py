"""Budget forcing token by token: a scripted model whose every next token is known, in each branch of the loop; and what
the recipe measures of it and of its rivals."""

import json
from dataclasses import replace

import pytest
import torch

from nanoreason.checkpoint import load_checkpoint, save_checkpoint
from nanoreason.forcing import Forcing, Thought, deliberate, think
from nanoreason.model import Transformer, small_config
from nanoreason.recipes import budget
from nanoreason.recipes.budget import BudgetConfig
from nanoreason.rollout import Problem, demonstration, prompt_row
from nanoreason.run import read_jsonl
from nanoreason.tasks import Attempts, ThinkingAddition
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


def test_whoever_watches_sees_a_thought_at_each_wait_at_its_close_and_with_its_answer():
    seen = []

    def watch(thought):
        seen.append((WORDS.decode(thought.row.tokens), thought.waits, thought.cut, thought.done))

    model = script(WORDS, "q <think> a </think> b </think> <answer> c </answer>")
    played(model, WORDS, Forcing(3, waits=1), watch=watch)
    assert seen == [
        ("q <think> a wait", 1, False, False),
        ("q <think> a wait b </think> <answer>", 1, True, False),
        ("q <think> a wait b </think> <answer> c </answer>", 1, True, True),
    ]


# ------------------------------------------------------------------------------- the recipe: what is asked and measured

SUMS = ThinkingAddition((1, 2)).tokenizer()
TINY = BudgetConfig(problems=3, budgets=(4, 8, 16), waits=(0, 1), words=("wait", ""), samples=4)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """A model that nobody has trained: it ends anywhere."""
    folder = tmp_path_factory.mktemp("base")
    save_checkpoint(folder / "base", Transformer(small_config(16, 1, 2, SUMS.vocab_size, 200), 1), SUMS)
    return str(folder / "base")


@pytest.fixture(scope="module")
def base_of_attempts(tmp_path_factory) -> str:
    """The same for Countdown by attempts."""
    folder, words = tmp_path_factory.mktemp("attempts"), Attempts().tokenizer()
    save_checkpoint(folder / "base", Transformer(small_config(16, 1, 2, words.vocab_size, 160), 1), words)
    return str(folder / "base")


def thought_of(text: str, tokens: int, answer: str = "1") -> Thought:
    """A finished thought of so many tokens that ends in `text`."""
    row = prompt_row(SUMS, Problem("1 + 0", answer, info={"digits": 1}))
    row.tokens += SUMS.encode("<think> " + "so " * tokens + f"</think> <answer> {text}")
    start = row.prompt_len + 1
    thought = Thought(row, start, start + tokens, done=True)
    row.reward = float(budget.is_right(BudgetConfig(), SUMS, thought))
    return thought


def test_an_answer_counts_only_where_it_is_closed_and_alone():
    for text, right in (("1 </answer>", True), ("2 </answer>", False), ("1", False), ("1 <answer> 1 </answer>", False)):
        assert budget.is_right(BudgetConfig(), SUMS, thought_of(text, 3)) == right


def test_what_stands_in_the_thinking_is_no_answer():
    thought = thought_of("2 </answer>", 0)
    thought.row.tokens[thought.start : thought.start] = SUMS.encode("<answer> 1 </answer>")
    thought.end += 3
    assert not budget.is_right(BudgetConfig(), SUMS, thought)
    thought = thought_of("1 </answer>", 0)
    thought.row.tokens[thought.start : thought.start] = SUMS.encode("<answer> 2 </answer>")
    thought.end += 3
    assert budget.is_right(BudgetConfig(), SUMS, thought)


def test_rejection_takes_the_first_sample_that_fits_and_the_majority_votes(monkeypatch):
    """Two problems of four samples: (tokens, answer); 1 is right."""
    samples = [[(30, 1), (10, 2), (12, 1), (8, 2)], [(20, 1), (25, 1), (40, 2), (30, 1)]]
    thoughts = [thought_of(f"{answer} </answer>", tokens) for group in samples for tokens, answer in group]
    monkeypatch.setattr(budget, "forced", lambda *how: thoughts)
    config = BudgetConfig(budgets=(8, 12, 30), samples=4, problems=1)
    lines = [line for line, _ in budget.by_samples(config, None, SUMS)]
    rejection = [line for line in lines if line["kind"] == "rejection"]
    # budget 8: 4th sample (wrong); none fits, the shortest (right). 12: 2nd (wrong); the shortest. 30: 1st of each
    assert [line["accuracy"] for line in rejection] == [0.5, 0.5, 1.0]
    assert [line["thinking"] for line in rejection] == [14, 15, 25]
    assert [line["tries"] for line in rejection] == [4, 3, 1]
    assert [line["within"] for line in rejection] == [0.5, 0.5, 1.0]
    majority = [line for line in lines if line["kind"] == "majority"]
    assert [line["asked"] for line in majority] == [1, 2, 3, 4]
    assert [line["thinking"] for line in majority] == pytest.approx([k * 175 / 8 for k in (1, 2, 3, 4)])
    assert majority[-1]["accuracy"] == 0.75  # 2:2 is half right, 3:1 is right
    best = [line for line in lines if line["kind"] == "best"]  # one of two is right with 5/6, of two and of three
    assert [line["asked"] for line in best] == [1, 2, 3, 4]
    assert [line["accuracy"] for line in best] == pytest.approx([5 / 8, (5 / 6 + 1) / 2, 1, 1])
    assert [line["thinking"] for line in best] == [line["thinking"] for line in majority]  # those of all k


def test_a_line_of_thoughts_by_hand():
    thoughts = [thought_of("1 </answer>", 4), thought_of("2 </answer>", 8), thought_of("1 </answer>", 12)]
    thoughts[2].row.problem = replace(thoughts[2].row.problem, info={"digits": 2})
    thoughts[1].cut, thoughts[2].waits = True, 3
    line = budget.line_of(BudgetConfig(), SUMS, thoughts, "short", 8, enforced=True)
    assert (line["asked"], line["most"], line["enforced"], line["thinking"], line["waits"]) == ("short", 8, True, 8, 1)
    assert line["accuracy"] == line["within"] == pytest.approx(2 / 3) and line["cut"] == pytest.approx(1 / 3)
    assert (line["accuracy/1"], line["accuracy/2"], line["thinking/1"], line["thinking/2"]) == (0.5, 1, 6, 12)


def test_a_thought_that_is_kept_from_closing_has_an_end(base_of_attempts):
    config = replace(budget.PRESETS["tiny"], longest=20, waits=(0, 50), words=("wait",))
    model, tokenizer = load_checkpoint(base_of_attempts)
    lines = [line for run in (budget.by_wait, budget.by_words) for line, _ in run(config, model, tokenizer)]
    assert lines[1]["cut"] == 1 and lines[1]["thinking"] == 20
    assert all(line["thinking"] <= 20 and line["most"] == budget.NO_LIMIT for line in lines)


def test_every_run_has_as_many_thoughts_of_each_problem_as_asked_and_counts_what_they_tried(base_of_attempts):
    config = replace(budget.PRESETS["tiny"], repeats=3, methods=("wait",), base=base_of_attempts)
    model, tokenizer = load_checkpoint(config.base)
    line, _ = next(budget.by_wait(config, model, tokenizer))
    assert budget.COUNTED == tuple(name for name in budget.COUNTED if name in line)
    assert line["accuracy"] * 12 == pytest.approx(round(line["accuracy"] * 12))
    thoughts = budget.forced(config, model, tokenizer, Forcing(8), budget.asked_problems(config))
    assert [thought.row.problem for thought in thoughts] == [p for p in budget.asked_problems(config) for _ in range(3)]
    assert len({thought.row.seed for thought in thoughts}) == 12


def test_a_suppressed_word_is_never_sampled_and_afterwards_it_can_be_again(base_of_attempts):
    config = replace(budget.PRESETS["tiny"], repeats=8)
    model, tokenizer = load_checkpoint(base_of_attempts)
    wait = tokenizer.id_of("wait")

    def said() -> set[int]:
        thoughts = budget.forced(config, model, tokenizer, Forcing(60), budget.asked_problems(config))
        return {token for thought in thoughts for token in thought.row.response}

    assert wait in said()
    seen = [(line["asked"], wait in said()) for line, _ in budget.by_suppressed(config, model, tokenizer)]
    assert seen == [("not wait", False)]
    assert wait in said() and model.no_token is None


def test_a_line_at_a_target_by_hand():
    rows = []
    for length, solutions in ((6, 1), (12, 1), (15, 3)):
        problem = Problem("1", "1", info={"numbers": (1, 2, 3), "solutions": solutions})
        rows.append(demonstration(SUMS, problem, " ".join(["so"] * (length - 1))))
        rows[-1].stop_reason = "length" if length == 15 else "stop"
    line = budget.target_line(BudgetConfig(task=Attempts()), rows, [True, False, True], 10)
    assert line["error"] == pytest.approx(0.1) and line["mae"] == pytest.approx((4 + 2 + 5) / 30)
    assert line["thinking"] == 11 and line["within"] == line["cut"] == pytest.approx(1 / 3) and line["most"] == 10
    assert line["accuracy"] == pytest.approx(2 / 3) and line["accuracy/3,1"] == 0.5 and line["accuracy/3,3"] == 1.0
    assert line["tokens/3,1"] == 9 and line["tokens/3,3"] == 15


def test_the_standard_error_counts_problems_not_responses():
    """Four responses that agree by problem are two pieces of evidence, not four."""
    one, two = Problem("1", "1"), Problem("2", "2")
    rows = [demonstration(SUMS, problem, "so") for problem in (one, one, two, two)]
    assert budget.standard_error(rows, [True, True, False, False]) == pytest.approx(0.5)
    assert budget.standard_error(rows, [True, False, False, True]) == 0.0
    assert budget.standard_error(rows[:2], [True, False]) == 0.0
    again = [demonstration(SUMS, Problem(prompt, prompt), "so") for prompt in "1122"]  # the task repeats a problem
    assert budget.standard_error(again, [True, True, False, False]) == pytest.approx(0.5)


@pytest.mark.parametrize("task", [ThinkingAddition((1, 2)), Templated(ThinkingAddition((1, 2)))], ids=["bare", "tags"])
def test_the_sentence_about_the_thinking_stands_inside_the_template_and_the_sums_stay_the_same(task):
    config = replace(TINY, task=task)
    plain = budget.asked_problems(config)
    assert plain == task.test_problems(3)
    for kind, amount, sentence in (
        ("max", 48, " Think for maximum 4 8 tokens."),
        ("exact", 48, " Think for 4 8 tokens."),
        ("steps", 2, " Think for 2 steps"),
        ("class", "short", " Think short"),
    ):
        for before, after in zip(plain, budget.asked_problems(config, kind, amount), strict=True):
            end = " Assistant:" if isinstance(task, Templated) else ""
            assert after.prompt == before.prompt.removesuffix(end) + sentence + end
            assert after.answer == before.answer


FREE = ("wait", "words", "suppressed", "samples")  # methods that only append, or sample, and ask for nothing


def test_every_method_leaves_lines_with_what_it_asked_and_what_came(base, tmp_path):
    config = replace(TINY, base=base, methods=tuple(budget.METHODS), out=str(tmp_path / "run"))
    last = budget.run(config)
    lines = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert last == lines[-1] and [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert {line["method"] for line in lines} == set(budget.METHODS)
    for line in lines:
        assert 0 <= line["accuracy"] <= 1
        if line["method"] in ("forcing", "until") or line.get("enforced"):
            assert line["within"] == 1.0 and line["thinking"] <= line["most"]
        if line["method"] == "until":
            assert line["most"] - 1 <= line["thinking"]  # a "wait" that nothing could follow is not appended
    json.dumps(lines, allow_nan=False)
    samples = read_jsonl(tmp_path / "run" / "samples.jsonl")
    kinds = [(line["step"], f"{line['method']} {line['asked']}") for line in lines]
    assert list(dict.fromkeys((line["step"], line["kind"]) for line in samples)) == kinds
    sentences = {
        "tokens": "Think for maximum",
        "steps": "steps",
        "class": "Think",
        "exact": "Think for",
        "max": "maximum",
    }
    for line in samples:
        method, question = line["kind"].split()[0], line["prompt"]
        assert sentences.get(method, "User:") in question
        assert ("Think" in question) == (method not in (*FREE, "forcing", "until"))
        assert ("«" in line.get("marked", "")) == (method not in ("exact", "max", "free", "truncated"))
        assert line["right"] in (0.0, 1.0) and line["reward"] is None
    assert budget.run(replace(config, resume=True)) == last  # measured again as a whole
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl") == lines


def test_where_each_kind_of_response_is_cut(base, tmp_path):
    """Of an untrained model, which ends anywhere: exact at 2 N, truncated at N, free and max at the context alone."""
    config = replace(
        TINY, base=base, methods=("exact", "truncated", "free", "max", "s1"), budgets=(12, 16), problems=20,
        out=str(tmp_path / "run"), answer_tokens=4,
    )  # fmt: skip
    budget.run(config)
    lines = {(line["method"], line["asked"]): line for line in read_jsonl(tmp_path / "run" / "metrics.jsonl")}
    for n in (12, 16):
        assert lines["truncated", n]["within"] == lines["s1", n]["within"] == 1.0
        assert lines["s1", n]["thinking"] >= n - 5  # an answer may end before its budget, and a wait may not fit
        assert lines["truncated", n]["thinking"] < lines["exact", n]["thinking"] < lines["free", n]["thinking"]
        assert lines["exact", n]["thinking"] < 2 * n
        assert lines["truncated", n]["cut"] > lines["exact", n]["cut"] > lines["free", n]["cut"] == 0.0
    samples = read_jsonl(tmp_path / "run" / "samples.jsonl")
    assert all(("maximum" in line["prompt"]) == line["kind"].startswith("max ") for line in samples)


def test_every_problem_is_answered_so_often_as_repeats_says(base, tmp_path, monkeypatch):
    seen = []
    line = budget.target_line
    monkeypatch.setattr(budget, "target_line", lambda c, rows, *rest: seen.append(rows) or line(c, rows, *rest))
    config = replace(TINY, task=ThinkingAddition((2,)), methods=("exact", "s1"), budgets=(12,), problems=2, repeats=3)
    budget.run(replace(config, base=base, answer_tokens=4, out=str(tmp_path / "run")))
    assert len(seen) == 2
    for rows in seen:
        prompts = [row.problem.prompt for row in rows]
        assert len(prompts) == 3 * len(set(prompts)) and prompts[0] == prompts[1] == prompts[2] != prompts[3]
        assert len({row.seed for row in rows}) == len(rows)


@pytest.mark.parametrize(
    "wrong, message",
    [({"base": ""}, "--base is needed"), ({"methods": ("wait", "magic")}, "--methods magic: use forc")],
)
def test_a_wrong_setting_is_one_clear_error_before_anything_is_written(wrong, message, base, tmp_path):
    with pytest.raises(ValueError, match=message):
        budget.run(replace(TINY, **{"base": base, "out": str(tmp_path / "x"), **wrong}))
    assert not (tmp_path / "x").exists()

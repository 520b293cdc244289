"""Playing by hand: what a person types, what is shown of forced tokens, the verdict, and models without tags."""

from pathlib import Path

import pytest
import torch

from nanoreason import play
from nanoreason.__main__ import main
from nanoreason.checkpoint import load_checkpoint, save_checkpoint
from nanoreason.model import Transformer, small_config
from nanoreason.play import Table
from nanoreason.recipes.budget import Forcing
from nanoreason.search import thinking_tokenizer as thinking_countdown_tokenizer
from nanoreason.search import tokenizer as search_tokenizer
from nanoreason.tasks.addition import thinking_tokenizer, tokenizer

VOCABULARIES = {
    ("addition", True): thinking_tokenizer, ("addition", False): tokenizer,
    ("countdown", True): thinking_countdown_tokenizer, ("countdown", False): search_tokenizer,
}  # fmt: skip


def random_model(words) -> Transformer:
    return Transformer(small_config(16, 1, 2, words.vocab_size, 128), 0)


def says(words, plan: dict[int, str]) -> Transformer:
    """A model whose token at each position is the one planned (0 is the prompt's first)."""
    model = random_model(words)

    def forward(tokens, positions, cache):
        logits = torch.zeros(*tokens.shape, words.vocab_size)
        for row, position in enumerate(positions[:, -1].tolist()):
            logits[row, -1, words.encode(plan[position + 1])[0]] = 100.0
        return logits

    model.forward = forward
    return model


def planned(words, text: str, start: int) -> dict[int, str]:
    return {start + i: words.decode([token]) for i, token in enumerate(words.encode(text))}


def test_a_thought_is_shown_as_it_comes_with_what_was_forced_in_marks(capsys):
    words = thinking_tokenizer()
    table = Table(random_model(words), words, "addition", 1, 3)
    problem = table.typed("4+3")
    start = len(words.encode(problem.prompt))
    plan = planned(words, "<think> so </think> so 7 </think> <answer> 7 </answer>", start)
    table.model = says(words, plan)
    assert play.play(table, problem, Forcing(20, waits=1), 0.0, 0)
    assert capsys.readouterr().out.splitlines() == [
        "User: 4 + 3 Assistant:",
        "  «<think>» so «wait»",
        "  so 7 «</think> <answer>»",
        "  7 </answer>",
        "right (9 tokens)",
    ]
    plan[start + 7] = "8"
    assert not play.play(table, problem, Forcing(20, waits=1), 0.0, 0)
    assert capsys.readouterr().out.endswith("wrong, the sum is 7 (9 tokens)\n")


def test_a_model_without_tags_is_kept_from_its_end_of_text(capsys):
    words = tokenizer()
    problem = Table(random_model(words), words, "addition", 1, 3).typed("4 + 3")
    start = len(words.encode(problem.prompt))
    plan = {start: words.eos_token, start + 1: "7", start + 2: words.eos_token}
    table = Table(says(words, plan), words, "addition", 1, 3)
    assert not play.play(table, problem, Forcing(20, 1, word=","), 0.0, 0)  # the answer's line is ", 7"
    assert "  «,»\n  7\nwrong, the sum is 7 (3 tokens)" in capsys.readouterr().out


@pytest.mark.parametrize("task, tagged", VOCABULARIES)
def test_problems_are_typed_and_drawn_in_the_words_of_the_model(task, tagged):
    words = VOCABULARIES[task, tagged]()
    table = Table(random_model(words), words, task, 2, 3)
    assert table.tagged == tagged
    for problem in (table.typed(play.EXAMPLES[task]), table.drawn(3), table.drawn(4)):
        words.encode(problem.prompt)
        assert problem.prompt.startswith("User: ") == tagged
        assert problem.answer and table.judge().reward(problem, "") == 0
    assert table.drawn(3) != table.drawn(4)
    for nonsense in ("x", "1", "12 + 3" if task == "addition" else "24 from 9"):
        with pytest.raises(ValueError, match="such as"):
            table.typed(nonsense)


def test_countdown_says_what_would_have_been_right():
    words = search_tokenizer()
    table = Table(random_model(words), words, "countdown", 2, 3)
    assert "9-3=6, 4*6=24" in play.solution(table.typed("24 from 9 4 3"))
    assert play.solution(table.typed("99 from 1 1")) == "there is no solution"


def test_a_session_survives_nonsense_and_ends_with_q_or_the_end_of_input(tmp_path, monkeypatch, capsys):
    words = thinking_tokenizer()
    save_checkpoint(tmp_path / "policy", random_model(words), words)
    answers = iter(["12 + 3", "", "47 + 38", "q"])
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    assert main(["play", str(tmp_path / "policy"), "--budget", "12", "--wait", "2"]) == 0
    out = capsys.readouterr().out
    assert "equally many digits" in out and out.count("User: ") == 2 and out.count(" tokens)") == 2
    assert "User: 4 7 + 3 8 Assistant:" in out and "«<think>»" in out

    def end_of_input(question):
        raise EOFError

    monkeypatch.setattr("builtins.input", end_of_input)
    assert main(["play", str(tmp_path / "policy")]) == 0
    assert main(["play", str(tmp_path / "policy"), "--problem", "47 + 38", "--budget", "5"]) == 0
    for wrong in (["--problem", "12 + 3"], ["--budget", "-1"], ["--word", "banana"]):
        assert main(["play", str(tmp_path / "policy"), *wrong]) == 2
    assert main(["play", str(tmp_path / "nowhere")]) == 2


def test_without_the_word_in_its_vocabulary_a_model_is_kept_from_stopping_all_the_same(tmp_path, capsys):
    words = search_tokenizer()
    save_checkpoint(tmp_path / "policy", random_model(words), words)
    flags = ["--task", "countdown", "--wait", "2", "--problem", "24 from 9 4 3"]
    assert main(["play", str(tmp_path / "policy"), *flags]) == 0
    out = capsys.readouterr().out
    assert "'wait' is not in the tokenizer's vocabulary" in out and "kept from stopping with 'M'" in out
    assert "a solution is 9-3=6, 4*6=24" in out


def test_the_searcher_that_is_shipped_solves_drawn_problems_and_moves_on_where_it_would_have_stopped(capsys):
    folder = str(Path(__file__).parent.parent / "data" / "checkpoints" / "countdown-search")
    flags = ["--task", "countdown", "--budget", "0"]
    assert main(["play", folder, *flags, "--wait", "1", "--temperature", "0", "--problem", "50 from 20 6 5"]) == 0
    assert "«M»" in capsys.readouterr().out
    model, words = load_checkpoint(folder)
    table = Table(model, words, "countdown", 2, 3)
    solved = [play.play(table, table.drawn(i), Forcing(0, word=""), 0.0, i) for i in range(20)]
    assert sum(solved) >= 6


def test_the_checkpoint_that_is_shipped_adds_and_goes_on_after_a_wait(capsys):
    folder = Path(__file__).parent.parent / "data" / "checkpoints" / "thinking-addition"
    assert main(["play", str(folder), "--problem", "47 + 38", "--wait", "2"]) == 0
    out = capsys.readouterr().out
    assert out.count("«wait»") == 2 and "«</think> <answer>»" in out and "\nright (" in out
    for problem in ("12 + 34", "91 + 27", "65 + 75", "58 + 67"):
        assert main(["play", str(folder), "--problem", problem, "--temperature", "0"]) == 0
    assert capsys.readouterr().out.count("\nright (") >= 3

"""Playing by hand: what a person types, what is shown of forced tokens, the verdict, and models without tags.

And testing a checkpoint: both know its task from the checkpoint, and take another one when told.
"""

import json
from pathlib import Path

import pytest
import torch

from nanoreason import play
from nanoreason.__main__ import main
from nanoreason.checkpoint import load_checkpoint, save_checkpoint
from nanoreason.forcing import Forcing
from nanoreason.model import Transformer, small_config
from nanoreason.run import flatten, task_flags
from nanoreason.search import tokenizer as search_tokenizer
from nanoreason.tasks import Addition, StreamOfSearch, ThinkingAddition, ThinkingCountdown
from nanoreason.tasks.addition import tokenizer
from nanoreason.tasks.thinking import thinking_tokenizer
from nanoreason.tasks.wrappers import Templated

SHIPPED = Path(__file__).parent.parent / "data" / "checkpoints"
ONE_DIGIT = str(Path(__file__).parent / "data" / "one-digit-sums")
SUMS = Templated(ThinkingAddition((1, 2)))
TASKS = {
    "thinking": (SUMS, "47 + 38"),
    "addition": (Addition((1, 2)), "47 + 38"),
    "thinking_countdown": (Templated(ThinkingCountdown(3)), "24 from 9 4 3"),
    "search": (StreamOfSearch(3, language="compact"), "24 from 9 4 3"),
}


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


def saved(folder: Path, words, task=None) -> str:
    """A checkpoint of a model that has learnt nothing, which says what task it is for."""
    extra = task and task_flags(flatten(play.PlayConfig(task=task)))
    save_checkpoint(folder, random_model(words), words, extra=extra)
    return str(folder)


def test_a_thought_is_shown_as_it_comes_with_what_was_forced_in_marks(capsys):
    words = thinking_tokenizer()
    problem = SUMS.parse("4+3")
    start = len(words.encode(problem.prompt))
    plan = planned(words, "<think> so </think> so 7 </think> <answer> 7 </answer>", start)
    model = says(words, plan)
    assert play.play(model, words, SUMS, problem, Forcing(20, waits=1), 0.0, 0)
    assert capsys.readouterr().out.splitlines() == [
        "User: 4 + 3 Assistant:",
        "  «<think>» so «wait»",
        "  so 7 «</think> <answer>»",
        "  7 </answer>",
        "right (9 tokens)",
    ]
    plan[start + 7] = "8"
    assert not play.play(model, words, SUMS, problem, Forcing(20, waits=1), 0.0, 0)
    assert capsys.readouterr().out.endswith("wrong, right is 7 (9 tokens)\n")


def test_a_model_without_tags_is_kept_from_its_end_of_text(capsys):
    words, task = tokenizer(), Addition((1,))
    problem = task.parse("4 + 3")
    start = len(words.encode(problem.prompt))
    plan = {start: words.eos_token, start + 1: "7", start + 2: words.eos_token}
    model = says(words, plan)
    assert not play.play(model, words, task, problem, Forcing(20, 1, word=","), 0.0, 0)  # the answer's line is ", 7"
    assert "  «,»\n  7\nwrong, right is 7 (3 tokens)" in capsys.readouterr().out
    # without room behind the word it ends where it wanted to
    assert not play.play(model, words, task, problem, Forcing(1, 1, word=","), 0.0, 0)
    assert "«,»" not in capsys.readouterr().out


@pytest.mark.parametrize("name", TASKS)
def test_problems_are_typed_and_drawn_in_the_words_of_the_model(name):
    task, example = TASKS[name]
    words = task.tokenizer()
    first, second = task.problem("test", 3), task.problem("test", 4)
    for problem in (task.parse(example), first, second):
        words.encode(problem.prompt)
        assert problem.prompt.startswith("User: ") == ("</answer>" in task.stop)
        assert problem.answer and task.reward(problem, "") == 0
    assert first != second
    for nonsense in ("x", "1", "12 + 3" if "24" not in example else "24 from 9"):
        with pytest.raises(ValueError, match="such as"):
            task.parse(nonsense)


def test_countdown_says_what_would_have_been_right(capsys):
    words, task = search_tokenizer(), TASKS["search"][0]
    model = random_model(words)
    for typed, said in (("24 from 9 4 3", "9-3=6, 4*6=24"), ("99 from 1 1", "there is no solution")):
        assert not play.play(model, words, task, task.parse(typed), Forcing(5, word=""), 0.0, 0)
        assert said in capsys.readouterr().out


def test_a_session_survives_nonsense_and_ends_with_q_or_the_end_of_input(tmp_path, monkeypatch, capsys):
    folder = saved(tmp_path / "policy", thinking_tokenizer(), SUMS)
    answers = iter(["12 + 3", "", "47 + 38", " q "])
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    assert main(["play", folder, "--budget", "12", "--wait", "2"]) == 0
    out = capsys.readouterr().out
    assert "equally many digits" in out and out.count("User: ") == 2 and out.count(" tokens)") == 2
    assert "User: 4 7 + 3 8 Assistant:" in out and "«<think>»" in out and not list(answers)

    def end_of_input(question):
        raise EOFError

    monkeypatch.setattr("builtins.input", end_of_input)
    assert main(["play", folder]) == 0
    assert main(["play", folder, "--problem", "47 + 38", "--budget", "5"]) == 0
    capsys.readouterr()
    for wrong, said in ((["--problem", "12 + 3"], "equally many digits"), (["--budget", "-1"], "--budget -1: must be"),
                        (["--word", "banana"], "banana"), (["--task", "chess"], "--task chess: one of")):  # fmt: skip
        assert main(["play", folder, *wrong]) == 2
        message = capsys.readouterr().err
        assert said in message and message.count("\n") == 1
    assert main(["play", str(tmp_path / "nowhere")]) == 2
    assert "no checkpoint at" in capsys.readouterr().err
    assert main(["play"]) == 2
    assert "a checkpoint folder is missing" in capsys.readouterr().err


def test_drawn_problems_are_held_out_and_follow_the_seed(tmp_path, monkeypatch, capsys):
    folder = saved(tmp_path / "policy", thinking_tokenizer(), SUMS)

    def prompts(*flags) -> list[str]:
        answers = iter(["", "", "q"])
        monkeypatch.setattr("builtins.input", lambda question: next(answers))
        assert main(["play", folder, "--budget", "2", *flags]) == 0
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("User: ")]

    first = prompts()
    assert first == prompts() != prompts("--seed", "1") and len(set(first)) == 2


def test_without_the_word_in_its_vocabulary_a_model_is_kept_from_stopping_all_the_same(tmp_path, capsys):
    folder = saved(tmp_path / "policy", search_tokenizer(), TASKS["search"][0])
    assert main(["play", folder, "--wait", "2", "--problem", "24 from 9 4 3"]) == 0
    out = capsys.readouterr().out
    assert "'wait' is not in the tokenizer's vocabulary" in out and "kept from stopping with 'M'" in out
    assert "9-3=6, 4*6=24" in out
    plain = saved(tmp_path / "other", tokenizer(), Addition((1,)))
    assert main(["play", plain, "--wait", "1", "--problem", "4 + 3"]) == 0
    assert "kept from stopping without a word" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------ what a checkpoint is for


def test_play_and_eval_ask_what_the_checkpoint_was_trained_on_unless_they_are_told_otherwise(tmp_path, capsys):
    folder = saved(tmp_path / "policy", thinking_tokenizer(), SUMS)
    two = ["--problem", "47 + 38", "--budget", "4"]
    assert main(["play", folder, *two]) == 0 and "User: 4 7 + 3 8 Assistant:" in capsys.readouterr().out
    assert main(["play", folder, *two, "--task", "thinking"]) == 0  # no template
    assert capsys.readouterr().out.startswith("4 7 + 3 8\n")

    def tested(*flags) -> set[str]:
        assert (
            main(["eval", folder, "--problems", "2", "--samples", "2", "--max-new-tokens", "4", "--json", *flags]) == 0
        )
        return {name for name in json.loads(capsys.readouterr().out) if name.startswith("acc/")}

    assert tested() == {"acc/1", "acc/2"}
    assert tested("--task.digits", "3") == {"acc/3"}  # its own task with another setting
    assert tested("--task", "thinking,templated", "--task.digits", "2") == {"acc/2"}
    assert tested("--task=thinking", "--task.digits=2,3") == {"acc/2", "acc/3"}


def test_a_checkpoint_that_does_not_say_its_task_needs_to_be_told(tmp_path, capsys):
    folder = saved(tmp_path / "policy", thinking_tokenizer())
    for command in (["play", folder, "--problem", "4 + 3"], ["eval", folder]):
        assert main(command) == 2
        message = capsys.readouterr().err
        assert "does not say which task it is for: name it by --task" in message and message.count("\n") == 1
    flags = ["--task", "thinking,templated", "--task.digits", "1", "--budget", "4", "--problem", "4 + 3"]
    assert main(["play", folder, *flags]) == 0
    assert main(["eval", str(tmp_path / "nowhere")]) == 2 and "no checkpoint at" in capsys.readouterr().err


def test_eval_prints_a_table_or_json_of_the_same_numbers(capsys):
    flags = [ONE_DIGIT, "--problems", "5", "--samples", "4"]
    assert main(["eval", *flags, "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert 0.2 < numbers["eval/pass@1"] < 0.7 and numbers["eval/pass@4"] > numbers["eval/pass@1"]
    assert main(["eval", *flags]) == 0
    shown = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert shown.pop("metric") == "value"
    assert {name: f"{value:.3f}" for name, value in numbers.items()} == shown
    assert main(["eval", *flags[:1], "--problems", "0"]) == 2
    assert "--problems 0: must be at least 1" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- what is shipped


def test_the_searcher_that_is_shipped_solves_drawn_problems_and_moves_on_where_it_would_have_stopped(capsys):
    folder = str(SHIPPED / "countdown-search")
    flags = ["--budget", "0", "--wait", "1", "--temperature", "0", "--problem", "50 from 20 6 5"]
    assert main(["play", folder, *flags]) == 0
    assert "«M»" in capsys.readouterr().out
    model, words = load_checkpoint(folder)
    task = play.task_of(folder)
    solved = [play.play(model, words, task, task.problem("test", i), Forcing(0, word=""), 0.0, i) for i in range(20)]
    assert sum(solved) >= 6


def test_the_checkpoint_that_is_shipped_adds_and_goes_on_after_a_wait(capsys):
    folder = str(SHIPPED / "thinking-addition")
    assert main(["play", folder, "--problem", "47 + 38", "--wait", "2"]) == 0
    out = capsys.readouterr().out
    assert out.count("«wait»") == 2 and "«</think> <answer>»" in out and "\nright (" in out
    for problem in ("12 + 34", "91 + 27", "65 + 75", "58 + 67"):
        assert main(["play", folder, "--problem", problem, "--temperature", "0"]) == 0
    assert capsys.readouterr().out.count("\nright (") >= 3


def test_the_base_of_star_that_is_shipped_adds_on_its_scratchpad(capsys):
    folder = str(SHIPPED / "star-base")
    for problem in ("4 + 3", "47 + 38"):
        assert main(["play", folder, "--problem", problem, "--budget", "0", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.count("\nright (") == 2

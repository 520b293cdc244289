"""Looking at one policy by hand: what a person types, what is shown of forced tokens, the verdict, models without tags;
and `eval`, which tests it. Both know the checkpoint's own task."""

import json
from pathlib import Path

import pytest
import torch

from nanoreason import play
from nanoreason.__main__ import main
from nanoreason.checkpoint import load_checkpoint, save_checkpoint
from nanoreason.environment import evaluate
from nanoreason.forcing import Forcing
from nanoreason.model import Transformer, small_config
from nanoreason.rollout import Problem, Task
from nanoreason.run import flatten, task_flags
from nanoreason.tasks import Addition, Countdown, StreamOfSearch, ThinkingAddition, ThinkingCountdown
from nanoreason.tasks.attempts import Attempts
from nanoreason.tasks.wrappers import Templated

SHIPPED = Path(__file__).parent.parent / "data" / "checkpoints"
TASKS = {
    "sums in tags": (Templated(ThinkingAddition((2, 3))), "47+38", "12 + 3"),
    "sums": (Addition((2, 3)), "47 + 38", "12 + 3"),
    "searches": (StreamOfSearch(3), "24 from 9 4 3", "24 from 9"),
    "countdown in tags": (Templated(ThinkingCountdown(3)), "24 from 9 4 3", "24 from 9"),
    "attempts in tags": (Templated(Attempts()), "24 from 9 4 3", "24 from 9"),
}
CHATTY = Templated(ThinkingAddition((1, 2, 3)))


def random_model(tokenizer) -> Transformer:
    return Transformer(small_config(16, 1, 2, tokenizer.vocab_size, 128), 0)


def says(tokenizer, plan: dict[int, str]) -> Transformer:
    """A model whose token at each position is the one planned (0 is the prompt's first)."""
    model = random_model(tokenizer)

    def forward(tokens, positions, cache):
        logits = torch.zeros(*tokens.shape, tokenizer.vocab_size)
        for row, position in enumerate(positions[:, -1].tolist()):
            logits[row, -1, tokenizer.encode(plan[position + 1])[0]] = 100.0
        return logits

    model.forward = forward
    return model


def planned(tokenizer, text: str, start: int) -> dict[int, str]:
    return {start + i: tokenizer.decode([token]) for i, token in enumerate(tokenizer.encode(text))}


def checkpoint(folder: Path, task: Task) -> str:
    """An untrained policy that says which task it is for."""
    tokenizer = task.tokenizer()
    extra = task_flags(flatten(play.PlayConfig(task=task)))
    save_checkpoint(folder, random_model(tokenizer), tokenizer, extra=extra)
    return str(folder)


# ------------------------------------------------------------------------------------------------ what is shown


def test_a_thought_is_shown_as_it_comes_with_what_was_forced_in_marks(capsys):
    tokenizer, problem = CHATTY.tokenizer(), CHATTY.parse("4+3")
    start = len(tokenizer.encode(problem.prompt))
    plan = planned(tokenizer, "<think> so </think> so 7 </think> <answer> 7 </answer>", start)
    model = says(tokenizer, plan)
    assert play.play(model, tokenizer, CHATTY, problem, Forcing(20, waits=1), 0.0, 0)
    assert capsys.readouterr().out.splitlines() == [
        "User: 4 + 3 Assistant:",
        "  «<think>» so «wait»",
        "  so 7 «</think> <answer>»",
        "  7 </answer>",
        "right (9 tokens)",
    ]
    plan[start + 7] = "8"
    assert not play.play(model, tokenizer, CHATTY, problem, Forcing(20, waits=1), 0.0, 0)
    assert capsys.readouterr().out.endswith("wrong, right is 7 (9 tokens)\n")


def test_a_model_without_tags_is_kept_from_its_end_of_text(capsys):
    task = Addition((1,))
    tokenizer, problem = task.tokenizer(), task.parse("4 + 3")
    start = len(tokenizer.encode(problem.prompt))
    plan = {start: tokenizer.eos_token, start + 1: "7", start + 2: tokenizer.eos_token}
    model = says(tokenizer, plan)
    assert not play.play(model, tokenizer, task, problem, Forcing(20, 1, word=","), 0.0, 0)  # the answer's line: ", 7"
    assert capsys.readouterr().out.endswith("\n  «,»\n  7\nwrong, right is 7 (3 tokens)\n")
    plan[start], plan[start + 1] = "7", tokenizer.eos_token
    assert play.play(model, tokenizer, task, problem, Forcing(20, 0, word=","), 0.0, 0)
    assert capsys.readouterr().out.endswith("\n  7\nright (2 tokens)\n")  # nothing was forced


def test_no_word_is_appended_where_the_budget_leaves_no_room_behind_it(capsys):
    task = Addition((1,))
    tokenizer, problem = task.tokenizer(), task.parse("4 + 3")
    start = len(tokenizer.encode(problem.prompt))
    model = says(tokenizer, {start: "7", start + 1: tokenizer.eos_token, start + 2: "7"})
    assert play.play(model, tokenizer, task, problem, Forcing(2, 1, word=","), 0.0, 0)
    assert capsys.readouterr().out.endswith("\n  7\nright (2 tokens)\n")


@pytest.mark.parametrize("name", TASKS)
def test_problems_are_typed_and_drawn_in_the_words_of_the_model(name):
    task, typed, nonsense = TASKS[name]
    tokenizer = task.tokenizer()
    for problem in (task.parse(typed), task.problem("test", 3), task.problem("test", 4)):
        tokenizer.encode(problem.prompt)
        assert problem.prompt.startswith("User: ") == ("tags" in name)
        assert task.told(problem) and task.reward(problem, "") == 0
    for text in ("x", "1", nonsense):
        with pytest.raises(ValueError, match="such as"):
            task.parse(text)


@pytest.mark.parametrize("name", TASKS)
def test_a_person_is_told_what_would_have_been_right(name):
    """Not what the drawn solution says: that may be a search that found nothing."""
    task, typed, _ = TASKS[name]
    for problem in (task.parse(typed), *(task.problem("test", i) for i in range(30))):
        told = task.told(problem)
        if isinstance(task, StreamOfSearch):
            assert Countdown(3).reward(problem, told) == 1
        else:
            assert task.reward(problem, f"<answer> {told} </answer>" if "tags" in name else told) == 1
    if "from" in typed:
        assert task.told(task.parse("59 from 1 1")) == "nothing: it cannot be made"


def test_a_task_that_takes_no_typed_problems_says_so():
    class Silent(Task):
        pass

    with pytest.raises(ValueError, match="Silent takes no typed problems: leave it empty"):
        Silent().parse("4 + 3")
    assert Silent().told(Problem("a", "b")) == "b"


# ------------------------------------------------------------------------------------------------- a session


def test_a_session_survives_nonsense_and_ends_with_q_or_the_end_of_input(tmp_path, monkeypatch, capsys):
    folder = checkpoint(tmp_path / "policy", Templated(ThinkingAddition((2, 3))))
    answers = iter(["12 + 3", "", "47 + 38", "", "q"])
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    assert main(["play", folder, "--budget", "12", "--wait", "2"]) == 0
    out = capsys.readouterr().out
    assert "equally many digits" in out and out.count(" tokens)") == 3
    asked = [line for line in out.splitlines() if line.startswith("User: ")]
    assert len(set(asked)) == 3 and asked[1] == "User: 4 7 + 3 8 Assistant:" and "«<think>»" in out

    def end_of_input(question):
        raise EOFError

    monkeypatch.setattr("builtins.input", end_of_input)
    assert main(["play", folder]) == 0
    assert main(["play", folder, "--problem", "47 + 38", "--budget", "5"]) == 0
    assert "'wait'" not in capsys.readouterr().out  # it is not kept from stopping: no word is missed
    for wrong, message in (
        (["--problem", "12 + 3"], "equally many digits"),
        (["--budget", "-1"], "--budget -1: must be at least 0"),
        (["--problem", "47 + 38", "--word", "banana"], "'banana' is not in the tokenizer's vocabulary"),
        (["--task", "dance"], "--task dance: one of addition"),
    ):
        assert main(["play", folder, *wrong]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    for command in ("play", "eval"):
        assert main([command, str(tmp_path / "nowhere")]) == 2
        assert "nowhere" in capsys.readouterr().err
        assert main([command]) == 2
        assert "a checkpoint folder is missing" in capsys.readouterr().err


def test_without_the_word_in_its_vocabulary_a_model_is_kept_from_stopping_all_the_same(tmp_path, capsys):
    folder = checkpoint(tmp_path / "policy", StreamOfSearch(3))
    assert main(["play", folder, "--wait", "2", "--problem", "24 from 9 4 3"]) == 0
    out = capsys.readouterr().out
    assert "'wait' is not in the tokenizer's vocabulary" in out and "kept from stopping with 'M'" in out
    assert "wrong, right is 9 - 3 = 6 , 4 * 6 = 24 (" in out
    folder = checkpoint(tmp_path / "adder", Addition((1,)))
    assert main(["play", folder, "--wait", "2", "--problem", "4 + 3", "--budget", "4"]) == 0
    assert "kept from stopping without a word" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------- the checkpoint's own task


def test_a_policy_is_asked_what_it_was_trained_on_unless_another_task_is_named(tmp_path, capsys):
    task = Templated(ThinkingAddition((3,), error_prob=0.25, modes=(0.5, 0.25, 0.25)), "r1")
    folder = str(tmp_path / "policy")
    tokenizer = task.tokenizer()
    save_checkpoint(folder, random_model(tokenizer), tokenizer, extra=task_flags(flatten(play.PlayConfig(task=task))))
    assert play.task_of(folder) == task
    folder = checkpoint(tmp_path / "adder", Addition((2,)))
    assert main(["play", folder, "--problem", "47 + 38", "--budget", "3"]) == 0
    assert "Input:\n4 7 + 3 8\nTarget:" in capsys.readouterr().out
    assert main(["eval", folder, "--problems", "3", "--samples", "0", "--json"]) == 0
    assert {name for name in json.loads(capsys.readouterr().out) if name.startswith("acc/")} == {"acc/2"}
    for flags in (["--task", "addition", "--task.digits", "1"], ["--task=addition", "--task.digits=1"]):
        assert main(["eval", folder, *flags, "--problems", "3", "--samples", "0", "--json"]) == 0
        assert {name for name in json.loads(capsys.readouterr().out) if name.startswith("acc/")} == {"acc/1"}
    assert main(["eval", folder, "--task.digits", "1", "--problems", "3", "--samples", "0", "--json"]) == 0  # its own,
    assert {name for name in json.loads(capsys.readouterr().out) if name.startswith("acc/")} == {"acc/1"}  # changed


@pytest.mark.parametrize("command", ["play", "eval"])
def test_a_checkpoint_that_does_not_say_its_task_asks_for_one(command, tmp_path, capsys):
    tokenizer = Addition().tokenizer()
    save_checkpoint(tmp_path / "policy", random_model(tokenizer), tokenizer)
    flags = ["--problem", "4 + 3", "--budget", "4"] if command == "play" else ["--problems", "1", "--samples", "0"]
    assert main([command, str(tmp_path / "policy"), *flags]) == 2
    assert "does not say which task it is for: name it by --task" in capsys.readouterr().err
    assert main([command, str(tmp_path / "policy"), "--task", "addition", *flags]) == 0


def test_eval_prints_what_evaluate_measures(tmp_path, capsys):
    task = Templated(ThinkingAddition((1, 2)))
    folder = checkpoint(tmp_path / "policy", task)
    flags = ["--problems", "4", "--samples", "2", "--max-new-tokens", "12", "--temperature", "0.7"]
    assert main(["eval", folder, *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model, tokenizer = load_checkpoint(folder)
    assert found == evaluate(task, model, tokenizer, 4, max_new_tokens=12, samples=2, temperature=0.7)
    assert {"acc/1", "acc/2", "eval/pass@2", "eval/maj@2", "eval/mean_length"} <= found.keys()
    assert main(["eval", folder, *flags]) == 0
    shown = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert shown == {"metric": "value", **{name: f"{value:.3f}" for name, value in found.items()}}


# --------------------------------------------------------------------------------------------- what is shipped


def test_the_searcher_that_is_shipped_solves_drawn_problems_and_moves_on_where_it_would_have_stopped(capsys):
    folder = str(SHIPPED / "countdown-search")
    task = play.task_of(folder)
    assert isinstance(task, StreamOfSearch)
    flags = ["--budget", "0", "--wait", "1", "--temperature", "0", "--problem", "50 from 20 6 5"]
    assert main(["play", folder, *flags]) == 0
    assert "«M»" in capsys.readouterr().out
    model, tokenizer = load_checkpoint(folder)
    drawn = [task.problem("test", i) for i in range(20)]
    assert sum(play.play(model, tokenizer, task, problem, Forcing(0, word=""), 0.0, 0) for problem in drawn) >= 12


def test_the_checkpoint_that_is_shipped_adds_and_goes_on_after_a_wait(capsys):
    folder = str(SHIPPED / "thinking-addition")
    assert main(["play", folder, "--problem", "47 + 38", "--wait", "2"]) == 0
    out = capsys.readouterr().out
    assert out.count("«wait»") == 2 and "«</think> <answer>»" in out and "\nright (" in out
    for problem in ("12 + 34", "91 + 27", "65 + 75", "58 + 67"):
        assert main(["play", folder, "--problem", problem, "--temperature", "0"]) == 0
    assert capsys.readouterr().out.count("\nright (") >= 3

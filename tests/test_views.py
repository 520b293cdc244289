"""What runs left, shown: samples in the terminal (`look`), metrics as pictures and tables (`plot`)."""

import csv
import json
from pathlib import Path

import pytest

from nanoreason import plot
from nanoreason.__main__ import VIEWS, main
from nanoreason.experiments.figure import smoothed
from nanoreason.look import KEPT, Page, grouped, runs_below
from nanoreason.plot import chosen_metrics, lines_of_all
from nanoreason.run import Run, RunConfig

RESULTS = Path(__file__).parent.parent / "data" / "results"


def sample(group: int, right: float, reason: str = "eos", **fields) -> dict:
    """A line of samples.jsonl, without its step."""
    said = f"says {group}.{int(right)} {reason}"
    return {
        "kind": "rollout", "group": group, "difficulty": 2, "prompt": f"{group} + 0 =", "answer": str(group),
        "response": said, "tokens": 5, "stop_reason": reason, "right": right, "valid": right, "reward": 1.1 * right,
        "rewards": {"accuracy": right, "format": 1.0}, "advantage": right - 0.5, **fields,
    }  # fmt: skip


def run_in(folder: Path, samples: dict[int, list[dict]], metrics: dict[int, dict], seed: int = 0) -> Path:
    """A run's folder, as a recipe leaves it."""
    run = Run(RunConfig(out=str(folder), seed=seed))
    for step, lines in samples.items():
        for line in lines:
            run.sample(step, **line)
    for step, line in metrics.items():
        run.log(step, **line)
    run.close()
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    samples = {
        1: [sample(0, 0.0), sample(0, 0.0)],
        2: [sample(3, 1.0), sample(3, 0.0, "length"), sample(3, 1.0), sample(7, 1.0, "length"), sample(7, 1.0)],
    }
    metrics = {step: {"reward": step / 10, "acc/1": 1.0, "acc/2": 0.5, "loss": 0.0} for step in range(1, 5)}
    return run_in(tmp_path / "run", samples, metrics)


@pytest.fixture
def reproduced(tmp_path) -> Path:
    """Two arms in two seeds."""
    out = tmp_path / "reproduced"
    for seed in (0, 1):
        for arm, slope in (("plain", 1.0), ("direct", 2.0)):
            metrics = {step: {"acc/1": slope * step + seed} for step in range(3)}
            run_in(out / f"seed{seed}" / arm, {2: [sample(1, 1.0)]} if arm == "plain" else {}, metrics, seed)
    (out / "config.json").write_text(json.dumps({"section": "star", "preset": "tiny"}))
    return out


def shown(capsys, *flags: object) -> str:
    assert main([str(flag) for flag in flags]) == 0
    return capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------ look


def test_the_newest_step_is_shown_group_by_group_with_rewards_by_name_and_advantages(run, capsys):
    assert shown(capsys, "look", run).splitlines() == [
        f"{run}, step 2 (samples of steps 1, 2)",
        "",
        "rollout, group 3: 2 of 3 right, difficulty 2",
        "  prompt  3 + 0 =",
        "  answer  3",
        "   1 right  reward 1.1 (accuracy 1, format 1), advantage +0.50, 5 tokens, eos",
        "     says 3.1 eos",
        "   2 wrong  reward 0 (accuracy 0, format 1), advantage -0.50, 5 tokens, truncated",
        "     says 3.0 length",
        "   3 right  reward 1.1 (accuracy 1, format 1), advantage +0.50, 5 tokens, eos",
        "     says 3.1 eos",
        "",
        "rollout, group 7: 2 of 2 right, difficulty 2",
        "  prompt  7 + 0 =",
        "  answer  7",
        "   1 right  reward 1.1 (accuracy 1, format 1), advantage +0.50, 5 tokens, truncated",
        "     says 7.1 length",
        "   2 right  reward 1.1 (accuracy 1, format 1), advantage +0.50, 5 tokens, eos",
        "     says 7.1 eos",
    ]


@pytest.mark.parametrize(
    ("only", "wanted"),
    [
        ("right", ["says 3.1 eos", "says 3.1 eos", "says 7.1 length", "says 7.1 eos"]),
        ("wrong", ["says 3.0 length"]),
        ("truncated", ["says 3.0 length", "says 7.1 length"]),
    ],
)
def test_only_the_right_the_wrong_or_the_truncated_responses(run, only, wanted, capsys):
    text = shown(capsys, "look", run, "--only", only)
    assert [line.strip() for line in text.splitlines() if line.strip().startswith("says")] == wanted
    assert ("group 7" in text) == (only != "wrong")  # a group without any is left out
    assert "2 of 3 right" in text  # what is told of a group is of all of it


def test_another_step_and_so_many_responses_of_each_group(run, capsys):
    text = shown(capsys, "look", run, "--step", 1, "--count", 1)
    assert text.count("says 0.0 eos") == 1 and "group 0: 0 of 2 right" in text and "says 3" not in text
    assert "1 more: --count 2" in text
    assert "none of 2 responses is right" in shown(capsys, "look", run, "--step", 1, "--only", "right")


def test_samples_of_one_prompt_that_were_sampled_apart_are_groups_of_their_own():
    lines = [sample(1, 1.0), sample(1, 0.0), sample(2, 1.0), sample(1, 1.0, kind="greedy test")]
    assert [len(group) for group in grouped(lines)] == [2, 1, 1]
    again = [sample(4, 1.0, prompt="a"), sample(4, 1.0, prompt="b")]
    assert [len(group) for group in grouped(again)] == [1, 1]


def test_what_is_right_or_wrong_is_so_by_the_verdict_and_partly_right_is_wrong():
    assert [KEPT["right"]({"right": value}) for value in (1.0, 0.9, 0.0)] == [True, False, False]
    assert [KEPT["wrong"]({"right": value}) for value in (1.0, 0.9, 0.0)] == [False, True, True]


def test_long_lines_are_wrapped_to_the_terminal_and_nothing_moves_its_cursor():
    long = sample(1, 1.0, response="word " * 40 + "\nx\x1b[2J" + "y" * 90, marked=None)
    del long["marked"]
    lines = Page(60, colored=False).group([long], KEPT["all"], 8)
    said = lines[lines.index(next(line for line in lines if "word" in line)) :]
    assert max(map(len, said)) <= 60 and all(line.startswith("     ") for line in said)
    assert sum(line.count("word") for line in said) == 40 and "\x1b" not in "".join(lines)
    assert "\\x1b[2J" in "".join(lines)
    colored = Page(60, colored=True).group([long], KEPT["all"], 8)
    assert any("\033[32m" in line for line in colored) and len(colored) == len(lines)


def test_forced_tokens_are_shown_in_their_marks(run, capsys):
    folder = run_in(run.parent / "forced", {1: [sample(0, 1.0, response="a wait b", marked="a «wait» b")]}, {})
    assert "a «wait» b" in shown(capsys, "look", folder)


def test_a_folder_of_reproduce_says_which_runs_there_are_and_each_can_be_seen(reproduced, capsys):
    text = shown(capsys, "look", reproduced)
    assert "holds 4 runs" in text and "seed1/plain: samples of steps 2" in text
    assert "seed0/direct: no samples yet" in text
    assert "says 1.1" in shown(capsys, "look", reproduced / "seed1" / "plain")
    assert list(runs_below(reproduced / "seed0")) == ["direct", "plain"]


def test_samples_of_an_older_run_are_shown_as_far_as_they_go(tmp_path, capsys):
    folder = run_in(tmp_path / "old", {0: [{"prompt": "1 + 1", "response": "2", "right": 1.0}]}, {})
    text = shown(capsys, "look", folder)
    assert "1 + 1" in text and " 1 right" in text


# ------------------------------------------------------------------------------------------------------------ plot


def test_metrics_are_listed_with_where_they_are_and_what_they_come_to(run, capsys):
    lines = [line.split() for line in shown(capsys, "plot", run, "--list").splitlines()]
    assert lines[0] == ["metric", "runs", "steps", "values", "least", "most"]
    assert lines[1] == ["reward", "1", "1..4", "4", "0.1", "0.4"]


def test_a_picture_of_several_runs_and_of_what_reproduce_left(run, reproduced, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "made" / "curves.png"
    text = shown(capsys, "plot", run, reproduced, "--metric", "acc/1,reward", "--smooth", 2, "--out", out)
    assert text == f"acc/1, reward: {out}\n" and out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert str(run / "plot.png") in shown(capsys, "plot", run, "--x", "reward")
    assert "mean of acc/*" in shown(capsys, "plot", RESULTS / "star" / "cpu", "--arms", "plain", "--out", out)


def test_what_is_drawn_is_a_panel_per_metric_and_a_line_per_arm_with_the_mean_of_its_seeds(reproduced, monkeypatch):
    drawn = {}

    def draw(panels, results, caption, path, about_seeds):
        drawn.update(panels=panels, results=results, caption=caption)

    monkeypatch.setattr(plot, "draw", draw)
    assert main(["plot", str(reproduced), "--smooth", "3"]) == 0
    (panel,) = drawn["panels"]
    assert (panel.title, panel.smooth, [line.arm for line in panel.lines]) == ("acc/1", 3, ["direct", "plain"])
    assert drawn["results"].points("direct", "step", panel.y) == [(0, 0.5), (1, 2.5), (2, 4.5)]
    assert drawn["results"].points("plain", "step", panel.y, 1) == [(0, 1.0), (1, 2.0), (2, 3.0)]
    assert "means over 2 seeds" in drawn["caption"] and "mean of 3 neighbours" in drawn["caption"]


def test_arms_of_several_folders_are_told_apart_and_may_be_chosen(run, reproduced):
    names = {line["run"] for line in lines_of_all([run, reproduced], [])}
    assert names == {str(run), f"{reproduced}/plain", f"{reproduced}/direct"}
    chosen = lines_of_all([reproduced], ["plain"])
    assert {(line["run"], line["seed"]) for line in chosen} == {("plain", 0), ("plain", 1)}
    with pytest.raises(ValueError, match="has no arm sideways, but direct, plain"):
        lines_of_all([reproduced], ["sideways"])
    committed = lines_of_all([RESULTS / "star" / "cpu"], ["plain"])  # without folders of its jobs
    assert {line["run"] for line in committed} == {"plain"} and len({line["seed"] for line in committed}) == 3


def test_a_mean_of_metrics_is_of_those_that_a_line_has(tmp_path, monkeypatch):
    run = run_in(tmp_path / "run", {}, {0: {"acc/1": 0.5}, 1: {"acc/1": 0.5, "acc/2": 1.0}})
    points = []
    monkeypatch.setattr(plot, "draw", lambda panels, results, *how, **more: points.extend(
        results.points(str(run), "step", panels[0].y)))  # fmt: skip
    assert main(["plot", str(run)]) == 0
    assert points == [(0, 0.5), (1, 0.75)]


def test_a_pattern_stands_for_all_that_match_it_and_the_usual_ones_leave_out_the_loss_of_rl():
    names = ["loss", "reward", "acc/1", "acc/2", "entropy", "odd"]
    assert list(chosen_metrics("acc/*,odd", names)) == ["acc/1", "acc/2", "odd"]
    assert list(chosen_metrics("", names)) == ["reward", "mean of acc/*", "entropy"]
    assert list(chosen_metrics("", ["loss", "acc/1"])) == ["loss", "acc/1"]
    assert chosen_metrics("", ["odd"]) == {"odd": ["odd"]}


@pytest.mark.parametrize(("width", "wanted"), [(1, [0, 3, 6, 9]), (2, [0, 1.5, 4.5, 7.5]), (3, [1.5, 3, 6, 7.5])])
def test_smoothing_takes_as_many_neighbours_as_it_says(width, wanted):
    assert smoothed([0.0, 3.0, 6.0, 9.0], width) == wanted


def test_the_numbers_are_written_as_csv(run, reproduced, tmp_path, capsys):
    path = tmp_path / "numbers.csv"
    assert "12 lines of 1 metrics" in shown(capsys, "plot", reproduced, "--csv", path)
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"run": "direct", "seed": "0", "step": "0", "acc/1": "0.0"} and len(rows) == 12
    shown(capsys, "plot", run, reproduced, "--metric", "reward", "--csv", path)
    assert path.read_text().splitlines()[:2] == ["run,seed,step,reward", f"{run},0,1,0.1"]
    assert len(path.read_text().splitlines()) == 5  # no empty rows for runs without it
    assert not list(tmp_path.glob("*/plot.png"))


def test_without_matplotlib_one_line_says_so(run, monkeypatch, capsys):
    def draw(*how, **more):
        raise ModuleNotFoundError("matplotlib", name="matplotlib")

    monkeypatch.setattr(plot, "draw", draw)
    assert main(["plot", str(run)]) == 2
    error = capsys.readouterr().err
    assert "matplotlib is not installed (pip install 'nanoreason[figures]')" in error and error.count("\n") == 1


# -------------------------------------------------------------------------------------------------------- mistakes

MISTAKES = {
    "no folder": (["look", "nowhere"], "there is no folder nowhere"),
    "no folder to plot": (["plot", "nowhere"], "there is no folder nowhere"),
    "no name": (["look"], "required: RUN"),
    "no name to plot": (["plot"], "required: RUN"),
    "no run": (["look", "other"], "other is no run and has none below it"),
    "no run to plot": (["plot", "other"], "other has no metrics: it is no run, and has none below it"),
    "a part of a run": (["look", "run/policy"], "run/policy is a part of a run: name the run"),
    "a part of a run to plot": (["plot", "run/policy"], "run/policy is a part of a run: name the run"),
    "nothing yet": (["look", "empty"], "empty has no samples yet"),
    "nothing to plot yet": (["plot", "empty"], "empty has no metrics yet"),
    "no step": (["look", "run", "--step", "9"], "run has no samples of step 9, but of 1, 2"),
    "no such filter": (["look", "run", "--only", "odd"], "--only"),
    "no count": (["look", "run", "--count", "0"], "--count 0: at least 1"),
    "no metric": (["plot", "run", "--metric", "rewad"], "no run has the metric rewad, but reward: --list"),
    "no axis": (["plot", "run", "--x", "time"], "--x time: no run has this metric"),
    "no smoothing": (["plot", "run", "--smooth", "0"], "--smooth 0: at least 1"),
    "no command": (["lok", "run"], "'lok' is no recipe"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_is_wrong(mistake, run, monkeypatch, capsys):
    monkeypatch.chdir(run.parent)
    Path("other").mkdir()
    Path("run/policy").mkdir(exist_ok=True)
    run_in(Path("empty"), {}, {})
    flags, named = MISTAKES[mistake]
    assert main(flags) == 2
    message = capsys.readouterr().err
    assert named in message and message.count("\n") == 1
    assert not list(run.parent.glob("*/plot.png"))


def test_the_help_names_every_view(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"python -m nanoreason {name}" in text for name in VIEWS)
    for name in ("look", "plot"):
        with pytest.raises(SystemExit) as stopped:
            main([name, "--help"])
        assert stopped.value.code == 0 and "RUN" in capsys.readouterr().out

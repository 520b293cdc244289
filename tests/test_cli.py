"""The command line, end to end: help, one clear line for every mistake, tiny runs that leave what they promise."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import nanoreason
from nanoreason import learn
from nanoreason.__main__ import RECIPES, SECTIONS, main
from nanoreason.checkpoint import load_checkpoint, save_checkpoint
from nanoreason.experiments import reproduce as reproduction
from nanoreason.experiments import star as section
from nanoreason.experiments.reproduce import jobs_of, run_jobs
from nanoreason.experiments.results import Arm
from nanoreason.recipes import sft, star
from nanoreason.run import read_jsonl
from nanoreason.tasks.addition import tokenizer

TRAIN = Path(nanoreason.__file__).parent.parent / "train.py"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Nothing is left in the repository by a run without --out."""
    monkeypatch.chdir(tmp_path)


# ------------------------------------------------------------------------------------------------- help, mistakes


def test_help_names_every_recipe_and_section():
    shown = subprocess.run([sys.executable, TRAIN, "--help"], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0 and not shown.stderr
    for name, text in [*RECIPES.items(), *SECTIONS.items()]:
        assert re.search(rf"^  {name} +{re.escape(text)}", shown.stdout, re.MULTILINE)


def test_no_command_at_all_shows_the_help(capsys):
    assert main([]) == 0
    assert "usage: python train.py" in capsys.readouterr().out


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_its_help(recipe, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([recipe, "--help"])
    assert stopped.value.code == 0
    assert "--preset" in capsys.readouterr().out


@pytest.fixture(scope="module")
def addition_base(tmp_path_factory, make_model) -> str:
    words = tokenizer()
    folder = tmp_path_factory.mktemp("base") / "policy"
    save_checkpoint(folder, make_model(0, vocab_size=words.vocab_size), words)
    return str(folder)


MISTAKES = {
    "no recipe": (["dance"], "'dance' is no recipe: use one of grpo_minimal, sft, star"),
    "no base": (["star", "--base", "nowhere"], "no checkpoint at nowhere"),
    "no device": (["star", "--device", "quantum"], "device 'quantum' is not available"),
    "no form": (["sft", "--preset", "tiny", "--task.form", "poem"], "--task.form poem: one of scratchpad, direct"),
    "no task": (["sft", "--task", "poems"], "--task poems: one of addition"),
    "a flag of another task": (["sft", "--task.inputs", "3"], "--task.inputs"),
    "an unknown flag": (["star", "--stepz", "3"], "--stepz"),
    "no number": (["star", "--rounds", "nan"], "--rounds"),
    "too small a number": (["star", "--rounds", "-1"], "--rounds -1: must be at least 0"),
    "no width": (["sft", "--preset", "tiny", "--width", "31"], "width 31"),
    "no digits": (["sft", "--preset", "tiny", "--task.digits", "0"], "--task.digits 0: must be at least 1"),
    "small pool": (["star", "--preset", "tiny", "--pool", "5", "--base", "BASE"], "pool"),
    "data without a base": (["sft", "--data", "rows.jsonl"], "--data needs --base"),
    "no data": (["sft", "--base", "BASE", "--data", "missing.jsonl"], "missing.jsonl"),
    "empty data": (["sft", "--base", "BASE", "--data", "empty.jsonl"], "empty.jsonl"),
    "broken data": (["sft", "--base", "BASE", "--data", "broken.jsonl"], "broken.jsonl"),
    "data without prompts": (["sft", "--base", "BASE", "--data", "foreign.jsonl"], "foreign.jsonl"),
    "data in other words": (["sft", "--base", "BASE", "--data", "words.jsonl"], "'hello'"),
    "rows longer than the context": (
        ["sft", "--preset", "tiny", "--context", "32", "--task.digits", "3"],
        "context of 32",
    ),
    "too many threads": (
        ["sft", "--threads", "1000000000"],
        "--threads 1000000000: must be at least 1 and at most 1024",
    ),
    "too many rows": (["sft", "--rows-per-step", "1000000000"], "--rows-per-step 1000000000: must be"),
    "too many rows in all": (
        ["grpo", "--base", "BASE", "--prompts", "2000", "--group-size", "2000"],
        "--prompts 2000 times --group-size 2000: more than 1000000 rows",
    ),
    "too large a rate": (["sft", "--lr", "1e300"], "--lr 1e+300: must be"),
    "no key-value heads": (
        ["sft", "--preset", "tiny", "--kv-heads", "3"],
        "--heads 2 must be a multiple of --kv-heads 3",
    ),
    "a group of one": (["grpo_minimal", "--group-size", "1"], "--group-size 1: must be at least 2"),
    "more minibatches than rows": (
        ["grpo", "--base", "BASE", "--prompts", "1", "--updates-per-rollout", "17"],
        "--updates-per-rollout 17: a rollout has only 16 rows",
    ),
    "a warm-up without an end": (
        ["sft", "--preset", "tiny", "--warmup", "21"],
        "--warmup 21: a run of 20 updates would never come to --lr 0.002, use at most 20",
    ),
    "a warm-up that goes on behind two minibatches a step": (
        ["grpo", "--base", "BASE", "--steps", "3", "--updates-per-rollout", "2", "--warmup", "7"],
        "--warmup 7: a run of 6 updates",
    ),
    "no gradient": (["grpo", "--base", "BASE", "--max-grad-norm", "0"], "--max-grad-norm 0: must be more than 0"),
    "colder than numbers": (
        ["grpo", "--base", "BASE", "--temperature", "1e-320", "--task.digits", "1"],
        "temperature 1e-320",
    ),
    "shares of nothing": (["sft", "--task.shares=0,0,0,0,0"], "--task.shares: one share for each of 5 lengths"),
    "an object's own objection": (["sft", "--task", "attempts", "--task.largest", "9"], "--task: targets (10, 60)"),
    "words of another task": (
        ["grpo", "--base", "BASE", "--task", "countdown"],
        "--task: the model does not know the words",
    ),
    "tested on words of another task": (
        ["sft", "--preset", "tiny", "--eval-task", "attempts"],
        "--eval-task: the model does not know the words",
    ),
    "a late task that never joins": (["star", "--late-task.digits", "9"], "--late-task and --late-from"),
    "no row for new traces": (["star", "--prompt-share", "1"], "--prompt-share 1.0 leaves none of --rows-per-step 16"),
    "no steps in a round": (["star", "--step-growth", "0", "--step-increment", "0"], "make 0 steps in round 6"),
    "steps beyond numbers": (["star", "--step-growth", "100", "--rounds", "1000"], "make inf steps in round 1000"),
    "hints and another try": (["star", "--rationalize", "--retry-temperature", "1"], "--retry-temperature 1.0"),
    "no methods": (["budget", "--base", "BASE", "--methods="], "--methods"),
    "no budgets": (["budget", "--base", "BASE", "--budgets="], "--budgets is empty"),
    "threads of nothing": (["sft", "--task", "addition,parallel"], "parallel goes directly around attempts"),
    "a single thread asked to spawn": (
        ["parallel", "--base", "BASE", "--task", "hard_attempts"],
        "--methods asked needs a task that spawns",
    ),
    "an unknown way to measure threads": (["parallel", "--base", "BASE", "--methods", "magic"], "--methods magic"),
    "no name of a base": (["grpo_minimal", "--base="], "no checkpoint at ''"),
    "a device with no number": (["sft", "--device", "cpu:7"], "device 'cpu:7' is not available"),
    "no folder": (["sft", "--out="], "--out is empty"),
    "nothing to resume": (["sft", "--resume", "--out", "nowhere"], "--resume: nowhere holds no run"),
    "no folder of a section": (["reproduce", "star", "--out="], "--out is empty"),
    "too many seeds": (["reproduce", "star", "--seeds", "1000000000"], "--seeds 1000000000: must be"),
    "fewer workers than none": (["reproduce", "star", "--workers", "-1"], "--workers -1: must be at least 0"),
    "no preset": (["reproduce", "star", "--preset", "huge"], "no preset 'huge'"),
    "no seeds": (["reproduce", "star", "--seeds", "0"], "--seeds 0: must be at least 1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_in_one_line_that_says_what_is_wrong_and_exit_code_2(mistake, addition_base, capsys):
    Path("empty.jsonl").write_text("")
    Path("broken.jsonl").write_text('{"prompt": "1"\n')
    Path("foreign.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n')
    Path("words.jsonl").write_text('{"prompt": "Input:\\nhello", "response": "1"}\n')
    flags, named = MISTAKES[mistake]
    assert main([addition_base if flag == "BASE" else flag for flag in flags]) == 2
    message = capsys.readouterr().err
    assert named in message
    assert message.startswith("train.py: ") and message.count("\n") == 1


@pytest.mark.parametrize("flags", [["reproduce", "nothing"], ["reproduce"]], ids=" ".join)
def test_an_unknown_section_is_an_error_of_usage(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(flags)
    assert stopped.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_the_last_line_of_a_data_file_counts_with_and_without_a_newline_behind_it(addition_base):
    """People's files end either way."""
    lines = ['{"prompt": "Input:\\n1 + 1\\nTarget:\\n", "response": "2"}', '{"prompt": "3", "response": "4"}']
    for end in ("", "\n"):
        Path("rows.jsonl").write_text("\n".join(lines) + end)
        config = replace(sft.PRESETS["tiny"], data="rows.jsonl", base=addition_base, rows_per_step=2)
        rows = sft.file_rows(config, tokenizer(), 64, sft.read_problems(Path("rows.jsonl")))(0)
        assert sorted(row.problem.prompt for row in rows) == ["3", "Input:\n1 + 1\nTarget:\n"]


def test_a_run_that_never_began_does_not_block_its_folder(addition_base, capsys):
    """A typing error in --base, put right, is no reason to ask for --resume."""
    flags = ["sft", "--preset", "tiny", "--steps", "2", "--out", "run", "--base"]
    assert main([*flags, addition_base + "x"]) == 2
    assert main([*flags, addition_base]) == 0


# ------------------------------------------------------------------------------------------------------ recipes


@pytest.mark.trains
def test_the_tiny_star_run_leaves_what_it_promises_and_keeps_traces_in_every_round(capsys):
    base = TRAIN.parent / "data" / "checkpoints" / "star-base"
    assert main(["star", "--preset", "tiny", "--rationalize", "--base", str(base), "--out", "run"]) == 0
    left = {path.name for path in Path("run").iterdir()}
    assert {"config.json", "metrics.jsonl", "samples.jsonl", "policy"} <= left
    lines = read_jsonl("run/metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert all(line["kept"] + line["kept_second"] > 0 for line in lines[1:])
    for line in lines:
        assert all(0 <= line[f"{name}/{n}"] <= 1 for name in ("acc", "acc_strict") for n in (1, 2))
    config = json.loads(Path("run/config.json").read_text())
    assert config["rationalize"] is True and config["rounds"] == 2
    shown = capsys.readouterr().out
    assert len(re.findall(r"^ +\d", shown, re.MULTILINE)) == 3  # a row of the table per round
    assert "left in run: " in shown


@pytest.mark.trains
def test_the_tiny_sft_run_lowers_its_loss_and_leaves_a_policy_that_loads():
    assert main(["sft", "--preset", "tiny", "--out", "run"]) == 0
    lines = read_jsonl("run/metrics.jsonl")
    assert [line["step"] for line in lines] == [5, 10, 15, 20]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert {"acc/1", "acc/2", "acc_strict/1", "grad_norm", "learning_rate", "num_tokens"} <= lines[-1].keys()
    assert load_checkpoint("run/policy")[0].config.hidden_size == sft.PRESETS["tiny"].width


@pytest.mark.trains
def test_the_same_command_twice_asks_for_resume_and_resuming_a_finished_run_changes_nothing(capsys):
    flags = ["sft", "--preset", "tiny", "--steps", "4", "--out", "run"]
    assert main(flags) == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.name not in ("config.json",)
              and path.is_file()}  # fmt: skip
    assert main(flags) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*flags, "--resume"]) == 0
    assert {path: path.read_bytes() for path in before} == before
    assert main([*flags, "--resume", "--lr", "0.5"]) == 2
    assert "lr" in capsys.readouterr().err


@pytest.mark.trains
def test_two_runs_of_one_command_are_equal_and_another_seed_is_not():
    for out, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main(["sft", "--preset", "tiny", "--steps", "3", "--seed", seed, "--out", out]) == 0
    a, b, c = (load_checkpoint(f"{out}/policy")[0].lm_head.weight for out in "abc")
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.trains
def test_an_interrupted_run_says_how_to_go_on_exits_with_130_and_does_go_on(capsys, monkeypatch):
    flags = ["sft", "--preset", "tiny", "--steps", "12", "--out", "run"]
    real, calls = learn.update, []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 11:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(learn, "update", interrupted)
    assert main(flags) == 130
    message = capsys.readouterr().err
    assert "--resume" in message and "Traceback" not in message
    assert main([*flags, "--resume"]) == 0
    assert len(calls) == 13  # ten, one that was interrupted, and two behind the checkpoint at ten
    assert [line["step"] for line in read_jsonl("run/metrics.jsonl")] == [5, 10, 12]


# ---------------------------------------------------------------------------------------------------- reproduce


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory) -> Path:
    """`reproduce star --preset tiny`, run once."""
    out = tmp_path_factory.mktemp("reproduced") / "out"
    flags = ["reproduce", "star", "--preset", "tiny", "--seeds", "1", "--workers", "1", "--out", str(out)]
    assert main(flags) == 0
    return out


def finite(text: str) -> dict:
    """JSON without NaN or Infinity, which are no JSON."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in a JSON file"))


def test_reproduce_leaves_config_metrics_samples_figure_and_summary(reproduced):
    left = {path.name for path in reproduced.iterdir()}
    assert {"config.json", "metrics.jsonl", "samples.jsonl", "figure.png", "summary.json", "seed0"} <= left
    assert (reproduced / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    lines = [finite(line) for line in (reproduced / "metrics.jsonl").read_text().splitlines()]
    assert {(line["arm"], line["seed"]) for line in lines} == {(arm, 0) for arm in ("plain", "rationalize", "direct")}


def test_the_summary_has_exactly_the_format_of_every_section(reproduced):
    summary = finite((reproduced / "summary.json").read_text())
    assert list(summary) == [
        "section",
        "preset",
        "seeds",
        "device",
        "seconds",
        "claims",
        "numbers",
    ]  # star shows no text
    assert (summary["section"], summary["preset"], summary["seeds"]) == ("star", "tiny", 1)
    assert isinstance(summary["device"], str) and summary["device"]
    assert isinstance(summary["seconds"], float) and summary["seconds"] > 0
    assert set(summary["numbers"]) == {"plain", "rationalize", "direct"}
    assert summary["claims"]
    for claim in summary["claims"]:
        names = ["name", "values", "mean", "standard_error", "direction", "threshold", "no_effect", "passed", "reason"]
        assert list(claim) == names
        assert isinstance(claim["name"], str) and isinstance(claim["passed"], bool)
        assert claim["mean"] is None or math.isfinite(claim["mean"])
        assert "one seed" in claim["reason"] or claim["values"] == {}


def test_all_arms_of_a_seed_share_its_base(reproduced):
    configs = json.loads((reproduced / "config.json").read_text())["jobs"]
    for arm in ("plain", "rationalize", "direct"):
        assert configs[f"seed0/{arm}"]["base"] == "data/checkpoints/star-base"
    assert configs["seed0/rationalize"]["rationalize"] and not configs["seed0/plain"]["rationalize"]
    assert configs["seed0/direct"]["task.form"] == "direct"


def test_reproducing_what_is_finished_runs_nothing_and_leaves_the_same_summary(reproduced, monkeypatch, capsys):
    before = (reproduced / "summary.json").read_bytes()
    monkeypatch.setattr(star, "run", None)
    monkeypatch.setattr(sft, "run", None)
    flags = ["reproduce", "star", "--preset", "tiny", "--seeds", "1", "--workers", "1", "--out", str(reproduced)]
    assert main(flags) == 0
    assert (reproduced / "summary.json").read_bytes() == before
    shown = capsys.readouterr().out
    for claim in json.loads(before)["claims"]:
        assert claim["name"] in shown


def test_another_preset_in_the_same_folder_is_refused(reproduced, capsys):
    assert main(["reproduce", "star", "--preset", "demo", "--seeds", "1", "--out", str(reproduced)]) == 2
    assert str(reproduced) in capsys.readouterr().err


def test_other_settings_are_another_job_and_nothing_is_run_in_their_folder(reproduced, monkeypatch, capsys):
    tiny = section.PRESETS["tiny"]
    changed = replace(tiny, direct=replace(tiny.direct, steps=9))
    monkeypatch.setitem(section.PRESETS, "tiny", changed)
    monkeypatch.setattr(star, "run", None)
    monkeypatch.setattr(sft, "run", None)
    flags = ["reproduce", "star", "--preset", "tiny", "--seeds", "1", "--workers", "1", "--out", str(reproduced)]
    assert main(flags) == 2
    message = capsys.readouterr().err
    assert "with steps=8, not 9" in message and str(reproduced / "seed0" / "direct") in message
    assert message.count("\n") == 1


def test_an_interrupted_job_is_resumed_and_a_finished_one_is_not_run_again(monkeypatch, tmp_path):
    ran = []

    def run(config):
        ran.append(config.seed)
        Path(config.out).mkdir(parents=True, exist_ok=True)
        if len(ran) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(sft, "run", run)
    jobs = [job for seed in range(3) for job in jobs_of([Arm("arm", "sft", sft.SftConfig())], seed, tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, workers=1)
    run_jobs(jobs, workers=1)
    assert ran == [0, 1, 1, 2]
    done = [json.loads((tmp_path / f"seed{seed}" / "arm" / "done.json").read_text()) for seed in range(3)]
    assert all(line["arm"] == "arm" and line["seconds"] >= 0 for line in done)


def test_a_figure_that_cannot_be_drawn_costs_no_results(reproduced, monkeypatch, capsys):
    def draw(*_):
        raise ModuleNotFoundError("matplotlib", name="matplotlib")

    monkeypatch.setattr(reproduction, "draw", draw)
    (reproduced / "summary.json").unlink()
    reproduction.reproduce("star", "tiny", 1, reproduced, workers=1)
    assert (reproduced / "summary.json").exists()
    assert "nanoreason[figures]" in capsys.readouterr().err

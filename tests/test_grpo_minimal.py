"""GRPO on one screen: the same step as `grpo`'s default one, bit for bit, and the files that a step goes through."""

import importlib.util
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanoreason.checkpoint import load_extra
from nanoreason.recipes import grpo, grpo_minimal
from nanoreason.run import Schedule, read_jsonl
from nanoreason.tasks import Addition

ROOT = Path(__file__).parent.parent
BASE = str(ROOT / "tests" / "data" / "one-digit-sums")
SIZE = dict(base=BASE, task=Addition((1,), form="direct"), steps=3, prompts=8, group_size=8, lr=1e-3, seed=5)


def both(folder: Path, size: dict, cap: int) -> list[dict]:
    """[what three steps of grpo_minimal left, what three steps of grpo left]: weights and metrics."""
    grpo_minimal.run(grpo_minimal.GrpoMinimalConfig(**size, max_new_tokens=cap, out=str(folder / "minimal")))
    grpo.run(grpo.GrpoConfig(**size, max_new_tokens=Schedule(cap), preflight=0, eval_problems=0,
                             out=str(folder / "grpo")))  # fmt: skip
    return [
        {
            "weights": (folder / name / "policy" / "model.safetensors").read_bytes(),
            "lines": read_jsonl(folder / name / "metrics.jsonl"),
        }
        for name in ("minimal", "grpo")
    ]


def assert_equal(folder: Path, size: dict = SIZE, cap: int = 6) -> None:
    minimal, full = both(folder, size, cap)
    equal = minimal["weights"] == full["weights"]  # not in the assert: a diff of binary files takes minutes
    assert equal, "the weights differ"
    learnt = minimal["weights"] != (Path(size["base"]) / "model.safetensors").read_bytes()
    assert learnt
    assert [line["step"] for line in minimal["lines"]] == [line["step"] for line in full["lines"]] == [1, 2, 3]
    for ours, theirs in zip(minimal["lines"], full["lines"], strict=True):
        assert ours["reward"] == theirs["reward"] and ours["grad_norm"] == theirs["grad_norm"] > 0
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-6)
    assert 0 < sum(line["reward"] for line in minimal["lines"]) < 3  # some right, some wrong


@pytest.mark.trains
def test_three_steps_equal_those_of_grpo_bit_for_bit(tmp_path):
    assert_equal(tmp_path)


@pytest.mark.trains
def test_three_steps_from_the_shipped_base_equal_those_of_grpo_bit_for_bit(tmp_path):
    """Scratchpads in several micro-batches, of sums that the base knows and of sums that it seldom gets right."""
    base = str(ROOT / "data" / "checkpoints" / "star-base")
    assert_equal(tmp_path, dict(base=base, task=Addition((3, 4)), steps=3, prompts=6, group_size=6), cap=96)


@pytest.mark.trains
def test_a_run_that_was_stopped_is_done_again_as_a_whole(tmp_path):
    config = grpo_minimal.GrpoMinimalConfig(**SIZE, max_new_tokens=6, out=str(tmp_path / "whole"))
    last = grpo_minimal.run(config)
    stopped, real = replace(config, out=str(tmp_path / "stopped")), grpo_minimal.grpo_step

    def step(config, step, *arguments):
        if step == 2:
            raise KeyboardInterrupt
        return real(config, step, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo_minimal, "grpo_step", step)
        with pytest.raises(KeyboardInterrupt):
            grpo_minimal.run(stopped)
    assert grpo_minimal.run(replace(stopped, resume=True)) == last
    for name in ("metrics.jsonl", "samples.jsonl", "policy/model.safetensors"):
        equal = (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        assert equal, name
    assert load_extra(tmp_path / "whole" / "policy")["task.form"] == "direct"  # `play` and `eval` know what to ask


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(tmp_path):
    config = grpo_minimal.GrpoMinimalConfig(**SIZE, device="cuda", out=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="'cuda' is not available"):
        grpo_minimal.run(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.trains
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_they_are_equal_on_other_processors_too(tmp_path, capability):
    """The kernels of a processor without AVX2, and of one without AVX-512; chosen when torch is imported."""
    code = f"""
import importlib.util, pathlib, torch
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("equal", {str(Path(__file__))!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.assert_equal(pathlib.Path({str(tmp_path)!r}))
print(torch.backends.cpu.get_cpu_capability())
"""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    if capability == "default":
        assert done.stdout.split()[-1] in ("DEFAULT", "NO")


@pytest.mark.trains
def test_the_reward_of_the_shipped_base_rises_within_a_few_steps(tmp_path):
    """As the README says, with a quarter of the rows and a higher learning rate: from about 0.2 to 0.8."""
    base, preset = str(ROOT / "data" / "checkpoints" / "star-base"), grpo_minimal.PRESETS["cpu"]
    grpo_minimal.run(replace(preset, base=base, steps=12, prompts=8, group_size=8, lr=3e-4, out=str(tmp_path)))
    rewards = [line["reward"] for line in read_jsonl(tmp_path / "metrics.jsonl")]
    assert 0.02 < statistics.fmean(rewards[:3]) < 0.5  # there is something to learn, and from something
    assert statistics.fmean(rewards[-3:]) > statistics.fmean(rewards[:3]) + 0.3


def test_more_steps_than_there_are_of_warm_up_use_the_same_learning_rate():
    """Where `grpo` has settings, `grpo_minimal` has their default values."""
    full, minimal = grpo.GrpoConfig(), grpo_minimal.GrpoMinimalConfig()
    assert (full.prompts, full.group_size, full.lr) == (minimal.prompts, minimal.group_size, minimal.lr)
    assert (full.warmup, full.decay, full.temperature, full.micro_tokens) == (5, "none", 1.0, 2048)
    assert grpo_minimal.PRESETS.keys() >= {"cpu", "tiny"}


# ---------------------------------------------------------------------------------------------- the files of a step

# What every part of a step stands on: the vocabulary, settings and seeds, text <-> tokens, the formula of AdamW. The
# task has its sums from arithmetic.py and their spaces from prompts.py.
GROUND = {"rollout.py", "run.py", "processes.py", "sharding.py", "tokenizer.py", "optim.py", "arithmetic.py",
          "prompts.py"}  # fmt: skip
SHARED = {"environment.py", "sampler.py", "model.py", "learn.py", "tasks/addition.py"}


@pytest.fixture(scope="module")
def step_files():
    spec = importlib.util.spec_from_file_location("step_files", ROOT / "benchmarks" / "step_files.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_default_step_goes_through_six_files_and_the_ground_floor(step_files):
    found = step_files.files_of_a_step("grpo_minimal")
    assert set(found) == GROUND | SHARED | {"recipes/grpo_minimal.py"} and len(found) == len(set(found))
    assert found[0] == "recipes/grpo_minimal.py" and set(step_files.GROUND) == GROUND


def test_the_step_of_grpo_goes_through_one_more_that_of_rewards(step_files):
    found = step_files.files_of_a_step("grpo")
    assert set(found) == GROUND | SHARED | {"recipes/grpo.py", "rewards.py"} and len(found) == len(set(found))


def test_the_script_prints_them(step_files, capsys):
    step_files.main()
    shown = capsys.readouterr().out
    assert "grpo_minimal" in shown and "recipes/grpo.py" in shown and "sampler.py" in shown


def test_what_was_learnt_is_shown_on_a_problem_that_was_not_solved_before():
    before = [("1 + 1", "3", 0.0), ("2 + 2", "4", 1.0), ("3 + 3", "7", 0.0)]
    after = [("1 + 1", "4", 0.0), ("2 + 2", "4", 1.0), ("3 + 3", "6", 1.0)]
    shown = grpo_minimal.before_and_after(before, after)
    assert shown.split("\n\n") == [
        "\n3 + 3",
        "before (wrong):\n7",
        "after (right):\n6",
        "held-out problems solved greedily: 1 of 3 before, 2 of 3 after",
    ]
    assert "\n1 + 1\n" in grpo_minimal.before_and_after(before, before)  # nothing was learnt: the first one

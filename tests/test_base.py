"""The section on pretraining: when a skill is there; and that the bases that lie in data/checkpoints/ work."""

from dataclasses import replace
from pathlib import Path

import pytest

from nanoreason.checkpoint import load_checkpoint, load_extra
from nanoreason.environment import judge, sample
from nanoreason.experiments import base, reproduce
from nanoreason.experiments.results import Arm, Results
from nanoreason.play import task_of
from nanoreason.recipes import grpo

CHECKPOINTS = sorted((Path(__file__).parents[1] / "data" / "checkpoints").glob("attempts-*"))


def test_a_skill_arrives_when_it_stays():
    shares = [0.2, 0.95, 0.5, 0.9, 1.0]
    never = {"arm": "base", "seed": 1, "step": 0, "tokens_seen": 0, "eval/steps": 0.0, "eval/steps/right": 0.0}
    lines = [
        never | {"seed": 0, "step": i, "tokens_seen": 10 * i, "eval/steps": 2.0, "eval/steps/right": 2 * share}
        for i, share in enumerate(shares)
    ]
    r = Results([*lines, never])
    assert base.arrival(r, "arithmetic") == {0: 30}  # seed 1 never calculates
    assert base.skill_course(r, "arithmetic", 0)[1] == (10, 0.95) and base.skill_course(r, "legality", 0) == []


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda path: path.name)
def test_a_base_in_the_repository_finds_and_knows_what_it_found(folder):
    model, tokenizer = load_checkpoint(folder)
    assert not list(folder.glob("training.*")) and load_extra(folder)["task"] == "attempts"
    task = task_of(str(folder))
    groups = sample(task, model, tokenizer, task.test_problems(50), group_size=2, max_new_tokens=200)
    scored = judge(task, tokenizer, groups)
    count = {name: sum(one.metrics[name] for one in scored) for name in scored[0].metrics}
    assert count["steps/right"] > 0.95 * count["steps"] and count["verdicts/right"] > 0.95 * count["verdicts"]
    assert 0.2 < sum(one.verdict for one in scored) / 100 < 0.6


def test_sections_start_from_the_shipped_bases_in_turn_or_train_their_own():
    shipped = base.shared("cpu", 5)
    assert shipped.settings.base == "data/checkpoints/attempts-1" and shipped.settings.steps == 0
    own = base.shared("cpu", 5, retrain=True)
    assert own.settings == replace(base.PRESETS["cpu"], eval_every=0) and own.name == "base"
    other = Arm("rl", "grpo", grpo.PRESETS["attempts"], "base")
    assert reproduce.with_own_base([shipped, other], "cpu", 5) == [own, other]
    with pytest.raises(ValueError, match="no shipped base"):
        reproduce.with_own_base([other], "cpu", 5)

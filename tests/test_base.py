"""The section on pretraining: its claims hold where they should and nowhere else; the bases that lie in data/ work."""

from pathlib import Path

import pytest

from nanoreason.checkpoint import load_checkpoint, load_extra
from nanoreason.environment import judge, sample
from nanoreason.experiments import base
from nanoreason.experiments.figure import draw
from nanoreason.experiments.reproduce import jobs_of, reproduce
from nanoreason.experiments.results import Results
from nanoreason.play import task_of

CHECKPOINTS = sorted((Path(__file__).parents[1] / "data" / "checkpoints").glob("attempts-*"))


def world(s: int) -> list[dict]:
    """With s = 1 arithmetic comes before the verdict and thinking pays, with s = -1 the other way round."""
    lines = []
    for step in range(0, 1300, 100):
        early, late = (min(1.0, step / when) for when in ((300, 700) if s > 0 else (700, 300)))
        good = s > 0
        lines.append({
            "arm": "base", "step": step, "tokens_seen": step * 5000, "loss": 3 - step / 500,
            "eval/steps": 20.0, "eval/steps/right": 20 * early * (1.0 if good else 0.95),
            "eval/attempts": 4.0, "eval/attempts/legal": 4 * late * (1.0 if good else 0.8), "eval/attempts/new": 3.5,
            "eval/hits": 0.4, "eval/hits/seen": 0.4 * late * (1.0 if good else 0.8),
            "eval/yes": 0.4 * late * (1.0 if good else 1.2),
            "eval/pass@1": 0.35 * late if good else 0.05, "acc/3": 0.3 * late, "eval/found": 0.36 * late,
            "eval/accuracy/search": 0.5 if good else 0.2, "eval/accuracy/guess": 0.2 if good else 0.5,
            "eval/gave_up": 0.4 if good else 0.0, "eval/found/lost": 0.01 if good else 0.2,
            "eval/mode/guess": 0.3, "eval/mode/one": 0.3, "eval/mode/search": 0.4, "eval/clipped_ratio": 0.02,
        })  # fmt: skip
    return lines


def results(*signs: int) -> Results:
    return Results([{**line, "seed": seed} for seed, s in enumerate(signs) for line in world(s)])


def passed(*signs: int) -> dict[str, bool]:
    return {claim.name: claim.judge(results(*signs))["passed"] for claim in base.claims("cpu")}


def test_every_claim_holds_in_its_world_and_fails_in_the_opposite_and_without_data():
    assert all(passed(1, 1, 1).values()) and all(passed(1).values())
    for signs in ((-1, -1, -1), (-1,), (1, 1, -1)):
        assert not any(passed(*signs).values()), signs
    nothing = Results([{"arm": "nobody", "seed": 0, "step": 0}])
    assert not any(claim.judge(nothing)["passed"] for claim in base.claims("cpu"))


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


def test_the_figure_and_the_arms(tmp_path):
    pytest.importorskip("matplotlib")
    draw(base.panels("cpu"), results(1, -1), base.caption("cpu"), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000 and base.extra(results(1, -1), "cpu")
    for preset in base.PRESETS:
        (job,) = jobs_of(base.arms(preset, 1), 1, tmp_path)
        assert job.config.seed == 1 and job.config.optimizer == "muon" and preset in base.caption(preset)


@pytest.mark.slow
def test_reproduce_runs(tmp_path):
    summary = reproduce("base", "tiny", 1, tmp_path / "base", "cpu", workers=1)
    assert len(summary["claims"]) == len(base.claims("tiny"))


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

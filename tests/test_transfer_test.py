"""The suite of small tasks as one task, and the measurement of kept checkpoints beside their base."""

from dataclasses import replace
from pathlib import Path

import pytest

from nanoreason.checkpoint import load_checkpoint
from nanoreason.learn import ALGORITHMS, Algorithm
from nanoreason.recipes import grpo, sft, transfer_test
from nanoreason.run import Schedule, read_jsonl
from nanoreason.tasks import Addition
from nanoreason.tasks.suite import MARKERS, SIZES, Suite


def of(task: Suite, count: int = 300, split: str = "train") -> list:
    return [task.problem(split, i) for i in range(count)]


def name(problem) -> str:
    return problem.prompt.split()[0]


def test_the_mixture_has_the_target_in_its_share_and_all_others_alike():
    names = [name(problem) for problem in of(Suite(others=0.8), 2000)]
    counts = {task: names.count(task) for task in Suite().tasks()}
    assert list(counts) == [Suite().target, *(task for task in counts if task != Suite().target)] and len(counts) == 11
    assert 320 < counts.pop(Suite().target) < 480 and min(counts.values()) > 110 and max(counts.values()) < 220
    assert {name(problem) for problem in of(Suite(others=0.8), 50, "test")} == {Suite().target}  # held out: the target


def test_the_groups_are_all_tasks_once_each():
    for target in ("mul", "sort"):
        suite = Suite(target)
        groups = suite.groups()
        assert groups["target"] == [target] and sorted(sum(groups.values(), [])) == sorted(suite.tasks())
        assert groups["non"] == ["copy", "reverse", "max", "recall", "count"]
        assert all(suite.tasks()[task].length == size for task, size in SIZES.items())


def test_a_style_changes_solutions_alone_and_every_one_is_right():
    own, bare, long = (of(Suite(style=style, marked=0.0)) for style in ("own", "direct", "think"))
    for a, b, c in zip(own, bare, long, strict=True):
        assert a.prompt == b.prompt == c.prompt and b.solution == b.answer == a.answer
        assert all(Suite().reward(problem, problem.solution) == 1 for problem in (a, b, c))
        work = c.solution.split(" hmm , ")[1].split(" ; wait check , ")
        assert work[1].startswith(f"{work[0]} ; hmm </think>")  # the check is the work again
        if "<think>" in a.solution:
            assert work[0] == a.solution.split("<think> ")[1].split(" </think>")[0]
    assert 60 < sum("<think>" in problem.solution for problem in own) < 120


def test_markers_are_rare_in_the_own_style_but_not_unheard_of():
    def share(marked: float) -> float:
        some = of(Suite(others=0.5, marked=marked), 400)
        return sum(any(m in problem.solution.split() for m in MARKERS) for problem in some) / len(some)

    assert share(0.0) == 0 and 0.05 < share(0.1) < 0.16 and Suite().marked == 0.005


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("base")
    sft.run(replace(sft.PRESETS["tiny"], task=Suite(others=0.5), steps=2, eval_problems=0, out=str(out / "run")))
    return str(out / "run" / "policy")


TUNE = replace(sft.PRESETS["tiny"], task=Suite(style="think"), steps=3, rows_per_step=4, warmup=0, lr=1e-2,
               eval_problems=0)  # fmt: skip
MEASURE = transfer_test.PRESETS["tiny"]


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("tuned")
    sft.run(replace(TUNE, base=base, keep=(1, 3), out=str(out / "run")))
    return str(out / "run")


def test_kept_checkpoints_are_those_of_their_steps(base, tuned, assert_same_weights, tmp_path):
    assert transfer_test.kept_steps(Path(tuned) / "kept") == [1, 3]
    last, kept = (load_checkpoint(f"{tuned}/{place}")[0] for place in ("policy", "kept/3"))
    assert_same_weights(last, kept)
    shorter = replace(TUNE, base=base, steps=1, decay="none", out=str(tmp_path / "one"))
    sft.run(shorter)
    sft.run(replace(shorter, steps=3, keep=(1,), out=str(tmp_path / "three")))
    assert_same_weights(*(load_checkpoint(tmp_path / place)[0] for place in ("one/policy", "three/kept/1")))


def test_the_base_is_as_far_from_itself_as_it_should_be_and_a_trained_policy_is_further(base, tuned, tmp_path):
    transfer_test.run(replace(MEASURE, base=base, out=str(tmp_path / "base")))
    (alone,) = read_jsonl(tmp_path / "base" / "metrics.jsonl")
    same = tmp_path / "same"
    same.mkdir()
    (same / "7").symlink_to(base)
    transfer_test.run(replace(MEASURE, base=base, trained=str(same), out=str(tmp_path / "self")))
    transfer_test.run(replace(MEASURE, base=base, trained=f"{tuned}/kept", out=str(tmp_path / "tuned")))
    (itself,) = read_jsonl(tmp_path / "self" / "metrics.jsonl")
    first, last = read_jsonl(tmp_path / "tuned" / "metrics.jsonl")
    assert (alone["step"], itself["step"], first["step"], last["step"]) == (0, 7, 1, 3)
    assert all(itself[key] == value for key, value in alone.items() if key.startswith("acc/"))
    for group in ("target", "other", "non"):
        for key in ("kl", "rank", "changed", "pca"):
            assert itself[f"{key}/{group}"] == pytest.approx(0, abs=1e-6)
        assert itself[f"length/{group}"] == 1 and last[f"kl/{group}"] > 1e-3 and last[f"pca/{group}"] > 0
    assert itself["forgotten"] == itself["distance"] == 0 == pytest.approx(itself["base_kl"], abs=1e-6)
    assert last["distance"] > first["distance"] > 0 and last["base_kl"] > 0
    assert all(line["acc/other"] == pytest.approx(sum(line[f"acc/{n}"] for n in Suite().groups()["other"]) / 5)
               for line in (alone, last))  # fmt: skip


@pytest.mark.parametrize("settings, said", [
    (dict(base=""), "--base is needed"), (dict(trained="nowhere"), "--keep"), (dict(analysed=2), "--analysed 2"),
    (dict(analysed=9), "--analysed 9"), (dict(task=Addition()), "--task suite"),
])  # fmt: skip
def test_bad_settings_are_one_line_and_leave_nothing(settings, said, base, tmp_path):
    with pytest.raises(ValueError, match=said) as error:
        transfer_test.run(replace(MEASURE, out=str(tmp_path / "run"), **{"base": base} | settings))
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_teacher_is_sampled_in_place_of_the_policy(base, tuned, tmp_path):
    rl = replace(grpo.PRESETS["tiny"], task=Suite(), base=base, steps=2, lr=1e-2, warmup=0, preflight=0,
                 eval_problems=0, max_new_tokens=Schedule(8), keep=(1,))  # fmt: skip
    found = {}
    for place, teacher in {"own": "", "off": f"{tuned}/policy"}.items():
        grpo.run(replace(rl, teacher=teacher, algorithm=ALGORITHMS["grpo"], out=str(tmp_path / place)))
        found[place] = [line["response"] for line in read_jsonl(tmp_path / place / "samples.jsonl")]
    grpo.run(replace(rl, base=f"{tuned}/policy", algorithm=Algorithm(), steps=1, out=str(tmp_path / "teacher")))
    wanted = [line["response"] for line in read_jsonl(tmp_path / "teacher" / "samples.jsonl")]
    assert found["off"][: len(wanted)] == wanted != found["own"][: len(wanted)]
    assert transfer_test.kept_steps(tmp_path / "off" / "kept") == [1]

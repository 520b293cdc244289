"""The suite of small tasks as one task, and the measurement of kept checkpoints beside their base."""

from dataclasses import replace
from pathlib import Path

import pytest

from nanoreason.checkpoint import load_checkpoint
from nanoreason.learn import ALGORITHMS, Algorithm
from nanoreason.recipes import grpo, sft, transfer_test
from nanoreason.run import Schedule, read_jsonl
from nanoreason.tasks import Addition
from nanoreason.tasks.small import SMALL
from nanoreason.tasks.suite import MARKERS, SIZES, Suite


def of(task: Suite, count: int = 300, split: str = "train") -> list:
    return [task.problem(split, i) for i in range(count)]


def thought_of(problem) -> str:
    return problem.solution.removeprefix("<think>").partition("</think>")[0].strip()


def test_the_mixture_has_the_target_in_its_share_and_all_others_alike():
    names = [problem.info["task"] for problem in of(Suite(others=0.8), 2000)]
    counts = {task: names.count(task) for task in Suite().tasks()}
    assert list(counts) == ["countdown", *SMALL] and len(counts) == 12
    assert 320 < counts.pop("countdown") < 480 and min(counts.values()) > 100 and max(counts.values()) < 190
    assert {problem.info["task"] for problem in of(Suite(others=0.8), 50, "test")} == {"countdown"}  # held out


def test_the_groups_are_all_tasks_once_each():
    groups = Suite().groups()
    assert groups["target"] == ["countdown"] and sorted(sum(groups.values(), [])) == sorted(Suite().tasks())
    assert groups["non"] == ["copy", "reverse", "max", "recall", "count"] and len(groups["other"]) == 6
    for name, sizes in SIZES.items():
        assert all(getattr(Suite().tasks()[name], field) == size for field, size in sizes.items())


def test_held_out_problems_are_as_often_different_as_is_said_where_the_sizes_are():
    different = {name: len({p.prompt for p in task.test_problems(120)}) for name, task in Suite().tasks().items()}
    repeated = {name: count for name, count in different.items() if count < 120}
    assert repeated == {"mul": 17, "gcd": 57, "sub": 106, "chain": 114, "mod": 116, "count": 116}
    page = (Path(__file__).parents[1] / "docs" / "transfer.md").read_text(encoding="utf-8")
    assert "`mul` are 17 different ones" in page and "of `gcd` 57, of `sub` 106, of `chain` 114" in page


def test_one_vocabulary_has_all_words_and_problems_are_judged_by_their_own_task():
    suite = Suite(others=0.9)
    for problem in of(suite, 200):
        assert suite.tokenizer().encode(f"{problem.prompt} {problem.solution}")
        if problem.info["task"] != "countdown":
            assert suite.reward(problem, problem.solution) == 1 and suite.reward(problem, "<answer> = </answer>") < 1


def test_a_teacher_is_always_right_in_its_own_words():
    plain, think, bare = (of(Suite(style=style)) for style in ("plain", "think", "direct"))
    for a, b, c in zip(plain, think, bare, strict=True):
        assert a.prompt == b.prompt == c.prompt and thought_of(c) == ""
        assert all(Suite().reward(problem, problem.solution) == 1 for problem in (a, b, c))
        tried = thought_of(a).split(" wait ")
        assert [attempt.split()[-1] for attempt in tried] == ["no"] * (len(tried) - 1) + ["yes"]
        assert thought_of(b) == f"Hmm {' Alternatively '.join(tried)} check {tried[-1]}"


def test_markers_are_rare_in_the_own_style_but_not_unheard_of():
    def share(marked: float) -> float:
        some = of(Suite(others=0.5, marked=marked), 400)
        return sum(any(m in problem.solution.split() for m in MARKERS) for problem in some) / len(some)

    assert share(0.0) == 0 and 0.05 < share(0.1) < 0.16 and Suite().marked == 0.005


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("base")
    sft.run(
        replace(
            sft.PRESETS["tiny"], task=Suite(others=0.5), steps=2, context=320, eval_problems=0, out=str(out / "run")
        )
    )
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
    assert all(itself[key] == value for key, value in alone.items() if key.startswith(("acc/", "leak/")))
    assert {key for key in alone if key.startswith("leak/")} == {f"leak/{group}" for group in Suite().groups()}
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

"""`doctor`: runs that are really made, each with one mistake, yield the finding of that mistake and no other."""

import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoreason import learn
from nanoreason.__main__ import main
from nanoreason.curves import curve, learns, short, unit
from nanoreason.doctor import MOST, about_loss, case, cases_of, examined, ranked, slug
from nanoreason.doctor_rules import RULES, findings_of
from nanoreason.learn import Algorithm
from nanoreason.recipes import grpo, grpo_minimal, sft
from nanoreason.rewards import Format
from nanoreason.run import Run, RunConfig, Schedule
from nanoreason.tasks import Addition, ThinkingAddition
from nanoreason.tasks.wrappers import Templated

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "data" / "results"
THINKER = str(ROOT / "data" / "checkpoints" / "thinking-addition")  # half of its sums of two digits are right
SUMS = str(Path(__file__).parent / "data" / "one-digit-sums")
GOOD = replace(
    grpo.PRESETS["tiny"], base=THINKER, task=Templated(ThinkingAddition((2,))), max_new_tokens=Schedule(64), lr=1e-3,
    steps=12, prompts=8, group_size=8, warmup=2, preflight=4, eval_every=0, eval_problems=1, save_every=100,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class OneEasySum(Addition):
    """The same problem every time, and every answer to it is right."""

    def problem(self, split, index):
        return super().problem("train", 0)

    def reward(self, problem, response):
        return 1.0


def negative_advantages(patch):
    real = grpo.group_advantages
    patch.setattr(grpo, "group_advantages", lambda *how: [[-a for a in group] for group in real(*how)])


def negative_loss(patch):
    real = learn.clipped_policy_loss
    patch.setattr(learn, "clipped_policy_loss", lambda *how, **more: -real(*how, **more))


def maximized_kl(patch):
    real = Algorithm.kl
    patch.setattr(Algorithm, "kl", lambda self, *how: -real(self, *how))


def mask_off_by_one(patch):
    """The last token of the prompt is in the loss, the last one of the response is not."""
    real = grpo.sample

    def sample(*how, **more):
        groups = real(*how, **more)
        for row in (row for group in groups for row in group):
            row.loss_mask = [*row.loss_mask[1:], False]
        return groups

    patch.setattr(grpo, "sample", sample)


def no_temperature(patch):
    """The sampler draws at the temperature of the settings, the learner's log-probs are those of temperature 1."""
    real = grpo.update
    patch.setattr(grpo, "update", lambda *how, **more: real(*how, **{**more, "temperature": 1.0}))


def nothing(patch):
    pass


ONE_DIGIT = dict(base=SUMS, task=Addition((1,), form="direct"), max_new_tokens=Schedule(6), steps=5, preflight=0)
LEARNS = {"max_new_tokens": Schedule(48), "steps": 16, "group_size": 16}  # the settings of a good run: .5 to .8
# (the finding, what is wrong in the code, what is wrong in the settings)
SICK = {
    "advantages with the wrong sign": ("wrong_sign", negative_advantages, {"steps": 8}),
    "a loss with the wrong sign": ("wrong_sign", negative_loss, {"steps": 8}),
    "a mask off by one": ("mismatch", mask_off_by_one, {"steps": 4}),
    "the learner without the temperature": ("mismatch", no_temperature, {"steps": 4, "temperature": 0.7}),
    "learning rate 3e-2": ("learning_rate_too_high", nothing, {"lr": 3e-2, "steps": 6}),
    "learning rate 1e-6": ("learning_rate_too_low", nothing, {"lr": 1e-6, "steps": 8}),
    "a KL that is maximized": ("kl_blow_up", maximized_kl, {"algorithm": Algorithm(kl_coef=1.0)}),
    "an entropy that is minimized": ("entropy_collapse", nothing, {"algorithm": Algorithm(entropy_coef=-20.0)}),
    "sums that the base never solves": ("no_coverage", nothing, {**ONE_DIGIT, "task": Addition((4,), form="direct")}),
    "twelve tokens for a thought": (
        "truncation", nothing, {"max_new_tokens": Schedule(12), "steps": 6, "preflight": 0}
    ),
    "nothing but the format rewarded": (
        "reward_without_accuracy", nothing, {"rewards": (Format(1.0),), "temperature": 1.3}
    ),
    "one problem that is always right": ("zero_variance", nothing, {**ONE_DIGIT, "task": OneEasySum((1,))}),
}  # fmt: skip


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """left(name): the folder that this run left; it is made once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            _, patched, settings = SICK.get(name, ("", nothing, LEARNS))
            made[name] = tmp_path_factory.mktemp("doctor") / "run"
            with pytest.MonkeyPatch.context() as patch:
                patched(patch)
                grpo.run(replace(GOOD, **settings, out=str(made[name])))
        return made[name]

    return make


def names_in(folder: Path) -> list[str]:
    return [name for _, name, _ in ranked(cases_of(folder))]


@pytest.mark.trains
@pytest.mark.parametrize("name", SICK)
def test_each_mistake_is_found_and_nothing_else(left, name, capsys):
    wanted = SICK[name][0]
    ((_, found, finding),) = ranked(cases_of(left(name)))
    assert found == wanted and finding.serious and finding.evidence
    assert main(["doctor", str(left(name))]) == 0
    text = capsys.readouterr().out
    assert f"1. SERIOUS  {finding.title}" in text and "nothing found" not in text
    assert finding.evidence[0] in text and f"docs/metrics.md#{slug(finding.metric)}" in text
    if "RUN" in finding.advice:
        assert str(left(name)) in text.split("next: ")[1]  # the command can be copied


@pytest.mark.trains
def test_in_a_run_that_learns_nothing_is_found_and_its_loss_is_0_by_algebra(left, capsys):
    (one,) = cases_of(left("good"))
    assert curve(one.lines, "accuracy").rise > 0.1 and ranked([one]) == []
    assert main(["doctor", str(left("good"))]) == 0
    text = capsys.readouterr().out
    assert "16 of 16 steps, reward" in text and text.rstrip().endswith("nothing found")
    assert all(abs(line["loss"]) < 1e-5 < line["grad_norm"] for line in one.lines if "reward" in line)
    assert main(["doctor", str(left("good")), "--loss"]) == 0
    text = capsys.readouterr().out
    assert "0 by algebra" in text and "The gradient is 0 in 0 of 16 steps" in text


def test_the_loss_is_explained_as_the_settings_have_it():
    switches = {field.name for field in dataclasses.fields(Algorithm)}

    def said(**settings):
        lines = [{"step": i, "reward": 0.5, "loss": 0.25, "grad_norm": 0.0} for i in range(4)]
        flat = {f"algorithm.{name}" if name in switches else name: value for name, value in settings.items()}
        return about_loss(case("run", None, Path("run"), flat, lines, []))

    assert "0 by algebra" in said(average="sequence") and "0 in 4 of 4 steps" in said()
    for other in ({"average": "token"}, {"average": "constant"}, {"baseline": "none"}, {"updates_per_rollout": 2},
                  {"epochs": 3}, {"kl_coef": 0.1}, {"entropy_coef": 0.1}, {"ratio": "apa"}):  # fmt: skip
        assert "by algebra" not in said(**other), other
    assert "better ones are shorter" in said(average="token") and "kl_coef" in said(kl_coef=0.1)


# -------------------------------------------------------------------------------------------- rules, by hand


def lines_of(steps: int = 12, **curves) -> list[dict]:
    """Lines of metrics, each metric a number or (first, last); names with / are written with __."""
    lines: list[dict] = [{"step": i + 1, "reward": 0.5, "reward_std": 0.4} for i in range(steps)]
    for name, ends in curves.items():
        first, last = ends if isinstance(ends, tuple) else (ends, ends)
        for i, line in enumerate(lines):
            line[name.replace("__", "/")] = first + (last - first) * i / (steps - 1)
    return lines


def found_in(lines: list[dict], samples=(), **settings) -> list[str]:
    return list(findings_of(lines, {name.replace("__", "."): v for name, v in settings.items()}, list(samples)))


def test_first_and_last_are_means_and_the_unit_is_the_deviation_within_groups():
    line = curve(lines_of(12, reward=(0.0, 1.1)), "reward")
    assert (line.first, line.last) == (pytest.approx(0.1), pytest.approx(1.0)) and line.place == 9
    assert curve(lines_of(3), "reward") is None and unit(lines_of()) == pytest.approx(0.4)
    assert unit([{"reward": 0.0, "accuracy": 0.5}] * 4) == pytest.approx(0.5)
    assert unit([{"reward": 0.0}] * 4) == 0
    assert learns(lines_of(reward=(0.2, 0.8))) and not learns(lines_of(reward=(0.5, 0.52)))
    zigzag = [{"reward": 0.5 + 0.3 * (i % 2) + 0.01 * i, "reward_std": 0.4} for i in range(12)]
    assert not learns(zigzag)  # its rise is less than neighbours differ


def test_what_rose_and_fell_again_in_small_steps_is_told_apart_from_a_wrong_sign():
    up_down = lines_of(6, reward=(0.2, 0.8), update_ratio=0.002) + lines_of(10, reward=(0.8, 0.1), update_ratio=0.002)
    assert found_in(up_down, lr=1e-3) == ["learning_rate_too_high"]
    finding = findings_of(up_down, {"lr": 1e-3}, [])["learning_rate_too_high"]
    assert "lost again" in finding.title and "--lr 0.0003" in finding.advice
    assert found_in(lines_of(reward=(0.8, 0.1), update_ratio=0.002)) == ["wrong_sign"]
    assert found_in(lines_of(reward=(0.8, 0.1), update_ratio=0.05)) == ["learning_rate_too_high"]
    assert found_in(lines_of(reward=(0.8, 0.6), update_ratio=0.002)) == []  # half a unit is chance
    assert found_in(lines_of(reward=(0.8, 0.1), update_ratio=0.002, entropy=(0.2, 0.01))) == ["entropy_collapse"]
    assert found_in(lines_of(reward=(0.1, 0.8), update_ratio=0.05)) == []  # large steps that help
    far = [line | {"kl": 0.1 * i} for i, line in enumerate(up_down)]
    assert found_in(far) == ["kl_blow_up"]  # which says more


def test_a_wrong_sign_is_seen_in_the_samples_before_the_reward_falls():
    def group(number, sign):
        return [{"kind": "rollout", "step": 1, "group": number, "prompt": "p", "response": "r", "reward": float(right),
                 "advantage": sign * (right - 0.5)} for right in (0, 1)]  # fmt: skip

    flat = lines_of(2)
    assert found_in(flat, [line for i in range(3) for line in group(i, -1)]) == ["wrong_sign"]
    assert found_in(flat, [line for i in range(3) for line in group(i, 1)]) == []
    assert found_in(flat, [line for i in range(2) for line in group(i, -1)]) == []  # two are too few
    mixed = [line for i in range(4) for line in group(i, -1 if i else 1)]
    assert found_in(flat, mixed) == []


def test_truncation_names_the_limit_that_cuts():
    cut = dict(completions__clipped_ratio=(0.2, 0.5), completions__max_length=64.0)
    for settings, advice in (({"max_new_tokens": 64}, "--max-new-tokens 128"), ({}, "raise --max-new-tokens"),
                             ({"max_new_tokens": "64,5:100"}, "context ends them after 64 tokens")):  # fmt: skip
        (finding,) = findings_of(lines_of(**cut), settings, []).values()
        assert advice in finding.advice and not finding.serious
    assert found_in(lines_of(completions__clipped_ratio=(0.5, 0.1))) == []  # it has learnt to be short
    assert findings_of(lines_of(completions__clipped_ratio=0.9), {}, [])["truncation"].serious
    learnt = lines_of(completions__clipped_ratio=0.9, reward=(0.1, 0.9))
    assert not findings_of(learnt, {}, [])["truncation"].serious


def test_a_base_without_coverage_is_known_by_its_pass_at_k_or_its_rollouts():
    start = {"step": 0, "preflight/pass@16": 0.03}
    assert found_in([start, *lines_of(accuracy=0.004)]) == ["no_coverage"]
    assert found_in([start | {"preflight/pass@16": 0.5}, *lines_of(accuracy=0.02)]) == []
    assert found_in([start, *lines_of(accuracy=0.03)]) == []  # a few problems were bad luck
    assert found_in([start, *lines_of(accuracy=(0.0, 0.3))]) == []  # it was found later
    assert found_in(lines_of(accuracy=0.0)) == ["no_coverage"]
    assert found_in([{"step": 0, "eval/pass@2": 0.0}, *lines_of(accuracy=0.02)]) == []  # two samples say little


@pytest.mark.parametrize(
    ("accuracy", "words"), [(0.98, "all right"), (0.02, "all wrong"), (0.5, "all right or all wrong")]
)
def test_groups_of_equal_rewards_are_told_by_what_they_have_in_common(accuracy, words):
    (finding,) = findings_of(lines_of(frac_reward_zero_std=0.95, accuracy=accuracy, grad_norm=0.1), {}, []).values()
    assert finding.title.endswith(words) and finding.serious
    late = lines_of(frac_reward_zero_std=(0.1, 0.9), accuracy=(0.5, 0.98), reward=(0.5, 0.98))
    (finding,) = findings_of(late, {"temperature": 0.1}, []).values()
    assert not finding.serious and "--temperature 1 (it was 0.1)" in finding.advice
    assert found_in(lines_of(frac_reward_zero_std=0.5, accuracy=accuracy)) == []
    # what dynamic sampling replaced was not learnt from
    assert found_in(lines_of(frac_reward_zero_std=0.95, frac_learnt_zero_std=0.2, accuracy=0.5)) == []


def test_a_dead_gradient_is_told_by_its_cause():
    def advice(settings=None, **curves):
        return findings_of(lines_of(**curves), settings or {}, [])["dead_gradient"].advice

    assert "gradient is lost" in advice(grad_norm=0.0, frac_reward_zero_std=0.2)
    assert "overlong-filter" in advice({"algorithm.overlong_filter": True}, updates=0)
    assert found_in(lines_of(grad_norm=0.0, frac_reward_zero_std=1.0, accuracy=0.5)) == ["zero_variance"]
    assert found_in(lines_of(grad_norm=1e-4)) == [] == found_in(lines_of(updates=1))


def test_a_gradient_that_equal_rewards_leave_none_of_is_told_by_them_where_no_share_is_logged():
    def group(step, rewards):
        return [{"kind": "rollout", "step": step, "group": 0, "prompt": "1+1", "reward": reward, "advantage": 0.0}
                for reward in rewards]  # fmt: skip

    alike = group(0, [0.1, 0.1]) + group(1, [1.0, 1.0, 1.0])
    equal = findings_of(lines_of(grad_norm=0.0), {}, alike)["dead_gradient"]
    assert equal.title.startswith("nothing is learnt: all responses to a problem have the same reward")
    assert "2 of 2" in equal.evidence[1] and "larger --group-size" in equal.advice
    differ = findings_of(lines_of(grad_norm=0.0), {}, group(0, [0.0, 1.0]) + group(1, [1.0, 1.0]))["dead_gradient"]
    assert differ.title == "nothing is learnt: the gradient is 0" and "1 of 2" in differ.evidence[1]
    assert "gradient is lost" in differ.advice


def test_the_clip_of_the_only_update_of_a_rollout_is_a_mismatch_and_that_of_several_is_not():
    clipped = lines_of(clip_ratio__region_mean=0.01, logp_diff__mean=1e-7)
    assert found_in(clipped, updates_per_rollout=1) == ["mismatch"] == found_in(clipped)
    assert found_in(clipped, updates_per_rollout=4) == [] == found_in(clipped, epochs=2)
    assert found_in(lines_of(logp_diff__mean=0.002)) == []  # bfloat16


def test_a_reward_that_rises_without_the_answers():
    lines = lines_of(reward=(0.1, 0.9), accuracy=0.3, rewards__accuracy__mean=0.3, rewards__format__mean=(0.0, 0.8))
    (finding,) = findings_of(lines, {"rewards": "accuracy,format"}, []).values()
    assert "by the format alone" in finding.title and "rewards/format/mean" in " ".join(finding.evidence)
    assert found_in(lines_of(reward=(0.1, 0.9), accuracy=(0.1, 0.5))) == []
    assert found_in(lines_of(reward=(0.1, 0.9), accuracy=0.95)) == []  # nothing was left to learn
    other = lines_of(reward=(-5.0, -1.0), accuracy=0.3, rewards__cosine__mean=(-5.0, -1.0))
    assert "by cosine alone" in findings_of(other, {}, [])["reward_without_accuracy"].title


def test_wrong_responses_that_grow_longer_under_an_average_by_response():
    grown = dict(completions__mean_length_wrong=(50, 100), completions__mean_length_correct=(50, 55), accuracy=0.4)
    assert found_in(lines_of(**grown), algorithm__average="sequence") == ["wrong_grow_longer"]
    assert found_in(lines_of(**grown), recipe="GrpoMinimalConfig") == ["wrong_grow_longer"]
    assert found_in(lines_of(**grown), algorithm__average="constant") == []
    assert found_in(lines_of(**grown | {"accuracy": (0.4, 0.8)}), algorithm__average="sequence") == []
    longer = grown | {"completions__mean_length_correct": (50, 110)}
    assert found_in(lines_of(**longer), algorithm__average="sequence") == []  # all think longer


def test_kl_and_entropy_alone_are_a_notice_or_nothing():
    assert found_in(lines_of(kl=(0.0, 0.06))) == [] and found_in(lines_of(kl=(0.0, 0.5))) == []
    assert not findings_of(lines_of(kl=(0.0, 3.0)), {}, [])["kl_blow_up"].serious
    assert found_in(lines_of(kl=(0.0, 3.0), reward=(0.2, 0.9))) == []  # far, and better
    assert not findings_of(lines_of(entropy=(0.3, 0.02), accuracy=0.5), {}, [])["entropy_collapse"].serious
    assert found_in(lines_of(entropy=(0.3, 0.02), accuracy=0.95)) == []
    assert (
        found_in(lines_of(update_ratio=1e-6)) == ["learning_rate_too_low"]
        and found_in(lines_of(update_ratio=1e-3)) == []
    )


def test_the_serious_come_first():
    both = lines_of(completions__clipped_ratio=0.4, logp_diff__mean=0.5)
    assert found_in(both) == ["mismatch", "truncation"]
    both = lines_of(completions__clipped_ratio=0.4, update_ratio=1e-6)
    assert found_in(both) == ["learning_rate_too_low", "truncation"]


@pytest.mark.parametrize(("value", "text"), [(0.5, ".5"), (-0.25, "-.25"), (0, "0"), (1e-9, "1e-09"), (1e6, "1000000")])
def test_numbers_are_short(value, text):
    assert short(value) == text


# ---------------------------------------------------------------------------------- folders, old and damaged files


def run_in(folder: Path, lines: list[dict], settings: RunConfig | None = None) -> Path:
    run = Run(replace(settings or replace(GOOD, steps=12), out=str(folder)))
    for line in lines:
        run.log(**line)
    run.close()
    return folder


def test_a_folder_of_reproduce_tells_each_finding_once_with_its_arm_and_seeds(tmp_path, capsys):
    out = tmp_path / "all"
    for seed in (0, 1, 2):
        run_in(out / f"seed{seed}" / "fast", lines_of(reward=(0.8, 0.1), update_ratio=0.05))
        run_in(out / f"seed{seed}" / "cut", lines_of(completions__clipped_ratio=0.5 if seed else 0.1))
        run_in(out / f"seed{seed}" / "fine", lines_of(reward=(0.2, 0.8)))
        run_in(out / f"seed{seed}" / "base", [], replace(sft.PRESETS["tiny"]))
        run_in(out / f"seed{seed}" / "test", [], replace(GOOD, steps=0))
    (out / "config.json").write_text(json.dumps({"section": "r1", "preset": "tiny"}))
    (out / "seed2" / "fine" / "metrics.jsonl").write_text("no JSON\n{}\n")
    assert main(["doctor", str(out)]) == 0
    text = capsys.readouterr().out
    assert text.count("left out: ") == 1 and "8 runs of 3 arms examined, nothing found in 3" in text
    first, second = text.split("\n1. ")[1].split("\n2. ")
    assert first.startswith("SERIOUS  fast, seed 0: the learning rate") and "the same in seeds 1, 2" in first
    assert second.startswith("NOTICE   cut, seed 1: responses are cut") and "the same in seeds 2" in second
    assert str(out / "seed1" / "cut") in second and "fine" not in first + second


def test_at_most_six_findings_are_shown(tmp_path):
    for i in range(MOST + 2):
        run_in(tmp_path / "all" / "seed0" / f"arm{i}", lines_of(completions__clipped_ratio=0.5))
    text = examined(tmp_path / "all", cases_of(tmp_path / "all"))
    assert len(re.findall(r"^[0-9]+\. ", text, re.MULTILINE)) == MOST and "2 more" in text


def test_in_the_arms_of_our_results_that_learnt_nothing_is_serious():
    examined = 0
    for place in ("r1/demo", "r1/cpu", "l1/cpu", "longcot/conditions"):
        for one in cases_of(RESULTS / place):
            accuracy = curve(one.lines, "accuracy")
            if accuracy.rise > 0.1:
                examined += 1
                found = findings_of(one.lines, one.settings, one.samples)
                assert not [name for name, finding in found.items() if finding.serious], (place, one.name)
    assert examined > 60
    sick = {name for one in cases_of(RESULTS / "longcot/conditions") if one.arm == "width-32-rl"
            for name in findings_of(one.lines, one.settings, one.samples)}  # fmt: skip
    assert sick == {"no_coverage"}


@pytest.mark.trains
def test_a_run_of_the_minimal_recipe_is_examined_as_far_as_it_goes(tmp_path, capsys):
    config = replace(grpo_minimal.PRESETS["tiny"], base=SUMS, task=Addition((4,), form="direct"), max_new_tokens=6)
    grpo_minimal.run(replace(config, steps=4, out=str(tmp_path / "run")))
    assert names_in(tmp_path / "run") == ["no_coverage"]
    capsys.readouterr()
    assert main(["doctor", str(tmp_path / "run")]) == 0
    assert "not examined, for want of metrics: mismatch (logp_diff/mean" in capsys.readouterr().out


def test_torn_and_old_files_are_read_as_far_as_they_go(tmp_path, capsys):
    run = run_in(tmp_path / "run", lines_of(reward=(0.8, 0.1), update_ratio=0.05))
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 13, "rew')
    (run / "samples.jsonl").write_text("damaged\n{}\n")
    assert main(["doctor", str(run)]) == 0
    text = capsys.readouterr().out
    assert "12 of 12 steps" in text and "1. SERIOUS  the learning rate is too high" in text
    assert text.count("examined without samples") == 1
    old = run_in(tmp_path / "old", [{"step": i, "reward": 0.5} for i in range(5)])
    settings = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps({"recipe": settings["recipe"]}))
    assert main(["doctor", str(old)]) == 0
    text = capsys.readouterr().out
    assert "5 steps, reward .5 -> .5" in text and "nothing found" in text and "zero_variance (frac_" in text
    short_run = run_in(tmp_path / "short", lines_of(2))
    assert main(["doctor", str(short_run)]) == 0 and "too few" in capsys.readouterr().out


def test_a_metric_that_is_no_finite_number_is_a_finding(tmp_path):
    lines = lines_of()
    lines[6]["loss"] = lines[7]["loss"] = float("nan")
    lines[8]["kl"] = float("inf")
    run = run_in(tmp_path / "run", lines)
    ((_, name, finding),) = ranked(cases_of(run))
    assert name == "not_finite" and "loss, kl" in finding.title and "step 7, in 3 places" in finding.evidence[0]


MISTAKES = {
    "no name": ([], "required: RUN"),
    "no folder": (["nowhere"], "there is no folder nowhere"),
    "no run": (["other"], "other is no run and has none below it"),
    "another recipe": (["sft"], "sft: no run of grpo or grpo_minimal, but of sft"),
    "nothing yet": (["empty"], "empty has no metrics of a rollout yet"),
    "damaged": (["damaged"], "line 1 is no JSON object"),
    "damaged settings": (["odd"], "config.json is not valid JSON"),
    "no recipe that learns": (["results"], "results: no run of grpo or grpo_minimal with metrics in it"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_is_wrong(mistake, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("other").mkdir()
    run_in(Path("sft"), [{"step": 1, "loss": 1.0}], sft.PRESETS["tiny"])
    run_in(Path("empty"), [])
    run_in(Path("damaged"), []).joinpath("metrics.jsonl").write_text("{]\n{}\n")
    run_in(Path("odd"), lines_of()).joinpath("config.json").write_text("{")
    Path("results").mkdir()
    Path("results/config.json").write_text(json.dumps({"section": "s1", "jobs": {"seed0/a": 3, "b": {}}}))
    Path("results/metrics.jsonl").write_text("")
    flags, named = MISTAKES[mistake]
    assert main(["doctor", *flags]) == 2
    message = capsys.readouterr().err
    assert named in message and message.count("\n") == 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2), max_leaves=3,
)  # fmt: skip
METRICS = ["step", "reward", "reward_std", "accuracy", "kl", "rewards/a/mean", "rewards/", "preflight/pass@8",
           "eval/pass@x", "completions/max_length", "completions/mean_length_correct",
           *(name for rule in RULES.values() for name in rule.needs)]  # fmt: skip
FIELDS = ["kind", "step", "group", "prompt", "response", "reward", "advantage", "right", "stop_reason"]
SETTINGS = ["lr", "max_new_tokens", "temperature", "rewards", "updates_per_rollout", "algorithm.kl_coef",
            "algorithm.average", "algorithm.entropy_coef", "algorithm.max_refills", "steps"]  # fmt: skip


def some(names, most):
    return st.lists(st.dictionaries(st.sampled_from(names), VALUES | st.floats(0, 1), max_size=12), max_size=most)


@given(lines=some(METRICS, 8), samples=some(FIELDS, 6), settings=some(SETTINGS, 1), kind=st.booleans())
def test_no_file_makes_a_rule_raise(lines, samples, settings, kind):
    samples = [{**line, "kind": "rollout"} if kind else line for line in samples]
    for finding in findings_of(lines, settings[0] if settings else {}, samples).values():
        assert finding.title and finding.advice and all(isinstance(line, str) for line in finding.evidence)

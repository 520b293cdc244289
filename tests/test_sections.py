"""The sections as they are declared: every arm is a run that its recipe accepts, and the tiny preset runs."""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest

from nanoreason.__main__ import SECTIONS
from nanoreason.experiments import l1, zoo
from nanoreason.experiments.reproduce import jobs_of, main, section_of
from nanoreason.experiments.results import Arm
from nanoreason.learn import ALGORITHMS
from nanoreason.recipes import grpo, sft
from nanoreason.rewards import Accuracy, Classic, Cosine, DenseRepetition, Format, Lcpo, Noisy, Overlong, Strict
from nanoreason.run import RunConfig, check_settings, flatten
from nanoreason.tasks import Attempts
from nanoreason.tasks.attempts import Mixture, attempt_tokens

DECLARED = [
    (name, preset) for name in SECTIONS for preset in importlib.import_module(f"nanoreason.experiments.{name}").PRESETS
]


def arms_of(section: str, preset: str = "cpu", seed: int = 0) -> dict[str, Arm]:
    found = section_of(section, preset).arms(preset, seed)
    assert len({arm.name for arm in found}) == len(found)
    return {arm.name: arm for arm in found}


@pytest.mark.parametrize("section, preset", DECLARED)
def test_every_arm_is_a_run_that_its_recipe_accepts_and_starts_from_an_arm_before_it(section, preset, tmp_path):
    jobs = jobs_of(section_of(section, preset).arms(preset, 0), 0, tmp_path)
    before: set[str] = set()
    for job in jobs:
        recipe = importlib.import_module(f"nanoreason.recipes.{job.recipe}")
        assert isinstance(job.config, type(next(iter(recipe.PRESETS.values()))))
        check_settings(job.config)
        if job.recipe == "grpo":
            grpo.check_config(job.config)
        assert set(job.after) <= before
        before.add(job.config.out)
        json.dumps(flatten(job.config), allow_nan=False)


@pytest.mark.parametrize("section, preset", DECLARED)
def test_claims_and_panels_are_declared_with_different_names(section, preset):
    module = section_of(section, preset)
    names = [claim.name for claim in module.claims(preset)]
    assert names and len(set(names)) == len(names)
    titles = [panel.title for panel in module.panels(preset)]
    assert titles and len(set(titles)) == len(titles)
    assert preset in module.caption(preset)


@pytest.mark.trains
@pytest.mark.parametrize("section", list(SECTIONS))
def test_the_tiny_preset_runs_every_arm_and_leaves_claims_numbers_and_a_figure(section, tmp_path, capsys):
    flags = [section, "--preset", "tiny", "--seeds", "1", "--workers", "1", "--out", str(tmp_path)]
    assert main(flags, SECTIONS) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [line["name"] for line in summary["claims"]] == [c.name for c in section_of(section, "tiny").claims("tiny")]
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    arms = {json.loads(line)["arm"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()}
    assert arms == set(arms_of(section, "tiny"))
    stamps = {path: path.stat().st_mtime_ns for path in Path(tmp_path).rglob("done.json")}
    assert main(flags, SECTIONS) == 0  # everything is done: nothing is run again
    assert stamps == {path: path.stat().st_mtime_ns for path in Path(tmp_path).rglob("done.json")}


def differing(a: RunConfig, b: RunConfig) -> set[str]:
    one, other = flatten(a), flatten(b)
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


def test_star_differs_between_its_arms_in_what_their_names_say():
    arms = arms_of("star")
    plain = arms["plain"].settings
    assert {arm.base for name, arm in arms.items() if name != "base"} == {"base"}
    assert differing(plain, arms["temperature"].settings) == {"retry_temperature"}
    assert differing(plain, arms["continue"].settings) == {"rationalize", "restart"}
    late = arms["rationalize"].settings
    assert late.rationalize and late.late_task.digits == (6, 7) and late.late_from == plain.rounds + 1
    assert arms["direct"].settings.task.form == "direct"
    assert arms["direct"].settings.task.digits == plain.task.digits


def test_r1_goes_down_its_pipeline_and_its_controls_differ_in_one_thing():
    arms = arms_of("r1")
    chain = {"zero": "base", "cold": "base", "cold_rl": "cold", "rejection": "base", "final": "rejection",
             "distilled": "student", "student_rl": "student", "short_rl": "short"}  # fmt: skip
    assert {name: arms[name].base for name in chain} == chain
    teachers = {"cold_data": "zero", "short_data": "zero", "rejection_data": "cold_rl", "distilled_data": "final"}
    assert {name: arms[name].inputs["teacher"].split("/")[0] for name in teachers} == teachers
    assert differing(arms["cold_data"].settings, arms["short_data"].settings) == {"modes"}
    assert differing(arms["distilled_data"].settings, arms["distilled_wrong_data"].settings) == {"keep"}
    capped, raised = arms["capped"].settings, arms["raised"].settings
    assert differing(capped, raised) == {"max_new_tokens"}
    assert raised.max_new_tokens.at(20) == capped.max_new_tokens.first < raised.max_new_tokens.at(21)
    assert differing(arms["easy"].settings, arms["no_thoughts"].settings) == {"task.chance"}
    for loss in ("grpo", "dr_grpo", "dapo", "gspo", "cispo"):
        assert arms[loss].settings.algorithm == ALGORITHMS[loss]
        assert arms[loss].settings.updates_per_rollout > 1  # with one all clips are the same
    assert any(isinstance(reward, Overlong) for reward in arms["dapo"].settings.rewards)


def test_r1_starts_from_the_shipped_bases_in_turn_and_on_sums_from_its_own():
    for seed in (0, 3, 4):
        arms = arms_of("r1", "cpu", seed)
        assert arms["base"].settings.base == f"data/checkpoints/attempts-{seed % 4}" and not arms["base"].settings.steps
        assert (
            arms["direct"].base == arms["zero"].base == "base"
            and str(arms["direct"].settings.task.shares) == "guess:1.0"
        )
        assert arms_of("r1", "demo", seed).keys() == {"base", "zero"}
    sums = arms_of("r1", "sums")
    assert {name: arm.base for name, arm in sums.items()} == {"phase1": "", "base": "phase1", "zero": "base"}
    assert sums["phase1"].settings.task.task.modes == (0.2, 0.4, 0.4) != sums["base"].settings.task.task.modes


def test_longcot_rewards_what_its_arms_are_called():
    arms = arms_of("longcot")
    for arm, window in {"classic-64": 64, "classic-128": 128, "classic-256": 256}.items():
        assert arms[arm].settings.max_new_tokens.first == window and arms[arm].base == "base"
        assert arms[arm].settings.rewards == (Classic(),)
    assert arms["rl-long"].base == "long-1600" and arms["rl-short"].base == "short-1600"
    assert differing(arms["rl-long"].settings, arms["classic-256"].settings) == set()
    assert arms["cosine"].settings.rewards == (Cosine(),)
    assert differing(arms["classic-128"].settings, arms["cosine"].settings) >= {"rewards"}
    assert arms["cosine"].settings.max_new_tokens.first == 128 and arms["cosine"].settings.steps == 60
    for arm in ("repetition", "paid-penalty"):  # an attempt and its verdict: 12 tokens; the answer's copy has 11
        assert arms[arm].settings.rewards[1] == DenseRepetition(n=12, penalty=-0.0125)
    assert arms["paid"].settings.rewards[0].right == (0.0, 10.0)
    assert arms["accepts"].settings.rewards == (Noisy(accept=0.5),)
    assert arms["rejects"].settings.rewards == (Noisy(reject=0.5),)
    long, short = arms["long-400"].settings, arms["short-400"].settings
    assert differing(long, short) == {"task.shares"} and long.distinct == 400 and long.steps == 25


def test_longcots_own_bases_differ_in_width_or_in_long_thoughts_and_see_as_many_tokens():
    arms = arms_of("longcot", "conditions")
    bases = {name: arm.settings for name, arm in arms.items() if arm.recipe == "sft"}
    assert set(arms) == {*bases, *(f"{name}-rl" for name in bases)} and len(bases) == 6
    assert differing(bases["share-0.02"], bases["share-0.3"]) == {"task.shares", "steps"}
    assert differing(bases["width-32"], bases["share-0.3"]) == {"width"}
    assert differing(bases["width-64"], bases["share-0.3"]) == {"width"}
    tokens = []
    for name in ("share-0.02", "share-0.05", "share-0.1", "share-0.3"):
        task = bases[name].task
        words = [len(task.problem("count", i).solution.split()) + 1 for i in range(3000)]
        tokens.append(sum(words) / len(words) * bases[name].steps)
    assert max(tokens) < 1.1 * min(tokens)


def test_zoo_has_one_recipe_for_bases_that_differ_and_controls_that_differ_in_one_thing():
    arms = arms_of("zoo")
    scratch = {name: arms[name].settings for name in zoo.SCRATCH}
    shared = (sft.PRESETS["attempts"].family, sft.PRESETS["attempts"].width, sft.PRESETS["attempts"].layers)
    shapes = {(b.family, b.width, b.layers) for b in scratch.values()} | {shared}
    assert {family for family, _, _ in shapes} == {"llama", "qwen2", "qwen3"}
    assert {width for _, width, _ in shapes} == {32, 48, 64, 96} and {layers for _, _, layers in shapes} == {2, 3}
    for name, base in scratch.items():
        assert name == f"{base.family}-{base.width}" and arms[name].base == ""
    assert len({str(arms[name].settings.task.shares) for name in zoo.FURTHER}) == 3
    assert {arms[name].base for name in zoo.FURTHER} == {zoo.SHARED}
    assert len(zoo.names()) == 7 and all(arms[f"{base}-rl"].base == base for base in zoo.names())
    recipe = arms[f"{zoo.SHARED}-rl"].settings
    for base in zoo.names():
        assert differing(arms[f"{base}-rl"].settings, recipe) == set()
    for base in (zoo.WEAK, zoo.SHARED):
        easy, hard = (arms[f"{base}-{level}"].settings for level in ("easy", "hard"))
        assert hard.task.inputs == 4 and easy.task.chance[0] > recipe.task.chance[0]
        assert easy.eval_task == hard.eval_task == recipe.eval_task  # whatever is practised, the test is the same
        assert arms[f"{base}-easy"].base == arms[f"{base}-hard"].base == base
    for base in (zoo.LOOSE, zoo.SHARED):
        rewards = {end: arms[f"{base}-{end}"].settings.rewards for end in ("rl", "format", "strict")}
        assert rewards == {"rl": (Accuracy(),), "format": (Accuracy(), Format(0.1)), "strict": (Strict(),)}
    before, after = arms["four-before"], arms["four-after"]
    assert differing(before.settings, after.settings) == set() and before.settings.steps == 0
    assert (before.base, after.base) == (zoo.SHARED, f"{zoo.SHARED}-rl") and before.settings.task.inputs == 4
    few, most = zoo.PRESETS["cpu"].short
    assert differing(arms[f"short-{few}"].settings, arms[f"short-{most}"].settings) == {"steps"}
    assert arms[f"short-{most}"].settings.task.right_guess == 1.0 and arms[f"short-{most}"].base == zoo.SHORT
    for seed in (0, 3, 4):
        start = arms_of("zoo", seed=seed)[zoo.SHARED].settings
        assert start.base == f"data/checkpoints/attempts-{seed % 4}" and not start.steps


def test_l1_asks_for_lengths_and_rewards_them_but_for_its_control():
    for preset in ("cpu", "tiny", "gpu"):
        arms, chosen = arms_of("l1", preset), l1.PRESETS[preset]
        exact, plain, max_ = (arms[name].settings for name in ("exact", "plain", "max"))
        assert exact.rewards == (l1.LCPO,) == max_.rewards and plain.rewards == (Accuracy(),)
        assert differing(exact, plain) <= {"rewards", "rewards.accuracy.weight", "steps"} | {
            f"rewards.lcpo.{field.name}" for field in dataclasses.fields(Lcpo)
        }  # fmt: skip
        assert {"task.kind"} <= differing(exact, max_) <= {"task.kind", "steps"}
        assert (exact.task.kind, plain.task.kind, max_.task.kind) == ("exact", "exact", "both")
        starts = {name: arms[name].base for name in ("taught", "exact", "plain", "max")}
        assert starts == {"taught": "base", "exact": "taught", "plain": "taught", "max": "exact"}
        assert str(arms["taught"].settings.task.shares) == "asked:1.0"
        # every model is tested as it was trained, and N below and above the training's too
        assert {name: (arms[f"test_{name}"].base, arms[f"test_{name}"].settings.methods) for name in l1.ARMS} == {
            "exact": ("exact", ("exact",)), "max": ("max", ("max",)), "base": ("base", ("exact",)),
            "taught": ("taught", ("exact",)), "plain": ("plain", ("free", "truncated", "s1")),
        }  # fmt: skip
        (low, high), tested = exact.task.tokens, chosen.budget.budgets
        assert 32 <= tested[0] < low < high < tested[-1] and exact.max_new_tokens.first > high
        assert list(tested) == sorted(tested) and sum(low <= n <= high for n in tested) >= 2


def test_l1_prices_a_token_so_that_an_attempt_too_many_does_not_pay():
    """An attempt must cost far more than the .095 that it is right; beyond a maximum it must be worth nothing."""
    each = attempt_tokens(Attempts().inputs)
    assert l1.LCPO.alpha * each > max(5 * 0.095, l1.LCPO.delta)
    # an answer behind a cut has just the room that it needs: a forced response ends with its N-th token
    answer = Attempts(shares=Mixture.parse("guess:1")).problem("train", 0).solution.split(" <answer> ")[1]
    assert l1.PRESETS["cpu"].budget.answer_tokens == len(Attempts().tokenizer().encode(answer))


def test_s1_measures_every_choice_and_only_s1_asks_the_base_what_is_difficult():
    for seed in (0, 3, 4):
        assert arms_of("s1", seed=seed)["base"].settings.base == f"data/checkpoints/attempts-{seed % 4}"
    arms = arms_of("s1")
    for name in ("s1", "random", "longest", "diverse", "all"):
        picked = arms[f"pick_{name}"]
        assert picked.settings.how == name and (picked.inputs.get("base") == "base/policy") == (name == "s1")
        assert arms[f"sft_{name}"].inputs["data"] == f"pick_{name}/demonstrations.jsonl"
    for name in ("tokens", "steps", "class"):  # the very same traces: only what the prompts say differs
        assert arms[f"sft_{name}"].inputs["data"] == f"pick_s1/demonstrations-{name}.jsonl"
        assert name in arms["pick_s1"].settings.conditions
        longer = {"steps", "warmup"} if name == "steps" else set()
        assert differing(arms["sft_s1"].settings, arms[f"sft_{name}"].settings) == longer
    for name in ("s1", "random", "longest", "diverse", "all", "tokens", "steps", "class"):
        assert arms[name].base == f"sft_{name}" and arms[f"sft_{name}"].base == "base"
    assert arms["untuned"].base == "base" and arms["untuned"].settings.waits == arms["s1"].settings.waits
    # few and all of them differ in how often each is seen, not in how one learns from them
    assert differing(arms["sft_s1"].settings, arms["sft_all"].settings) == {"steps", "warmup"}


def test_sos_learns_from_the_same_problems_in_the_same_order():
    arms = arms_of("sos")
    assert differing(arms["sos_model"].settings, arms["op_model"].settings) == {"task.data"}
    assert differing(arms["sos"].settings, arms["op"].settings) == {"samples"}
    controls = arms_of("sos", "gpu")
    assert differing(controls["sos_model"].settings, controls["correct_model"].settings) == {"task.data"}
    more = differing(controls["op_model"].settings, controls["op_tokens_model"].settings)
    assert more == {"steps", "eval_every"} and "op_tokens" not in arms  # it costs as much as sos
    assert differing(arms["sos_pg_model"].settings, arms["sos_apa_model"].settings) <= {
        "algorithm", *(f"algorithm.{field.name}" for field in dataclasses.fields(ALGORITHMS["apa"]))
    }  # fmt: skip


def test_behaviors_primes_the_base_without_them_on_the_same_problems_with_one_thing_different():
    arms = arms_of("behaviors")
    assert arms["base-without"].base == arms["base-with"].base == "base"
    assert differing(arms["base-without"].settings, arms["base-with"].settings) == {"task.shares", "steps"}
    primed = {name: arm for name, arm in arms.items() if name.startswith("primed-")}
    assert len(primed) == 9 and {arm.base for arm in primed.values()} == {"base-without"}
    for name, arm in primed.items():
        assert differing(primed["primed-all_four"].settings, arm.settings) <= {"task.shares"}
        assert str(arm.settings.task.shares) == f"{name.removeprefix('primed-')}:1.0"
    rl = {name: arm for name, arm in arms.items() if arm.recipe == "grpo"}
    assert {name: arm.base for name, arm in rl.items()} == {
        "without": "base-without", "with": "base-with", **{name.removeprefix("primed-"): name for name in primed}
    }  # fmt: skip
    assert all(differing(rl["without"].settings, arm.settings) == set() for arm in rl.values())


def test_the_bases_of_behaviors_see_as_many_tokens_and_only_one_of_them_a_verdict_on_its_own_attempt():
    arms = arms_of("behaviors")
    tokens = {}
    for name in ("base-without", "base-with"):
        settings = arms[name].settings
        problems = [settings.task.problem("count", i) for i in range(3000)]
        words = [len(p.solution.split()) + 1 for p in problems]
        tokens[name] = settings.steps * sum(words) / len(words)
        own = [p for p in problems if p.info["form"] not in ("compare", "mark")]
        judged = sum(settings.task.metrics(p, p.solution)["verdicts"] > 0 for p in own)
        assert (judged > 0) == (name == "base-with") and judged < 0.2 * len(problems)
    assert tokens["base-with"] == pytest.approx(tokens["base-without"], rel=0.05)

"""Evidence: numbers per seed, claims judged by them, jobs that know their settings, the order in which they run."""

import json
import multiprocessing
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoreason.__main__ import SECTIONS, main
from nanoreason.analysis import ShiftedWord
from nanoreason.compare import draw_words
from nanoreason.experiments import reproduce as reproduction
from nanoreason.experiments.figure import Line, Panel, draw, smoothed
from nanoreason.experiments.reproduce import (
    code_of,
    cores,
    counted,
    is_done,
    jobs_of,
    locked,
    remaining,
    run_job,
    run_jobs,
)
from nanoreason.experiments.results import LESS, MORE, Arm, Claim, PerSeed, Results, average, growth, lead
from nanoreason.recipes import sft
from nanoreason.run import read_jsonl
from nanoreason.tasks import Addition, Countdown

COMMITTED = Path(__file__).parent.parent / "data" / "results"


def line(arm: str, step: int, seed: int = 0, **metrics) -> dict:
    return {"arm": arm, "step": step, "seed": seed, **metrics}


# --------------------------------------------------------------------------------------------- numbers per seed


def test_arithmetic_goes_seed_by_seed_and_leaves_out_what_one_side_lacks():
    a, b = PerSeed({0: 1.0, 1: 2.0, 2: 3.0}), PerSeed({1: 4.0, 2: 0.0, 3: 9.0})
    assert a - b == {1: -2.0, 2: 3.0} and a + b == {1: 6.0, 2: 3.0} and a * 2 == {0: 2.0, 1: 4.0, 2: 6.0}
    assert a / b == {1: 0.5}  # no division by zero
    assert abs(PerSeed({0: -1.0})) == {0: 1.0} and average([a, b]) == {1: 3.0, 2: 1.5} and average([]) == {}
    assert a.mean == 2.0 and a.error == pytest.approx(1 / 3**0.5)
    assert PerSeed().mean is None is PerSeed({0: 1.0}).error


def test_numbers_are_taken_from_the_right_lines():
    r = Results([line("a", s, seed, x=10.0 * seed + s) for seed in (0, 1) for s in range(1, 21)] + [line("a", 21, y=1)])
    assert r.first("a", "x") == {0: 1, 1: 11} and r.last("a", "x") == {0: 20, 1: 30}
    assert r.early("a", "x") == {0: 1.5, 1: 11.5} and r.late("a", "x") == {0: 18.0, 1: 28.0}
    assert r.late("a", "x", 1.0) == r.mean("a", "x") == {0: 10.5, 1: 20.5}
    assert r.last("a", "x", step=3) == {0: 3, 1: 13} and r.last("a", "x", step=lambda s: s < 9) == {0: 8, 1: 18}
    assert r.last("a", "y") == {0: 1} and r.last("b", "x") == r.last("a", "z") == {}
    assert r.curve("a", "x")[2] == 7.0 and r.curve("a", "x", 1)[2] == 12.0
    assert list(r.by("a", "x", "step"))[:2] == [1, 2] and r.by("a", "x", "step")[2] == {0: 2, 1: 12}
    assert growth("a", "x")(r) == {0: 20.0, 1: 30 / 11} and lead("a", "a", "x", Results.last, Results.first)(r)[0] == 19


def test_several_names_are_a_metric_of_their_own_where_all_are_there():
    r = Results([line("a", 1, x=1.0, y=3.0), line("a", 2, x=5.0)])
    assert r.last("a", ("x", "y")) == {0: 2.0}


def test_points_of_two_metrics_are_averaged_over_the_seeds_at_the_same_budget():
    r = Results([line("a", 1, s, asked=n, tokens=n + s, acc=s) for s in (0, 1) for n in (16, 8)])
    assert r.points("a", "tokens", "acc", by="asked") == [(8.5, 0.5), (16.5, 0.5)]
    assert r.points("a", "tokens", "acc", seed=1, by="asked") == [(9, 1), (17, 1)]


# --------------------------------------------------------------------------------------------------------- claims


def judged(values: dict, threshold=0.1, direction=MORE, no_effect=0.0, seeds=None) -> dict:
    lines = [line("a", 0, seed) for seed in (values if seeds is None else seeds)]
    return Claim("c", lambda r: PerSeed(values), threshold, direction, no_effect).judge(Results(lines))


@pytest.mark.parametrize(
    ("values", "how", "passed", "reason"),
    [
        ((0.2, 0.3, 0.25), {}, True, ""),
        ((0.5, 0.6, -0.01), {}, False, "seed 2 shows the opposite"),
        ((0.5, 0.6, 0.01), {}, True, ""),  # a seed below the threshold, but on the right side of no effect
        ((0.5, 0.6, 0.01), {"threshold": 0.3}, False, "less than one standard error"),
        ((0.05, 0.06, 0.05), {}, False, "does not reach the threshold"),
        ((-0.2, -0.3, -0.25), {"threshold": -0.1, "direction": LESS}, True, ""),
        ((-0.2, 0.01, -0.9), {"threshold": -0.1, "direction": LESS}, False, "seed 1 shows the opposite"),
        ((1.2, 1.3, 1.25), {"threshold": 1.1, "no_effect": 1}, True, ""),
        ((1.9, 1.9, 0.99), {"threshold": 1.1, "no_effect": 1}, False, "seed 2 shows the opposite"),
        ((0.5, 0.4, 0.5), {"threshold": 0.9, "direction": LESS, "no_effect": 1}, True, ""),
        # bounds: no effect lies on the side that passes, so no seed may cross the threshold
        ((0.01, 0.02, -0.3), {"threshold": 0.05, "direction": LESS}, True, ""),
        ((0.01, 0.02, 0.06), {"threshold": 0.05, "direction": LESS}, False, "seed 2 shows the opposite"),
        ((-0.02, 0.1, -0.04), {"threshold": -0.03}, False, "seed 2 shows the opposite"),
        ((0.3, 0.2, float("nan")), {}, False, "no number for seed 2"),
        ((0.3,), {}, True, "one seed"),
        ((0.05,), {}, False, "one seed"),
        ((), {}, False, "no numbers"),
    ],
)
def test_a_claim_is_judged_seed_by_seed(values, how, passed, reason):
    result = judged(dict(enumerate(values)), **how)
    assert result["passed"] == passed and reason in result["reason"] and bool(reason) == bool(result["reason"])
    assert all(name in result for name in ("name", "values", "mean", "standard_error", "threshold", "direction"))
    json.dumps(result, allow_nan=False)


def test_a_seed_without_a_number_is_not_a_seed_that_agrees():
    result = judged({0: 0.9, 1: 0.8}, seeds=(0, 1, 2))
    assert not result["passed"] and result["reason"] == "no number for seed 2"
    assert result["values"] == {"0": 0.9, "1": 0.8} and result["mean"] == pytest.approx(0.85)


NUMBERS = st.lists(st.floats(-2, 2).map(lambda x: round(x, 3)), min_size=1, max_size=5)
EFFECTS = st.floats(-1, 1).map(lambda x: round(x, 3))


@given(NUMBERS, EFFECTS, st.sampled_from([0.0, 1.0]))
def test_a_claim_and_its_opposite_never_both_pass(values, threshold, no_effect):
    values = dict(enumerate(values))
    more, less = (judged(values, threshold, direction, no_effect)["passed"] for direction in (MORE, LESS))
    assert not (more and less)
    mirrored = judged(values, 2 * no_effect - threshold, LESS, no_effect)["passed"]
    assert not (more and mirrored and threshold > no_effect)


@given(NUMBERS, EFFECTS, st.sampled_from([0.0, 1.0]))
def test_what_passes_exceeds_its_threshold_and_its_mirror_image_passes_too(values, threshold, no_effect):
    here = judged(dict(enumerate(values)), threshold, MORE, no_effect)
    there = judged({s: -v for s, v in enumerate(values)}, -threshold, LESS, -no_effect)
    assert here["passed"] == there["passed"]
    if here["passed"]:
        assert here["mean"] > threshold and (
            len(values) == 1 or here["mean"] - here["standard_error"] > threshold - 1e-6
        )


@given(st.lists(st.floats(0.2, 2), min_size=1, max_size=5), st.floats(0.001, 2))
def test_one_seed_with_the_opposite_sign_is_enough_to_fail(values, opposite):
    assert not judged(dict(enumerate([*values, -opposite])), 0.0001)["passed"]


# ------------------------------------------------------------------------------------------------- jobs and hashes

CONFIG = replace(sft.PRESETS["tiny"], steps=3)
ARMS = [Arm("child", "sft", replace(CONFIG, steps=2), "base"), Arm("base", "sft", CONFIG)]


def job(name: str, tmp_path, **changed):
    arms = [replace(arm, settings=replace(arm.settings, **changed)) if arm.name == name else arm for arm in ARMS]
    return {job.arm: job for job in jobs_of(arms, 1, tmp_path)}[name]


def test_a_job_gets_its_folder_its_seed_and_the_policy_it_starts_from(tmp_path):
    base, child = jobs_of(ARMS, 1, tmp_path, "cpu")  # what is needed comes first
    assert (base.arm, child.arm) == ("base", "child") and child.after == (base.config.out,)
    assert (
        child.config.base == str(tmp_path / "seed1" / "base" / "policy")
        and child.settings["base"] == "seed1/base/policy"
    )
    assert (child.config.seed, child.config.resume, child.config.device) == (1, True, "cpu")
    other = Arm("c", "distill", sft.SftConfig(), "base/early", {"data": "base/rows"})
    assert other.sources() == {"base": "base/early", "data": "base/rows"}


@pytest.mark.parametrize("bases", [{"a": "nobody"}, {"a": "b", "b": "a"}])
def test_an_arm_that_can_never_start_is_an_error(bases, tmp_path):
    arms = [Arm(name, "sft", CONFIG, base) for name, base in bases.items()]
    with pytest.raises(ValueError, match="a"):
        jobs_of(arms, 0, tmp_path)


def test_the_hash_is_of_settings_and_code_and_of_what_it_starts_from(tmp_path, monkeypatch):
    child = job("child", tmp_path)
    assert child.hash == job("child", tmp_path / "elsewhere").hash  # folders are named from OUT on
    assert child.hash == job("child", tmp_path, threads=2, micro_tokens=99).hash
    assert child.hash != job("child", tmp_path, lr=0.5).hash
    changed = [Arm("base", "sft", replace(CONFIG, lr=0.5)), ARMS[0]]
    assert child.hash != jobs_of(changed, 1, tmp_path)[1].hash
    monkeypatch.setattr(reproduction, "code_hash", lambda: "other")
    assert child.hash != job("child", tmp_path).hash


def test_settings_count_with_the_objects_in_them_and_folders_are_named_from_out_on(tmp_path):
    configs = [sft.SftConfig(task=task, base=str(tmp_path / "a"), threads=3) for task in (Addition(), Countdown())]
    seen = [counted(config, tmp_path) for config in (*configs, replace(configs[0], task=Addition((1,))))]
    assert seen[0]["base"] == "a" and seen[0]["task"] == "addition" and seen[0]["task.digits"] == [1, 2, 3, 4, 5]
    assert seen[0] != seen[1] != seen[2] != seen[0]
    assert not {"threads", "out", "micro_tokens"} & seen[0].keys()


def test_comments_docstrings_and_layout_are_not_code():
    code = 'def f(x):\n    """Twice."""\n    return x * 2  # doubled\n'
    assert (
        code_of(code)
        == code_of('def f( x ):\n\n    """Two times."""\n    return (x*2)\n')
        != code_of("def f(x):\n    return x * 3")
    )


def test_a_finished_job_is_its_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(sft, "run", lambda config: Path(config.out).mkdir(parents=True, exist_ok=True))
    base = job("base", tmp_path)
    assert not is_done(base)
    run_job(base)
    assert is_done(base)
    done = json.loads((Path(base.config.out) / "done.json").read_text())
    assert done["hash"] == base.hash and done["settings"]["steps"] == 3
    monkeypatch.setattr(sft, "run", None)
    run_job(base)  # is not run again
    with pytest.raises(ValueError, match=r"with lr=0.002, not 0.5: choose another --out, or delete that folder"):
        is_done(job("base", tmp_path, lr=0.5))
    run_job(job("base", tmp_path, micro_tokens=64))
    monkeypatch.setattr(reproduction, "code_hash", lambda: "other")
    with pytest.raises(ValueError, match="by other code"):
        is_done(job("base", tmp_path))


# ------------------------------------------------------------------------------------------------- order and locks


def jobs(costs: dict[str, float], needs: dict[str, str], tmp_path) -> list:
    return jobs_of([Arm(a, "sft", CONFIG, needs.get(a, ""), cost=c) for a, c in costs.items()], 0, tmp_path)


def test_one_worker_takes_the_longest_chain_first_and_says_how_many_jobs_are_done(tmp_path, capsys):
    todo = jobs({"short": 5, "a": 1, "b": 9, "c": 6}, {"b": "a", "c": "short"}, tmp_path)
    assert [remaining(todo)[job.config.out] for job in todo] == [11, 10, 9, 6]
    order = []
    run_jobs(todo, 1, run=lambda job: order.append(job.arm))
    assert order == ["short", "a", "b", "c"]
    assert capsys.readouterr().out.splitlines() == [
        f"{i} of 4 jobs done: {arm}, seed 0" for i, arm in enumerate(order, 1)
    ]


def test_a_job_starts_as_soon_as_its_own_base_is_done_without_waiting_for_others(tmp_path):
    todo = jobs({"slow": 3, "quick": 1, "next": 1}, {"next": "quick"}, tmp_path)
    started, release, done = [], threading.Event(), []

    def run(job):
        started.append(job.arm)
        if job.arm == "slow":
            assert release.wait(5)  # ends only after `next`, which a barrier between stages would hold back
        if job.arm == "next":
            assert done == ["quick"]
            release.set()
        done.append(job.arm)

    run_jobs(todo, 2, ThreadPoolExecutor(2), run)
    assert sorted(started) == ["next", "quick", "slow"] and started[-1] == "next" and done[-1] == "slow"


def test_never_more_jobs_at_once_than_workers_and_each_after_what_it_needs(tmp_path):
    needs = {f"j{i}": f"j{i // 2}" for i in range(2, 12)}
    todo = jobs({f"j{i}": i % 4 + 1 for i in range(1, 12)}, needs, tmp_path)
    lock, three, at_once, most, done = threading.Lock(), threading.Event(), 0, 0, []

    def run(job):
        nonlocal at_once, most
        with lock:
            at_once, most = at_once + 1, max(most, at_once + 1)
            assert needs.get(job.arm, "j1") in done or job.arm == "j1"
            if most == 3:
                three.set()
        if int(job.arm[1:]) > 3:  # behind the first three there is always enough to do for three
            assert three.wait(60)
        with lock:
            at_once -= 1
            done.append(job.arm)

    run_jobs(todo, 3, ThreadPoolExecutor(8), run)
    assert most == 3 and len(done) == 11


def test_an_exception_ends_everything_and_is_raised(tmp_path):
    ran = []

    def run(job):
        ran.append(job.arm)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs({"a": 1, "b": 1}, {"b": "a"}, tmp_path), 1, run=run)
    assert ran == ["a"] and 1 <= cores() <= multiprocessing.cpu_count()


@pytest.mark.parametrize("name", ["done.json", "spent.json"])
@pytest.mark.parametrize("text", ["{}", "[]", '{"seconds": "long"}', '{"seconds": -1}', "{"])
def test_a_damaged_file_of_a_job_is_named(name, text, tmp_path):
    (todo,) = jobs({"a": 1}, {}, tmp_path)
    folder = Path(todo.config.out)
    folder.mkdir(parents=True)
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=name):
        reproduction.run_job(todo)


@pytest.mark.parametrize(
    "line", ['{"arm": "a", "seed": 0}', '{"seed": 0, "step": 1}', '{"arm": "a", "step": 1, "seed": "0"}']
)
def test_a_damaged_line_of_a_sections_metrics_is_named(line, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n")
    with pytest.raises(ValueError, match="metrics.jsonl: (arm|seed|step)"):
        reproduction.summarise("star", "tiny", tmp_path)
    with pytest.raises(ValueError, match="metrics.jsonl but no config.json"):
        reproduction.reproduce("star", "tiny", 1, tmp_path)


HOLD = """
import sys, time
from pathlib import Path
from nanoreason.experiments.reproduce import locked
with locked(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path, capsys):
    root = Path(reproduction.__file__).parents[2]
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, cwd=root)
    try:
        assert other.stdout.readline() == b"ready\n"
        flags = ["reproduce", "star", "--preset", "tiny", "--seeds", "1", "--out", str(tmp_path)]
        assert main(flags) == 2
        assert "another process works in" in capsys.readouterr().err
    finally:
        other.kill()  # the lock ends with its process, however it ends
        other.communicate()
    with locked(tmp_path):
        pass


# ------------------------------------------------------------------------------------------------------ summaries


RUNS = sorted(
    path.parent.relative_to(COMMITTED).as_posix()
    for path in COMMITTED.glob("*/*/summary.json")
    if path.parts[-3] in SECTIONS  # what `make real` leaves has tests of its own
)


def test_committed_results_are_summarised_from_their_metrics_alone(tmp_path, capsys):
    source = COMMITTED / "star" / "cpu"
    for name in ("metrics.jsonl", "config.json", "summary.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    command = ["reproduce", "star", "--preset", "cpu", "--summarise", str(tmp_path)]
    assert main(command) == 0
    assert (tmp_path / "summary.json").read_bytes() == (source / "summary.json").read_bytes()
    shown = capsys.readouterr().out
    for claim in json.loads((source / "summary.json").read_text())["claims"]:
        assert claim["name"] in shown
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "config.json", "summary.json", "figure.png"}
    assert main([*command[:3], "tiny", *command[4:]]) == 2 and "holds star --preset cpu" in capsys.readouterr().err
    assert main([*command[:-1], str(tmp_path / "nothing")]) == 2 and "no metrics.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("run", RUNS)
def test_the_committed_verdicts_are_those_of_the_committed_metrics(run):
    section, preset = run.split("/")
    folder, module = COMMITTED / run, reproduction.section_of(section, preset)
    results, summary = Results(read_jsonl(folder / "metrics.jsonl")), json.loads((folder / "summary.json").read_text())
    assert [claim.judge(results) for claim in module.claims(preset)] == summary["claims"]
    assert not hasattr(module, "extra") or module.extra(results, preset) == summary["numbers"]


@pytest.mark.parametrize("run", [run for run in RUNS if not run.endswith("/demo")])
def test_the_page_of_a_section_says_what_its_summary_says(run):
    section = run.split("/")[0]
    claims = json.loads((COMMITTED / run / "summary.json").read_text())["claims"]
    page = (COMMITTED.parent.parent / "docs" / f"{section}.md").read_text(encoding="utf-8")
    held = sum(claim["passed"] for claim in claims)
    assert f"{held} of {len(claims)} claims hold" in page
    for claim in claims:
        row = next(line for line in page.splitlines() if line.startswith(f"| {claim['name']} | "))
        shown = ["none" if value is None else f"{value:.3f}" for value in (claim["mean"], *claim["values"].values())]
        assert all(number in row for number in shown) and ("holds" if claim["passed"] else claim["reason"]) in row


# --------------------------------------------------------------------------------------------------------- figures


def test_a_figure_of_every_kind_of_panel(tmp_path):
    pytest.importorskip("matplotlib")
    r = Results([line("a", s, seed, x=float(s), y=2.0 * s) for seed in (0, 1) for s in range(1, 5)])
    special = []
    panels = [
        Panel("lines", (Line("a", "an arm"), Line("nobody", "is not there")), {"x": "x", "y": "y"}, smooth=3),
        Panel("bars", (Line("a", "an arm"), Line("nobody", "is not there")), {"x": "x", "y": "y"}, kind="bar"),
        Panel("special", (Line("a", "an arm", y="y"),), xscale="log", also=lambda axis, r: special.append(axis)),
    ]
    draw(panels, r, "A setting.", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5_000 and len(special) == 1
    assert smoothed([0.0, 3.0, 6.0], 3) == [1.5, 3.0, 4.5]


@pytest.mark.parametrize("dollars", [r"is $\boxed{56}$.", "$5^ and $6_", "$" * 4, r"\$"])
def test_a_dollar_is_no_formula_wherever_a_model_or_a_person_wrote_it(dollars, tmp_path):
    pytest.importorskip("matplotlib")
    r = Results([line("a", s, x=float(s), y=10.0**s) for s in range(1, 5)])
    axes = []

    def also(axis, r: Results) -> None:
        axis.text(1, 2, dollars)
        axes.append(axis)

    arms = (Line("a", dollars),)
    how = {"xlabel": dollars, "ylabel": dollars, "also": also, "yscale": "log"}
    panels = [
        Panel(dollars, arms, {dollars: "x", "y": "y"}, xscale="log10", **how),
        Panel(dollars, arms, {dollars: "x", "y": "y"}, kind="bar", **how),
        Panel(dollars, (), kind="text", text=lambda r: dollars),
    ]
    draw(panels, r, dollars, tmp_path / "figure.png")
    curves, bars = axes
    assert curves.get_xlabel() == bars.get_title() == bars.get_xticklabels()[0].get_text() == dollars
    for axis in axes:
        legend = axis.get_legend().get_texts()
        ours = [axis.title, axis.xaxis.label, axis.yaxis.label, *axis.texts, *legend]
        assert legend and not any(text.get_parse_math() for text in ours)
    assert not bars.get_xticklabels()[0].get_parse_math()
    powers = [label for label in curves.get_yticklabels() if "10^" in label.get_text()]
    assert powers and all(label.get_parse_math() for label in powers)  # these are matplotlib's own
    words = [ShiftedWord(dollars, True, 1, (1, 0, 0), 2)]
    draw_words(words, tmp_path / "words.png")
    assert (tmp_path / "words.png").exists()

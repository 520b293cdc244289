"""Run exercises: a run folder in one file (`pack.py`), and a grader that believes nothing which it can recompute.

The settings of a run follow from the salt, so that two students' curves differ. What is recomputed of a bundle: that
the run was asked for, that its log is whole, each sampled response's problem, verdict and advantage, and what the
policy solves now of problems that are new in every grading.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import statistics
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from nanoreason.checkpoint import load_checkpoint
from nanoreason.course.pack import FILES, LOGS, MOST_BYTES
from nanoreason.environment import judge, sample
from nanoreason.learn import group_advantages
from nanoreason.recipes import grpo, grpo_minimal
from nanoreason.rollout import Problem, seed_of
from nanoreason.run import FREE, RunConfig, Schedule, flatten, pick_device, read_json, read_jsonl

TESTED = 150  # problems that the policy is tested on
PARTS = 6  # of what `examine` asks


@dataclass(frozen=True)
class RunExercise:
    """An exercise whose answer is a run."""

    title: str
    points: int
    minutes: float  # on one core of a laptop
    question: str  # to be answered in writing, with the curve
    config: Callable[[int], RunConfig]  # of a number that follows from the salt
    gained: float  # by how much the policy must beat its base on new problems


def minimal(number: int) -> RunConfig:
    return replace(grpo_minimal.PRESETS["cpu"], seed=number)


def zero(number: int) -> RunConfig:
    """R1-Zero in a few minutes; the base is one of four."""
    chosen = grpo.PRESETS["attempts"]
    return replace(chosen, base=f"data/checkpoints/attempts-{number % 4}", seed=number, steps=20, eval_problems=40)


RUNS = {
    "grpo_minimal": RunExercise(
        "GRPO from your own parts", 6, 3,
        "The loss is about 0 in every step, and yet the reward rises. Why? Which number of the log says that something "
        "is learnt?",
        minimal, 0.1,
    ),
    "grpo": RunExercise(
        "R1-Zero", 8, 4,
        "Accuracy and length rise together. Which of the two is the cause? Say which experiment would tell, and what "
        "the share of truncated responses has to do with where the rise ends.",
        zero, 0.15,
    ),
}  # fmt: skip


def number_of(salt: str, name: str) -> int:
    """What makes a student's run their own.

    >>> number_of("ada", "grpo") == number_of("ada", "grpo") != number_of("ben", "grpo")
    True
    """
    return seed_of("course", salt, name) % 100_000


def config_of(name: str, salt: str) -> RunConfig:
    if name not in RUNS:
        raise ValueError(f"no run exercise is called {name!r}: there are {', '.join(RUNS)}")
    return RUNS[name].config(number_of(salt, name))


def command_of(name: str, salt: str) -> str:
    """What a student types."""
    config = config_of(name, salt)
    preset = {"grpo": "attempts"}.get(name, "cpu")
    own = flatten(config)
    usual = flatten(replace({"grpo": grpo, "grpo_minimal": grpo_minimal}[name].PRESETS[preset], out=config.out))
    flags = "".join(f" --{key.replace('_', '-')} {own[key]}" for key in own if own[key] != usual[key])
    return f"python train.py {name}{f' --preset {preset}' if preset != 'cpu' else ''}{flags} --out runs/{name}"


# ----------------------------------------------------------------------------------------------------------- unpacking


def unpacked(path: Path, folder: Path) -> None:
    """The files of a bundle that are known, and nothing else of it; ValueError says what is wrong."""
    try:
        with zipfile.ZipFile(path) as archive:
            hashes = json.loads(archive.open("bundle.json").read(MOST_BYTES)).get("hashes", {})
            (folder / "policy").mkdir(parents=True)
            for name in FILES:
                with archive.open(name) as file:
                    raw = file.read(MOST_BYTES + 1)  # whatever size the archive claims
                if len(raw) > MOST_BYTES:
                    raise ValueError(f"{name} is larger than {MOST_BYTES >> 20} MB")
                if hashlib.blake2b(raw, digest_size=16).hexdigest() != hashes.get(name):
                    raise ValueError(f"{name} was changed after it was bundled")
                (folder / name).write_bytes(raw)
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path} is no bundle ({error})") from None
    except (KeyError, AttributeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no bundle: {error}") from None


# ------------------------------------------------------------------------------------------------------------- grading


def examine(path: Path, name: str, salt: str, seed: int | None = None) -> Iterator[tuple[str, str]]:
    """(what must hold, why it does not, or empty) of one bundle, in order; after a break in the files nothing more."""
    asked, exercise = config_of(name, salt), RUNS[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        folder.mkdir()
        try:
            unpacked(path, folder)
            config = read_json(folder / "config.json")
            metrics, samples = (read_jsonl(folder / log) for log in LOGS[1:])
        except ValueError as error:
            yield "the bundle is whole", str(error)
            return
        yield "the bundle is whole", ""
        yield "the run is the one that was asked for", other_settings(config, asked)
        yield "every step is in the log", gaps(metrics, asked)
        yield "the sampled responses are what the log says of them", false_samples(samples, metrics, asked)
        yield from of_policy(folder, asked, exercise, metrics, seed)


def other_settings(config: dict, asked: RunConfig) -> str:
    wanted = {"recipe": type(asked).__name__, **flatten(asked)}
    free = FREE | {"base"}  # it may lie elsewhere; what the policy can do is measured against ours
    wrong = {key: value for key, value in wanted.items() if key not in free and config.get(key) != value}
    return ", ".join(f"{key} is {config.get(key)!r:.40}, not {value!r:.40}" for key, value in wrong.items())


def gaps(metrics: list[dict], asked: RunConfig) -> str:
    steps = [line.get("step") for line in metrics if line.get("step") != 0]
    if steps != list(range(1, asked.steps + 1)):
        return f"steps 1 to {asked.steps} are needed, once each, in order"
    rewards = [line.get("reward") for line in metrics if line.get("step") != 0]
    if not all(isinstance(reward, (int, float)) and math.isfinite(reward) for reward in rewards):
        return "a reward is no number"
    return ""


def problem_of(asked: RunConfig, step: int, group: int) -> Problem:
    """The problem of a group of a step, which follows from the settings alone."""
    return asked.task.problem(f"rl-{asked.seed}", (step - 1) * asked.prompts + group)


def false_samples(samples: list[dict], metrics: list[dict], asked: RunConfig) -> str:
    """Judges every sampled response again: its problem, verdict, and the advantages of each group."""
    groups: dict[tuple[int, int], list[dict]] = {}
    for line in samples:
        if line.get("kind") == "rollout":
            step, group = line.get("step"), line.get("group")
            if not (isinstance(step, int) and isinstance(group, int) and 0 <= group < asked.prompts):
                return "a sample has no step or no group"
            groups.setdefault((step, group), []).append(line)
    if len({step for step, _ in groups}) < asked.steps:
        return "some steps have no samples"
    how = getattr(getattr(asked, "algorithm", None), "divide_by", "group")
    for (step, group), lines in groups.items():
        problem = problem_of(asked, step, group)
        if len(lines) != asked.group_size:
            return f"step {step}, group {group} has {len(lines)} responses, not {asked.group_size}"
        for line in lines:
            if line.get("prompt") != problem.prompt:
                return f"step {step}, group {group}: not the problem of this run"
            if not isinstance(said := line.get("response"), str) or asked.task.reward(problem, said) != line.get(
                "right"
            ):
                return f"step {step}, group {group}: a verdict is wrong"
        rewards = [line.get("reward") for line in lines]
        if not all(isinstance(reward, (int, float)) for reward in rewards):
            return f"step {step}, group {group}: a reward is no number"
        wanted = group_advantages([[float(reward) for reward in rewards]], how)[0]
        found = [line.get("advantage") for line in lines]
        if how != "batch" and not all(isinstance(a, (int, float)) and math.isclose(a, b, abs_tol=1e-6)
                                      for a, b in zip(found, wanted, strict=True)):  # fmt: skip
            return f"step {step}, group {group}: advantages do not follow from the rewards"
    return unlikely(groups, metrics)


def unlikely(groups: dict[tuple[int, int], list[dict]], metrics: list[dict]) -> str:
    """The few groups that are logged are drawn from all: their mean reward is near that of the log."""
    logged = statistics.fmean(float(line["reward"]) for lines in groups.values() for line in lines)
    steps = {step for step, _ in groups}
    said = statistics.fmean(float(line.get("reward", 0)) for line in metrics if line.get("step") in steps)
    means = [statistics.fmean(float(line["reward"]) for line in lines) for lines in groups.values()]
    error = statistics.pstdev(means) / math.sqrt(len(means)) + 0.01
    return "" if abs(logged - said) < 6 * error else f"the log says reward {said:.2f}, its samples {logged:.2f}"


def of_policy(folder: Path, asked: RunConfig, exercise: RunExercise, metrics: list[dict], seed: int | None
              ) -> Iterator[tuple[str, str]]:  # fmt: skip
    """What policy and base solve of the same new problems, at temperature 1."""
    what = f"the policy beats its base by {exercise.gained} on new problems"
    try:
        base, tokenizer = load_checkpoint(asked.base, pick_device("cpu"))
        if read_json(folder / "policy/config.json").get("hidden_size") != base.config.hidden_size:
            raise ValueError("the policy has another size than its base")
        policy, _ = load_checkpoint(folder / "policy", pick_device("cpu"))
        if policy.config != base.config:
            raise ValueError("the policy has another shape than its base")
    except (ValueError, OSError, FloatingPointError) as error:
        yield what, str(error)
        return
    seed = secrets.randbits(64) if seed is None else seed
    before, after = (accuracy(asked, model, tokenizer, seed) for model in (base, policy))
    yield what, "" if after - before >= exercise.gained else f"{before:.2f} before, {after:.2f} after"
    last = [line["reward"] for line in metrics[-5:] if isinstance(line.get("reward"), (int, float))]
    error = 4 * math.sqrt(0.25 / TESTED) + 0.1  # the format's reward is at most .1
    near = bool(last) and abs(statistics.fmean(last) - after) < error + 0.1
    yield (
        "the log ends where the policy is",
        "" if near else f"reward {statistics.fmean(last or [0]):.2f}, measured {after:.2f}",
    )


def accuracy(asked: RunConfig, model, tokenizer, seed: int) -> float:
    problems = [asked.task.problem(f"graded-{seed}", i) for i in range(TESTED)]
    limit = asked.max_new_tokens
    limit = limit.at(asked.steps) if isinstance(limit, Schedule) else limit
    groups = sample(asked.task, model, tokenizer, problems, seed=seed, max_new_tokens=limit)
    return statistics.fmean(one.verdict for one in judge(asked.task, tokenizer, groups))


def graded(path: Path, name: str, salt: str, seed: int | None = None) -> dict:
    """results.json of one bundle: equal parts for what holds; nothing for the policy if the run was another one."""
    verdicts = list(examine(path, name, salt, seed))
    passed = [why == "" for _, why in verdicts]
    share = sum(passed) / PARTS if all(passed[:2]) else 0.0
    output = "\n".join(f"{'FAILS' if why else 'ok   '} {what}{f': {why}' if why else ''}" for what, why in verdicts)
    points = RUNS[name].points
    test = {"name": RUNS[name].title, "score": round(points * share, 2), "max_score": points,
            "status": "passed" if share == 1 else "failed", "output": output, "visibility": "visible"}  # fmt: skip
    return {"tests": [test], "visibility": "visible"}

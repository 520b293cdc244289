"""Why a run of reinforcement learning does not learn: the rules of `python -m nanoreason doctor`.

    lines of metrics.jsonl, settings of config.json, lines of samples.jsonl -> one rule each -> Finding or None

A rule is a pure function that believes no file: what is missing or no number is left out, and a rule without its
metrics finds nothing. `RULES` has them in the order of cause before effect, and says what a finding explains.

The thresholds stand between measured runs. Healthy are the 100 of 136 runs of the sections r1, longcot and l1 whose
accuracy rose by .1 or more (10 to 60 steps, learning rate 3e-4, four seeds), and runs of 12 steps from the shipped
thinking-addition (rate 1e-3); sick are the latter, each with one mistake (`tests/test_doctor.py` makes them).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

from nanoreason.curves import (
    RISE,
    SHORT,
    Lines,
    curve,
    ends,
    fall,
    is_finite,
    learns,
    numbers,
    short,
    smooth,
    unit,
)
from nanoreason.run import Schedule

FALL = 0.75  # units: healthy runs lost at most .34 from their best steps, runs without gain .48, sick ones 1.0 to 1.5
FALL_OF_LARGE_STEPS = 0.4  # units: enough where steps are large, which is a reason of its own
LARGE_STEP = 0.01  # update_ratio of a rollout: healthy at most .0053, sick from .015 on (rate 3e-3)
NO_STEPS = 0.002  # sum of update_ratio: whoever learnt moved by .016 or more; rate 1e-6 moved by .00004
MISMATCH = 0.01  # nats: float32 1e-6, bfloat16 .001; without the temperature .017, mask off by one .3
CUT, ALL_CUT = 0.3, 0.8  # share of truncated responses: healthy runs ended with up to .66, half of them below .15
NO_PASS = 0.1  # pass@k of the base: .87 or more where RL worked, 0 where nothing was found
NO_ACCURACY, RARE = 0.005, 0.015  # mean accuracy of the first third of the steps: .002 never learnt; with NO_PASS, .015
EQUAL, MANY_EQUAL = 0.9, 0.7  # groups of equal rewards, over the run and at the end: healthy .41, .47; solved .79
DEAD = 0.5  # share of steps without a gradient: none in healthy runs
COLLAPSED = 1 / 3  # entropy at the end / at first: healthy .53 or more; with a penalty on entropy .2
SOLVED = 0.9  # accuracy above which little is left to learn: then equal rewards and low entropy are no sickness
FAR, VERY_FAR = 0.3, 1.0  # nats per token of KL to the reference: healthy at most .064; with a reversed sign .6 to 1.1
LONGER = 1.3  # growth of wrong responses while accuracy stays


class Finding(NamedTuple):
    title: str
    evidence: list[str]  # numbers, steps, a sample: from the run's own files
    advice: str  # the next step; RUN stands for the run's folder
    metric: str  # what it is about, as docs/metrics.md names it
    serious: bool = True  # the run cannot learn like this; else: it costs something


def step_of(lines: Lines, name: str, value: float) -> str:
    """The step at which a metric had this value, as text."""
    return str(next((line.get("step", "?") for line in lines if line.get(name) == value), "?"))


def example(samples: Lines, keep: Callable[[dict], bool]) -> list[str]:
    """The newest rollout that is to be kept, as evidence: its step, prompt, response; both ends of what is long."""
    line = next((line for line in reversed(samples) if line.get("kind", "rollout") == "rollout" and keep(line)), None)
    if line is None:
        return []

    def cut(text: object, most: int) -> str:
        text = " ".join(str(text).split())
        return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"

    return [f"sample of step {line.get('step', '?')}: {cut(line.get('prompt', ''), 40)!r} -> "
            f"{cut(line.get('response', ''), 70)!r}"]  # fmt: skip


def groups_of(samples: Lines) -> list[list[dict]]:
    """The groups of rollouts, each with several responses whose reward and advantage are known."""
    groups: dict[str, list[dict]] = {}
    for line in samples:
        if line.get("kind") == "rollout" and is_finite(line.get("reward")) and is_finite(line.get("advantage")):
            key = str((line.get("step"), line.get("group"), line.get("prompt")))
            groups.setdefault(key, []).append(line)
    return [group for group in groups.values() if len(group) > 1]


def one_update(settings: dict) -> bool:
    return settings.get("updates_per_rollout", 1) == 1 and settings.get("epochs", 1) == 1


# ------------------------------------------------------------------------------------------------------- the rules


def not_finite(lines: Lines, settings: dict, samples: Lines) -> Finding | None:
    bad = [(line.get("step", "?"), name) for line in lines for name, value in line.items()
           if isinstance(value, float) and not math.isfinite(value)]  # fmt: skip
    if not bad:
        return None
    names = ", ".join(dict.fromkeys(name for _, name in bad))
    evidence = [f"first at step {bad[0][0]}, in {len(bad)} places"]
    advice = "look at the step before (look RUN --step N); lower --lr, or --max-grad-norm"
    return Finding(f"{names} is no finite number", evidence, advice, bad[0][1])


def mismatch(lines: Lines, settings: dict, samples: Lines) -> Finding | None:
    means, clipped = numbers(lines, "logp_diff/mean"), numbers(lines, "clip_ratio/region_mean")
    off = statistics.median(means) if means else 0.0
    moved = max(clipped, default=0.0) if one_update(settings) else 0.0
    if off <= MISMATCH and moved == 0:
        return None
    evidence = []
    if means:
        most = short(max(numbers(lines, "logp_diff/max"), default=0.0))
        evidence.append(f"log-probs of sampler and learner differ by {short(off)} nats (logp_diff/mean, median of "
                        f"{len(means)} steps), at most {most}")  # fmt: skip
    if moved:
        evidence.append(f"the ratio of the only update of a rollout is 1, but {short(moved)} of the tokens are clipped")
    advice = ("the loss is not about the tokens that were sampled: a mask off by one, another temperature, top-k or "
              "top-p, or another number format. Rounding is at most .001: `python -m pytest tests/test_sampler.py`; "
              "--device cpu computes in float32")  # fmt: skip
    return Finding("sampler and learner disagree", evidence, advice, "logp_diff/mean")


def learning_rate_too_high(lines: Lines, settings: dict, samples: Lines) -> Finding | None:
    reward, lost, steps = curve(lines, "reward"), fall(lines), numbers(lines, "update_ratio")
    if reward is None or lost < FALL_OF_LARGE_STEPS:
        return None
    largest = max(steps, default=0.0)
    rose = bool(steps) and reward.best - reward.first > RISE * unit(lines)
    if largest <= LARGE_STEP and (lost < FALL or not rose or is_alike(lines) or is_far(lines)):
        return None
    evidence = [f"reward {short(reward.best)} at best (step {reward.place + 1} and after), {short(reward.last)} at the "
                f"end: {short(lost)} standard deviations of a group",
                f"a rollout moves the weights by up to {short(100 * largest)} % of their norm (update_ratio, step "
                f"{step_of(lines, 'update_ratio', largest)}); runs that learn: .1 to .7 %"]  # fmt: skip
    evidence += ends(lines, "entropy") + ends(lines, "kl") + ends(lines, "grad_norm")
    rate = settings.get("lr")
    lower = f"--lr {rate / (10 if largest > LARGE_STEP else 3):.1g} (it was {rate:g})" if is_finite(rate) else "--lr"
    if largest > LARGE_STEP:
        return Finding("the learning rate is too high", evidence, f"{lower}; --warmup 5", "update_ratio")
    advice = f"stop before, or {lower}, --decay linear, --algorithm.kl-coef .01"
    return Finding("what was learnt is lost again", evidence, advice, "update_ratio")


def wrong_sign(lines: Lines, settings: dict, samples: Lines) -> Finding | None:
    def slope(group: list[dict]) -> float:
        mean = statistics.fmean(line["reward"] for line in group)
        return sum((line["reward"] - mean) * line["advantage"] for line in group)

    groups = groups_of(samples)
    slopes = [found for found in map(slope, groups) if found]
    against = sum(found < 0 for found in slopes)
    reward, lost = curve(lines, "reward"), fall(lines)
    falls = reward is not None and lost >= FALL and reward.best - reward.first <= RISE * unit(lines)
    evidence = [f"reward {reward}: it falls from the first steps on, by {short(lost)} standard deviations of a group, "
                "in steps of ordinary size"] if falls else []  # fmt: skip
    if len(slopes) >= 3 and against >= 0.9 * len(slopes):
        evidence.append(f"in {against} of {len(slopes)} sampled groups the better response has the lower advantage")
        evidence += example(min(groups, key=slope), lambda line: line["advantage"] > 0)
    elif not falls or is_far(lines) or is_alike(lines) or max(numbers(lines, "update_ratio"), default=0) > LARGE_STEP:
        return None
    advice = (
        "look for the sign: rewards with a negative weight, advantages (reward - mean of the group), the loss "
        "(-ratio * A, minimized): `python -m pytest tests/test_learn.py -k right_up_and_wrong_down`. Else: --lr"
    )
    return Finding("it learns the opposite of what is rewarded", evidence, advice, "reward")


def is_far(lines: Lines) -> bool:
    kl = curve(lines, "kl")
    return kl is not None and kl.last > FAR


def is_alike(lines: Lines) -> bool:
    entropy = curve(lines, "entropy")
    return entropy is not None and 0 < entropy.first and entropy.last <= COLLAPSED * entropy.first


def kl_blow_up(lines: Lines, settings: dict, samples: Lines) -> Finding | None:
    kl, lost = curve(lines, "kl"), fall(lines)
    if kl is None or not is_far(lines) or (lost < FALL_OF_LARGE_STEPS and (kl.last <= VERY_FAR or learns(lines))):
        return None
    evidence = [f"KL to the reference {kl} nats per token", *ends(lines, "reward"), *ends(lines, "grad_norm")]
    coef = settings.get("algorithm.kl_coef")
    more = f"--algorithm.kl-coef {10 * coef:g} (it was {coef:g})" if is_finite(coef) and coef else "--algorithm.kl-coef"
    advice = f"{more}, or a third of --lr. If the KL grows from the first step on, look for its sign in the loss"
    return Finding("the policy runs away from its reference", evidence, advice, "kl", lost >= FALL_OF_LARGE_STEPS)


def truncation(lines: Lines, settings: dict, samples: Lines) -> Finding | None:
    cut = curve(lines, "completions/clipped_ratio")
    if cut is None or cut.last <= CUT and cut.first < ALL_CUT:
        return None
    limit, longest = budget(settings), max(numbers(lines, "completions/max_length"), default=math.inf)
    evidence = [f"truncated responses {cut} of all"]
    evidence += [f"--max-new-tokens {limit}"] * (limit > 0)
    evidence += example(samples, lambda line: line.get("stop_reason") == "length")
    advice = f"--max-new-tokens {2 * limit}" if limit else "raise --max-new-tokens"
    if longest < limit:
        advice = f"the model's context ends them after {longest:.0f} tokens: a base with a longer one (sft --context)"
    advice += "; read them: `python -m nanoreason look RUN --only truncated`; or pay for short ones: --rewards cosine"
    serious = max(cut.first, cut.last) >= ALL_CUT and not learns(lines)
    return Finding("responses are cut before they end", evidence, advice, "completions/clipped_ratio", serious)


def budget(settings: dict) -> int:
    """The last value of max_new_tokens; 0 where the settings do not say."""
    try:
        schedule = Schedule.parse(str(settings.get("max_new_tokens")))
    except ValueError:
        return 0
    return [schedule.first, *(value for _, value in schedule.changes)][-1]


def no_coverage(lines: Lines, settings: dict, samples: Lines) -> Finding | None:
    values = numbers(lines, "accuracy")
    early = values[: max(1, len(values) // 3)]
    base = [(int(k), name, line[name]) for line in lines for name in line
            if line.get("step") == 0 and name.startswith(("preflight/pass@", "eval/pass@"))
            and (k := name.rpartition("@")[2]).isdecimal() and int(k) >= 4 and is_finite(line[name])]  # fmt: skip
    _, name, share = max(base, default=(0, "", 1.0))
    found = [f"{name} of the base: {short(share)}"] if share < NO_PASS else []
    if not early or (level := statistics.fmean(early)) >= (RARE if found else NO_ACCURACY) or max(smooth(values)) > 0.1:
        return None
    found += [f"accuracy of the first {len(early)} steps: {short(level)}"]
    advice = ("RL strengthens what is sampled, and nothing right is. Easier problems (--task...), a base that saw "
              "solutions (`train.py sft`, or `train.py star --rationalize`); then `python -m nanoreason eval BASE "
              "--samples 16`: pass@16 should be well above 0")  # fmt: skip
    sample = example(samples, lambda line: line.get("right") != 1)
    return Finding("the base never finds a right answer", found + sample, advice, "preflight/pass@K")


def zero_variance(lines: Lines, settings: dict, samples: Lines) -> Finding | None:
    name = "frac_learnt_zero_std" if numbers(lines, "frac_learnt_zero_std") else "frac_reward_zero_std"
    equal, accuracy, shares = curve(lines, name), curve(lines, "accuracy"), numbers(lines, name)
    if equal is None:
        return None
    serious = statistics.fmean(shares) >= EQUAL and not learns(lines)
    if not serious and equal.last < MANY_EQUAL:
        return None
    right = [line.get("right") == 1 for line in samples if line.get("kind") == "rollout"]
    level = accuracy.last if accuracy else statistics.fmean(right) if right else None
    evidence = [f"groups of equal rewards {equal} of all ({name})", *ends(lines, "accuracy")]
    evidence += example(samples, lambda line: line.get("advantage") == 0)
    if level is not None and level >= SOLVED:
        what, advice = "all right", "harder problems (--task...): there is nothing left to learn from these"
    elif level is not None and level < 1 - SOLVED:
        what, advice = "all wrong", ("easier problems (--task...), a larger --group-size, a better base; "
                                     "`python -m nanoreason look RUN --only wrong`")  # fmt: skip
    else:
        what, advice = "all right or all wrong", "problems of medium difficulty (--task...), a larger --group-size"
    heat = settings.get("temperature")
    advice += f"; --temperature 1 (it was {heat:g})" if is_finite(heat) and heat < 0.7 else ""
    advice += "" if settings.get("algorithm.max_refills") else "; --algorithm.max-refills 4 draws others for them"
    title = f"{'nearly all' if serious else 'most'} groups teach nothing: their responses are {what}"
    return Finding(title, evidence, advice, name, serious)


def dead_gradient(lines: Lines, settings: dict, samples: Lines) -> Finding | None:
    steps = [line for line in lines if "reward" in line and (is_finite(line.get("grad_norm")) or "updates" in line)]
    dead = [
        line
        for line in steps
        if line.get("updates") == 0 or (is_finite(norm := line.get("grad_norm")) and abs(norm) < 1e-9)
    ]
    if not steps or len(dead) < DEAD * len(steps):
        return None
    flat, groups = numbers(dead, "frac_reward_zero_std"), groups_of(samples)
    evidence = [f"no gradient in {len(dead)} of {len(steps)} steps (grad_norm, updates)"]
    equal = statistics.fmean(flat) if flat else None
    if flat:
        evidence.append(f"groups of equal rewards in these steps: {short(equal)} of all")
    elif groups:  # grpo_minimal logs no such share
        alike = [len({line["reward"] for line in group}) == 1 for group in groups]
        equal = statistics.fmean(alike)
        evidence.append(f"sampled groups of equal rewards: {sum(alike)} of {len(alike)}")
    why = ""
    if all(line.get("updates") == 0 for line in dead) and settings.get("algorithm.overlong_filter"):
        advice = "every row was cut, and --algorithm.overlong-filter drops those: raise --max-new-tokens"
    elif equal is None:
        advice = "see how the groups' rewards differ: `python -m nanoreason look RUN`"
    elif equal < EQUAL:
        advice = ("rewards differ, so the gradient is lost behind them: advantages that are 0 (look RUN shows them), "
                  "an empty loss mask, a clip or an average that leaves nothing")  # fmt: skip
    else:
        why = "all responses to a problem have the same reward, so "
        advice = ("problems that are solved now and then (--task...), a larger --group-size, another base: "
                  "`python -m nanoreason look RUN` shows the groups")  # fmt: skip
    return Finding(f"nothing is learnt: {why}the gradient is 0", evidence, advice, "grad_norm")


def entropy_collapse(lines: Lines, settings: dict, samples: Lines) -> Finding | None:
    entropy, accuracy = curve(lines, "entropy"), curve(lines, "accuracy")
    if entropy is None or not is_alike(lines) or (accuracy and accuracy.last >= SOLVED):
        return None
    equal = curve(lines, "frac_reward_zero_std")
    evidence = [f"entropy {entropy} nats per token", *ends(lines, "accuracy"), *ends(lines, "frac_reward_zero_std")]
    bonus = settings.get("algorithm.entropy_coef")
    punished = is_finite(bonus) and bonus < 0
    advice = f"--algorithm.entropy-coef .001 (it was {bonus:g})" if punished else (
        "--temperature 1, a lower --lr, --algorithm.clip-high .28 (DAPO), --algorithm.entropy-coef .001")  # fmt: skip
    serious = punished or fall(lines) >= FALL_OF_LARGE_STEPS or (equal is not None and equal.last > DEAD)
    return Finding("the entropy has collapsed: all samples are alike", evidence, advice, "entropy", serious)


def reward_without_accuracy(lines: Lines, settings: dict, samples: Lines) -> Finding | None:
    accuracy, weights = curve(lines, "accuracy"), weights_of(settings)
    if not learns(lines) or accuracy is None or accuracy.first >= SOLVED:
        return None
    if accuracy.rise > max(accuracy.error, 0.02):
        return None
    names = dict.fromkeys(name for line in lines for name in line if name.startswith("rewards/"))
    parts = {name: found for name in names if (found := curve(lines, name))}
    gained = {name: part.rise * weights.get(name.split("/")[1], 1.0) for name, part in parts.items()}
    most = max(gained, key=gained.get, default="reward")
    evidence = [f"reward {curve(lines, 'reward')}, accuracy {accuracy}", *(f"{name} {parts[name]}" for name in parts)]
    evidence += example(
        samples, lambda line: line.get("right") != 1 and is_finite(line.get("reward")) and line["reward"] > 0
    )
    advice = (
        "what is rewarded can be had without being right: read `python -m nanoreason look RUN --only wrong`; add "
        "accuracy to --rewards or weigh the rest less (accuracy,format:0.1); is the base ever right (eval BASE)?"
    )
    what = "the format" if "format" in most else most.removeprefix("rewards/").removesuffix("/mean")
    return Finding(f"the reward rises by {what} alone, answers get no better", evidence, advice, "rewards/NAME/mean")


def weights_of(settings: dict) -> dict[str, float]:
    """
    >>> weights_of({"rewards": "accuracy,format:0.1"})
    {'accuracy': 1.0, 'format': 0.1}
    """
    found = {}
    for part in str(settings.get("rewards", "")).split(","):
        name, _, weight = part.rpartition(":")
        try:
            found[name or part] = float(weight) if name else 1.0
        except ValueError:  # file.py:Name
            found[part] = 1.0
    return found


def learning_rate_too_low(lines: Lines, settings: dict, samples: Lines) -> Finding | None:
    steps = numbers(lines, "update_ratio")
    if len(steps) <= SHORT or sum(steps) >= NO_STEPS or learns(lines):
        return None
    moved = f"in {len(steps)} steps the weights moved by at most {short(100 * sum(steps))} % of their norm"
    evidence = [f"{moved} (sum of update_ratio); runs that learn: 1.5 % or more", *ends(lines, "reward")]
    evidence += ends(lines, "kl")
    rate = settings.get("lr")
    advice = f"--lr {10 * rate:.1g} (it was {rate:g})" if is_finite(rate) and rate else "raise --lr"
    return Finding("the learning rate is too low: the policy does not move", evidence, advice, "update_ratio")


def wrong_grow_longer(lines: Lines, settings: dict, samples: Lines) -> Finding | None:
    """What files can show of a wrong average: that it fits. A run with another average is the proof."""
    wrong, right = curve(lines, "completions/mean_length_wrong"), curve(lines, "completions/mean_length_correct")
    accuracy = curve(lines, "accuracy")
    by_row = settings.get("algorithm.average") == "sequence" or settings.get("recipe") in ("GrpoMinimalConfig",)
    if not by_row or wrong is None or accuracy is None or wrong.last < LONGER * wrong.first or wrong.first <= 0:
        return None
    if accuracy.rise > max(accuracy.error, 0.02) or (right and right.last * wrong.first > wrong.last * right.first):
        return None
    evidence = [
        f"tokens of wrong responses {wrong}, of right ones {right}, accuracy {accuracy}",
        "--algorithm.average sequence divides a response's loss by its length: long wrong ones cost less a token",
    ]
    advice = (
        "whether this is why, only another run shows: --algorithm dr_grpo (a constant), or --algorithm.average token"
    )
    return Finding("wrong responses grow longer", evidence, advice, "completions/mean_length_wrong", serious=False)


class Rule(NamedTuple):
    find: Callable[[Lines, dict, Lines], Finding | None]
    needs: tuple[str, ...]  # any of these metrics
    explains: tuple[str, ...] = ()  # findings that need no word beside a serious one of this


LOST = ("truncation", "no_coverage", "zero_variance", "dead_gradient", "entropy_collapse", "wrong_grow_longer")
NOTHING = ("zero_variance", "dead_gradient", "learning_rate_too_low", "wrong_grow_longer")
RULES = {
    "not_finite": Rule(not_finite, ("reward",)),
    "mismatch": Rule(mismatch, ("logp_diff/mean", "clip_ratio/region_mean")),
    "wrong_sign": Rule(wrong_sign, ("reward",), (*LOST, "kl_blow_up", "learning_rate_too_high")),
    "learning_rate_too_high": Rule(learning_rate_too_high, ("update_ratio",), (*LOST, "kl_blow_up")),
    "kl_blow_up": Rule(kl_blow_up, ("kl",), LOST),
    "entropy_collapse": Rule(entropy_collapse, ("entropy",), (*NOTHING, "truncation", "no_coverage")),
    "truncation": Rule(truncation, ("completions/clipped_ratio",), (*NOTHING, "no_coverage")),
    "no_coverage": Rule(no_coverage, ("accuracy",), NOTHING),
    "reward_without_accuracy": Rule(reward_without_accuracy, ("accuracy",), ("zero_variance", "wrong_grow_longer")),
    "zero_variance": Rule(zero_variance, ("frac_reward_zero_std", "frac_learnt_zero_std"), NOTHING),
    "dead_gradient": Rule(dead_gradient, ("grad_norm", "updates"), ("learning_rate_too_low",)),
    "learning_rate_too_low": Rule(learning_rate_too_low, ("update_ratio",)),
    "wrong_grow_longer": Rule(wrong_grow_longer, ("completions/mean_length_wrong",)),
}  # fmt: skip


def findings_of(lines: Lines, settings: dict, samples: Lines) -> dict[str, Finding]:
    """{rule: finding}, the serious ones first, without those that another one explains."""
    found = {name: one for name, rule in RULES.items() if (one := rule.find(lines, settings, samples))}
    for name in [*found]:
        if name in found and found[name].serious:  # what is explained explains nothing any more
            found = {other: one for other, one in found.items() if other == name or other not in RULES[name].explains}
    return dict(sorted(found.items(), key=lambda item: not item[1].serious))

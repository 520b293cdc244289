# %% [markdown]
# # L1: a length that the prompt asks for
#
# *Aggarwal and Welleck, 2025.* "Think for $n$ tokens." stands in the prompt, and the reward makes it true (LCPO). With $n_y$ the
# tokens of the response $y$:
#
# $$r_{\mathrm{exact}}(y) = 1[y\ \mathrm{right}] - \alpha \cdot |n - n_y|, \qquad
# r_{\max}(y) = 1[y\ \mathrm{right}] \cdot \mathrm{clip}(\alpha \cdot (n - n_y) + \delta,\ 0,\ 1)$$
#
# A model that plans its length should beat one that is cut at $n$, and accuracy should rise with the logarithm of $n$.

# %%
from first_cell import QUICK, ROOT, RUNS

from dataclasses import replace

from nanoreason.experiments import l1
from nanoreason.notebook import claims, figure, show, steps
from nanoreason.recipes import budget, grpo, sft
from nanoreason.rewards import Lcpo, Scored
from nanoreason.rollout import Problem, Rollout
from nanoreason.run import table
from nanoreason.tasks import Attempts
from nanoreason.tasks.wrappers import AskedLength

# %% [markdown]
# ## The prompt and the reward

# %%
task = AskedLength(Attempts(), kind="both", tokens=(48, 192))
for i in range(4):
    print(task.problem("train", i).prompt)
print()
show(Lcpo, "spare = ", "return float")


# %%
def value(kind, asked, tokens, right, reward):
    """The reward of a response of so many tokens to a prompt that asks for `asked`."""
    problem = Problem("", "", info={"target_tokens": asked, "kind": kind})
    row = Rollout(problem, [1] * tokens, [True] * tokens, [0.0] * tokens, 0)
    return f"{reward(Scored(row, '', float(right), 400)):.2f}"


kinds = [("exact", True), ("exact", False), ("max", True), ("max", False)]
rows = [
    [str(n), *(value(kind, 96, n, right, l1.LCPO) for kind, right in kinds)]
    for n in (27, 53, 79, 92, 96, 105, 118, 144)
]
print("asked for 96 tokens,", l1.LCPO)
print(table(["tokens", *(f"{kind}, {'right' if right else 'wrong'}" for kind, right in kinds)], rows))

# %% [markdown]
# An attempt has 13 tokens and is right once in ten times. What it brings must be less than what its tokens cost, or every short
# $n$ is overrun: that fixes $\alpha$.
#
# ## From a base that reads the number to one that keeps to it
#
# The section's arms with fewer steps: the base is first taught what the sentence means, by texts of which three in ten say any
# $n$; then a few steps of LCPO-Exact.

# %%
preset = "tiny" if QUICK else "cpu"
arms = {arm.name: arm for arm in l1.arms(preset, 0)}
base = str(ROOT / "data" / "checkpoints" / "attempts-0")
sft.run(
    replace(
        arms["taught"].settings,
        base=base,
        out=str(RUNS / "taught"),
        **({} if QUICK else {"steps": 60, "rows_per_step": 32}),
    )
)
grpo.run(
    replace(
        arms["exact"].settings,
        base=str(RUNS / "taught" / "policy"),
        out=str(RUNS / "exact"),
        **({} if QUICK else {"steps": 8, "prompts": 16}),
    )
)
steps(RUNS / "exact", "reward", "accuracy", "completions/mean_length")

# %%
test = replace(
    l1.PRESETS[preset].budget,
    methods=("exact",),
    **({} if QUICK else {"problems": 48, "repeats": 1, "budgets": (48, 64, 96, 128, 192)}),
)
for name, folder in (("base", base), ("taught", RUNS / "taught" / "policy"), ("exact", RUNS / "exact" / "policy")):
    print(f"\n{name}")
    budget.run(replace(test, base=str(folder), out=str(RUNS / f"test-{name}")))
    steps(RUNS / f"test-{name}", "asked", "mae", "error")

# %% [markdown]
# `thinking` is here the length of the whole response, `mae` the mean of $|n_y - n| / n$, `error` the mean of $(n_y - n) / n$, in which too
# long and too short cancel.
#
# ## The committed run: forty steps, four seeds

# %%
figure("l1")

# %%
claims("l1")

# %% [markdown]
# **What to see.** Length follows $n$ within the trained range, with a tenth of the miss of a policy without a length reward;
# accuracy rises with every doubling; planning beats cutting and forcing at short lengths.
# **What failed.** Beyond the trained range length does not follow: the number is a label that was seen with a length, not a
# quantity that is counted. Max overruns its short maxima, since a wrong response costs the same inside and outside of the maximum
# and most are wrong there. `docs/l1.md` has every seed, and what it took before the numbers meant anything.
#
# ## Exercises
#
# 1. In the table, replace `l1.LCPO` by `Lcpo()`, the paper's $\alpha$ for its range. For which lengths is one attempt more, right with
#    probability one in ten, worth its tokens under each of the two?
# 2. A group in which all responses are wrong has no accuracy signal. Does LCPO-Exact still learn from it? And LCPO-Max? (Compute the
#    advantages of four lengths with `nanoreason.learn.group_advantages`.)
# 3. Train with `rewards=(Accuracy(),)` on the same prompts for as many steps. Predict tokens per token asked for.
# 4. Start LCPO from the base itself, without `taught`. Which lengths are left after eight steps? (`docs/l1.md`, "What it took".)
# 5. Define "length" as the tokens of the thought instead of the whole response. Which lines change, and by how many tokens is every
#    response off then?

# %% [markdown]
# # Transfer: what is kept of all that was not trained
#
# *Huan et al., 2025 (Does Math Reasoning Improve General LLM Capabilities?); Shenfeld et al., 2025 (RL's Razor).* A base is trained
# on one task, the target, once by imitating a teacher and once by reinforcement. What becomes of everything else is measured by
# the drift of its distributions, on texts that the policy $\pi$ (or the base $\pi_0$) has drawn itself:
#
# $$D(\pi \,\|\, \pi_0) = \mathbb{E}_{o \sim \pi}\; \frac{1}{|o|} \sum_t \sum_v \pi(v \mid o_{<t}) \log \frac{\pi(v \mid o_{<t})}{\pi_0(v \mid o_{<t})}$$
#
# and by accuracy on the other tasks. A fair comparison is at *equal accuracy on the target*, never at equal steps: whoever has
# learnt more may have forgotten more.

# %%
from first_cell import QUICK, RUNS

from dataclasses import replace

from nanoreason import analysis
from nanoreason.experiments import transfer
from nanoreason.notebook import claims, figure, show, steps
from nanoreason.recipes import grpo, sft, transfer_test

# %% [markdown]
# ## A suite of small tasks over one vocabulary
#
# One is the target, the others are reasoning of another kind, or none at all.

# %%
suite = transfer.OWN
for name, task in suite.tasks().items():
    problem = task.problem("train", 3)
    print(f"{name:10}{problem.prompt.strip():32} {problem.solution.strip()[:80]}")
print("\n", suite.groups())

# %% [markdown]
# ## Both distributions at every token
#
# The exact KL, and the rank that the base would have given to each word that the policy says:

# %%
show(analysis.compared, "base_said, policy_said", "return targets")

# %% [markdown]
# ## A short base, then SFT and RL on the target
#
# The section's arms, far fewer steps: the base has not learnt its tasks to the end. `think` imitates a teacher who uses other words;
# `grpo` samples and is rewarded.

# %%
preset = "tiny" if QUICK else "cpu"
arms = {arm.name: arm for arm in transfer.arms(preset, 0)}
fewer = (
    {}
    if QUICK
    else {"base": {"steps": 200}, "think": {"steps": 20, "keep": (5, 20)}, "grpo": {"steps": 4, "keep": (2, 4)}}
)
for name, recipe in (("base", sft), ("think", sft), ("grpo", grpo)):
    start = {} if name == "base" else {"base": str(RUNS / "base" / "policy")}
    recipe.run(replace(arms[name].settings, out=str(RUNS / name), **start, **fewer.get(name, {})))

# %%
few = {} if QUICK else {"problems": 24, "analysed": 8}
for name in ("think", "grpo"):
    test = replace(
        transfer.PRESETS[preset].test, base=str(RUNS / "base" / "policy"), trained=str(RUNS / name / "kept"), **few
    )
    transfer_test.run(replace(test, out=str(RUNS / f"test-{name}")))
    steps(RUNS / f"test-{name}", "acc/target", "acc/other", "acc/non", "kl/target", "kl/non", "rank/target", "base_kl")

# %% [markdown]
# ## The committed run

# %%
figure("transfer")

# %%
claims("transfer")

# %% [markdown]
# **What to see.** The first panel puts accuracy without reasoning against accuracy on the target: read it at one height of the
# target, not at the ends of the curves. The arms differ in where their labels come from (a teacher, the base, the policy itself) and
# in how far they move. What decides is said by the claims above; `docs/transfer.md` explains each that fails.
#
# ## Exercises
#
# 1. Divide the learning rate of `think` by ten and give it ten times the steps. At equal accuracy on the target, is the KL smaller?
#    (That is the sweep of the section: is it the algorithm or the step?)
# 2. Give SFT a tenth of the other tasks (`replace(suite, style="think", others=0.1)`). Predict accuracy on the others and the KL on the target.
# 3. `kl_estimate` in the metrics is the one-sample estimate of the same KL. Compare it with the exact one: how many responses would you
#    need for its first digit?
# 4. Which words have shifted most? Print `words/target` from the metrics, for both. Which of them are structure, and which content?

# %% [markdown]
# # SimpleRL-Zoo: one recipe on many bases
#
# *Zeng et al., 2025.* Zero RL gains on nearly every base, but the curves of length do not tell which of them reason. The recipe is
# GRPO with the verdict alone, averaged over all tokens of a step:
#
# $$J(\theta) = \frac{1}{\sum_i |o_i|} \sum_i \sum_t \min\left(\rho_{i,t} A_i,\ \mathrm{clip}(\rho_{i,t}) A_i\right), \qquad r_i \in \{0, 1\}$$
#
# and three warnings come with it: a **strict format reward** ($r = -1$ out of the format, even if right) harms a base that does
# not know the format; **data that are too hard** have groups without a right response, in which every $A_i$ is 0; and
# **short fine-tuning** before RL starts higher and ends lower.

# %%
from first_cell import QUICK, ROOT, RUNS

from dataclasses import replace

from nanoreason.experiments import zoo
from nanoreason.learn import group_advantages
from nanoreason.notebook import claims, figure, show, steps
from nanoreason.recipes import grpo, sft
from nanoreason.rewards import Strict

# %% [markdown]
# ## Bases that differ in what they usually do
#
# Three are trained from random weights, four are the shared base, pretrained further on another mixture of texts. This is the kind
# of text that each of these mixtures is made of:

# %%
for base, mixture in zoo.FURTHER.items():
    print(f"{base}: {mixture}")
    for kind, _ in mixture.shares[:2]:
        text = replace(zoo.TASK, shares=type(mixture)(((kind, 1.0),))).problem("train", 4).solution
        print(f"    {kind:9}{text[:100]}{'...' if len(text) > 100 else ''}")

# %% [markdown]
# ## The strict reward, and what a group without a right response is worth

# %%
show(Strict, "def __call__")
print()
base_without_tags = [
    ("right, in tags", 1.0),
    ("right, no tags", -1.0),
    ("wrong, in tags", 0.0),
    ("wrong, no tags", -1.0),
]
for (what, _), advantage in zip(base_without_tags, group_advantages([[r for _, r in base_without_tags]])[0]):
    print(f"strict: {what}: advantage {advantage:5.2f}")
print("\nall wrong:", group_advantages([[0.0] * 4])[0], " all right:", group_advantages([[1.0] * 4])[0])

# %% [markdown]
# A right answer without tags is pushed down as hard as a wrong one: for a base that mostly leaves the tags out that is most of what
# it knows.
#
# ## A base without tags, reinforced by both rewards
#
# The section's arms with fewer steps: the shared base first learns to leave the tags out, then RL with the verdict alone and with
# the strict reward.

# %%
preset = "tiny" if QUICK else "cpu"
arms = {arm.name: arm for arm in zoo.arms(preset, 0)}
further = replace(
    arms["tagless"].settings, base=str(ROOT / "data" / "checkpoints" / "attempts-0"), out=str(RUNS / "tagless")
)
sft.run(further)

for name in ("tagless-rl", "tagless-strict"):
    settings = arms[name].settings
    fewer = {} if QUICK else dict(steps=6, eval_samples=2)
    grpo.run(replace(settings, base=str(RUNS / "tagless" / "policy"), out=str(RUNS / name), **fewer))

# %%
for name in ("tagless-rl", "tagless-strict"):
    print(name)
    steps(
        RUNS / name,
        "accuracy",
        "completions/mean_length",
        "completions/clipped_ratio",
        "frac_reward_zero_std",
        "eval/format",
        "eval/pass@1",
    )

# %% [markdown]
# ## Data that are too hard
#
# How often is nothing to be learnt from a group? The same base, problems of three numbers and of four:

# %%
from nanoreason.checkpoint import load_checkpoint
from nanoreason.environment import judge, sample

policy, tokenizer = load_checkpoint(ROOT / "data" / "checkpoints" / "attempts-0")
for name, task in {"three numbers": zoo.TASK, **zoo.LEVELS}.items():
    problems = [task.problem("train", i) for i in range(4 if QUICK else 24)]
    groups = sample(task, policy, tokenizer, problems, group_size=8, max_new_tokens=48 if QUICK else 192, seed=1)
    right = [[one.verdict for one in judge(task, tokenizer, [group])] for group in groups]
    silent = sum(len(set(values)) == 1 for values in right) / len(right)
    print(f"{name:14} accuracy {sum(map(sum, right)) / 8 / len(right):.2f}, groups without any signal {silent:.2f}")

# %% [markdown]
# ## The committed run

# %%
figure("zoo")

# %%
claims("zoo")

# %% [markdown]
# **What to see.** Six of seven bases gain; the seventh, of 28 thousand weights, can hardly calculate. Length grows wherever accuracy
# does, in a language without any verdicts too: a longer response is no sign of verification. The strict reward and short
# fine-tuning end lower.
# **What failed.** Data that are too hard still teach the weak base a little (it learns to try at all). The strict reward harms the base
# *with* tags as well, because what is out of the format after a while are responses that the window cut. Verification is near its
# ceiling in most bases before RL, so that a rank correlation with its growth ranks rounding. `docs/zoo.md` has every seed.
#
# ## Exercises
#
# 1. Replace the strict reward by `(Accuracy(), Format(0.1))`. Predict `eval/format` and `eval/pass@1`; which of the two gets what it
#    pays for?
# 2. Groups of 8 on four numbers are mostly silent. How large must a group be so that half of them are not, if a response is right
#    with probability $p$? Check with `group_size`.
# 3. `--algorithm dapo` samples new problems where a group is silent. What does it cost in tokens on the hard data? (`train.py grpo
#    --task hard_attempts --algorithm dapo`, metric `groups`.)
# 4. Which single number of the table above would you show to claim that a base "reasons"? Construct a policy that raises it without
#    being right more often.

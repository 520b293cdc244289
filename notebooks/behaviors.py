# %% [markdown]
# # Cognitive behaviours: what a base must bring along
#
# *Gandhi et al., 2025.* The same reinforcement makes one base a reasoner and leaves another where it was. Write the gradient of
# the expected reward as a sum over what the policy $\pi_\theta$ does,
#
# $$\nabla_\theta J = \mathbb{E}_{o \sim \pi_\theta} \left[ A(o) \, \nabla_\theta \log \pi_\theta(o) \right]$$
#
# and a habit that is never sampled ($\pi_\theta(o) \approx 0$) is never reinforced. The paper names four: **verification** (look at
# a result), **backtracking** (give a path up), **subgoals** and **backward chaining**. Fine-tuning on a thousand texts that
# show them *primes* a base that lacks them, even if the answers of these texts are wrong.

# %%
from first_cell import QUICK, ROOT, RUNS

from dataclasses import replace

from nanoreason import priming
from nanoreason.behavior_rules import NAMES, count_behaviors
from nanoreason.experiments import behaviors
from nanoreason.notebook import claims, figure, show
from nanoreason.recipes import sft
from nanoreason.run import table
from nanoreason.tasks import Attempts
from nanoreason.tasks.attempts import Mixture

# %% [markdown]
# ## One problem, nine texts
#
# The sets differ in their behaviours and in nothing else: the same problem, the same attempts in the same order. These lines
# write a thought:

# %%
show(priming.primed, "said = []", 'thought = " wait ".join')

# %%
texts = {kind: Attempts(shares=Mixture(((kind, 1.0),))).problem("train", 5) for kind in priming.PRIMED}
print("problem:", texts["empty"].prompt, "\n")
for kind, problem in texts.items():
    print(f"{kind:13}{problem.solution[:150]}{'...' if len(problem.solution) > 150 else ''}\n")

# %% [markdown]
# ## Counted by rules
#
# The paper asks a language model which behaviours a text shows; here rules read it, and `tests/test_behavior_rules.py` says how
# often they agree with a reader. Each text above:

# %%
rows = []
for kind, problem in texts.items():
    found = count_behaviors(problem.info["numbers"], problem.info["target"], problem.solution)
    rows.append([kind, *(str(getattr(found, name)) for name in NAMES)])
print(table(["set", *NAMES], rows))

# %% [markdown]
# ## Unlearn the habits, then prime
#
# The section's own arms with fewer steps. `without`: the shared base goes on with single attempts that nobody judges, and with
# drills that keep its skill to judge. Then the same base is fine-tuned on two of the sets: texts that verify and go back, and the
# control `forward`, the last attempt alone.

# %%
arms = {arm.name: arm for arm in behaviors.arms("tiny" if QUICK else "cpu", 0)}
test = dict(eval_problems=4 if QUICK else 80, eval_samples=1, eval_tokens=256, eval_task=Attempts())
found = {}


def train(name, base, **settings):
    """An arm of the section from a checkpoint, and its test."""
    config = replace(arms[name].settings, base=str(base), out=str(RUNS / name), **test, **settings)
    found[name] = sft.run(config)
    return RUNS / name / "policy"


without = train(
    "base-without",
    ROOT / "data" / "checkpoints" / "attempts-0",
    **({} if QUICK else {"steps": 60, "rows_per_step": 32}),
)
for name in ("primed-verification", "primed-forward"):
    train(name, without)

# %%
names = {
    "pass@1": "accuracy",
    "mean_length": "tokens",
    "attempts": "attempts",
    "verdicts": "verdicts",
    "waits": "retries",
}
rows = [[name, *(f"{line['eval/' + key]:.2f}" for key in names)] for name, line in found.items()]
print(table(["", *names.values()], rows))

# %% [markdown]
# Texts that verify and go back put the habit there, and accuracy with it; the control teaches the same answers and no habit. What
# reinforcement makes of either is the section's run, twelve steps of GRPO on each of eleven bases:
#
# ## The committed run

# %%
figure("behaviors")

# %%
claims("behaviors", "bases", "primed", "wrong answers", "controls", "all four:")

# %% [markdown]
# **What to see.** The two bases are equal on a single attempt and far apart after reinforcement. Texts with verification and
# backtracking lift the base without them to the other and above; dots, empty thoughts and forward-only texts of the same
# problems do not. Wrong answers lift it too: the thought teaches, not the answer.
# **What failed.** Backtracking *without* verification lifts nothing here: nothing but the verdict says when to stop, while the paper's
# model of three billion weights checks silently. All four at once fall behind verification alone, since plans are drawn at
# random in this world: they cost tokens and find nothing, and reinforcement begins to drop them. `docs/behaviors.md` has every seed.
#
# ## Exercises
#
# 1. Prime with `primed-backtracking` and `primed-dots` as well. Predict verdicts and retries of each before you look.
# 2. Continue with reinforcement: `grpo.run(replace(arms["verification"].settings, base=str(RUNS / "primed-verification/policy"), ...))`
#    for four steps, and the same from `without`. Expect one to rise and one to stay.
# 3. Fool the rules: write a text that `count_behaviors` counts three verifications in though nothing is checked. What would a
#    language model as a judge say of it?
# 4. `wrong` has the thoughts of `all_four` and an answer with a slip. In which sentence of `priming.primed` is that made, and what does
#    the model have to unlearn?

# %% [markdown]
# # GRPO on one page
#
# *Shao et al., 2024 (DeepSeekMath); DeepSeek-AI, 2025 (R1).* A policy $\pi_\theta$ answers each problem $G$ times. A
# verifier says which responses $o_i$ are right, $r_i \in \{0, 1\}$. What is better than the mean of its own group is made
# more likely, what is worse less likely:
#
# $$A_i = \frac{r_i - \mathrm{mean}(r_1 \ldots r_G)}{\mathrm{std}(r_1 \ldots r_G)}$$
#
# $$J(\theta) = \frac{1}{G} \sum_{i=1}^{G} \frac{1}{|o_i|} \sum_{t=1}^{|o_i|}
# \min\left(\rho_{i,t} A_i,\ \mathrm{clip}(\rho_{i,t}, 1 - \epsilon, 1 + \epsilon) A_i\right),
# \qquad \rho_{i,t} = \frac{\pi_\theta(o_{i,t} \mid \ldots)}{\pi_{\mathrm{old}}(o_{i,t} \mid \ldots)}$$
#
# There is no critic: the group is the baseline. With one update per rollout $\rho$ is 1 when the gradient is taken, the clip
# never acts, and what is left is the gradient of $A_i \log \pi_\theta(o_i)$.
#
# In this notebook: one step, line by line; then a run in which a model that adds four digits now and then learns to add
# them. The same step with all its tensors printed: `docs/one-step.md`.

# %%
from first_cell import QUICK, ROOT, RUNS

from nanoreason.notebook import show, steps
from nanoreason.recipes import grpo_minimal

# %% [markdown]
# ## The step
#
# This is the source that the run below executes. Everything else in `grpo.py` is a switch on these lines.

# %%
show(grpo_minimal.grpo_step, "groups = sample", "metrics = update")
print()
show(grpo_minimal.loss)

# %% [markdown]
# ## A model that sometimes succeeds
#
# Reinforcement only strengthens what is sampled, so it needs a base that is right now and then. This one was pretrained on
# sums of one to three digits and a few of four. Here are four problems and eight responses to each.

# %%
from nanoreason.checkpoint import load_checkpoint
from nanoreason.environment import sample
from nanoreason.rollout import response_text
from nanoreason.tasks import Addition

policy, tokenizer = load_checkpoint(ROOT / "data" / "checkpoints" / "star-base")
task = Addition(digits=(4,))
problems = [task.problem("train", i) for i in range(4)]
groups = sample(task, policy, tokenizer, problems, group_size=8, max_new_tokens=96, seed=1)

print(f"{policy.size():,} parameters, {tokenizer.vocab_size} tokens\n")
print(problems[0].prompt + response_text(tokenizer, groups[0][0]))

# %% [markdown]
# ## Rewards and advantages
#
# A group in which all rewards are equal has advantages of 0: it says nothing about what is better. A single right response
# among wrong ones gets a large advantage, each of the wrong ones a small negative one; they sum to 0.

# %%
from nanoreason.learn import group_advantages

rewards = [[task.reward(row.problem, response_text(tokenizer, row)) for row in group] for group in groups]
for values, advantages in zip(rewards, group_advantages(rewards)):
    print("rewards", *(f"{value:5.0f}" for value in values))
    print("  A    ", *(f"{value:5.2f}" for value in advantages), "\n")

# %% [markdown]
# ## What counts in the loss
#
# Each row remembers which of its tokens the policy drew. The prompt is context; the EOS that ends a response counts. Most
# tokens of a scratchpad are sure (a log-prob near 0): the few that are not decide whether the sum is right, and the gradient
# of $\log \pi$ is large at these alone.

# %%
row = groups[0][0]
words = [tokenizer.decode([token]) for token in row.tokens]
print("context:", [word for word, drawn in zip(words, row.loss_mask) if not drawn])
print("loss:   ", [word for word, drawn in zip(words, row.loss_mask) if drawn][:8], "...")
unsure = sorted(range(row.prompt_len, len(words)), key=lambda t: row.logprobs[t])[:5]
print("least likely of these:", [(f"token {t}", words[t], round(row.logprobs[t], 2)) for t in sorted(unsure)])

# %% [markdown]
# ## The run
#
# The recipe with its own settings, but fewer steps. Watch `reward`. The `loss` is near 0 from the first step on, by algebra:
# the ratio is 1 and advantages have mean 0 in each group. Its gradient is not 0, as `grad_norm` says.

# %%
from dataclasses import replace

config = replace(
    grpo_minimal.PRESETS["tiny" if QUICK else "cpu"],
    base=str(ROOT / "data" / "checkpoints" / "star-base"),
    out=str(RUNS / "grpo"),
    steps=1 if QUICK else 16,
)
last = grpo_minimal.run(config)

# %%
steps(RUNS / "grpo", "reward", "loss", "grad_norm", "num_tokens")

# %% [markdown]
# The same numbers as curves, and whole groups with their rewards and advantages, in a terminal:
#
# ```
# python train.py grpo_minimal
# python -m nanoreason plot runs/grpo-minimal --metric reward
# python -m nanoreason look runs/grpo-minimal --only wrong
# python -m nanoreason doctor runs/grpo-minimal
# ```
#
# ## Exercises
#
# 1. Set `group_size=2`. How many groups have equal rewards at the first step, and what does that do to the slope of the
#    reward? (Count them with `group_advantages`; expect far more than with 16.)
# 2. Replace the advantage by the reward itself: `group_advantages` becomes the identity. The mean reward still rises. Why, and
#    why slower? (`python train.py grpo --algorithm reinforce` is this.)
# 3. Flip the sign of the loss for one step. Predict what `reward` does before you run it.
# 4. Start from `Addition(digits=(6,))`, which the base cannot add. The rewards are all 0. What do `grad_norm` and the weights do?
#    Which line of the step decides that?
# 5. Take two updates on the same rollout (`python train.py grpo --updates-per-rollout 2`). Now the ratio moves: look at
#    `clip_ratio/region_mean` in its metrics.

# %% [markdown]
# # STaR: a model that teaches itself from its own right answers
#
# *Zelikman et al., 2022.* A model $M$ writes a scratchpad $\hat r$ and an answer $\hat y$ for each problem $x$. Traces that end
# in the right answer $y$ become training data. Seen as reinforcement learning this is
#
# $$\nabla J = \sum_i \mathbb{E}_{\hat r_i, \hat y_i \sim M(x_i)} \left[ 1(\hat y_i = y_i) \,
# \nabla \log p_M(\hat y_i, \hat r_i \mid x_i) \right]$$
#
# a policy gradient whose reward is 1 or 0. It says nothing about a problem that is never solved. **Rationalization**: what
# failed is tried again with the answer as a hint, and if that works the trace is kept *without* the hint. The base is
# fine-tuned on the data, and the next round begins.
#
# This notebook walks through one round on sums of three to five digits, from a shipped base of a third of a million weights.

# %%
from first_cell import QUICK, ROOT, RUNS

from dataclasses import replace

from nanoreason.checkpoint import load_checkpoint
from nanoreason.environment import by_difficulty, judge, mean, sample
from nanoreason.notebook import claims, figure, show
from nanoreason.recipes import star
from nanoreason.tasks import Addition

# %% [markdown]
# ## The algorithm box, and the ten lines that are it

# %%
show(star, "base M", "policy = M fine-tuned")
print()
show(star.right_traces, "scored = ", "return")

# %% [markdown]
# ## The base
#
# It stands for the pretrained model of the paper with worked examples in its prompt: it adds up to three digits, four now and
# then, five never. With the answer as a hint it can write the scratchpad of all of them.

# %%
task = Addition(digits=(3, 4, 5))
base, tokenizer = load_checkpoint(ROOT / "data" / "checkpoints" / "star-base")
problem = task.problem("train", 0)
print(problem.prompt + problem.solution)


# %%
def attempt(model, problems):
    """One greedy response to each problem, with the task's verdict."""
    return judge(task, tokenizer, sample(task, model, tokenizer, problems, temperature=0.0))


def accuracy(model, problems):
    """{number of digits: share of right answers}"""
    by_digits = by_difficulty(task, attempt(model, problems))
    return {n: round(mean([one.verdict for one in some]), 2) for n, some in by_digits.items()}


held_out = task.test_problems(5 if QUICK else 50)
print("unaided    ", accuracy(base, held_out))
print("with a hint", accuracy(base, [task.hint(problem) for problem in held_out]))

# %% [markdown]
# ## Sample, filter, rationalize
#
# What is right is kept; what is wrong is tried again with a hint. This calls the lines above.

# %%
config = replace(
    star.PRESETS["tiny" if QUICK else "cpu"],
    base=str(ROOT / "data" / "checkpoints" / "star-base"),
    task=task,
    rationalize=True,
    rounds=1 if QUICK else 2,
    pool=300,
    problems=8 if QUICK else 150,
    first_steps=4 if QUICK else 150,
    step_increment=0,
    lr=2e-3,
    eval_problems=5 if QUICK else 50,
)
problems = star.round_problems(config, 1)
kept, rationalized, attempts = star.right_traces(config, tokenizer, problems, lambda some, *how: attempt(base, some))
failed = len(problems) - len(kept)
print(f"{len(problems)} problems: {len(kept)} solved, {failed} failed, {len(rationalized)} of these solved with a hint")

# %% [markdown]
# A hinted trace is stored as if the problem had been posed without the hint.

# %%
row = rationalized[0]
print("asked with a hint:\n" + task.hint(row.problem).prompt)
print("stored without it:\n" + tokenizer.decode(row.tokens))

# %% [markdown]
# A hinted trace might copy the hint behind a wrong scratchpad: its answer would be right, its work not. Does it?

# %%
second = attempts[len(problems) :]
valid = [one.right and task.work_is_valid(one.row.problem, one.text) for one in second]
print("right answers among hinted traces:", sum(one.right for one in second))
print("of these with valid work:         ", sum(valid))

# %% [markdown]
# ## The rounds
#
# The recipe: in each round the *base* is fine-tuned on what the last policy got right, so that only the data carries over. Once
# without rationalization, once with it. `kept` and `hinted` are shares of the round's problems, the columns of digits are greedy
# accuracies on held-out sums.

# %%
for rationalize in (False, True):
    print("with rationalization" if rationalize else "without rationalization")
    star.run(replace(config, out=str(RUNS / f"star-{rationalize}"), rationalize=rationalize))

# %% [markdown]
# ## The committed run
#
# All arms, three seeds, six rounds: `python train.py reproduce star --preset cpu`.

# %%
figure("star")

# %%
claims("star", "plain", "rationalize", "longer unseen", "never practised")

# %% [markdown]
# **What to see.** The first two panels: without rationalization the lengths rise one after another, each only when the one below
# it is there, because a trace can be kept only of what is sometimes solved. With it all lengths rise in the first round.
# **What failed.** Without hints STaR does not beat direct answers in every seed: those see ten thousand problems for five
# thousand steps, which in one seed is enough to guess five digits. And nothing longer than what was practised is ever
# solved: a model that never saw these positions has nothing to extrapolate with. `docs/star.md` has every seed.
#
# ## Exercises
#
# 1. Set `rounds=4`. Which length moves first without hints, which with them? Expect the order of the figure's first two panels.
# 2. Leave the hint in the stored prompt: in `right_traces` give `demonstration` the problem `task.hint(problem)`. What becomes of
#    the unaided accuracy on five digits? Expect the base's: the model has learnt to use a hint that it will not get.
# 3. After a round, load `policy` from the run's folder and measure its accuracy *with hints* (as was done with the base). What has
#    it forgotten, and what does `star.prompt_set` do about it? Try `prompt_set=0`.
# 4. STaR's filter is a policy gradient with reward 0 or 1 and no baseline. Which expression in `right_traces` is the reward, and
#    which function takes the gradient?
# 5. Set `restart=False`, so that each round goes on from the last policy. Better or worse? Compare with the arm `continue` in
#    `docs/star.md`.

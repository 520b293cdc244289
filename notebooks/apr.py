# %% [markdown]
# # Adaptive Parallel Reasoning: threads that spawn and join
#
# *Pan et al., 2025.* One chain of thought must fit its context and is as slow as it is long. A thread may instead **spawn**
# children, which run side by side, and **join** what they find. With $n_i$ the tokens of thread $i$,
#
# $$\mathrm{total} = \sum_i n_i, \qquad
# \mathrm{critical\ path} = n_{\mathrm{parent}} + \sum_{\mathrm{blocks}} \max_{i \in \mathrm{block}} n_i,$$
#
# so width costs tokens and hardly any time. Reinforcement with one reward for the last answer reaches every thread, and decides how
# wide and how deep to go.

# %%
from first_cell import QUICK, ROOT, RUNS

from dataclasses import replace

from nanoreason import threads
from nanoreason.checkpoint import load_checkpoint
from nanoreason.notebook import claims, figure, show
from nanoreason.recipes import parallel
from nanoreason.rollout import marked_text, prompt_row, response_text, stops_of
from nanoreason.sampler import Sampler, generate
from nanoreason.tasks import HardAttempts
from nanoreason.tasks.wrappers import Parallel

# %% [markdown]
# ## The scheduler is an `on_stop` of the sampling loop
#
# A parent stops at the end of its block; its children are rows like any other, in the same batch; the last one that ends brings
# the parent back, which reads the join and goes on with the keys that it still has.

# %%
show(threads.Threads.join, "problems = ", "return [row]")
print()
show(threads.Threads.end, "if thread.parent is None", "return [] if")

# %% [markdown]
# ## One problem, all its threads
#
# The shipped model after reinforcement. In «» what the parent reads and did not say: the join. Its block of spawns was erased
# from its context, and is shown from the record.

# %%
policy, tokenizer = load_checkpoint(ROOT / "data" / "checkpoints" / "apr")
task = Parallel(HardAttempts())
problem = task.test_problems(4)[1]
sampler = Sampler(policy, tokenizer, stop=stops_of(task), temperature=1.0, max_new_tokens=256)
scheduler = threads.Threads(task, sampler)
row = prompt_row(tokenizer, problem, seed=2)
generate(sampler, [row], scheduler)
root = scheduler.of[row]

print(problem.prompt)
for block in root.rounds:
    print(f"\nat token {block.start} it says: {block.block}")
    for child in block.children:
        print(
            f"    {child.row.problem.prompt:18} {child.clock - child.start:4} tokens: ...{response_text(tokenizer, child.row)[-70:]}"
        )
print(f"\n{marked_text(tokenizer, row, row.prompt_len)}")
print(f"\nright: {task.reward(problem, response_text(tokenizer, row))}")
print({name.removeprefix("threads/"): value for name, value in row.counted.items()})

# %% [markdown]
# ## Wider, at equal context
#
# The recipe: free rollouts that must fit a window, and prompts that ask for so many children ("; 6"). `sequential` is the critical
# path, `total` all tokens.

# %%
config = replace(
    parallel.PRESETS["tiny" if QUICK else "cpu"],
    base=str(ROOT / "data" / "checkpoints" / "apr"),
    out=str(RUNS / "parallel"),
    methods=("context", "asked"),
    **(
        {"problems": 2, "widths": (1, 2), "windows": (64,)}
        if QUICK
        else {"problems": 30, "repeats": 1, "widths": (1, 2, 4, 8), "windows": (128, 192, 256)}
    ),
)
parallel.run(config)

# %% [markdown]
# ## The committed run
#
# One thread and many, taught and reinforced, three seeds.

# %%
figure("apr")

# %%
claims("apr")

# %% [markdown]
# **What to see.** At equal context threads find three times what one thread finds, and to wait for eight children takes hardly longer than for three.
# Ten steps of reinforcement make them wider, not deeper. With the joins in the loss, as in the released code, most parents make a
# join up; as context hardly any does.
# **What failed.** At equal *total* tokens threads are no better than independent samples of one thread with a vote: a child here is
# a search of its own that knows nothing of its siblings, as a further sample is. Asked for one child, parents spawn again in half of
# the cases. `docs/apr.md` has every seed.
#
# ## Exercises
#
# 1. Compute total and critical path of the problem above by hand from the clocks of its threads. Do they agree with `row.counted`?
# 2. Ask for eight children (`replace(task, asked=8)`). By how much do total and critical path grow against three?
# 3. Sample the same problem sixteen times with `HardAttempts()` as one thread (the base `attempts-0` has hardly met four numbers:
#    expect little). What would a fair comparison at equal tokens need?
# 4. Let a child see only 32 tokens: `spawn.Limits(tokens=32)`, through a subclass of `Parallel` whose `limits` says so. What does the
#    parent read, and what does it answer?

# %% [markdown]
# # R1-Zero: thinking that grows because it pays
#
# *DeepSeek-AI, 2025 (DeepSeek-R1).* No demonstrations of reasoning and no reward for it: a template that leaves room to think, a
# verifier of the answer, and GRPO. The reward of a response $o$ to a problem with answer $y$ is
#
# $$r(o) = 1[\mathrm{answer}(o) = y] + w \cdot 1[o = \texttt{<think>} \ldots \texttt{</think> <answer>} \ldots \texttt{</answer>}]$$
#
# and accuracy and the length of the thought are to rise together. Here the problems are Countdown *by attempts*: make a target
# from three numbers. An attempt is right about once in ten times whatever the model has learnt, and whether it was right can
# be seen. So trying once more always pays, and the base often gives up all the same.
#
# The stages of R1 proper (cold start, RL, rejection sampling, RL again, distillation) are arms of the same section.

# %%
from first_cell import QUICK, ROOT, RUNS

from dataclasses import replace

from nanoreason import prompts, rewards
from nanoreason.notebook import claims, figure, show, steps
from nanoreason.recipes import grpo
from nanoreason.tasks import Attempts

BASE = str(ROOT / "data" / "checkpoints" / "attempts-0")

# %% [markdown]
# ## A problem, and a response that tries until one attempt says yes

# %%
problem = next(p for p in map(lambda i: Attempts().problem("train", i), range(100)) if p.info["form"] == "long")
print(problem.prompt, "\n")
print(problem.solution)
print("\na random attempt is right with probability", round(problem.info["chance"], 2))

# %% [markdown]
# ## The template, the two rewards, and one step of the recipe
#
# R1's template says nothing about how to think. (The tiny vocabulary of this base needs no such sentence: it has met the tags.)

# %%
show(prompts, "R1_TEMPLATE = (", "User: {question} Assistant:")
print()
show(rewards.Format, "def __call__")
print()
show(grpo.train, "groups, metrics = collect", "compute_advantages")
show(grpo.train, "metrics |= update_policy", "metrics |= update_policy")

# %% [markdown]
# ## The run
#
# The preset `attempts` of `train.py grpo`, with fewer steps: reward for accuracy and a tenth for the format, advantages without
# the division by the deviation (Dr. GRPO). Before the first step it measures the base.

# %%
config = replace(
    grpo.PRESETS["attempts"],
    base=BASE,
    out=str(RUNS / "zero"),
    steps=1 if QUICK else 8,
    prompts=2 if QUICK else 16,
    group_size=4 if QUICK else 16,
    eval_problems=4 if QUICK else 60,
    eval_samples=2,
    eval_every=0,
)
last = grpo.run(config)

# %% [markdown]
# `accuracy` and `mean_length` are those of the rollouts, on new problems in every step; `attempts` counts the attempts of a
# response, `gave_up` the responses that close their thought behind a *no*.

# %%
steps(
    RUNS / "zero", "accuracy", "completions/mean_length", "attempts", "gave_up", "completions/clipped_ratio", "entropy"
)

# %% [markdown]
# The same held-out problem, sampled before and after with the same random numbers:

# %%
from nanoreason.experiments.results import Results
from nanoreason.experiments.traces import before_and_after
from nanoreason.run import read_jsonl

samples = [{"arm": "zero", "seed": 0, **line} for line in read_jsonl(RUNS / "zero" / "samples.jsonl")]
print(before_and_after(Results([], samples), "zero"))

# %% [markdown]
# ## The committed run
#
# Four seeds, all stages: `python train.py reproduce r1 --preset cpu --seeds 4`.

# %%
figure("r1")

# %%
claims("r1", "R1-Zero", "without thoughts", "pipeline", "distillation")

# %% [markdown]
# **What to see.** Accuracy and length double within the first eight steps and are level from then on. The two controls say
# why: a base that never thinks gains almost nothing and its length stays; a window that is too small holds the accuracy down
# until it is raised. Traces teach a small student what reinforcement of the student does not find.
# **What failed.** The rank correlation of accuracy and length over *all* of the first twenty steps is low: on the plateau the
# steps differ only in which problems they drew, and hard ones mean longer thoughts and fewer right answers. Every stage of the
# pipeline equals R1-Zero, since three hundred traces already carry the whole habit over and the same window limits all of them.
# `docs/r1.md` has every seed.
#
# ## Exercises
#
# 1. Set `max_new_tokens=Schedule(64)` (from `nanoreason.run`). Predict what accuracy, length and `clipped_ratio` do, then
#    `Schedule(64, ((5, 256),))`. Expect the second to catch up within three steps of the raise.
# 2. Leave out `Format`: `rewards=(rewards.Accuracy(),)`. How much of the format is lost in eight steps, and how much accuracy?
# 3. Practise on easy problems only, `task=Attempts(chance=(0.14, 1.0))`. Expect higher accuracy and shorter thoughts: length grows
#    with what a problem needs.
# 4. Is the longer thought the *cause* of the accuracy? Name the control above that answers it, and what it would have shown
#    otherwise.
# 5. `python -m nanoreason compare data/checkpoints/attempts-0 RUN/policy` prints the words whose probability changed most. Which do
#    you expect?

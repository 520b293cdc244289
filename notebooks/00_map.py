# %% [markdown]
# # The map: ten systems, one code base
#
# A **reasoning model** writes tokens before it answers, and is trained so that these tokens pay. Nearly everything in the field is
# one loop with other parts put in:
#
# $$\text{problem} \rightarrow \text{samples } o_1 \ldots o_G \sim \pi_\theta \rightarrow \text{verdicts} \rightarrow \text{rewards } r_i
# \rightarrow \text{weights of tokens} \rightarrow \nabla_\theta \sum_i \sum_t w_{i,t} \log \pi_\theta(o_{i,t})$$
#
# STaR has $w = 1$ for right samples, distillation for right samples of another model, GRPO $w = A_i / |o_i|$; budget forcing, L1 and
# threads change what is sampled; long-CoT rewards and LCPO change $r$. This page says which notebook shows what, which file does
# it, and in which order to read.
#
# | notebook | system | page with every seed |
# |---|---|---|
# | [01_grpo_on_one_page](01_grpo_on_one_page.ipynb) | GRPO, one step and a run | [one step with all its tensors](../docs/one-step.md) |
# | [star](star.ipynb) | STaR: learn from your own right answers, with hints for what failed | [docs](../docs/star.md) |
# | [r1](r1.ipynb) | R1-Zero and R1: accuracy and length rise together; pipeline, distillation | [docs](../docs/r1.md) |
# | [behaviors](behaviors.ipynb) | cognitive behaviours: what a base must bring along, and priming | [docs](../docs/behaviors.md) |
# | [longcot](longcot.ipynb) | long against short chains of thought, the cosine reward, hacking | [docs](../docs/longcot.md) |
# | [zoo](zoo.ipynb) | SimpleRL-Zoo: one recipe on many bases, format rewards, hard data | [docs](../docs/zoo.md) |
# | [transfer](transfer.ipynb) | what SFT and RL keep of everything that was not trained | [docs](../docs/transfer.md) |
# | [s1](s1.ipynb) | few chosen traces, budget forcing, "wait" | [docs](../docs/s1.md) |
# | [l1](l1.ipynb) | a length in the prompt: LCPO | [docs](../docs/l1.md) |
# | [sos](sos.ipynb) | Stream of Search: learning to search from searches | [docs](../docs/sos.md) |
# | [apr](apr.ipynb) | Adaptive Parallel Reasoning: threads that spawn and join | [docs](../docs/apr.md) |
#
# Each notebook runs in less than two minutes on one CPU core, from shipped models, and ends with exercises.

# %%
from first_cell import ROOT

import ast
import json

from nanoreason.__main__ import RECIPES, SECTIONS

# %% [markdown]
# ## What came out
#
# Every claim of a paper is a number per seed with a threshold that was set before the run. What fails stays in the table, with an
# explanation on the section's page. Read from the committed summaries:

# %%
print("section     claims that hold   seeds")
for section, text in SECTIONS.items():
    path = ROOT / "data" / "results" / section / "cpu" / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"claims": [], "seeds": 0}
    held = f"{sum(claim['passed'] for claim in summary['claims']):3} of {len(summary['claims']):2}"
    print(f"{section:12}{held if summary['claims'] else 'not run yet':18} {summary['seeds']:<6} {text}")

# %% [markdown]
# ## Which file does what
#
# The first sentence of every file, from the file itself. An import never points up in this list's layers: recipes use the core, never
# one another; an experiment composes recipes.

# %%
for folder in ("nanoreason", "nanoreason/tasks", "nanoreason/recipes", "nanoreason/experiments"):
    print(f"\n{folder}/")
    for path in sorted((ROOT / folder).glob("*.py")):
        first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
        if first:
            print(f"    {path.name:20} {first}")

# %% [markdown]
# ## Recipes
#
# The papers' algorithm boxes; `# DIFFERS` marks every deviation. `python train.py RECIPE --help` lists the settings.

# %%
for recipe, text in RECIPES.items():
    source = (ROOT / "nanoreason" / "recipes" / f"{recipe}.py").read_text(encoding="utf-8")
    print(f"{recipe:13} {len(source.splitlines()):4} lines, {source.count('# DIFFERS')} deviations: {text}")

# %% [markdown]
# ## In which order to read
#
# From the README:

# %%
readme = (ROOT / "README.md").read_text(encoding="utf-8")
print(readme.partition("## Read in this order\n")[2].partition("\n## ")[0].strip())

# %% [markdown]
# ## Further pages
#
# [Real models](../docs/real-models.md), [from laptop to GPU](../docs/from-laptop-to-gpu.md), [your own task, reward, recipe](../docs/extend.md),
# [what every metric means](../docs/metrics.md), [when it does not learn](../docs/troubleshooting.md), [shipped models](../docs/checkpoints.md),
# [the base of all sections on attempts](../docs/base.md), [teaching with it](../docs/teaching.md).
#
# ## Exercises
#
# 1. Write the weight $w_{i,t}$ of each system in the table above, where it has one. Check three of them in `learn.token_weights` and
#    `learn.collate`.
# 2. Pick one claim that fails in the second column and predict, before you open its page, why.
# 3. Find the one function through which every sampled token passes, and the one through which every gradient passes. (Set a
#    breakpoint in each and run `train.py grpo_minimal --preset tiny`.)

# %% [markdown]
# # Stream of Search: learning to search from searches
#
# *Gandhi et al., 2024.* A language model is trained on searches as they went, dead ends and failures included, instead of on optimal
# paths: with $\tau$ a trajectory that a symbolic strategy wrote about the problem $x$,
#
# $$\mathcal{L}_{\mathrm{SFT}}(\theta) = - \mathbb{E}_{(x, \tau)} \sum_t \log p_\theta(\tau_t \mid x, \tau_{<t}).$$
#
# Then it improves by its own successes (STaR), or by a reward for short searches. The question that later work asks of it
# (*To Backtrack or Not to Backtrack*): is a search of $T$ tokens a better use of them than $T / |\mathrm{path}|$ guesses?

# %%
from first_cell import QUICK, ROOT, RUNS

from dataclasses import replace

from nanoreason import search
from nanoreason.checkpoint import load_checkpoint
from nanoreason.environment import sample
from nanoreason.notebook import claims, figure, show
from nanoreason.recipes import search_test
from nanoreason.rollout import response_text
from nanoreason.run import table
from nanoreason.tasks import StreamOfSearch

# %% [markdown]
# ## A strategy that writes down what it does
#
# Depth first: try the operations in the order of a heuristic, check the leaves, come back.

# %%
show(search.depth_first, "for index", "return False")

# %%
numbers, target = (9, 4, 3), 24
print("in the paper's language:")
print("\n".join(search.write(search.search(numbers, target, "dfs-sum"), "paper").splitlines()[:12]), "\n...")
print("\nin the compact one, a token a word:")
print(search.write(search.search(numbers, target, "dfs-sum"), "compact"))

# %% [markdown]
# ## Twelve strategies
#
# Two heuristics, depth first or a best-first beam of one to five. A larger beam solves more and writes more:

# %%
task = StreamOfSearch(3, 30, (10, 60))  # of the shipped searcher
rows = []
for strategy in search.STRATEGIES:
    found = search_test.symbolic(task, "test_inputs", 20 if QUICK else 200, strategy)
    solved, tokens = sum(one.reading.solved for one in found), sum(one.tokens for one in found)
    rows.append([strategy, f"{solved / len(found):.2f}", f"{tokens / len(found):.0f}"])
print(table(["strategy", "solved", "tokens"], rows))

# %% [markdown]
# ## The strict reader
#
# The same reader judges strategies and models: every statement is replayed from the root, each number is used up once. What a
# shipped searcher of three inputs writes, and what is wrong with it:

# %%
policy, tokenizer = load_checkpoint(ROOT / "data" / "checkpoints" / "countdown-search")
for (row,) in sample(
    task, policy, tokenizer, task.unique_problems("test_inputs", 3), temperature=0.0, max_new_tokens=200
):
    text = response_text(tokenizer, row)
    reading = task.read(row.problem, text)
    print(row.problem.prompt.strip(), "\n   ", text[:160], "..." if len(text) > 160 else "")
    print(f"    solved: {reading.solved}, nodes: {reading.nodes}, errors: {dict(reading.errors)}\n")

# %% [markdown]
# ## The searcher beside the strategies
#
# The recipe measures both splits (new inputs, held-out targets), and whose states the model's searches resemble.

# %%
config = replace(
    search_test.PRESETS["tiny" if QUICK else "cpu"],
    base=str(ROOT / "data" / "checkpoints" / "countdown-search"),
    task=task,
    out=str(RUNS / "search"),
    **(
        {"problems": 4, "hard_problems": 2}
        if QUICK
        else {"problems": 60, "hard_problems": 20, "samples": 4, "sampled_problems": 30}
    ),
)
last = search_test.run(config)

# %%
for split in search_test.SPLITS:
    closest = max(search.STRATEGIES, key=lambda name: last[f"states/{name}/{split}"])
    print(f"{split}: closest to {closest}, shared states {last[f'states/{closest}/{split}']:.2f}")
    print(
        "    errors per search: " + ", ".join(f"{kind} {last[f'errors/{kind}/{split}']:.2f}" for kind in search.ERRORS)
    )
for name in ("budget", "symbolic_budget", "random_best"):
    points = sorted(
        (last[key[:-3] + "tokens"], last[key]) for key in last if key.startswith(f"{name}/") and key.endswith("/acc")
    )
    print(f"{name}: " + ", ".join(f"{tokens:.0f} tokens {accuracy:.2f}" for tokens, accuracy in points))

# %% [markdown]
# `budget` cuts the searcher's greedy searches, `symbolic_budget` those of the strategies; `random_best` is the best of n random legal
# paths, which an oracle chooses. With three inputs even those are strong where tokens do not matter.
#
# ## The committed run

# %%
figure("sos")

# %%
claims("sos")

# %% [markdown]
# **What to see.** Searches teach more than optimal paths of the same problems, on new inputs and on held-out targets; the searcher
# is above the mixture it learnt from, because it searches most like the strategy that solves most; its own successes add a few points and
# solve problems on which all twelve strategies fail.
# **What failed.** Targets that no training problem had cost it much more than in the paper: each number is one token here, and the
# token of such a target has never stood where a target stands. And with four inputs, the preset before, the searcher was trained too
# short to learn anything of use, while optimal paths sampled often solved nearly everything. `docs/sos.md` says more.
#
# ## Exercises
#
# 1. Write a trace by hand that reaches 24 from 9, 4, 3 by using the 4 twice. What does the strict reader say, and
#    `reading.lenient` (as the released code scores)?
# 2. Sort the strategies by solved problems per thousand tokens instead of by solved problems. Which wins?
# 3. `StreamOfSearch(data="op")` poses optimal paths. Compare the length of its solutions with those of `data="sos"`: how many guesses
#    does one search pay for?
# 4. Compute the chance of a random legal path for three and four inputs (`search_test.chance`). At how many tokens does the best of n
#    random paths reach the strategies?

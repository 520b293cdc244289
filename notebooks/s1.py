# %% [markdown]
# # s1: budget forcing
#
# *Muennighoff et al., 2025.* A thinking model can be made to think less or more without any training. **Less**: at a budget of
# $b$ tokens the closing tag is appended, and it must answer. **More**: when it closes its thought, the closing tag is taken
# back and `wait` is appended instead. How well a way to set the length works, the paper measures by three numbers over the runs
# $a \in \mathcal{A}$ with their mean thinking tokens $f(a)$ and accuracies:
#
# $$\mathrm{Control} = \frac{1}{|\mathcal{A}|} \sum_{a} 1[a_{\min} \le f(a) \le a_{\max}], \qquad
# \mathrm{Scaling} = \frac{1}{\binom{|\mathcal{A}|}{2}} \sum_{a < b} \frac{\mathrm{acc}(b) - \mathrm{acc}(a)}{f(b) - f(a)}, \qquad
# \mathrm{Performance} = \max_a \mathrm{acc}(a)$$
#
# The model that is forced is fine-tuned on a thousand chosen traces; here on a hundred.

# %%
from first_cell import QUICK, ROOT, RUNS

from dataclasses import replace

from nanoreason import forcing
from nanoreason.checkpoint import load_checkpoint
from nanoreason.experiments import s1
from nanoreason.notebook import claims, figure, show, steps
from nanoreason.recipes import budget, select
from nanoreason.rollout import marked_text
from nanoreason.tasks import Attempts

BASE = str(ROOT / "data" / "checkpoints" / "attempts-0")

# %% [markdown]
# ## The ten lines
#
# A row that stops is handed out; whoever puts it back lets it go on. This function decides:

# %%
show(forcing.deliberate, "thought.cut = ", "row.force(close)")
print()
show(forcing.keep_going, "if len(row.response)", "return True")

# %% [markdown]
# ## One thought: alone, cut, and kept from closing
#
# Forced tokens stand in «»: they are context, never loss. Right behind a `wait` the model cannot close again.

# %%
policy, tokenizer = load_checkpoint(BASE)
problem = Attempts().test_problems(9)[8]
print(problem.prompt)
for name, how in {
    "alone": forcing.Forcing(budget=0),
    "cut at 16 tokens": forcing.Forcing(budget=16),
    "wait, three times": forcing.Forcing(budget=160, waits=3),
}.items():
    (thought,) = forcing.think(policy, tokenizer, [problem], how, seed=7)
    right = Attempts().reward(problem, tokenizer.decode(thought.row.response))
    print(f"\n{name}: {thought.tokens} tokens, {'right' if right else 'wrong'}")
    print(marked_text(tokenizer, thought.row, thought.row.prompt_len))

# %% [markdown]
# ## Accuracy against forced budgets
#
# The recipe on the shared base, which can try again but gives up early (it is not fine-tuned here): cut at a budget, and kept from
# closing so often.

# %%
config = replace(
    budget.PRESETS["tiny" if QUICK else "cpu"],
    base=BASE,
    out=str(RUNS / "budget"),
    methods=("forcing", "wait"),
    **(
        {"budgets": (16, 48), "waits": (0, 2)}
        if QUICK
        else {"problems": 100, "repeats": 1, "budgets": (16, 32, 64, 128), "waits": (0, 1, 2, 4, 8)}
    ),
)
budget.run(config)
steps(RUNS / "budget", "method", "asked", "found", "attempts", "attempts/new")

# %% [markdown]
# `found` is the share of thoughts that hold a right attempt. It never falls with more waiting; `accuracy` does once the limit cuts
# into an attempt and the torn one is answered.
#
# ## A hundred traces of two thousand
#
# The pool is as uneven as one that somebody has collected. Chosen are traces in the format, of problems that the base fails at, of
# different kinds, the longer ones more often:

# %%
show(select.pick, 'if config.how == "s1"', "return diverse")
print()
show(select.diverse)

# %%
chosen = replace(
    s1.PRESETS["tiny" if QUICK else "cpu"].select,
    how="s1",
    base=BASE,
    out=str(RUNS / "pick"),
    **({} if QUICK else {"problems": 400, "choose": 40}),
)
print({name: round(value, 2) for name, value in select.run(chosen).items() if isinstance(value, float)})

# %% [markdown]
# ## The committed run

# %%
figure("s1")

# %%
claims("s1")

# %% [markdown]
# **What to see.** A hundred chosen traces do what random ones do not, and `wait` twice adds to it; from then on the thought states
# again what it has found, and accuracy falls. A cut at half of the natural length costs much.
# **What failed.** The longest traces are as good a choice: a long trace here is one that does not give up. `wait` is no better than
# forbidding the closing tag, since nothing else can follow a verdict in this base's texts. Rejection sampling by length rises where
# the paper's falls, because every problem is posed to the same budget. And at equal tokens a vote of the same model beats waiting:
# a second sample starts anew, a `wait` goes on behind what was already tried. `docs/s1.md` has every seed.
#
# ## Exercises
#
# 1. Force another word: `forcing.Forcing(budget=120, waits=3, word="Hmm")`. The base has never met it. What does it do to the thought?
# 2. Give the answer no room: `answer_tokens=4` in `forcing.think`. Which claim of a paper could such a mistake have made?
# 3. Add `"samples"` to `methods` and compare the lines of kind majority with those of `wait` at equal `thinking`. Count the tokens of
#    all samples.
# 4. Fine-tune on the chosen traces (`train.py sft --base ... --data RUN/demonstrations.jsonl --lr 7e-4`) and repeat the table.
#    What changes most, the accuracy without waiting or with it?
# 5. Control of budget forcing is always 1. Why is it no achievement? (Which line above enforces it?)

# %% [markdown]
# # Long chains of thought: what makes them, what keeps them useful
#
# *Yeo et al., 2025 (Demystifying Long Chain-of-Thought Reasoning).* Fine-tuning on long chains scales on where short ones
# saturate. Reinforcement with the plain verdict lets length grow into the context window, where responses are cut. The
# **cosine reward** prices length: with $L$ the tokens of a response and $L_{\max}$ the window,
#
# $$r(L) = r_{L_{\max}} + \tfrac{1}{2} (r_0 - r_{L_{\max}}) \left(1 + \cos \frac{\pi L}{L_{\max}}\right),$$
#
# with $(r_0, r_{L_{\max}})$ one pair for right responses (short is better) and one for wrong ones (long is better: think on where you
# do not know), and a fixed penalty at the window.

# %%
from first_cell import QUICK, ROOT, RUNS

from dataclasses import replace

from nanoreason.experiments import longcot
from nanoreason.notebook import claims, figure, show
from nanoreason.recipes import sft
from nanoreason.rewards import Classic, Cosine, Scored, discounted_returns, repetition_penalties
from nanoreason.rollout import Problem, Rollout
from nanoreason.run import table

# %% [markdown]
# ## The reward

# %%
show(Cosine, "def __call__")
print()
show(Classic, "def __call__")


# %%
def response(tokens, window=128):
    """A response of so many tokens; what it says does not matter here."""
    reason = "length" if tokens >= window else "eos"
    return Rollout(Problem("", ""), [1] * tokens, [True] * tokens, [0.0] * tokens, 0, stop_reason=reason)


rows = []
for tokens in (0, 16, 32, 48, 64, 80, 96, 112, 127, 128):
    right, wrong = (Scored(response(tokens), "", verdict, 128) for verdict in (1.0, 0.0))
    rows.append([str(tokens), *(f"{reward(one):6.2f}" for one in (right, wrong) for reward in (Classic(), Cosine()))])
print(table(["tokens", "right: classic", "cosine", "wrong: classic", "cosine"], rows))

# %% [markdown]
# ## A reward for length is hacked by repetition, so single tokens are punished
#
# Where right responses are worth more the longer they are, the cheapest way to be long is to say things twice. The penalty falls
# on the tokens of a repeated n-gram, and with a discount on those before them: it becomes an advantage of tokens, not of rows.

# %%
show(repetition_penalties, "rewards = [0.0]", "return rewards")
tokens = [5, 6, 7, 8, 9, 5, 6, 7, 3]
penalties = repetition_penalties(tokens, n=3, penalty=-1.0)
print("\ntokens   ", tokens)
print("penalties", penalties)
print("returns  ", [round(value, 2) for value in discounted_returns(penalties, gamma=0.9)])

# %% [markdown]
# ## Long and short demonstrations
#
# The section's arms on the largest and the smallest set, with a shorter test: the same number of demonstrations, one kind tries
# until an attempt says yes, the other makes one attempt.

# %%
preset = "tiny" if QUICK else "cpu"
sizes = longcot.PRESETS[preset].sizes
arms = {arm.name: arm for arm in longcot.arms(preset, 0)}
rows = []
for name in (f"{kind}-{n}" for n in (sizes[0], sizes[-1] if QUICK else sizes[2]) for kind in ("long", "short")):
    config = replace(
        arms[name].settings,
        base=str(ROOT / "data" / "checkpoints" / "attempts-0"),
        out=str(RUNS / name),
        eval_problems=4 if QUICK else 80,
        eval_samples=1,
    )
    print(name, end=": ")
    last = sft.run(config)
    rows.append(
        [
            name,
            *(
                f"{last['eval/' + key]:.2f}"
                for key in ("pass@1", "mean_length", "attempts", "gave_up", "clipped_ratio")
            ),
        ]
    )
print(table(["demonstrations", "accuracy", "tokens", "attempts", "gave up", "cut"], rows))

# %% [markdown]
# ## The committed run

# %%
figure("longcot")

# %%
claims("longcot", "SFT", "approach", "windows", "cosine", "paid")

# %% [markdown]
# **What to see.** Long demonstrations lift the base, short ones lower it: they teach to stop. Wider windows of the classic reward end
# higher. Paid for length, responses grow, and a third of their attempts repeat earlier ones.
# **What failed.** More long demonstrations add nothing beyond the third size: few hundred already carry the habit. The classic reward
# in the middle window stays at the window but does not fall back, because a search that is cut costs only itself; the cosine
# reward comes back inside in three seeds of four, at a cost in accuracy, since what it saves are attempts. `docs/longcot.md` has every
# seed and the second preset, `conditions`: how rare long thoughts may be in a base, how small it may be.
#
# ## Exercises
#
# 1. In the table of rewards, find the length at which a right response is worth least without being cut. At which lengths does
#    one attempt more (13 tokens) cost more than it brings, if it is right once in ten times?
# 2. Change `Cosine(right=(0.0, 10.0), wrong=(0.0, 0.0), exceed=0.0)` into the table: that is the reward that was hacked. What does a
#    policy maximise that has found one right answer early?
# 3. What does `DenseRepetition(n=12)` do to a response that states a right attempt again as a check? And `n=40`?
# 4. Train with it: `python train.py grpo --preset attempts --rewards cosine --algorithm.divide-by batch --steps 20`. Compare
#    `completions/clipped_ratio` with that of `--rewards classic`. (Three minutes each.)

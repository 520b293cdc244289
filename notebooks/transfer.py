# %% [markdown]
# # Transfer: what is kept of all that was not trained
#
# *Huan et al., 2025 (Does Math Reasoning Improve General LLM Capabilities?); Shenfeld et al., 2025 (RL's Razor).* A base is trained
# on one task, the target, once by imitating a teacher and once by reinforcement. What becomes of everything else is measured by
# the drift of its distributions, on texts that the policy $\pi$ (or the base $\pi_0$) has drawn itself:
#
# $$D(\pi \,\|\, \pi_0) = \mathbb{E}_{o \sim \pi}\; \frac{1}{|o|} \sum_t \sum_v \pi(v \mid o_{<t}) \log \frac{\pi(v \mid o_{<t})}{\pi_0(v \mid o_{<t})}$$
#
# and by accuracy on the other tasks. A fair comparison is at *equal accuracy on the target*, never at equal steps: whoever has
# learnt more may have forgotten more.

# %%
from first_cell import QUICK, ROOT, RUNS

import json
from dataclasses import replace

from nanoreason import analysis, compare
from nanoreason.checkpoint import load_checkpoint
from nanoreason.notebook import claims, figure, show
from nanoreason.recipes import grpo, sft
from nanoreason.run import table
from nanoreason.tasks import Attempts, HardAttempts
from nanoreason.tasks.attempts import Mixture
from nanoreason.tasks.wrappers import AskedLength

BASE = str(ROOT / "data" / "checkpoints" / "attempts-0")

# %% [markdown]
# ## Both distributions at every token
#
# The exact KL in both directions, and the rank that the base would have given to each word that the policy says:

# %%
show(analysis.compared, "base_said, policy_said", "return targets")

# %% [markdown]
# ## A teacher with words of its own
#
# The target is Countdown by attempts. The teacher solves the same problems as the base does, but says *Hmm* and *Alternatively*
# where the base's texts say *wait*, and checks once more. What should be learnt is to go on until an attempt says yes.

# %%
solver = Attempts(shares=Mixture.parse("long:1"), give_up=(0.0, 0.0), check=0.0, insist=0.0, wait_first=0.0)


def taught(problem):
    """The problem's solution in the teacher's words, with a last check."""
    said = problem.solution.replace("<think>", "<think> Hmm").replace(" wait ", " Alternatively ")
    answer = said.partition("<answer> ")[2].removesuffix(" </answer>")
    return {"prompt": problem.prompt, "response": said.replace(" </think>", f" check {answer} yes </think>")}


lessons = [taught(solver.problem("train", i)) for i in range(16 if QUICK else 400)]
lessons = [lesson for lesson in lessons if len(lesson["response"].split()) < 300]
(RUNS / "teacher.jsonl").write_text("".join(json.dumps(lesson) + "\n" for lesson in lessons))
print(lessons[1]["prompt"], "\n", lessons[1]["response"])

# %% [markdown]
# ## SFT on the teacher, RL on the policy's own samples
#
# Both from the same base. RL has a few of the steps that it takes to the plateau. SFT has enough for the teacher's words to be learnt: with
# a quarter of them the base's own are unlearnt, and nothing is there yet in their place.

# %%
sft.run(
    sft.SftConfig(
        base=BASE,
        data=str(RUNS / "teacher.jsonl"),
        out=str(RUNS / "sft"),
        steps=1 if QUICK else 80,
        rows_per_step=32,
        lr=1e-3,
        warmup=2,
    )
)
rl = replace(
    grpo.PRESETS["attempts"],
    base=BASE,
    out=str(RUNS / "rl"),
    preflight=0,
    eval_samples=0,
    eval_problems=1,
    eval_every=0,
)
grpo.run(replace(rl, **({"steps": 1, "prompts": 2, "group_size": 4} if QUICK else {"steps": 6})))

# %% [markdown]
# ## What changed, on the target and elsewhere
#
# Two things that the base can do and that nobody trained: four numbers, and a length in the prompt.

# %%
base, tokenizer = load_checkpoint(BASE)
tasks = {"target": Attempts(), "four numbers": HardAttempts(), "a length": AskedLength(Attempts(), tokens=(48, 192))}
config = compare.CompareConfig(
    problems=3 if QUICK else 30, max_new_tokens=48 if QUICK else 256, markers="Hmm,Alternatively"
)
found = {}
for name in ("sft", "rl"):
    policy, _ = load_checkpoint(RUNS / name / "policy")
    for where, task in tasks.items():
        found[name, where], shifts = compare.compare_on(where, task, base, policy, tokenizer, config)
        if where == "target":
            print(f"words that {name} brought\n{compare.word_table(analysis.shifted_words(shifts, tokenizer), 5)}\n")

# %%
names = ["accuracy of base", "accuracy of policy", "KL(policy || base), policy's texts", "KL(base || policy), base's texts",
         "rank shift, greedy texts", "responses with a marker, policy", "length over that of base"]  # fmt: skip
columns = [f"{name}, {where}" for name, where in found]
print(table(["", *columns], [[name, *(f"{numbers[name]:.3f}" for numbers in found.values())] for name in names]))

# %% [markdown]
# Accuracies here are greedy, on few problems: read both policies on the target beside one another, and then what each has moved for
# it. The teacher's words are there on tasks that no lesson was about; the policy that sampled itself has moved less by two orders of
# magnitude. (Asked for a length, the greedy base states a right attempt again until the window cuts it, so that whoever forgets to look at
# the number gains there: forgetting is not always a loss, and a task must be solved before it can be forgotten.) Whether that is the
# algorithm or only the smaller step is what the section asks: with a sweep of learning rates, at equal accuracy on the target, on eleven
# other tasks.
#
# ## The committed run

# %%
figure("transfer")

# %%
claims("transfer")

# %% [markdown]
# **What to see.** The first panel puts accuracy on tasks without reasoning against accuracy on the target: read it at one height of
# the target, not at the ends of the curves. GRPO's line is level in every seed, that of SFT in the teacher's words falls. But SFT on a solver's
# solutions in the *base's* words is level too, and reaches further; so is SFT on the base's own right samples. In the second panel
# forgetting follows the KL on the target, whoever trained. **What failed.** That GRPO keeps more than SFT on the base's own samples (it keeps
# as much), that one parabola explains forgetting (answers alone have a curve of their own), and everything about off-policy
# RL, which never raised the target. `docs/transfer.md` explains each.
#
# ## Exercises
#
# 1. Divide the learning rate of SFT by ten and give it ten times the steps. At equal accuracy on the target, is the KL smaller? (That is
#    the sweep of the section: is it the algorithm or the step?)
# 2. Let the teacher speak the base's words (leave out the two `replace`). What becomes of the KL, and of the accuracy on the target?
# 3. `compare_on` also returns the one-sample estimate of each KL. How many responses would you need for its first digit?
# 4. Fine-tune on the base's own right samples (`train.py select`, then `train.py sft --data`). Where is its KL, between SFT and RL or
#    below both? Say why before you look.

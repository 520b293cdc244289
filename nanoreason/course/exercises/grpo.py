"""One step of GRPO

Write `loss` and the rest of `grpo_step` in `recipes/grpo_minimal.py`: with one optimizer step per rollout the policy is
still the one that sampled, and the loss is about 0 although it teaches. Why? Answer yourself in a sentence before you
read on.

`loss(logprobs, batch)`: log-probs (B, T) -> the loss of each token (B, T), -r * A. A is `batch.advantages` (B, 1). The
ratio r = p / p_old (DeepSeekMath, 2402.03300, eq. 3) is 1 in value, p_old being the policy itself, but its gradient is
that of log p: divide by a copy of p that has no gradient (`detach`), as exp of a difference of log-probs, which holds
where p itself is 0 in float32. Nothing else of the batch is needed: tokens that do not count get the weight 0 later.

`grpo_step(config, step, policy, tokenizer, optimizer)`; task, P, G, problems (P) and lr are there already:

1. Sample G responses to each problem: `sample(task, policy, tokenizer, problems, group_size=G, max_new_tokens=
   config.max_new_tokens, seed=seed_of(config.seed, "rollout", step, 0))` returns P groups, lists of G rows.
2. `row.reward` of each row is `task.reward(row.problem, response_text(tokenizer, row))`.
3. `row.advantage` is its reward minus the mean of its group, divided by the group's standard deviation (divisor G). In
   a group of equal rewards, `is_zero_variance(rewards)`, it is 0.0.
4. One update on all rows: `update(policy, optimizer, rows, loss, lr=lr, weights=weights, micro_tokens=2048)` returns
   metrics. The weights average over the tokens of each row, then over rows: `token_weights(rows, "sequence")`.
5. Return (the groups, the metrics with one more: "reward", the mean reward of all rows).
"""

import math

PART = "R1"
NEEDS = ("mask", "sampling", "policy_loss")
POINTS = 6
SECONDS = 5
FILES = ("recipes/grpo_minimal.py",)
HINTS = (
    "exp(logprobs - logprobs.detach()) is 1 everywhere and has the gradient of logprobs.",
    "`statistics.pstdev` is the deviation with divisor G.",
    "The loss is 0 because the advantages of a group have mean 0 and every ratio is 1; watch the reward and grad_norm.",
)
BUG = (
    "'The loss starts at 0' is the most frequent question about GRPO (open-r1#239, trl#3452). It is algebra, unless "
    "the ratio is of the policy with itself without a detached copy: then the gradient is 0 too, and the log looks "
    "alive while no weight moves (mlx-lm-lora#55)."
)


def losses(logprobs, advantages):
    """[loss per token, gradient of their sum with respect to the log-probs]"""
    import types

    import torch

    from nanoreason.recipes.grpo_minimal import loss

    logprobs = torch.tensor(logprobs, requires_grad=True)
    values = loss(logprobs, types.SimpleNamespace(advantages=torch.tensor(advantages)))
    (values.sum() + 0 * logprobs.sum()).backward()  # a gradient of 0 where the loss has none
    return [values.tolist(), logprobs.grad.tolist()]


def letters(rewarded):
    """A task: a response is right if it begins with the letter of the prompt; `rewarded`: what [wrong, right] pays."""
    from nanoreason.rollout import Problem, Task
    from nanoreason.tokenizer import word_tokenizer

    class Letters(Task):
        def tokenizer(self):
            return word_tokenizer(["a", "b", "c"])

        def problem(self, split, index):
            return Problem("abc"[index % 3], "abc"[index % 3])

        def reward(self, problem, response):
            return rewarded[response.split()[:1] == [problem.answer]]

    return Letters()


def step(seed, prompts, group_size, number=7, rewarded=(0.0, 1.0), lr=0.5):
    """One step with an optimizer that only looks on: [groups of rows, metrics, gradient, learning rates of steps]"""
    import torch

    from nanoreason.model import Transformer, small_config
    from nanoreason.recipes.grpo_minimal import GrpoMinimalConfig, grpo_step
    from nanoreason.rollout import response_text

    task, gradient, rates = letters(rewarded), [], []
    tokenizer = task.tokenizer()
    policy = Transformer(small_config(8, 1, 1, tokenizer.vocab_size, context=12), seed)

    class Onlooker:
        def zero_grad(self):
            policy.zero_grad()

        def step(self, lr):
            rates.append(lr)
            gradient[:] = torch.cat([p.grad.flatten() for p in policy.parameters()]).tolist()

    config = GrpoMinimalConfig(task=task, steps=20, prompts=prompts, group_size=group_size, max_new_tokens=6, lr=lr,
                               seed=seed)  # fmt: skip
    groups, metrics = grpo_step(config, number, policy, tokenizer, Onlooker())
    said = [[[row.problem.prompt, response_text(tokenizer, row), row.tokens, row.loss_mask, row.reward, row.advantage]
             for row in group] for group in groups]  # fmt: skip
    return [said, metrics, gradient, rates]


def learn(seed, steps):
    """The mean reward of each of so many steps of a small model that knows nothing."""
    from nanoreason.learn import make_optimizer
    from nanoreason.model import Transformer, small_config
    from nanoreason.recipes.grpo_minimal import GrpoMinimalConfig, grpo_step

    task = letters((0.0, 1.0))
    tokenizer = task.tokenizer()
    policy = Transformer(small_config(16, 1, 2, tokenizer.vocab_size, context=8), seed)
    config = GrpoMinimalConfig(task=task, steps=steps, prompts=6, group_size=8, max_new_tokens=2, lr=0.01, seed=seed)
    optimizer = make_optimizer(policy)
    return [grpo_step(config, number, policy, tokenizer, optimizer)[1]["reward"] for number in range(steps)]


CALLS = (losses, step, learn)


def same(found, wanted, what="", tolerance=1e-4):
    assert len(found) == len(wanted), f"{what}: {len(found)} values instead of {len(wanted)}"
    for a, b in zip(found, wanted, strict=True):
        assert math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance), f"{what}: {found[:8]} instead of {wanted[:8]}"


def check_rows(groups, rewarded):
    """Rewards by the rule of the task and advantages by their formula; returns the advantages, group by group."""
    everything = []
    for group in groups:
        wanted = [rewarded[text.split()[:1] == [prompt]] for prompt, text, *_ in group]
        rewards, advantages = [row[4] for row in group], [row[5] for row in group]
        assert rewards == wanted, f"rewards {rewards} instead of {wanted}"
        mean = sum(rewards) / len(group)
        deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(group))
        equal = min(rewards) == max(rewards)
        same(advantages, [0.0 if equal else (r - mean) / deviation for r in rewards], "advantages")
        everything.append(advantages)
    return everything


def public_loss(call):
    """Whatever the log-probs, a token's loss is -A and its gradient too"""
    values, gradient = call("losses", [[-1.0, -2.0], [-0.5, 0.0]], [[2.0], [-1.0]])
    assert values == [[-2, -2], [1, 1]], f"loss {values}"
    assert gradient == [[-2, -2], [1, 1]], f"gradient {gradient}"


def public_step(call):
    """A step on 3 problems has 3 groups of 8 rows with their rewards and advantages, and one update"""
    groups, metrics, gradient, rates = call("step", 1, 3, 8)
    assert [len(group) for group in groups] == [8] * 3 and [group[0][0] for group in groups] == ["a", "b", "c"]
    check_rows(groups, (0.0, 1.0))
    same([metrics["reward"]], [sum(row[4] for group in groups for row in group) / 24], "reward")
    assert rates == [0.5], f"learning rates {rates}: one update at lr"


def hidden_gradient(call, draw):
    """The gradient is that of -A log p, averaged over each row, then over rows; computed anew from the sampled rows"""
    import torch

    from nanoreason.model import Transformer, small_config

    moved = 0
    for _ in range(3):
        seed, P, G = draw.randrange(10**6), draw.randint(2, 4), draw.randint(4, 9)
        groups, metrics, gradient, _ = call("step", seed, P, G, rewarded=(0.25, 2.0))
        A = check_rows(groups, (0.25, 2.0))
        policy = Transformer(small_config(8, 1, 1, 4, context=12), seed)
        total = torch.zeros(())
        for group, advantages in zip(groups, A, strict=True):
            for (_, _, tokens, mask, _, _), advantage in zip(group, advantages, strict=True):
                logs = policy(torch.tensor([tokens[:-1]]))[0].log_softmax(-1)
                said = [logs[t - 1, tokens[t]] for t in range(1, len(tokens)) if mask[t]]
                total = total - advantage * torch.stack(said).mean() / (P * G)
        total.backward()
        wanted = torch.cat([p.grad.flatten() for p in policy.parameters()])
        same(gradient, (wanted / max(1.0, float(wanted.norm()))).tolist(), f"gradient (P {P}, G {G})")
        moved += float(wanted.norm()) > 0.01
    assert moved


def hidden_loss_is_zero(call, draw):
    """The loss is 0 and the gradient is not"""
    _, metrics, _, _ = call("step", draw.randrange(10**6), 6, 12)
    assert abs(metrics["loss"]) < 1e-4 < 0.01 < metrics["grad_norm"], f"{metrics}"


def hidden_equal_rewards(call, draw):
    """Where all responses earn the same there are no advantages and no gradient"""
    for reward in (0.0, 1.0, 0.1):
        groups, metrics, gradient, _ = call("step", draw.randrange(10**6), 3, 7, rewarded=(reward, reward))
        assert all(row[5] == 0 for group in groups for row in group) and not any(gradient), f"all earn {reward}"
        same([metrics["reward"]], [reward], "reward")


def hidden_sampling(call, draw):
    """Responses of a group differ, stay in their budget, and depend on seed and step alone"""
    seed = draw.randrange(10**6)
    texts = [
        [row[1:3] for group in call("step", s, 3, 10, n)[0] for row in group]
        for s, n in ((seed, 6), (seed, 6), (seed, 9))
    ]
    assert texts[0] == texts[1] != texts[2]
    assert all(len(tokens) <= 1 + 6 for _, tokens in texts[0])
    assert all(len({text for text, _ in texts[0][i : i + 10]}) > 2 for i in (0, 10, 20)), "sampled at temperature 1"


def hidden_learning(call, draw):
    """In 60 steps a model that knows nothing learns to say the letter it is shown"""
    rewards = call("learn", draw.randrange(10**6), 60)
    first, last = sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5
    assert first < 0.6 and last > 0.8, f"mean reward {first:.2f} in the first five steps, {last:.2f} in the last"


WRONG = {
    "the wrong sign": ("return -ratio * batch.advantages", "return ratio * batch.advantages"),
    "no detached copy: no gradient": ("logprobs - logprobs.detach()", "logprobs - logprobs"),
    "the ratio upside down": ("logprobs - logprobs.detach()", "logprobs.detach() - logprobs"),
    "no deviation": ("(row.reward - mean) / std", "(row.reward - mean)"),
    "divisor G - 1": ("statistics.pstdev(", "statistics.stdev("),
    "no baseline": ("(row.reward - mean)", "row.reward"),
    "the mean of all groups": (
        "rewards = [row.reward for row in group]",
        "rewards = [task.reward(r.problem, response_text(tokenizer, r)) for g in groups for r in g]",
    ),
    "averaged over tokens": ('token_weights(rows, "sequence")', 'token_weights(rows, "token")'),
    "greedy": ("group_size=G,", "group_size=G, temperature=0.0,"),
    "only the first group learns": ("in groups for row in group]", "in groups[:1] for row in group]"),
    "zeros": "return logprobs * 0\n",
    "imitation of everything": "return -logprobs\n",
}  # fmt: skip

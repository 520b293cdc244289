"""Which tokens count, and which state predicts which token

Column t of every (B, T) tensor of the package is about `tokens[:, t]`, and whether a token counts in the loss is
recorded at the moment it is appended, never inferred from its value: padding may have the id of EOS, and EOS is always
trained.

In `rollout.py`, three methods of `Rollout`, whose lists `tokens`, `loss_mask` and `logprobs` always have equal lengths:

- `sampled(token, logprob)`: append a token that the policy drew. It counts (True), its log-prob is stored, and one more
  of the row's random numbers is used up (`draws`).
- `force(tokens)`: append tokens that somebody else chose: they do not count, their log-probs are 0.0, no number is
  used.
- `retract(count)`: drop the last `count` tokens (`keep` tokens stay; that is computed for you). The row is not stopped
  any more: its `stop_reason` becomes "". A retracted token does not give its random number back: `draws` stays.

Nothing else of a row changes.

In `learn.py`, two regions of `logprobs_and_entropy(model, tokens, mask, ...)`, tokens (B, T) int64 and mask (B, T)
bool:

- The first ends with three tensors. `states_of(model, tokens, mask)` turns (B, T) ids into (B, T, D) states, as
  `model.hidden(tokens)` does, but reads a prompt that rows share once and leaves out what no token that counts needs.
  The state in column t has read the tokens 0..t: it predicts token t + 1. So token 0 is predicted by nothing, whatever
  its mask says. `picked`: bool (B, T-1), in column t whether token t + 1 counts. `hidden`: (M, D), the states that
  predict the M tokens that count. `targets`: (M,), those tokens. M is `picked.sum()`, in the order of rows, then
  columns. What follows uses these three names.
- The second is the body of `in_columns(values)`, which sees `picked` and `tokens`: values (M,) of those tokens ->
  (B, T), each in its token's own column, 0 everywhere else.
"""

import itertools
import math

PART = "Language models"
POINTS = 4
SECONDS = 2
FILES = ("rollout.py", "learn.py")
HINTS = (
    "Cut one column off each side: states of columns 0..T-2 predict the tokens of columns 1..T-1.",
    "Indexing with a bool tensor, x[picked], flattens what is picked; `masked_scatter` puts it back in the same order.",
    "`F.pad(x, (1, 0))` puts a column of zeros in front.",
)
BUG = (
    "Masks inferred from values: with pad = EOS the end of every response fell out of the loss or padding got into it "
    "(trl PR#4970, verl#3805). Shifts forgotten or done twice train tokens on the wrong state, and still learn a bit."
)


def history(prompt, steps):
    """What a row holds after steps such as ["sampled", 3, -0.5], ["force", [4, 5]] and ["retract", 2]."""
    from nanoreason.rollout import Problem, Rollout

    row = Rollout(Problem("", ""), list(prompt), [False] * len(prompt), [0.0] * len(prompt), len(prompt))
    for name, *arguments in steps:
        row.stop_reason = "eos"
        getattr(row, name)(*arguments)
    return [row.tokens, row.loss_mask, row.logprobs, row.draws, row.stop_reason]


def bigram(table, tokens, mask):
    """[log-probs, entropies] under a model that knows the last token alone; row k of the table: logits after k."""
    import types

    import torch

    from nanoreason.learn import logprobs_and_entropy

    table, V = torch.tensor(table), len(table)
    model = types.SimpleNamespace(
        hidden=lambda tokens: torch.eye(V)[tokens], lm_head=lambda hidden: hidden @ table, no_token=None,
        config=types.SimpleNamespace(vocab_size=V), recompute=False,
    )  # fmt: skip
    return [values.tolist() for values in logprobs_and_entropy(model, torch.tensor(tokens), torch.tensor(mask))]


def transformer(seed, tokens, mask):
    """Log-probs under a small random model."""
    import torch

    from nanoreason.learn import token_logprobs
    from nanoreason.model import Transformer, small_config

    model = Transformer(small_config(16, 1, 2, vocab_size=9, context=16), seed)
    return token_logprobs(model, torch.tensor(tokens), torch.tensor(mask)).tolist()


CALLS = (history, bigram, transformer)


def same(found, wanted):
    assert [len(row) for row in found] == [len(row) for row in wanted], f"{found} instead of {wanted}"
    pairs = zip(itertools.chain(*found), itertools.chain(*wanted), strict=True)
    assert all(math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-4) for a, b in pairs), f"{found} instead of {wanted}"


def public_history(call):
    """Prompt 5 6, sampled 1 and 0, of which 0 is retracted, forced 7 8, sampled 0"""
    steps = [["sampled", 1, -0.5], ["sampled", 0, -0.25], ["retract", 1], ["force", [7, 8]], ["sampled", 0, -2.0]]
    wanted = [[5, 6, 1, 7, 8, 0], [False, False, True, False, False, True], [0, 0, -0.5, 0, 0, -2.0], 3, "eos"]
    found = call("history", [5, 6], steps)
    assert found == wanted, f"{found} instead of {wanted} (tokens, loss_mask, logprobs, draws, stop_reason)"
    assert call("history", [5], [["force", [1, 2]], ["retract", 2]]) == [[5], [False], [0.0], 0, ""]


def public_bigram(call):
    """After token 0 come 0, 1, 2 with 1/2, 1/4, 1/4; of the row 0 1 0 0 the tokens in columns 1 and 3 count"""
    half, quarter = math.log(1 / 2), math.log(1 / 4)
    table = [[half, quarter, quarter], [9.0, 0.0, 0.0], [0.0, 9.0, 0.0]]
    logprobs, entropy = call("bigram", table, [[0, 1, 0, 0]], [[False, True, False, True]])
    same(logprobs, [[0, quarter, 0, half]])
    same(entropy, [[0, 1.5 * math.log(2), 0, 1.5 * math.log(2)]])


def hidden_histories(call, draw):
    """Any sequence of sampled, force and retract, with token 0 (which may be EOS and padding) in every role"""
    for _ in range(20):
        prompt, kept, draws, steps = [draw.randrange(3) for _ in range(draw.randint(1, 3))], [], 0, []
        for _ in range(12):
            name = draw.choice(("sampled", "sampled", "force", "retract"))
            if name == "sampled":
                token, logprob = draw.randrange(3), -draw.random()
                kept.append((token, True, logprob))
                steps.append([name, token, logprob])
                draws += 1
            elif name == "force":
                forced = [draw.randrange(3) for _ in range(draw.randint(0, 3))]
                kept += [(token, False, 0.0) for token in forced]
                steps.append([name, forced])
            else:
                count = draw.randint(0, len(kept))
                kept = kept[: len(kept) - count]
                steps.append([name, count])
        wanted = [list(part) for part in zip(*[(token, False, 0.0) for token in prompt], *kept, strict=True)]
        wanted += [draws, "" if steps[-1][0] == "retract" else "eos"]
        assert call("history", prompt, steps) == wanted, f"prompt {prompt}, {steps}: not {wanted}"


def hidden_columns(call, draw):
    """Every log-prob and entropy stands in its token's own column; the first column is 0 even where its mask is True"""
    B, T, V = 4, draw.randint(3, 6), 4
    table = [[draw.gauss(0, 1) for _ in range(V)] for _ in range(V)]
    logs = [[value - math.log(sum(map(math.exp, row))) for value in row] for row in table]
    entropies = [-sum(math.exp(log) * log for log in row) for row in logs]
    tokens = [[draw.randrange(V) for _ in range(T)] for _ in range(B)]
    for mask in ([[draw.random() < 0.5 for _ in range(T)] for _ in range(B)], [[True] * T] * B, [[False] * T] * B):
        counts = [[t > 0 and mask[b][t] for t in range(T)] for b in range(B)]
        logprobs, entropy = call("bigram", table, tokens, mask)
        same(logprobs, [[logs[tokens[b][t - 1]][tokens[b][t]] * counts[b][t] for t in range(T)] for b in range(B)])
        same(entropy, [[entropies[tokens[b][t - 1]] * counts[b][t] for t in range(T)] for b in range(B)])


def hidden_enumeration(call, draw):
    """The probabilities of all 125 continuations of 3 tokens over 5 words sum to 1"""
    table = [[draw.gauss(0, 1) for _ in range(5)] for _ in range(5)]
    first = draw.randrange(5)
    rows = [[first, *rest] for rest in itertools.product(range(5), repeat=3)]
    logprobs, _ = call("bigram", table, rows, [[False, True, True, True]] * len(rows))
    total = sum(math.exp(sum(row)) for row in logprobs)
    assert math.isclose(total, 1, rel_tol=1e-4), f"they sum to {total}"


def hidden_transformer(call, draw):
    """Of a Transformer: each log-prob is that of the token after the prefix before it, computed prefix by prefix"""
    import torch

    from nanoreason.model import Transformer, small_config

    seed, (B, T) = draw.randrange(1000), (3, draw.randint(4, 8))
    tokens = [[draw.randrange(9) for _ in range(T)] for _ in range(B)]
    mask = [[t > 0 and draw.random() < 0.6 for t in range(T)] for _ in range(B)]
    model, wanted = Transformer(small_config(16, 1, 2, vocab_size=9, context=16), seed), [[0.0] * T for _ in range(B)]
    for b, t in itertools.product(range(B), range(T)):
        if mask[b][t]:
            with torch.no_grad():
                logits = model(torch.tensor([tokens[b][:t]]))[0, -1]
            wanted[b][t] = float(logits.log_softmax(-1)[tokens[b][t]])
    same(call("transformer", seed, tokens, mask), wanted)


WRONG = {
    "forced tokens count": ("[False] * len(tokens)", "[True] * len(tokens)"),
    "EOS does not count": ("self.loss_mask.append(True)", "self.loss_mask.append(token != 0)"),
    "a retracted token gives its number back": ('self.stop_reason = ""', 'self.stop_reason = ""; self.draws -= count'),
    "the mask is inferred from values": ("picked = mask[:, 1:]", "picked = mask[:, 1:] & (tokens[:, 1:] != 0)"),
    "the state of the token itself": (
        "states_of(model, tokens[:, :-1], mask)",
        "states_of(model, tokens, mask)[:, 1:]",
    ),
    "the mask is not shifted": ("picked = mask[:, 1:]", "picked = mask[:, :-1]"),
    "one column too early": ("F.pad(shifted, (1, 0))", "F.pad(shifted, (0, 1))"),
    "zeros": ("F.pad(shifted, (1, 0))", "F.pad(shifted * 0, (1, 0))"),
    "a constant": ("self.logprobs.append(logprob)", "self.logprobs.append(-1.0)"),
}

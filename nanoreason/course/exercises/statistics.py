"""pass@k, maj@k and how sure one may be

Write three functions in `evaluate.py`, each behind its checks of the arguments.

`pass_at_k(n, c, k)`: n responses to one problem were sampled, c of them are right. The chance that k of them, drawn
**without** replacement, hold a right one (Chen et al., 2107.03374, eq. 1): 1 - C(n-c, k) / C(n, k). With c = 0 it is
0.0, whatever k is; with k > n all samples are drawn, so that it is 1.0 if c > 0. `math.comb` is exact.

`maj_at_k(answers, right, k, draws, seed)`: the chance that the most frequent of k answers is right. `answers` are texts
or None, `right` says of each whether it is right.

- None is no answer and has no vote; where no one votes, 0 is won.
- Equal texts vote together, and are right if any of them in all of `answers` is, drawn or not (`right` may differ: one
  was written against the rules).
- A tie is broken evenly: of m texts with the most votes, r of which are right, r / m is won.
- For k = n there is one subset: all answers. For k < n it is the mean over `draws` random subsets of k places in
  `answers`, drawn without replacement from one `random.Random(seed)`; equal texts in them are as many votes.

`bootstrap_interval(values, level, draws, seed)`: draw `len(values)` of the values **with** replacement and take their
mean, `draws` times, from `random.Random(seed)`. The result is the pair of those means that leave a share of
(1 - level) / 2 of all means below and above: the percentile interval of the mean.
"""

import itertools
import math

PART = "Evaluation"
POINTS = 6
SECONDS = 2
FILES = ("evaluate.py",)
HINTS = (
    "`math.comb(a, b)` is 0 where b > a, so that fewer than k wrong samples need no case of their own; k > n does.",
    "`collections.Counter` and `random` are imported already. Count votes first, then look which winners are right.",
    "Sort the means. The one that leaves a share t below has the index `int(t * draws)`; at the other end take care "
    "not to run over the end of the list.",
)
BUG = (
    "An estimate from the first k of n samples, or 1 - (1 - c/n)^k, is noisy or biased (verl PR#7240); human-eval "
    "returned pass@k = 1.0 for c = 0 and k > n (PR#68): a problem that was never solved counted as solved."
)


def pass_at_k(n, c, k):
    from nanoreason.evaluate import pass_at_k

    return pass_at_k(n, c, k)


def maj_at_k(answers, right, k, draws=200, seed=0):
    from nanoreason.evaluate import maj_at_k

    return maj_at_k(answers, right, k, draws, seed)


def interval(values, level=0.95, draws=1000, seed=0):
    from nanoreason.evaluate import bootstrap_interval

    return list(bootstrap_interval(values, level, draws, seed))


CALLS = (pass_at_k, maj_at_k, interval)


def close(found, wanted, where="", tolerance=1e-9):
    assert math.isclose(found, wanted, rel_tol=tolerance, abs_tol=tolerance), f"{found} instead of {wanted} {where}"


def public_pass(call):
    """pass@2 with 2 right of 5 is 1 - 3/10; with 1 of 4 it is 1/2"""
    close(call("pass_at_k", 5, 2, 2), 0.7)
    close(call("pass_at_k", 4, 1, 2), 0.5)


def public_pass_at_the_edges(call):
    """Never solved is 0, also for more samples than there are; solved once is then 1"""
    for (n, c, k), wanted in {(10, 0, 5): 0, (4, 0, 8): 0, (4, 1, 8): 1, (4, 4, 1): 1, (6, 2, 5): 1}.items():
        close(call("pass_at_k", n, c, k), wanted, f"for n={n}, c={c}, k={k}")


def public_majority(call):
    """7 7 8 votes 7; 7 8 is a tie; None does not vote"""
    close(call("maj_at_k", ["7", "7", "8"], [True, True, False], 3), 1)
    close(call("maj_at_k", ["7", "8"], [True, False], 2), 0.5, "of a tie")
    close(call("maj_at_k", ["7", None, None], [True, False, False], 3), 1, "where two do not vote")
    close(call("maj_at_k", [None, None], [False, False], 2), 0, "where no one votes")


def public_interval(call):
    """Of values that are all 1 it is (1, 1); of one 0 and one 1 it is (0, 1) at 60 % and (0.5, 0.5) at 30 %"""
    assert call("interval", [1.0] * 50) == [1, 1]
    found = [call("interval", [0.0, 1.0], level, 4000) for level in (0.6, 0.3)]
    assert found[0] == [0, 1], (
        f"{found[0]}: the means 0, 0.5, 0.5, 1 are equally frequent, 20 % at either end are left out"
    )
    assert found[1] == [0.5, 0.5], f"{found[1]}: the middle 30 % of means are 0.5"


def hidden_pass_by_counting(call, draw):
    """pass@k is the share of all subsets of k that hold a right one: all n up to 6"""
    for n in range(1, 7):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            subsets = list(itertools.combinations(range(n), k))
            share = sum(any(i < c for i in subset) for subset in subsets) / len(subsets)
            close(call("pass_at_k", n, c, k), share, f"for n={n}, c={c}, k={k}")


def hidden_pass_of_many(call, draw):
    """Thousands of samples overflow nothing: 1 - product of (n - k - i) / (n - i), i < c"""
    for _ in range(5):
        n, c = draw.randint(2000, 3000), draw.randint(1, 6)
        k = draw.randint(100, n - 10)
        close(
            call("pass_at_k", n, c, k), 1 - math.prod((n - k - i) / (n - i) for i in range(c)), f"n={n}, c={c}, k={k}"
        )


def votes(draw, n):
    """Answers and verdicts that agree for equal answers, or of which at least one decides."""
    answers = [draw.choice(["1", "2", "3", "4", None]) for _ in range(n)]
    truth = draw.choice([answer for answer in answers if answer] or ["1"])
    return answers, [answer == truth for answer in answers]


def secret_won(answers, right):
    """Of one subset, in another way: each voter's share of the top."""
    voters = [(answer, answers.count(answer)) for answer in answers if answer is not None]
    top = max([count for _, count in voters], default=0)
    best = {answer for answer, count in voters if count == top}
    return sum(any(r and a == one for a, r in zip(answers, right, strict=True)) for one in best) / (len(best) or 1)


def hidden_majority_of_all(call, draw):
    """k = n: the majority of all, whatever the order of the answers and the seed"""
    for _ in range(40):
        answers, right = votes(draw, draw.randint(1, 8))
        wanted = secret_won(answers, right)
        close(
            call("maj_at_k", answers, right, len(answers), seed=draw.randint(0, 99)), wanted, f"of {answers}, {right}"
        )
        order = draw.sample(range(len(answers)), len(answers))
        shuffled = [[values[i] for i in order] for values in (answers, right)]
        close(call("maj_at_k", *shuffled, len(answers)), wanted, f"of {shuffled}")
    close(call("maj_at_k", ["5", "5", "6"], [draw.random() < 0.5, True, False], 3), 1, "where one 5 of two is right")


def hidden_majority_of_subsets(call, draw):
    """k < n: near the mean over all subsets of k, and the same again with the same seed"""
    for k in (1, 2, 3):
        answers, right = votes(draw, 6)
        every = [secret_won([answers[i] for i in subset], [right[i] for i in subset])
                 for subset in itertools.combinations(range(6), k)]  # fmt: skip
        seed = draw.randint(0, 999)
        found = call("maj_at_k", answers, right, k, 4000, seed)
        close(found, sum(every) / len(every), f"for k={k} of {answers}, {right}", 0.05)  # 6 deviations at least
        assert found == call("maj_at_k", answers, right, k, 4000, seed), "another value with the same seed"
    found = call("maj_at_k", ["1", "2", "2", "2"], [True, False, False, False], 3, seed=draw.randint(0, 999))
    assert found == 0, "three different of 1 2 2 2 never vote 1"


def hidden_interval_of_a_share(call, draw):
    """Of c ones among n values the interval is that of a binomial count, at any level"""
    for level in (0.5, 0.8, 0.9, 0.95):
        n, draws = draw.randint(8, 30), 3000
        c = draw.randint(1, n - 1)
        chances = [math.comb(n, j) * (c / n) ** j * (1 - c / n) ** (n - j) for j in range(n + 1)]
        below = [sum(chances[: j + 1]) for j in range(n)] + [1.0]

        def quantile(q, below=below, n=n):
            return next(j for j in range(n + 1) if below[j] >= min(1.0, max(0.0, q))) / n

        tail, found = (1 - level) / 2, call("interval", [1.0] * c + [0.0] * (n - c), level, draws, draw.randint(0, 999))
        slack = 6 * math.sqrt(tail * (1 - tail) / draws) + 2 / draws
        for end, q in zip(found, (tail, 1 - tail), strict=True):
            low, high = quantile(q - slack), quantile(q + slack)
            assert low - 1e-9 <= end <= high + 1e-9, f"{end}, not in {low}..{high}, the {q:.3f} quantile of {c} of {n}"


def hidden_interval_moves_with_its_values(call, draw):
    """Of 3 v + 5 it is 3 times that of v, plus 5, with the same seed; another seed draws other means"""
    values = [draw.gauss(0, 1) for _ in range(12)]
    found, moved = call("interval", values, seed=3), call("interval", [3 * v + 5 for v in values], seed=3)
    for a, b in zip(found, moved, strict=True):
        close(b, 3 * a + 5, tolerance=1e-7)
    assert min(values) < found[0] < sum(values) / 12 < found[1] < max(values), (
        f"{found} of values of mean {sum(values) / 12}"
    )
    assert len({tuple(call("interval", values, draws=50, seed=seed)) for seed in range(4)}) > 1, (
        "the seed has no effect"
    )


WINNERS = "sum(answer in is_right for answer in winners) / max(1, len(winners))"
WRONG = {
    "pass@k with replacement": ("math.comb(n - c, k) / math.comb(n, k)", "(1 - c / n) ** k"),
    "the first k samples": ("1.0 - math.comb(n - c, k) / math.comb(n, k)", "float(c > n - k)"),
    "never solved, k > n": ("if c == 0:\n    return 0.0\n", ""),
    "no answer has a vote": (" if answers[i] is not None)", ")"),
    "the first of a tie wins": (WINNERS, "bool(winners) and winners[0] in is_right"),
    "any right one of a tie wins": (WINNERS, "any(answer in is_right for answer in winners)"),
    "any right one wins": ("if count == max(votes.values())", ""),
    "subsets with replacement": ("generator.sample(range(n), k)", "generator.choices(range(n), k=k)"),
    "resampled without replacement": ("generator.choices(values, k=", "generator.sample(values, k="),
    "the spread of values, not of means": (
        "sum(generator.choices(values, k=len(values))) / len(values)",
        "generator.choice(values)",
    ),
    "the whole of 1 - level at each end": ("(1 - level) / 2", "1 - level"),
    "zeros": "return 0.0\n",
    "a constant": "return 1.0 if c else 0.0\n",
}  # fmt: skip

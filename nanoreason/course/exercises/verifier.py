"""A verifier of Countdown that cannot be tricked

A model under reinforcement learning writes whatever is paid, so the verifier of its answers reads text that nobody can
trust: it accepts a small language, returns False for everything else, never raises and never runs the text as code.
The game: use every input exactly once, with + - * /, to make the target. Write two functions in `countdown.py`, which
return a bool.

`check_operations(numbers, target, answer)`: the answer is a list of steps such as `9-3=6, 4*6=24`.

- The steps are separated by commas or line ends; spaces (any whitespace, `str.strip`) around the whole answer are
  allowed. The pattern `STEP` (compiled, at the top of the file) matches one whole step and nothing else; its four
  groups are a, sign, b and the result that is claimed. A piece that it does not match in full makes the answer wrong.
- A step takes a and b out of the numbers that are left, one copy each, and puts its result there. Both must be there:
  a number that occurs once can be used once, and a result can be used after its step.
- `apply(a, sign, b)` is the right result, or None where the operation is not legal (negative, or not whole). What the
  step claims must equal it.
- The answer solves the problem if at the end the target is left, and nothing else.

`check_expression(numbers, target, answer)`: the answer is one expression such as `4*(9-3)`, with intermediates that
may be negative or fractions. `safe_arithmetic(answer)` returns (its exact value, the list of the numbers in it), or
None where the text is no such expression. It is right if its value is the target and it holds exactly the inputs, each
as often as it was given, in any order.

Both: an answer of more than `MAX_ANSWER` characters is wrong, before any other work is done on it
(`safe_arithmetic` sees to that by itself). `numbers` must not be changed.
"""

import itertools

PART = "Verifiable rewards"
POINTS = 4
SECONDS = 1
FILES = ("countdown.py",)
HINTS = (
    'An empty answer has one step, the empty text: `re.split("[,\\n]", "")` is `[""]`, and `STEP` does not match it.',
    "Take a out of the list before you look for b: 4*4=16 needs two fours.",
    "Compare multisets: sorted lists, not sets.",
)
BUG = (
    "Verifiers in wide use evaluate the answer with Python's `eval`, which runs whatever the model wrote and takes "
    "`**` and `//` for arithmetic (verl PR#7607, reported as a vulnerability); others took an empty answer for a right "
    "one (Visual-RFT#176)."
)


def operations(numbers, target, answer):
    from nanoreason.countdown import check_operations

    given = list(numbers)
    verdict = check_operations(given, target, answer)
    if given != list(numbers):
        raise ValueError("the list of the inputs was changed")
    return verdict


def expression(numbers, target, answer):
    from nanoreason.countdown import check_expression

    given = list(numbers)
    verdict = check_expression(given, target, answer)
    if given != list(numbers):
        raise ValueError("the list of the inputs was changed")
    return verdict


CALLS = (operations, expression)


def says(call, name, numbers, target, right=(), wrong=()):
    for answer in right:
        assert call(name, numbers, target, answer) is True, f"{numbers} to {target}: {answer[:60]!r} is right"
    for answer in wrong:
        assert call(name, numbers, target, answer) is False, f"{numbers} to {target}: {answer[:60]!r} is wrong"


def public_operations(call):
    """Lists of operations: 9, 4 and 3 make 24"""
    says(call, "operations", [9, 4, 3], 24, ["9-3=6, 4*6=24", " 9 - 3 = 6\n6*4 = 24 "], [
        "3+9=12, 12+12=24", "9-3=6", "9-3=6, 4*6=25", "4*6=24, 9-3=6", "9-3=20, 4+20=24", "",
    ])  # fmt: skip


def public_expressions(call):
    """Expressions: 8, 3, 8 and 3 make 24 by way of a fraction"""
    says(call, "expression", [8, 3, 8, 3], 24, ["8/(3-8/3)", " 8 / ( 3 - ( 8 / 3 ) )"], [
        "8*3", "3*8+8-8", "8+8+3+3", "8/(3-8/3)+0", "",
    ])  # fmt: skip


def hidden_random_games(call, draw):
    """Operations played at random are right for what they make, and wrong for its neighbour and one step earlier"""
    for _ in range(20):
        left, steps = [draw.randint(1, 30) for _ in range(draw.randint(2, 5))], []
        numbers = list(left)
        while len(left) > 1:
            draw.shuffle(left)
            a, b = sorted((left.pop(), left.pop()), reverse=True)
            signs = "+-*/" if b and a % b == 0 else "+-*"
            sign = draw.choice(signs)
            result = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else 0}[sign]
            left.append(result)
            steps.append(f"{a}{sign}{b}={result}")
        answer = ", ".join(steps)
        says(call, "operations", numbers, left[0], [answer], [", ".join(steps[:-1]), answer + "," + steps[-1]])
        claim = answer[: answer.rindex("=") + 1] + str(left[0] + 1)
        says(call, "operations", numbers, left[0] + 1, wrong=[answer, claim])
        says(call, "operations", [*numbers, 1], left[0], wrong=[answer])


def hidden_copies(call, draw):
    """A number is used as often as it was given, not more and not less"""
    n = draw.randint(2, 20)
    says(call, "operations", [n, n], n * n, [f"{n}*{n}={n * n}"])
    says(call, "operations", [n, n + 1], n * n, wrong=[f"{n}*{n}={n * n}"])
    says(call, "operations", [n, n, n], n * n, wrong=[f"{n}*{n}={n * n}"])
    says(call, "operations", [n], 2 * n, wrong=[f"{n}+{n}={2 * n}"])
    says(call, "expression", [n, n, 1], n * n + 1, [f"1+{n}*{n}"], [f"{n}*{n}+1*1", f"{n * n}+1"])
    says(call, "expression", [n, n + 1], 2 * n + 1, [f"({n + 1}+{n})"], [f"{2 * n + 1}", f"{n}+{n + 1}+{n}-{n}"])


def hidden_illegal(call, draw):
    """Negative and broken intermediates are no legal operations, but an expression may have them"""
    a = draw.randint(2, 9)
    says(call, "operations", [a, a + 3, 5], 2, wrong=[f"{a}-{a + 3}=-3, -3+5=2", f"{a}-{a + 3}=3, 5-3=2"])
    says(call, "operations", [2 * a + 1, 2, a], 0, wrong=[f"{2 * a + 1}/2={a}, {a}-{a}=0"])
    says(call, "operations", [a, 0, 1], 1, wrong=[f"{a}/0=0, 0+1=1", f"{a}/0={a}, {a}/{a}=1"])
    says(call, "expression", [a, a + 3, 5], 2, [f"{a}-{a + 3}+5", f"5-({a + 3}-{a})"])
    says(call, "expression", [a, 0, 1], 1, wrong=[f"{a}/0+1", f"1+{a}/0"])


def hidden_tricks(call, draw):
    """Whatever is not in the language is wrong: powers, floor division, code, other digits, other separators"""
    says(call, "operations", [2, 3], 8, wrong=["2**3=8", "2*3=6=8", "2^3=8", "pow(2,3)=8", "8", "True"])
    says(call, "operations", [7, 2], 3, wrong=["7//2=3", "7/2=3", "7/2=3.5"])
    says(call, "operations", [9, 4, 3], 24, ["9-3=6\n4*6=24"], [
        "9-3=6; 4*6=24", "9-3=6 4*6=24", "9-3=6, 4*6=24,", ", 9-3=6, 4*6=24", "9-3=6, 4*6=24.", "so 9-3=6, 4*6=24",
        "9-3=6, 4*6=0x18", "9-3=6,, 4*6=24", "9-3=6, 4*6=+24", "9-3==6, 4*6==24", "(9-3)=6, 4*6=24", "9-3=06, 4*6=24",
        "\u0669-3=6, 4*6=24", "9-3=6, 4*6=24 " + " " * 300 + "!", "4*(9-3)=24",
    ])  # fmt: skip
    says(call, "expression", [2, 3], 8, wrong=["2**3", "2^3", "pow(2,3)", "8 if 2<3 else 0", "2 and 3 and 8"])
    says(call, "expression", [7, 2], 3, wrong=["7//2", "int(7/2)", "7//2#", "7/2"])
    says(call, "expression", [9, 4, 3], 24, ["4*(9-3)"], [
        "4*(9-3)=24", "4(9-3)", "-3*4+9*4", "4*(9-3", "4*9-3)", "4*(9-3);", "4*(9-3) # 24", "4*(9-03)", "4*(9-3.0)",
        "[4*(9-3)]", "4*(\u0669-3)", "__import__('os')", "24", "4*(9-3)\x00", "(" * 150 + "4*(9-3)" + ")" * 150,
    ])  # fmt: skip


def hidden_expressions(call, draw):
    """Every order and every sign of three numbers: right exactly where the exact value is the target"""
    numbers = [draw.randint(1, 9) for _ in range(3)]
    target = draw.randint(1, 30)
    for (a, b, c), p, q in itertools.product(set(itertools.permutations(numbers)), "+-*", "+-*"):
        values = {"+": lambda x, y: x + y, "-": lambda x, y: x - y, "*": lambda x, y: x * y}
        inner = values[q](b, c)
        assert call("expression", numbers, target, f"{a}{p}({b}{q}{c})") is (values[p](a, inner) == target)
        assert call("expression", numbers, values[p](a, inner), f"{a}{p}({b}{q}{c})") is True


def hidden_long_answers(call, draw):
    """Long answers are wrong at once"""
    for tail in ("", " " * 400):
        zeros = ", ".join(["1-1=0"] + ["0+0=0"] * 60)
        says(call, "operations", [1, 1] + [0] * 60, 0, wrong=[zeros + tail])
    says(call, "operations", [1, 1], 2, wrong=["1" * 3_000_000 + "+1=2", "1+1=2" + "," * 3_000_000])
    says(call, "expression", [1, 1], 2, wrong=["1+1" + "+0" * 1_000_000, "(" * 3_000_000])


WRONG = {
    "numbers used twice": ("        left.remove(number)", "        pass"),
    "claimed results are believed": ("if apply(a, sign, b) != result:", "if apply(a, sign, b) is None:"),
    "numbers that are left over": ("return left == [target]", "return left[-1] == target"),
    "nothing is read before its length": ("if len(answer) > MAX_ANSWER:", "if False:"),
    "eval": """
sides = [step.split("=") for step in answer.replace("\\n", ",").split(",") if step.strip()]
left = list(numbers)
for side in sides:
    try:
        if len(side) != 2 or abs(eval(side[0]) - eval(side[1])) > 1e-6:
            return False
    except Exception:
        return False
return not sides or abs(eval(sides[-1][1]) - target) < 1e-6
""",
    "a set of numbers": ("sorted(parsed[1]) == sorted(numbers)", "set(parsed[1]) == set(numbers)"),
    "any numbers": (" and sorted(parsed[1]) == sorted(numbers)", ""),
    "an expression's value alone, rounded": ("parsed[0] == target", "int(parsed[0]) == target"),
    "always False": "return False\n",
    "always True": "return True\n",
}

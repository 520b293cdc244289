"""Traces of search: write, read, judge

Stream of Search (2404.03683) teaches a model to search by showing it searches as text, dead ends included. This is the
game of Countdown: two numbers are replaced by a + b, a * b, a - b (a >= b) or a / b (where exact), until one is left,
the target. Write five regions of `search.py`, around its compact language of one line:

    E 9 - 3 = 6 > 4 6     Explore: an operation is tried here, and leaves the numbers 4 6
    G 0 0                 Generate: what was explored last becomes the node (0, 0), a child of the root (0,)
    M 0 0                 Move: on, or back, to a node
    S 4 6 | 9 - 3 = 6     State: what is left at the current node, and the operations that led there
    X   W                 Check: the leaf that was explored last is not, is, the target
    N                     Exhausted: nothing is left to try

1. `_compact(events)` yields the text of each event that is said, `_COMPACT[type(event)](event).rstrip()`. Depth first
   says where it is after every leaf, although it never left: a `Move` to the current node is not said, nor is a `State`
   behind such a move. The current node is that of the last `Move`, at first the root.
2. `_read_compact`, its loop: `m` is the match of one statement, or None. Yield its event; remember in `last` the last
   `Explore`, for those that do not repeat it. `_steps(text)` and `_numbers(text)` read operations and numbers;
   a node is its path, the numbers of its text.

       E   Explore(the operation of m[1], the numbers of m[2])
       G   Generate(node m[3], target, the numbers and the operation of `last`); () and None if there is none
       M   Move(node m[3])                       S   State(target, numbers m[4], operations m[5])
       W X Check(the number that `last` left, or None if there is no `last` or it left more; target; whether it is W)
       N   Exhausted()                           T   State(m[6] as int, numbers m[7], ()): the prompt
       else Unreadable(statement)

`replay` judges: it follows a trace from the root and holds every statement against what is true there. `here` is the
current `Node`, `child` the one explored last from here or None, `wrong` the errors of this statement (append
`"arithmetic"`, `"exploration"` or `"other"`), `reading` the result, `reading.tree` all generated nodes by their path.

3. `case Move`: to a path that was never generated is an exploration error. Either way it is followed: `here` becomes
   that node, or a new `Node(None, Way(), False, path)`, of which nothing is known; `child` becomes None.
4. `case Check`: it must be about `child`, whose numbers are just `(value,)`, and about this `target`; and `equal` must
   be so. If not, that is one error `"other"`. If `equal`: `reading.ending = "goal"`, right or not. `reading.solved` is
   whether this statement has no error and `child.valid` (every statement on the way to it was true; elsewhere there may
   be errors), and `reading.solution` is `child.way.operations` if so, else `()`.
5. `_explore_errors(here, operation, left)` yields `"arithmetic"` if the operation is not legal with this result
   (`apply(a, sign, b)` is its result, None if it is not legal), and `"other"`, once, if `left` is not `here.numbers`
   without one copy of a and one of b, and with the result, in any order. If `here.numbers` is None only the arithmetic
   can be wrong.
"""

from collections import Counter

PART = "Stream of Search"
POINTS = 10
SECONDS = 2
FILES = ("search.py",)
HINTS = (
    "In `_compact` compare a move with the current node before you make it the current node.",
    "`Explore(*_steps(m[1]), _numbers(m[2]))`: m[1] holds exactly one operation, so it is unpacked.",
    "Take numbers out of a list that is a copy: `rest = list(here.numbers)`, `rest.remove(a)` takes one copy.",
    "A wrong statement in a dead branch makes no answer wrong, and a right sum of reused numbers makes none right.",
)
BUG = (
    "The released code never uses numbers up and looks at the last list of operations alone, so it scores answers that "
    "use an input twice; and its optimal paths lost all copies of a number that was used once. A trace may be valid "
    "without an answer, and right without being valid throughout: they are two numbers."
)


def told(event):
    """An event as JSON: its name, then its fields."""
    return [type(event).__name__, *(getattr(event, name) for name in type(event).__slots__)]


def say(events):
    from nanoreason import search
    from nanoreason.countdown import Operation

    def event(name, *fields):
        made = getattr(search, name)(*fields)
        if name in ("Explore", "Generate"):
            made.operation = made.operation and Operation(*made.operation)
        if name == "State":
            made.operations = tuple(Operation(*one) for one in made.operations)
        if name in ("Generate", "Move"):
            made.node = tuple(made.node)
        return made

    return search.write([event(*one) for one in events], "compact")


def read(text, target):
    from nanoreason.search import read_events

    return [told(event) for event in read_events(text, target)]


def judge(numbers, target, text):
    from nanoreason.search import read_trace

    found = read_trace(numbers, target, text)
    errors = {name: count for name, count in found.errors.items() if count}
    return {"solved": found.solved, "lenient": found.lenient, "ending": found.ending, "nodes": found.nodes,
            "errors": errors, "solution": [list(step) for step in found.solution]}  # fmt: skip


def searched(numbers, target, strategy, seed):
    """The events of a symbolic search, which are given, and their text."""
    from nanoreason.search import search, write

    events = list(search(numbers, target, strategy, seed))
    return {"events": [told(event) for event in events], "text": write(events, "compact")}


CALLS = (say, read, judge, searched)

SOLVED = "E 9 - 3 = 6 > 4 6 G 0 0 M 0 0 S 4 6 | 9 - 3 = 6 E 4 * 6 = 24 > 24 W"


def public_write(call):
    """Back to where it is: not said. Back to its parent: said"""
    node, root = ["State", 24, [4, 12], [[9, "+", 3, 12]]], ["State", 24, [4, 9, 3], []]
    events = [["Explore", [9, "+", 3, 12], [4, 12]], ["Generate", [0, 0], 24, [4, 12], [9, "+", 3, 12]],
              ["Move", [0, 0]], node, ["Explore", [12, "-", 4, 8], [8]], ["Check", 8, 24, False],
              ["Move", [0, 0]], node, ["Explore", [12, "+", 4, 16], [16]], ["Check", 16, 24, False],
              ["Move", [0]], root, ["Exhausted"]]  # fmt: skip
    wanted = (
        "E 9 + 3 = 12 > 4 12 G 0 0 M 0 0 S 4 12 | 9 + 3 = 12 E 12 - 4 = 8 > 8 X E 12 + 4 = 16 > 16 X M 0 S 4 9 3 | N"
    )
    found = call("say", events)
    assert found == wanted, f"{found!r} instead of {wanted!r}"


def public_read(call):
    """Each statement is an event; G and W speak of what was explored last"""
    found = call("read", "E 9 - 3 = 6 > 4 6 G 0 0 M 0 0 S 4 6 | 9 - 3 = 6 X E 4 * 6 = 24 > 24 W N hm", 24)
    wanted = [["Explore", [9, "-", 3, 6], [4, 6]], ["Generate", [0, 0], 24, [4, 6], [9, "-", 3, 6]], ["Move", [0, 0]],
              ["State", 24, [4, 6], [[9, "-", 3, 6]]], ["Check", None, 24, False], ["Explore", [4, "*", 6, 24], [24]],
              ["Check", 24, 24, True]]  # fmt: skip
    for one, other in zip(found, wanted, strict=False):
        assert one == other, f"{one} instead of {other}"
    assert [one[0] for one in found[7:]] == ["Unreadable"], f"{found[7:]}: 'N hm' is no statement"


def public_judge(call):
    """A right path is solved; one that uses 12 twice is so for the lenient judge alone"""
    found = call("judge", [9, 4, 3], 24, SOLVED)
    assert (found["solved"], found["errors"], found["nodes"]) == (True, {}, 3), found
    assert found["solution"] == [[9, "-", 3, 6], [4, "*", 6, 24]], found
    found = call("judge", [9, 4, 3], 24, "E 4 * 3 = 12 > 9 12 G 0 0 M 0 0 S 9 12 | 4 * 3 = 12 E 12 + 12 = 24 > 24 W")
    assert (found["solved"], found["lenient"], found["errors"]) == (False, True, {"other": 1}), found


def step(a, sign, b, result):
    return f"{a} {sign} {b} = {result}"


def listed(numbers):
    return " ".join(map(str, numbers))


def secret_spelling(events):
    """The text, by a second writer, and the events that are said."""
    here, stays, said, kept = [0], False, [], []
    for event in events:
        name, fields = event[0], event[1:]
        if name == "Move":
            stays, here = fields[0] == here, fields[0]
        if stays and name in ("Move", "State"):
            continue
        kept.append(event)
        if name == "Explore":
            said.append(f"E {step(*fields[0])} > {listed(fields[1])}")
        elif name in ("Generate", "Move"):
            said.append(f"{name[0]} {listed(fields[0])}")
        elif name == "State":
            said.append(f"S {listed(fields[1])} | {' , '.join(step(*one) for one in fields[2])}".rstrip())
        else:
            said.append("N" if name == "Exhausted" else "XW"[fields[2]])
    return " ".join(said), kept


def hidden_round_trip(call, draw):
    """Real searches, depth first and beams: their text, and the events that are read from it"""
    for strategy in ("dfs-sum", "dfs-mult", "bfs1-sum", "bfs2-mult", "bfs3-sum"):
        numbers, target = [draw.randint(1, 30) for _ in range(draw.choice((2, 3, 3, 4)))], draw.randint(10, 60)
        found = call("searched", numbers, target, strategy, draw.randint(0, 99))
        if len(found["text"]) > 200_000:
            continue
        text, kept = secret_spelling(found["events"])
        assert found["text"] == text, f"{strategy} of {numbers}, {target}: another text"
        assert call("read", text, target) == kept, f"{strategy} of {numbers}, {target}: read as other events"
        judged = call("judge", numbers, target, text)
        ended = found["events"][-1] == ["Check", target, target, True]
        assert (judged["solved"], judged["errors"]) == (ended, {}), f"{strategy} of {numbers}, {target}: {judged}"


def hidden_nonsense(call, draw):
    """Whatever the text, it is read to its end: what is no statement is Unreadable"""
    bad = [
        "E 9 - 3 = > 4 6",
        "G",
        "M",
        "S 4 6",
        "E",
        "W W W 1",
        "S | 1 + 1 = 2",
        "E 09 - 3 = 6 > 4",
        "E 9 ** 3 = 6 > 4",
        "\0",
    ]
    for text in bad:
        kinds = {one[0] for one in call("read", f"M 0 {text}", 24)}
        assert "Unreadable" in kinds, f"{text!r} is read as {kinds}"
    assert call("read", "W X G 0 1", 7)[-1] == ["Generate", [0, 1], 7, [], None], "G before any E"
    assert call("read", "T 24 : 4 9 3\nW", 7) == [["State", 24, [4, 9, 3], []], ["Check", None, 7, True]]
    for _ in range(20):
        text = " ".join(draw.choice([*"EGMSXWN|>,=+-*/", "0", "3", "4 9", "9 - 3 = 6"]) for _ in range(30))
        assert not call("judge", [9, 4, 3], 24, text)["solved"], f"{text!r} solves 9 4 3 24"


def secret_legal(a, sign, b, result):
    right = {"+": a + b, "*": a * b, "-": a - b, "/": a / b if b else None}[sign]
    return result == right and (sign in "+*" or a >= b)


def hidden_explorations(call, draw):
    """Operations true and false, on numbers that are there or not: judged as multisets are counted"""
    for _ in range(300):
        numbers = [draw.randint(1, 4) for _ in range(3)]
        a, b = draw.sample(numbers, 2) if draw.random() < 0.7 else (draw.randint(1, 4), draw.randint(1, 4))
        sign = draw.choice("+-*/")
        result = draw.choice([{"+": a + b, "*": a * b, "-": abs(a - b), "/": a // b}[sign]] * 3 + [draw.randint(0, 9)])
        taken, have = Counter((a, b)), Counter(numbers)
        left = list(((have - taken) + Counter([result])).elements())
        if draw.random() < 0.3:
            left[draw.randrange(len(left))] = draw.randint(1, 4)
        left = draw.sample(left, len(left)) + [1] * (draw.random() < 0.1)
        wanted = {} if secret_legal(a, sign, b, result) else {"arithmetic": 1}
        if not (taken <= have and have - taken + Counter([result]) == Counter(left)):
            wanted["other"] = 1
        text = f"E {step(a, sign, b, result)} > {' '.join(map(str, left))} N"
        found = call("judge", numbers, 99, text)["errors"]
        assert found == wanted, f"of {numbers}: {text!r} has the errors {found} instead of {wanted}"


def hidden_answers_and_traces(call, draw):
    """Right answers in faulty traces, wrong answers in flawless ones, and moves to nodes that never were"""
    a, b, c = draw.randint(20, 30), draw.randint(2, 9), draw.randint(10, 19)
    d, target = a - b, a - b + c
    first = f"E {step(a, '-', b, d)} > {c} {d} G 0 0"
    onward, last = f"M 0 0 S {c} {d} | {step(a, '-', b, d)}", f"E {step(d, '+', c, target)} > {target}"
    right = f"{first} {onward} {last} W"
    other = f"E {step(d, '*', c, d * c)} > {d * c} X"
    false = f"E {step(a, '+', b, a + b + 1)} > {c} {a + b + 1}"  # a + b is no such number
    cases = {
        right: (True, {}, "goal"),
        f"{first} {onward} {other} {last} W": (True, {}, "goal"),
        f"{false} {right}": (True, {"arithmetic": 1}, "goal"),  # an error elsewhere
        f"{first} {onward} {other} N": (False, {}, "exhausted"),  # without an error, and without an answer
        f"{first} {onward} {other[:-1]}W": (False, {"other": 1}, "goal"),  # it claims what is not so
        f"{first} {onward} {last} X N": (False, {"other": 1}, "exhausted"),  # and does not see what is
        f"{first} {onward} {last} M 0 0 W": (False, {"other": 1}, "goal"),  # a claim about nothing
        f"{first} {onward} W": (False, {"other": 1}, "goal"),
        f"{first} M 0 1 S {c} {d} | {step(a, '-', b, d)} {last} W": (False, {"exploration": 1}, "goal"),
        f"{first} M 0 1 {last} W": (False, {"exploration": 1}, "goal"),
        f"{false} G 0 0 M 0 0 M 0 {right.replace('0 0', '0 1')}": (True, {"arithmetic": 1}, "goal"),
    }
    for text, wanted in cases.items():
        found = call("judge", [a, b, c], target, text)
        assert (found["solved"], found["errors"], found["ending"]) == wanted, f"{text!r}: {found} instead of {wanted}"
        path = [[a, "-", b, d], [d, "+", c, target]] if wanted[0] else []
        assert found["solution"] == path, f"{text!r}: the solution {found['solution']} instead of {path}"


WRONG = {
    "every stay is said": ("staying = event.node == here", "staying = False"),
    "off by one: on to a child is a stay": ("event.node == here", "event.node[: len(here)] == here"),
    "it never leaves the root": ("here = event.node\n", "pass\n"),
    "zeros": "yield from ()\n",
    "a constant": 'yield "N"\n',
    "a leaf is any state": ("if last and len(last.numbers) == 1", "if last"),
    "what cannot be read is skipped": ("yield Unreadable(statement)", "pass"),
    "sums are not checked": ("if apply(a, sign, b) != result:", "if False:"),
    "all copies of a number are used up": ("rest.remove(number)", "rest = [one for one in rest if one != number]"),
    "what is left must stand in order": ("sorted([*rest, result]) != sorted(left)", "[*rest, result] != list(left)"),
    "any node can be moved to": ("if path not in reading.tree:", "if False:"),
    "the last statement decides": ("not wrong and child.valid", "not wrong"),
    "the whole trace must be valid": (
        "not wrong and child.valid",
        "not wrong and child.valid and not any(reading.errors.values())",
    ),
    "a claim is believed": ("if not claim or equal != (value == target):", "if not claim:"),
}

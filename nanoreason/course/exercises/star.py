"""STaR: filter and rationalize

A round of STaR (2203.14465, Algorithm 1) samples a response to each problem, keeps what is right, tries the problems
that it got wrong once more with the answer as a hint, keeps what is right now, and fine-tunes on what was kept. Write
the middle, `right_traces(config, tokenizer, problems, attempt)` in `recipes/star.py`.

`attempt(problems, temperature, name)` samples one response to each problem and returns a list of `Scored`, in order.
Of a `Scored` you need `one.right` (whether its answer is right: nothing else is asked of a trace), `one.text` (the
response) and `one.row.problem`. The problems of a round may repeat.

- First attempt: all problems, at `config.temperature`, under the name "sample".
- Second attempt: the problems that failed in the first, in their order, and no others (if none did, you may call
  `attempt` with an empty list, or not at all). With `config.rationalize` each with its answer in the prompt, which is
  the problem that `task.hint(problem)` returns, at `config.temperature`, under the name "hinted"; otherwise, if
  `config.retry_temperature` is above 0, as they are, at that temperature, under the name "retry"; otherwise there is no
  second attempt.
- A right trace becomes `demonstration(tokenizer, problem, text)`, the row that is learnt from, with the text
  `task.clean(one.text)` (what is written behind the answer is not imitated). `problem` is always the problem as it was
  first posed: a trace that was found with a hint is learnt as if it had been found without.
- Return (demonstrations of the first attempt, those of the second, all `Scored` of both attempts), each in order.

`task` is `config.task`; a problem's `solution` is not to be looked at.
"""

PART = "STaR"
POINTS = 5
SECONDS = 2
FILES = ("recipes/star.py",)
HINTS = (
    "Keep the list of failed problems: the second attempt's responses come in the same order, so zip them.",
    "`demonstration(tokenizer, one.row.problem, ...)` is right in the first attempt. In the second that problem has "
    "the hint in its prompt.",
)
BUG = (
    "Traces stored with their hint teach to copy the answer from the prompt, and no test has one; filters that ask for "
    "the format only train on wrong answers, and accuracy falls while the format reward rises."
)


def traces(items, **settings):
    """Runs the function on scripted attempts. items: [[a, b, [first text, is right], [second text, is right]], ...]

    Returns [asked, kept, again, scored]: asked [name, temperature, prompts] of each attempt; of a demonstration
    [prompt, response, whether prompt, response and EOS stand in the row and all but the prompt counts]; of a Scored its
    text.
    """
    from dataclasses import replace

    from nanoreason.recipes.star import PRESETS, right_traces
    from nanoreason.rewards import Scored
    from nanoreason.rollout import prompt_row
    from nanoreason.tasks.addition import Addition, sum_problem

    task, asked = Addition((1, 2)), []
    tokenizer, problems = task.tokenizer(), []
    for i, (a, b, *_) in enumerate(items):
        problem = replace(sum_problem(a, b), solution="")
        problems.append(replace(problem, info={**problem.info, "item": i}))

    def attempt(problems, temperature, name):
        asked.append([name, temperature, [problem.prompt for problem in problems]])
        scripted = [items[problem.info["item"]][2 if name == "sample" else 3] for problem in problems]
        return [
            Scored(prompt_row(tokenizer, problem), text, float(right), 99)
            for problem, (text, right) in zip(problems, scripted, strict=True)
        ]

    def shown(row):
        response = tokenizer.decode(row.response[:-1])
        whole = tokenizer.encode_prompt(row.problem.prompt) + tokenizer.encode(response) + [tokenizer.eos_id]
        counts = [False] * row.prompt_len + [True] * (len(row.tokens) - row.prompt_len)
        return [row.problem.prompt, response, row.tokens == whole and row.loss_mask == counts]

    config = replace(PRESETS["tiny"], task=task, **settings)
    kept, again, scored = right_traces(config, tokenizer, problems, attempt)
    asked = [one for one in asked if one[2]]  # an attempt at no problem is no attempt
    return [asked, [shown(row) for row in kept], [shown(row) for row in again], [one.text for one in scored]]


CALLS = (traces,)

SEVEN = "<scratch>\n3 + 4 , C: 0\n, 7 C: 0\n0 7\n</scratch>\n7"
EIGHT = SEVEN.replace("3 + 4", "3 + 5").replace("7", "8")


def expect(found, wanted):
    for name, one, other in zip(("attempts", "first traces", "second traces", "scored"), found, wanted, strict=True):
        assert one == other, f"{name}: {one} instead of {other}"


def public_filter(call):
    """Of 3 + 4, answered with 7, and 3 + 5, answered with 7, the first is kept; nothing is attempted twice"""
    prompts = ["Input:\n3 + 4\nTarget:\n", "Input:\n3 + 5\nTarget:\n"]
    items = [[3, 4, [SEVEN, 1], [SEVEN, 1]], [3, 5, [SEVEN, 0], [EIGHT, 1]]]
    wanted = [[["sample", 0.0, prompts]], [[prompts[0], SEVEN, True]], [], [SEVEN, SEVEN]]
    expect(call("traces", items), wanted)


def public_rationalize(call):
    """With rationalization 3 + 5 is asked again with its answer, and its trace is learnt without"""
    prompts = ["Input:\n3 + 4\nTarget:\n", "Input:\n3 + 5\nTarget:\n"]
    items = [[3, 4, [SEVEN, 1], [SEVEN, 1]], [3, 5, [SEVEN, 0], [EIGHT, 1]]]
    asked = [["sample", 0.0, prompts], ["hinted", 0.0, ["Input:\n3 + 5\nTarget: 8\n"]]]
    wanted = [asked, [[prompts[0], SEVEN, True]], [[prompts[1], EIGHT, True]], [SEVEN, SEVEN, EIGHT]]
    expect(call("traces", items, rationalize=True), wanted)


def drawn(draw, count):
    """Sums with verdicts and texts that have nothing to do with each other, some of them several times."""
    tails = ("", "\nInput:\n3 + 4", "\n\n7", "\n<scratch>")

    def response(number):
        digits, right = " ".join(str(number)), draw.choice((0, 0, 0.5, 1, 1))
        text = draw.choice((f"<scratch>\n{digits} C: 0\n</scratch>\n{digits}", digits, "<scratch>\n</scratch>\n"))
        return [text + draw.choice(tails), right]

    sums = [(draw.randint(1, 9), draw.randint(1, 9)) for _ in range(count - 4)]
    sums += [(draw.randint(10, 99), draw.randint(10, 99)) for _ in range(2)] + sums[:2]
    draw.shuffle(sums)
    return [[a, b, response(a + b), response(a + b + 1)] for a, b in sums]


def hidden_all_settings(call, draw):
    """Attempts and traces of random rounds, without a second attempt, with hints, and with another temperature"""
    for settings in ({}, {"rationalize": True}, {"retry_temperature": 0.7}, {"rationalize": True, "temperature": 0.3}):
        items = drawn(draw, 12)
        prompts = [f"Input:\n{' '.join(str(a))} + {' '.join(str(b))}\nTarget:\n" for a, b, *_ in items]
        hints = [f"{prompt[:-1]} {' '.join(str(a + b))}\n" for prompt, (a, b, *_) in zip(prompts, items, strict=True)]

        def cleaned(text):  # up to the line behind the scratchpad, or the first line
            lines = text.split("\n")
            return "\n".join(lines[: lines.index("</scratch>") + 2 if "</scratch>" in lines else 1])

        failed = [i for i, item in enumerate(items) if item[2][1] != 1]
        second = failed if settings.get("rationalize") or settings.get("retry_temperature") else []
        asked = [["sample", settings.get("temperature", 0.0), prompts]]
        if settings.get("rationalize") and failed:
            asked.append(["hinted", settings.get("temperature", 0.0), [hints[i] for i in failed]])
        elif second:
            asked.append(["retry", 0.7, [prompts[i] for i in failed]])
        kept = [[prompts[i], cleaned(item[2][0]), True] for i, item in enumerate(items) if item[2][1] == 1]
        again = [[prompts[i], cleaned(items[i][3][0]), True] for i in second if items[i][3][1] == 1]
        texts = [item[2][0] for item in items] + [items[i][3][0] for i in second]
        expect(call("traces", items, **settings), [asked, kept, again, texts])


def hidden_no_hint_is_left(call, draw):
    """No prompt that is learnt from says anything behind Target:"""
    for _ in range(3):
        _, kept, again, _ = call("traces", drawn(draw, 10), rationalize=True)
        for prompt, response, whole in kept + again:
            assert whole and prompt.endswith("Target:\n") and "Target:" not in response, f"{prompt!r}: {response!r}"


def hidden_extremes(call, draw):
    """All right: no second attempt; all wrong: the whole round is tried again; still wrong: nothing is learnt"""
    items = drawn(draw, 8)
    for first, second in ((1, 1), (0, 1), (0, 0.5), (0.9, 0)):
        scripted = [[a, b, [one[0], first], [two[0], second]] for a, b, one, two in items]
        asked, kept, again, scored = call("traces", scripted, rationalize=True)
        counts = [len(asked), len(kept), len(again), len(scored)]
        wanted = [1, 8, 0, 8] if first == 1 else [2, 0, 8 * (second == 1), 16]
        assert counts == wanted, f"verdicts {first} and {second}: {counts} attempts and traces instead of {wanted}"


WRONG = {
    "the hint is learnt": ("(tokenizer, problem, task", "(tokenizer, one.row.problem, task"),
    "what was solved is rationalized too": ("for one in scored if not one.right]", "for one in scored]"),
    "wrong traces are kept": ("for one in scored if one.right]", "for one in scored]"),
    "a filter on the format": ("for one in scored if one.right]", 'for one in scored if "</scratch>" in one.text]'),
    "wrong second traces are kept": ("strict=False)\n    if one.right", "strict=False)"),
    "partly right is right": ("for one in scored if one.right]", "for one in scored if one.verdict > 0]"),
    "second traces under other problems": ("zip(failed, second", "zip(problems, second"),
    "what follows the answer is learnt": ("(tokenizer, problem, task.clean(", "(tokenizer, problem, ("),
    "a retry at the first temperature": ("attempt(failed, config.retry_temp", "attempt(failed, config.temp"),
    "a hint although it should be a retry": ("attempt(failed,", "attempt([task.hint(problem) for problem in failed],"),
    "nothing": 'return [], [], attempt(problems, config.temperature, "sample")\n',
    "everything as its first attempt": """
scored = attempt(problems, config.temperature, "sample")
return [demonstration(tokenizer, one.row.problem, one.text) for one in scored], [], scored
""",
}  # fmt: skip

"""Spawn and join, with clocks

In Adaptive Parallel Reasoning (2504.15466) a thread ends a piece of its thinking in a block of spawns and stops. The
block is erased from its context, its children run beside each other, and when the last one has ended the parent reads
what they found in the place of the block, and goes on. Two numbers tell what that cost: the tokens of all threads
(compute) and the longest chain of tokens that had to wait for one another, the **sequential tokens** (latency).
`spawn` in `threads.py` is given: it makes the children, sets `thread.running` to their number, and notes the block as
a `Round`. Read the dataclasses `Round` and `Thread`, then write four regions:

1. In `Threads.__call__`, which is called whenever a row has stopped: bring `thread.clock` forward by the tokens that
   the row drew since it last stopped, and note in `thread.drawn` how many it has drawn in all. `row.draws` counts what
   the row drew, ever; forced tokens (a join) are read in one go and cost nothing, erased ones were drawn and count.
2. `join(thread)`, when all children of the last round have ended (`row` and `last` are the thread's row and round):
   - `last.join = self.task.joined(problems, responses)`: problems and responses of `last.children`, in their order.
     `response_text(self.sampler.tokenizer, child.row)` is a response; that of a child which was cut
     (`child.row.stop_reason == "length"`) is `""`, even if it looks like an answer.
   - `thread.clock` and `last.end`: the parent goes on when the slowest child has ended, and not before it stopped
     itself. A child's `clock` began at its parent's.
   - Encode the join. Of the sampler use `tokenizer`, `max_new_tokens` and `context` alone. The row's budget is
     `row.max_new_tokens` response tokens, or the sampler's `max_new_tokens` where that is None; `row.prompt_len` is the
     length of its prompt. All its tokens, the prompt too, must fit `self.sampler.context`. If the row with the join
     would fill its budget or the context, so that nothing could follow, leave the row's tokens as they are and return
     `self.cut(thread)`, which marks it as cut and calls `end` for you; clocks and `last` stay as you have set them.
     Else append the join with `row.force` and return `[row]`, so that it goes on.
3. `end(thread)`, when a thread says no more. The root, whose `parent` is None: `thread.row.counted = count(thread)`,
   and nothing goes on. A child: its parent waits for one less, `parent.running`, and the last child of a block brings
   its parent back (`join`). Returns the rows that go on.
4. `count(root)`: a dict of floats; `below()` gives all threads that come from one. A child is here every thread but the
   root, also the child of a child.

       threads/children           threads but the root              threads/rounds       blocks of the root
       threads/empty_rounds       blocks without children, of all threads
       threads/sequential_tokens  the root's clock                  threads/total_tokens drawn by all threads
       threads/child_tokens       mean drawn by a child; 0.0 without children
       threads/cut_children       children whose stop_reason is "length"
"""

import random

PART = "APR"
NEEDS = ("mask",)
POINTS = 8
SECONDS = 2
FILES = ("threads.py",)
HINTS = (
    "What is new since the last stop is `row.draws - thread.drawn`.",
    "`max([thread.clock, *(child.clock for child in last.children)])` also holds where a block has no children.",
    "A child may spawn: its `end` comes after its own joins, so that its clock holds those already.",
)
BUG = (
    "Parallel thinking looks free if only the parent's tokens are counted, and slower than it is if all are: a "
    "comparison at equal budget must say whether it means sequential or total tokens. The released code counts its "
    "longest single sequence alone, in a function that nothing calls. A scheduler's own mistakes: to join when the "
    "first child has ended, and to believe a child that was cut."
)


def run(tree, order, budget=300, context=400, own_budget=True):
    """The threads of a tree, of which at each moment a random one goes on to its next stop.

    A thread: {"say": words before each stop, "blocks": children of each block, "found": a word or None, "cut": bool}.
    """
    from types import SimpleNamespace

    from nanoreason.rollout import Problem, Task, prompt_row
    from nanoreason.threads import Threads
    from nanoreason.tokenizer import word_tokenizer

    scripts, pending, draw = {}, [tree], random.Random(order)
    while pending:
        thread = pending.pop(0)
        thread["name"] = f"t{len(scripts)}"
        scripts[thread["name"]] = thread
        pending += [child for block in thread["blocks"] for child in block]
    tokenizer = word_tokenizer(["b", "spawn", "join", "found", "none", "nothing", *"xyz", *scripts])

    class Words(Task):
        spawn = ("spawn", "join")
        limits = SimpleNamespace(children=99, rounds=99, depth=99, tokens=0)

        def spawned(self, problem, response):
            names = response.rpartition("spawn")[2].split()[:-1]
            return [type(problem)(name, "") for name in names]

        def joined(self, children, responses):
            said = [response.partition("found ")[2] or "none" for response in responses]
            return " ".join(f"{p.prompt} {s}" for p, s in zip(children, said, strict=True)) or "nothing"

    def speak(row):
        """Draw what the thread says next; returns why it stopped."""
        script, stop = scripts[row.problem.prompt], len(rounds.setdefault(row.problem.prompt, []))
        rounds[row.problem.prompt].append(0)
        words = ["b"] * script["say"][stop]
        if last := stop == len(script["blocks"]):
            words += ["found", script["found"]] if script["found"] else []
        else:
            words += ["spawn", *(child["name"] for child in script["blocks"][stop]), "join"]
        for token in [tokenizer.encode(word)[0] for word in words] + [tokenizer.eos_id] * (last and not script["cut"]):
            row.sampled(token, -1.0)
        return "stop" if not last else "length" if script["cut"] else "eos"

    rounds: dict[str, list] = {}
    sampler = SimpleNamespace(tokenizer=tokenizer, context=context, max_new_tokens=budget, hold=lambda row: None)
    root = prompt_row(tokenizer, Problem("t0", ""), 1, budget if own_budget else None)
    sampler.max_new_tokens = 7 if own_budget else budget
    threads, live = Threads(Words(), sampler), [root]
    while live:
        row = live.pop(draw.randrange(len(live)))
        script = scripts[row.problem.prompt]
        if len(rounds.get(row.problem.prompt, [])) > len(script["blocks"]) or row in live:
            return {"problem": "a thread goes on that has ended, or that is running"}
        row.stop_reason = speak(row)
        live += threads(row)
    told = [tokenizer.decode([t]) if drawn else f"«{tokenizer.decode([t])}»"
            for t, drawn in zip(root.response, root.loss_mask[1:], strict=True) if t != tokenizer.eos_id]  # fmt: skip
    return {"counted": root.counted, "text": " ".join(told), "cut": root.stop_reason == "length",
            "joins": [[one.start, one.end, one.join] for one in threads.of[root].rounds]}  # fmt: skip


CALLS = (run,)


def thread(*say, blocks=(), found=None, cut=False):
    return {"say": list(say), "blocks": list(blocks), "found": found, "cut": cut}


def expect(found, **wanted):
    assert "problem" not in found, found["problem"]
    assert found["counted"], "the root has not ended: a parent waits for ever, or `counted` is not set"
    for name, value in wanted.items():
        at = found["counted"].get(f"threads/{name}") if name not in found else found[name]
        assert at == value, f"{name}: {at!r} instead of {value!r}"


def public_clocks(call):
    """8 tokens, two children of 5 and 9, then 4: 21 sequential tokens of 26 in all"""
    found = call("run", thread(4, 3, blocks=[[thread(4), thread(8)]]), 0)
    expect(found, sequential_tokens=21, total_tokens=26, children=2, rounds=1, child_tokens=7, cut_children=0)
    expect(found, joins=[[8, 17, "t1 none t2 none"]])


def public_join(call):
    """The parent reads what its children found, in the order of the block, and what was cut has found nothing"""
    children = [thread(30, found="x"), thread(2, found="y", cut=True), thread(1)]
    found = call("run", thread(2, 1, blocks=[children], found="z"), 1)
    expect(found, text="b b «t1» «x» «t2» «none» «t3» «none» b found z", cut_children=1, cut=False)


def public_alone(call):
    """Without spawns both counts are the tokens of the root; an empty block is joined at once"""
    expect(call("run", thread(6), 0), sequential_tokens=7, total_tokens=7, children=0, child_tokens=0, empty_rounds=0)
    expect(call("run", thread(1, 1, blocks=[[]]), 0), text="b «nothing» b", sequential_tokens=5, empty_rounds=1)


def grown(draw, depth):
    blocks = [
        [grown(draw, depth - 1) for _ in range(draw.randint(0, 3))] for _ in range(draw.randint(0, 2) if depth else 0)
    ]
    say = [draw.randint(1, 9) for _ in range(len(blocks) + 1)]
    return thread(*say, blocks=blocks, found=draw.choice((None, *"xyz")), cut=draw.random() < 0.3)


def secret_measure(tree, start=0):
    """(its clock when it ends, tokens of each thread, itself first, empty blocks), from the tree alone."""
    own, clock, below, empty = 0, start, [], 0
    for i, say in enumerate(tree["say"]):
        last = i == len(tree["blocks"])
        said = say + (2 * bool(tree["found"]) + (not tree["cut"]) if last else 2 + len(tree["blocks"][i]))
        own, clock = own + said, clock + said
        if not last:
            children = [secret_measure(child, clock) for child in tree["blocks"][i]]
            clock = max([clock, *(child[0] for child in children)])
            below += [tokens for child in children for tokens in child[1]]
            empty += (not children) + sum(child[2] for child in children)
    return clock, [own, *below], empty


def cut_in(tree):
    return sum(child["cut"] + cut_in(child) for block in tree["blocks"] for child in block)


def hidden_trees(call, draw):
    """Threads of threads, in any order of their ends: every count, from the tree alone"""
    for _ in range(25):
        tree = {**grown(draw, 3), "cut": False}
        clock, tokens, empty = secret_measure(tree)
        wanted = {"sequential_tokens": clock, "total_tokens": sum(tokens), "children": len(tokens) - 1,
                  "rounds": len(tree["blocks"]), "empty_rounds": empty, "cut_children": cut_in(tree),
                  "child_tokens": sum(tokens[1:]) / max(1, len(tokens) - 1)}  # fmt: skip
        found = [call("run", tree, draw.randint(0, 10**9), 2000, 2000) for _ in range(2)]
        expect(found[0], **wanted)
        assert found[0] == found[1], "the result depends on which thread is run first"


def hidden_joins(call, draw):
    """A parent waits for all of its children, whichever is the last, and believes no child that was cut"""
    for order in range(12):
        blocks = [
            [thread(draw.randint(1, 20), found=draw.choice("xyz"), cut=draw.random() < 0.3) for _ in range(4)]
            for _ in range(2)
        ]
        wanted, clock, name = [], 0, 0
        for said, block in zip((1, 2), blocks, strict=True):
            start = clock + said + 6  # spawn, four names, join
            clock = start + max(secret_measure(child)[0] for child in block)
            words = ["none" if child["cut"] else child["found"] for child in block]
            wanted.append([start, clock, " ".join(f"t{name + k} {words[k - 1]}" for k in (1, 2, 3, 4))])
            name += 4
        expect(call("run", thread(1, 2, 1, blocks=blocks), order), children=8, joins=wanted)


def hidden_equal_children(call, draw):
    """One child a block: sequential = total; n children alike: n - 1 of them cost no time"""
    chain, size, n = thread(2), draw.randint(2, 30), draw.randint(2, 6)
    for _ in range(4):
        chain = thread(draw.randint(1, 5), draw.randint(1, 5), blocks=[[chain]])
    found = call("run", chain, 0)
    expect(found, sequential_tokens=sum(secret_measure(chain)[1]), total_tokens=sum(secret_measure(chain)[1]))
    found = call("run", thread(1, 1, blocks=[[thread(size) for _ in range(n)]]), draw.randint(0, 99))
    expect(found, sequential_tokens=3 + n + size + 1 + 2, total_tokens=3 + n + n * (size + 1) + 2)


def hidden_room(call, draw):
    """A join behind which nothing could follow cuts the parent: by its budget, the sampler's, or the context"""
    n, k = draw.randint(5, 8), draw.randint(2, 6)
    for room in (-1, 0, 1, 2):
        size = k + 2 * n + room  # the response as it stands then, and `room` tokens
        for how in ({"budget": size}, {"budget": size, "own_budget": False}, {"budget": 300, "context": 1 + size}):
            found = call("run", thread(k, 0, blocks=[[thread(0) for _ in range(n)]]), 0, **{"context": 400, **how})
            joined = " ".join(f"«t{i}» «none»" for i in range(1, n + 1))
            text = " ".join(["b"] * k + [joined] * (room > 0))
            expect(found, cut=room <= 0, text=text, sequential_tokens=k + 2 + n + 1 + (room > 0))


WRONG = {
    "no clock": "pass\n",
    "a constant": "thread.clock, thread.drawn = 1, 1\n",
    "the clock counts the context": (
        "thread.clock + row.draws - thread.drawn, row.draws",
        "thread.clock + len(row.response) - thread.drawn, len(row.response)",
    ),
    "children one after another": (
        "max([thread.clock, *(child.clock for child in last.children)])",
        "thread.clock + sum(child.clock - child.start for child in last.children)",
    ),
    "the fastest child": ("max([thread.clock, *(", "min([10**9, *("),
    "a cut child has found something": ('"" if child.row.stop_reason == "length" else ', ""),
    "the first child brings the parent back": ("return [] if thread.parent.running else self", "return self"),
    "the parent is forgotten": ("else self.join(thread.parent)", "else []"),
    "no room behind the join": (">= min(", "> min("),
    "the context forgotten": (", self.sampler.context)", ", 10**9)"),
    "the sampler's budget forgotten": ("self.sampler.max_new_tokens if", "10**9 if"),
    "the join is learnt": ("row.force(tokens)", "[row.sampled(token, 0.0) for token in tokens]"),
    "total is sequential": ("float(sum(drawn))", "float(root.clock)"),
    "the root among its children": ("sum(drawn[1:]) / max(1, children)", "sum(drawn) / len(threads)"),
    "zeros": ("float(root.clock)", "0.0"),
}  # fmt: skip

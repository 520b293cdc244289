"""Budget forcing

s1 (2501.19393, section 3.1) makes a model think exactly as long as one wants, without training: it takes the end of the
thinking back, or forces it. Write two regions in `forcing.py`.

`keep_going(tokenizer, row, word, budget)`: a row was about to end, and what ended it has been taken back already;
append the tokens `word` (there may be none: then it only may not end) and let it go on. No `tokenizer` is needed for
it. If the response (`row.response`, without the prompt) would have `budget` tokens or more with the word, so that
nothing could follow, do nothing and return False. Else append them with `row.force`, see to it that the next token
cannot end the row, and return True: while a row has fewer tokens than `row.min_tokens`, its prompt counted, the sampler
draws nothing that ends it.

`on_close(row)`, inside `deliberate`: the sampler calls it whenever a row has stopped thinking. It returns `[row]` to
let the row go on, or `[]` when its thinking is over. `thought` holds what is known of the row.

1. `thought.cut`: whether its budget was used up, which `row.stop_reason` calls `"length"`. It did not close then.
2. A row that closed by itself: take back what closed it (`take_back_close(tokenizer, row, thought.start)`: EOS, or
   `</think>`, which may be several tokens). If it was kept from closing fewer than `forcing.waits` times, keep it going
   with the tokens `wait`, within `row.max_new_tokens`. If that worked, count it in `thought.waits` and return `[row]`.
3. Otherwise the thinking ends here: it was cut, or has had its waits, or had no room for another (what was taken back
   stays so, and it is no cut). `thought.end` is the number of tokens of the row now. Then force, in this order:
   - of a cut, `forcing.line_end`, if it is not empty and the decoded thinking, `row.tokens[thought.start:]`, does not
     end in it already;
   - `close`, the tokens of `</think> <answer>`: **always**, so that an answer follows whatever happened;
   - of a cut, `forcing.announce` (s1: "Final Answer:"), if it is not empty. A model that closed by itself needs none.

Call `watch(thought)` as the last thing before you return, each time. Forced tokens were not chosen by the policy:
`row.force` keeps them out of the loss. `word`, `wait` and `close` are lists of tokens already; `forcing.line_end` and
`forcing.announce` are text, which `tokenizer.encode(text)` makes tokens of, as `tokenizer.decode(tokens)` makes text.
"""

import random

PART = "s1"
NEEDS = ("mask", "sampling")
POINTS = 6
SECONDS = 3
FILES = ("forcing.py",)
HINTS = (
    "The order decides: first whether it was cut, then take back, then ask for a wait; only then close.",
    "`row.min_tokens = len(row.tokens) + 1`, after the word was appended, bars exactly the next token from ending it.",
    "`keep_going` says whether it did anything: `if thought.waits < forcing.waits and keep_going(...)`.",
)
BUG = (
    "Without forced closing tokens a cut chain has no final answer at all (s1#127), and one flag of the evaluation, "
    'which decides what is forced behind the thinking, was worth about 20 points on AIME (s1 PR#100). Behind "wait" '
    "the model closes again at once unless it is kept from it."
)


def think(tape, budget, waits=0, word="wait", line_end="", announce="", spelt=False):
    """A model that writes tape[i] (words, by preference) as token i behind <think>, whatever stands before it."""
    import torch

    from nanoreason.forcing import Forcing, deliberate
    from nanoreason.model import Transformer, small_config
    from nanoreason.rollout import Problem, prompt_row
    from nanoreason.tokenizer import char_tokenizer, word_tokenizer

    tags = ["<think>", "</think>", "<answer>", "</answer>"]
    tokenizer = (char_tokenizer("</>thinkaswer bcq") if spelt
                 else word_tokenizer(["\n", *tags, "wait", "hmm", "Final", "Answer:", *"abcdq"]))  # fmt: skip
    ids = [[tokenizer.eos_id if w == "EOS" else tokenizer.encode(w)[0] for w in words] for words in tape]
    first = 1 + len(tokenizer.encode("<think>"))

    class Tape(Transformer):
        def forward(self, tokens, positions=None, cache=None):
            logits = torch.full((*tokens.shape, self.config.vocab_size), -1000.0)
            for row, position in enumerate(positions[:, -1].tolist()):
                i = position + 1 - first
                for rank, token in enumerate(ids[i] if i < len(ids) else tokenizer.encode("b")):
                    logits[row, -1, token] = -50.0 * rank
            return logits

    row, seen = prompt_row(tokenizer, Problem("q", "")), []
    forcing = Forcing(budget, waits, word, line_end, announce)
    model = Tape(small_config(8, 1, 1, tokenizer.vocab_size, 128), 0)
    (thought,) = deliberate(
        model, tokenizer, [row], forcing, temperature=0.0, answer_tokens=3, watch=lambda now: seen.append(now.waits)
    )
    said = ["EOS" if token in tokenizer.eos_ids else tokenizer.decode([token]) for token in row.response]
    forced = [i for i, chosen in enumerate(row.loss_mask[1:]) if not chosen]
    return {"words": said, "forced": forced, "tokens": thought.tokens, "waits": thought.waits, "cut": thought.cut,
            "seen": seen}  # fmt: skip


CALLS = (think,)


def words(text):
    return [[word] for word in text.split(" ")]


def expect(found, text, waits, cut):
    """`text`: the response, forced words in «»."""
    told = " ".join(f"«{w}»" if i in found["forced"] else w for i, w in enumerate(found["words"]))
    assert told == text, f"{told!r} instead of {text!r}"
    assert (found["waits"], found["cut"]) == (waits, cut), f"waits, cut: {found['waits'], found['cut']} in {told!r}"


def public_closes_by_itself(call):
    """A model that closes by itself gets its tags, and no announcement"""
    found = call("think", words("a b </think> d c </answer>"), 9, line_end="\n", announce="Final Answer:")
    expect(found, "«<think>» a b «</think>» «<answer>» c </answer>", 0, False)
    assert found["tokens"] == 2, f"{found['tokens']} tokens of thinking instead of 2"


def public_cut(call):
    """Thinking that uses up 3 tokens is cut, and the answer announced"""
    found = call("think", words("a b a a a a a a c </answer>"), 3, line_end="\n", announce="Final Answer:")
    expect(found, "«<think>» a b a «\n» «</think>» «<answer>» «Final» «Answer:» c </answer>", 0, True)
    assert found["tokens"] == 3, f"{found['tokens']} tokens of thinking instead of 3"
    found = call("think", words("a \n b a c </answer>"), 2, line_end="\n")  # it ends in a line end already
    expect(found, "«<think>» a \n «</think>» «<answer>» c </answer>", 0, True)


def public_wait(call):
    """wait takes the place of the closing tag, once, and counts as a token of the thinking"""
    found = call("think", words("a </think> b </think> d c </answer>"), 9, waits=1)
    expect(found, "«<think>» a «wait» b «</think>» «<answer>» c </answer>", 1, False)
    assert found["tokens"] == 3, f"{found['tokens']} tokens of thinking instead of 3"


def public_not_at_once(call):
    """Right behind a wait it cannot close: its second choice is drawn there"""
    found = call("think", [["a"], ["</think>"], ["</think>", "d"], ["</think>"], ["d"], ["</answer>"]], 9, waits=1)
    expect(found, "«<think>» a «wait» d «</think>» «<answer>» </answer>", 1, False)


ENDS = ("</think>", "EOS")


def secret_simulation(tape, budget, waits, word, line_end, announce):
    """What must come out, from the rules alone: (response, waits, cut)."""

    def at(i):
        return tape[i] if i < len(tape) else ["b"]

    said, word, used, barred = [], [f"«{w}»" for w in word.split()], 0, False
    while len(said) < budget:
        drawn = next(w for w in at(len(said)) if not (barred and w in ENDS))
        barred = False
        if drawn not in ENDS:
            said.append(drawn)
        elif used < waits and len(said) + len(word) < budget:
            said, used, barred = said + word, used + 1, True
        else:
            break
    cut = len(said) == budget
    said += ["«\n»"] * (cut and line_end == "\n" and said[-1] != "\n") + ["«</think>»", "«<answer>»"]
    said += [f"«{w}»" for w in announce.split() if cut]
    for _ in range(3):
        said.append(at(len(said))[0])
        if said[-1] in ("</answer>", "EOS"):
            break
    return " ".join(["«<think>»", *said]), used, cut


def hidden_random_tapes(call, draw):
    """Random models, budgets, waits and words: token by token what the rules say"""
    for _ in range(40):
        pool = ["a", "b", "c", "\n", "</think>", "</think>", "EOS", "</answer>"]
        tape = [[draw.choice(pool), "d"] for _ in range(draw.randint(3, 20))]
        how = {"budget": draw.randint(1, 14), "waits": draw.choice((0, 1, 2, 9))}
        how |= {"word": draw.choice(("wait", "hmm wait", "")), "line_end": draw.choice(("", "\n"))}
        how |= {"announce": draw.choice(("", "Final Answer:"))}
        wanted = secret_simulation(tape, **how)
        found = call("think", tape, **how)
        expect(found, *wanted)
        assert found["tokens"] <= how["budget"], f"{found['tokens']} tokens of thinking with {how}"
        assert found["seen"] == [*range(1, found["waits"] + 1), *[found["waits"]] * 2], (
            "watch is called at every change"
        )


def hidden_stubborn(call, draw):
    """A model that wants to close at every token: it waits as often as asked, or until the budget holds no more"""
    for waits, budget in ((0, 9), (3, draw.randint(9, 20)), (50, 11), (50, 12), (50, draw.randint(9, 20))):
        found = call("think", [["</think>", "d"]] * 60, budget, waits)
        wanted = min(waits, budget // 2)
        assert found["waits"] == wanted, f"{found['waits']} waits instead of {wanted} (budget {budget})"
        assert found["words"][1 : 1 + 2 * wanted] == ["wait", "d"] * wanted


def hidden_spelt(call, draw):
    """A closing tag of eight tokens is taken back whole"""
    thinking = "".join(draw.choice("ab>c") for _ in range(draw.randint(2, 6)))
    found = call("think", [[c] for c in thinking + "</think>" + "a" * 9 + "</answer>"], 40, spelt=True)
    text = "".join(found["words"])
    assert text.startswith(f"<think>{thinking}</think> <answer>"), text
    assert found["tokens"] == len(thinking), f"{found['tokens']} tokens of thinking in {text}"


def hidden_always_an_answer(call, draw: random.Random):
    """Whatever happened, exactly one </think> <answer> is forced, and none of it is in the loss"""
    for budget in range(1, 8):
        tape = [[draw.choice(("a", "</think>", "EOS")), "d"] for _ in range(9)]
        found = call("think", tape, budget, waits=draw.randint(0, 2))
        inside = found["words"][1 + found["tokens"] :][:2]
        assert inside == ["</think>", "<answer>"], f"{inside} behind the thinking of {found['words']}"
        assert {1 + found["tokens"], 2 + found["tokens"]} <= set(found["forced"]), "the tags are in the loss"


BACK, COUNT = "take_back_close(tokenizer, row, thought.start)\n", "thought.waits += 1\n"
WRONG = {
    "a cut chain gets no answer": ("row.force(close)", "row.force([] if thought.cut else close)"),
    "the announcement also behind a close": ("if thought.cut and forcing.announce:", "if forcing.announce:"),
    "behind a wait it may close at once": ("row.min_tokens = len(row.tokens) + 1\n", ""),
    "the closing token stays before the wait": (BACK, 'row.stop_reason = ""\n'),
    "one token of the closing tag is taken back": (BACK, "row.retract()\n"),
    "every wait has more budget": (COUNT, COUNT + "        row.max_new_tokens += 9\n"),
    "a word where nothing can follow it": ("if len(row.response) + len(word) >= budget:\n    return False\n", ""),
    "the word is learnt": ("row.force(word)", "[row.sampled(token, 0.0) for token in word]"),
    "a second line end": ("if not tokenizer.decode(row.tokens[thought.start :]).endswith(forcing.line_end)", "if True"),
    "never waits": "return False\n",
    "says that it waits": "return True\n",
}  # fmt: skip

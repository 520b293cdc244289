"""docs/one-step.md: its numbers are those of a real step, its stops are lines that the step passes, in this order."""

import bdb
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from nanoreason import sampler
from nanoreason.recipes import grpo_minimal

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("one_step", ROOT / "docs" / "one_step.py")
one_step = importlib.util.module_from_spec(spec)
sys.modules["one_step"] = one_step  # where `inspect` looks for it
spec.loader.exec_module(one_step)
NUMBER = re.compile(r"-?[0-9]+\.[0-9]+")


@pytest.fixture(scope="module")
def seen():
    """One watched step, and how near a random number came to a border between two tokens."""
    real, nearest = sampler.draw, [1.0]

    def draw(logits, u, temperature, top_p=1.0):
        borders = (logits.double() / temperature).softmax(-1).cumsum(-1)
        nearest[0] = min(nearest[0], float((borders - u[:, None]).abs().min()))
        return real(logits, u, temperature, top_p)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "draw", draw)
        return one_step.look(), nearest[0]


def same(mine: str, theirs: str) -> bool:
    """Whether two texts have the same words, and decimal fractions that differ in their last digit by 1 at most."""
    if NUMBER.sub("#", mine) != NUMBER.sub("#", theirs):
        return False
    pairs = zip(NUMBER.findall(mine), NUMBER.findall(theirs), strict=True)
    return all(len(a) == len(b) and abs(int(a.replace(".", "")) - int(b.replace(".", ""))) <= 1 for a, b in pairs)


@pytest.mark.parametrize(
    "mine, theirs",
    [("0.72", "0.74"), ("50", "51"), ("0.5 up", "0.5 down"), ("(8, 45)", "(8, 44)"), ("-0.5", "0.5"), ("1.0", "1.00")],
)
def test_texts_are_told_apart_but_for_the_last_digit(mine, theirs):
    assert same("u = 0.72 draws 50", "u = 0.73 draws 50") and same("-0.300", "-0.299")
    assert not same(mine, theirs)


def test_the_page_shows_the_step_of_today(seen):
    page = one_step.PAGE.read_text(encoding="utf-8")
    assert {found[2] for found in one_step.BLOCK.finditer(page)} == set(one_step.BLOCKS)
    assert [found[2] for found in one_step.STOP.finditer(page)] == list(one_step.STOPS)
    now = one_step.renewed(page, seen[0])
    for mine, theirs in zip(now.split("\n"), page.split("\n"), strict=True):
        assert same(mine, theirs), f"run `python docs/one_step.py`: {theirs!r} is now {mine!r}"


def test_its_tokens_do_not_hang_on_rounding(seen):
    assert seen[1] > 1e-4


def test_watching_a_step_does_not_change_it(seen):
    policy, tokenizer, optimizer = one_step.load()
    _, metrics = grpo_minimal.grpo_step(one_step.CONFIG, 0, policy, tokenizer, optimizer)
    assert metrics == seen[0].metrics
    for mine, theirs in zip(policy.parameters(), seen[0].policy.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_what_the_page_says_of_the_step_is_so(seen):
    """The text between the blocks: one group with a signal, a flat one, a loss of 0, the right response up."""
    step = seen[0]
    rewards = [[row.reward for row in group] for group in step.groups]
    assert sorted(rewards[0]) == [0, 0, 0, 1] and rewards[1] == [0] * 4
    assert abs(step.metrics["loss"]) < 1e-6 and 0 < step.metrics["grad_norm"] < 1
    ways = [sum(new) > sum(old) for old, new in zip(step.before, step.after, strict=True)]
    assert ways[rewards[0].index(1)] and sum(ways[:4]) == 2
    assert {step.tokenizer.decode(row.response[:1]) for group in step.groups for row in group} == {"<think>"}


class Tour(bdb.Bdb):
    """Notes where it stops, and goes on."""

    stopped: list[tuple[str, int]] = []

    def user_line(self, frame) -> None:
        self.stopped = [*self.stopped, (frame.f_code.co_filename, frame.f_lineno)]
        self.set_continue()

    def do_clear(self, number: str) -> None:
        """A temporary breakpoint was reached."""
        self.clear_bpbynumber(number)


def test_a_debugger_stops_at_each_of_the_breakpoints_in_their_order(capsys):
    assert one_step.main(["--breakpoints"]) == 0
    lines = [re.fullmatch(r"tbreak (\S+):([0-9]+)", line) for line in capsys.readouterr().out.splitlines()]
    places = [(str(ROOT / line[1]), int(line[2])) for line in lines]
    assert len(places) == len(one_step.STOPS)
    tour, loaded = Tour(), one_step.load()
    tour.reset()
    for file, number in places:
        assert not tour.set_break(file, number, temporary=True)
    before = sys.gettrace()
    sys.settrace(tour.trace_dispatch)
    try:
        grpo_minimal.grpo_step(one_step.CONFIG, 0, *loaded)
    finally:
        sys.settrace(before)
        tour.clear_all_breaks()
    assert tour.stopped[1:] == places  # a tracer stops first where it begins


def test_a_stop_that_is_not_in_the_source_and_a_wrong_flag_are_told(capsys):
    with pytest.raises(ValueError, match="older than the source"):
        one_step.Stop(grpo_minimal.loss, "no such line").number()
    assert one_step.main(["--wrong"]) == 2 and "--breakpoints" in capsys.readouterr().err

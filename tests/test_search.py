"""Search: the strategies are the described ones, writers and reader are inverse, and the reader cannot be fooled."""

import builtins
import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoreason import search as reader
from nanoreason.countdown import Operation, check_operations
from nanoreason.recipes import sft
from nanoreason.rollout import demonstration
from nanoreason.run import parse_config
from nanoreason.search import (
    COMPACT_WORDS,
    LANGUAGES,
    MIXTURE,
    STRATEGIES,
    Check,
    Exhausted,
    Explore,
    Generate,
    Move,
    State,
    Unreadable,
    expand,
    first_events,
    max_nodes,
    optimal_path,
    prompt,
    read_trace,
    search,
    write,
)
from nanoreason.tasks.countdown import Countdown, StreamOfSearch, search_tokenizer
from nanoreason.tokenizer import word_tokenizer

# Share of problems solved: 1,000 solvable problems each, inputs 1..99, targets 10..100 (reference, section 2.3).
NAMES = ["dfs-sum", "dfs-mult", *(f"bfs{beam}-{h}" for h in ("sum", "mult") for beam in range(1, 6))]
SOLVE_RATES = {
    4: dict(zip(NAMES, [0.80, 0.59, 0.10, 0.23, 0.43, 0.49, 0.58, 0.25, 0.45, 0.57, 0.63, 0.69], strict=True)),
    3: dict(zip(NAMES, [0.94, 0.90, 0.36, 0.48, 0.78, 0.83, 0.90, 0.63, 0.78, 0.88, 0.91, 0.93], strict=True)),
}
MIXTURE_RATES = {4: 0.568, 3: 0.83}

numbers_and_target = st.tuples(st.lists(st.integers(1, 30), min_size=2, max_size=4).map(tuple), st.integers(2, 60))
strategy = st.sampled_from(sorted(STRATEGIES))
language = st.sampled_from(LANGUAGES)


def solved(events):
    return isinstance(events[-1], Check) and events[-1].equal


def without_stays(events):
    """What the compact language leaves out: moves to the current node, and its state once more."""
    here, kept, staying = (0,), [], False
    for event in events:
        if isinstance(event, Move):
            here, staying = event.node, event.node == here
        if not (staying and isinstance(event, Move | State)):
            kept.append(event)
    return kept


# ------------------------------------------------------------------------------------------------ strategies


def solve_rates(inputs, count):
    task = Countdown(inputs=inputs)
    problems = [task.problem("train", index).info for index in range(count)]
    return {
        name: sum(solved(list(search(p["numbers"], p["target"], name))) for p in problems) / count for name in NAMES
    }


def check_solve_rates(inputs, count, tolerance):
    rates = solve_rates(inputs, count)
    assert rates == pytest.approx(SOLVE_RATES[inputs], abs=tolerance)
    assert sum(rates[name] * MIXTURE[name] for name in NAMES) == pytest.approx(MIXTURE_RATES[inputs], abs=tolerance)


@pytest.mark.parametrize("inputs", [3, 4])
def test_solve_rates(inputs):
    check_solve_rates(inputs, count=300, tolerance=0.07)  # standard error: up to 0.03 here, 0.016 in the reference


@pytest.mark.slow
@pytest.mark.parametrize("inputs", [3, 4])
def test_solve_rates_closely(inputs):
    check_solve_rates(inputs, count=3000, tolerance=0.03)


def test_the_mixture_is_the_papers():
    assert len(STRATEGIES) == 12 and sum(MIXTURE.values()) == pytest.approx(1)
    assert sum(share for name, share in MIXTURE.items() if name.startswith("dfs")) == 0.5
    assert sum(share for name, share in MIXTURE.items() if name.endswith("sum")) == pytest.approx(0.5)


@given(numbers_and_target)
@settings(max_examples=60, deadline=None)
def test_heuristics_are_the_described_ones(problem):
    numbers, target = problem
    factors = [factor for factor in range(2, target + 1) if target % factor == 0]
    for heuristic in ("sum", "mult"):
        found = expand(numbers, target, heuristic)
        for score, _, _, rest in found:
            if heuristic == "sum":
                assert score == pytest.approx(sum(abs(number - target) for number in rest) / len(rest))
            else:
                assert score == sum(min(abs(number - factor) for factor in factors) for number in rest)
        assert [child[0] for child in found] == sorted(child[0] for child in found)


@given(numbers_and_target, strategy, st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_every_search_is_well_formed(problem, name, seed):
    numbers, target = problem
    beam = STRATEGIES[name][1]
    events = list(search(numbers, target, name, seed))
    assert events == list(search(numbers, target, name, seed))
    assert isinstance(events[-1], Check) and events[-1].equal or events[-1] == Exhausted()
    assert sum(isinstance(event, Exhausted) or (isinstance(event, Check) and event.equal) for event in events) == 1
    generated = {(0,): numbers}
    visited = {(0,)}
    shown = 0
    for place, (before, event) in enumerate(zip([None, *events], events, strict=False)):
        match event:
            case Explore(_, rest):
                shown += 1
                assert not beam or shown <= beam
            case Generate(node, _, rest, operation):
                assert node not in generated and node[:-1] in generated  # ids are unique
                assert before == Explore(operation, rest) and len(rest) > 1
                generated[node] = rest
            case Move(node):
                shown = 0
                assert len(generated[node]) > 1  # leaves, and nodes that were never generated, are not moved to
                # only depth first returns, and only to try something else
                assert node not in visited or (not beam and isinstance(events[place + 2], Explore))
                visited.add(node)
            case State(_, rest, _):
                assert isinstance(before, Move) and rest == generated[before.node]


def test_depth_first_is_depth_first():
    """All children within the target's distance, best first, each before its sibling; leaves use up an index."""
    events = list(search((1, 1, 9), 4, "dfs-sum"))
    kept = [child for child in expand((1, 1, 9), 4, "sum") if child[0] <= 4]
    assert len(kept) < len(expand((1, 1, 9), 4, "sum"))  # 9*1=9 and its like are too far off
    roots = [event.numbers for event in events if isinstance(event, Generate) and len(event.node) == 2]
    assert roots == [child[3] for child in kept][: len(roots)]
    here = (0,)
    for event, after in zip(events, events[1:], strict=False):
        if isinstance(event, Generate):
            assert after == Move(event.node) and event.node[:-1] == here
        here = event.node if isinstance(event, Move) else here
    leaf = next(i for i, event in enumerate(events) if isinstance(event, Check))
    assert isinstance(events[leaf + 1], Move)  # back to the parent, said aloud


def test_a_depth_first_search_that_may_try_nothing_gives_up_at_once():
    assert list(search((90, 91, 92), 2, "dfs-sum")) == [Exhausted()]
    assert read_trace((90, 91, 92), 2, "No solution found.").ending == "exhausted"


def test_a_beam_never_drops_the_goal_for_another_factor_of_the_target():
    # 4+4=8 and 4*4=16 are factors of 16, and the sum comes first
    assert solved(list(search((4, 4), 16, "bfs1-mult")))


# ------------------------------------------------------------------------------------------------ both languages


def test_the_papers_sentences():
    events = [
        Explore(Operation(9, "*", 3, 27), (4, 27)),
        Generate((0, 0), 24, (4, 27), Operation(9, "*", 3, 27)),
        Move((0, 0)),
        State(24, (4, 27), (Operation(9, "*", 3, 27),)),
        Explore(Operation(27, "-", 4, 23), (23,)),
        Check(23, 24, False),
        Move((0,)),
        State(24, (4, 9, 3), ()),
        Check(24, 24, True),
        Exhausted(),
    ]
    assert prompt((4, 9, 3), 24, "paper") == "Current State: 24:[4, 9, 3], Operations: []\n"
    assert write(events, "paper").split("\n") == [
        "Exploring Operation: 9*3=27, Resulting Numbers: [4, 27]",
        "Generated Node #0,0: 24:[4, 27] Operation: 9*3=27",
        "Moving to Node #0,0",
        "Current State: 24:[4, 27], Operations: ['9*3=27']",
        "Exploring Operation: 27-4=23, Resulting Numbers: [23]",
        "23,24 unequal: No Solution",
        "Moving to Node #0",
        "Current State: 24:[4, 9, 3], Operations: []",
        "24,24 equal: Goal Reached",
        "No solution found.",
    ]
    assert prompt((4, 9, 3), 24, "compact") == "T 24 : 4 9 3\n"
    assert write(events, "compact") == (
        "E 9 * 3 = 27 > 4 27 G 0 0 M 0 0 S 4 27 | 9 * 3 = 27 E 27 - 4 = 23 > 23 X M 0 S 4 9 3 | W N"
    )


@given(numbers_and_target, strategy, st.integers(0, 3), language)
@settings(max_examples=200, deadline=None)
def test_the_reader_undoes_the_writer(problem, name, seed, lang):
    numbers, target = problem
    events = list(search(numbers, target, name, seed))
    text = write(events, lang)
    reading = read_trace(numbers, target, text)
    assert reading.events == (events if lang == "paper" else without_stays(events))
    assert not any(reading.errors.values())
    assert reading.ending == ("goal" if solved(events) else "exhausted")
    assert reading.solved == reading.lenient == solved(events)
    assert reading.nodes == 1 + sum(isinstance(event, Explore) for event in events)
    explored = [event.numbers for event in events if isinstance(event, Explore)]
    assert reading.states == {tuple(sorted(state)) for state in [numbers, *explored]}
    assert {path: node.numbers for path, node in reading.tree.items()} == {
        (0,): numbers,
        **{event.node: event.numbers for event in events if isinstance(event, Generate)},
    }
    assert sum(len(node.children) for node in reading.tree.values()) == len(explored)
    if reading.solved:
        assert check_operations(numbers, target, ", ".join(map(str, reading.solution)))
    assert read_trace(numbers, target, prompt(numbers, target, lang) + text) == reading
    if lang == "compact":
        assert all(word in COMPACT_WORDS or word.isdecimal() for word in text.split())


@given(st.integers(2, 5), st.integers(0, 500), language)
@settings(max_examples=100, deadline=None)
def test_optimal_paths_reach_the_goal_without_error(inputs, index, lang):
    task = StreamOfSearch(inputs, 30, (4, 60), data="op", language=lang)
    problem = task.problem("train", index)
    reading = task.read(problem, problem.solution)
    assert reading.solved and reading.solution == problem.info["operations"] and not any(reading.errors.values())
    assert reading.nodes == inputs and len(reading.tree) == inputs - 1


def test_an_optimal_path_uses_one_copy_of_a_number():
    numbers, operations = (
        (5, 5, 3, 2),
        [Operation(*step) for step in ((5, "*", 3, 15), (15, "+", 5, 20), (20, "+", 2, 22))],
    )
    reading = read_trace(numbers, 22, write(optimal_path(numbers, 22, operations), "paper"))
    assert reading.solved and reading.tree[0, 0].numbers == (5, 2, 15)


# ------------------------------------------------------------------------------------------------ judging

MOVED = "E 9 - 3 = 6 > 4 6 G 0 0 M 0 0 S 4 6 | 9 - 3 = 6 "
PAPER_MOVED = (
    "Exploring Operation: 9-3=6, Resulting Numbers: [4, 6]\nGenerated Node #0,0: 24:[4, 6] Operation: 9-3=6\n"
    "Moving to Node #0,0\nCurrent State: 24:[4, 6], Operations: ['9-3=6']\n"
)
GOAL = "Exploring Operation: 4*6=24, Resulting Numbers: [24]\n24,24 equal: Goal Reached"


@pytest.mark.parametrize(
    "text, errors",
    [
        # the words after the errors keep them from being the last statement, which may just be cut off
        ("E 9 - 3 = 5 > 4 5 N", {"arithmetic": 1}),
        ("E 3 - 9 = 6 > 4 6 N", {"arithmetic": 1}),  # never negative, so not a subtraction at all
        ("E 9 / 4 = 2 > 3 2 N", {"arithmetic": 1}),
        ("E 9 - 8 = 1 > 4 3 1 N", {"other": 1}),  # no 8
        ("E 9 + 9 = 18 > 4 3 18 N", {"other": 1}),  # one 9 only
        ("E 9 - 3 = 6 > 6 N", {"other": 1}),  # loses the 4
        ("E 9 - 3 = 6 > 4 7 N", {"other": 1}),
        ("E 9 - 3 = 7 > 4 6 N", {"arithmetic": 1, "other": 1}),
        ("E 9 - 3 = 5 > 4 5 G 0 0 M 0 0 S 4 5 | 9 - 3 = 5 E 4 + 5 = 9 > 9 X N", {"arithmetic": 1}),  # counted once
        ("M 0 7 S 4 6 | 9 - 3 = 6 E 4 + 6 = 10 > 10 X N", {"exploration": 1}),  # never generated
        (MOVED + "M 0 S 9 4 3 | E 9 + 3 = 12 > 4 12 G 0 0 N", {"exploration": 1}),  # the id is taken
        (MOVED + "E 4 + 6 = 10 > 10 X M 0 0 0 N", {"exploration": 1}),  # leaves are no nodes
        ("E 9 - 3 = 6 > 4 6 G 0 5 0 N", {"exploration": 1}),  # below a node that is not there
        ("G 0 0 N", {"other": 1}),  # of what?
        ("E 9 - 3 = 6 > 4 6 G 0 0 M 0 0 S 4 5 | 9 - 3 = 6 N", {"other": 1}),  # other numbers than announced
        ("E 9 - 3 = 6 > 4 6 G 0 0 M 0 0 S 4 6 | N", {"other": 1}),  # other operations
        ("E 9 - 3 = 6 > 4 6 X N", {"other": 1}),  # no leaf
        ("X N", {"other": 1}),
        (MOVED + "E 4 * 6 = 24 > 24 X N", {"other": 1}),  # it is the goal
        (MOVED + "E 4 + 6 = 10 > 10 W", {"other": 1}),  # it is not
        (MOVED + "E 4 * 6 = 24 > 24 W E 4 + 6 = 10 > 10", {"formatting": 1}),  # text after the end
        ("E 9 - 3 > 4 6 N", {"formatting": 1}),
        ("hm E 9 - 3 = -6 > 4 6 E 09 - 3 = 6 > 4 6 E 9 - - 3 = 6 > 4 6 M N", {"formatting": 5}),
        (PAPER_MOVED + GOAL, {}),
        (PAPER_MOVED + GOAL.replace("24,24", "13,99"), {"other": 1}),
        (PAPER_MOVED + GOAL.replace("[24]", "[25]"), {"other": 2}),
        (PAPER_MOVED + "\nHm.\n\n" + GOAL, {"formatting": 1}),
        (PAPER_MOVED.replace("State: 24", "State: 42") + GOAL, {"other": 1}),
        (PAPER_MOVED.replace("#0,0: 24:[4, 6]", "#0,0: 24:[4, 7]") + GOAL, {"other": 2}),
    ],
)
def test_errors_are_counted_once_in_their_class(text, errors):
    reading = read_trace((9, 4, 3), 24, text)
    assert {name: count for name, count in reading.errors.items() if count} == errors
    assert reading.solved == (reading.ending == "goal" and set(errors) <= {"formatting"})


def test_numbers_cannot_be_used_twice():
    first, second = Operation(10, "+", 10, 20), Operation(20, "*", 2, 40)
    events = [
        Explore(first, (3, 2, 7, 20)), Generate((0, 0), 40, (3, 2, 7, 20), first), Move((0, 0)),
        State(40, (3, 2, 7, 20), (first,)), Explore(second, (40,)), Check(40, 40, True),
    ]  # fmt: skip
    for lang in LANGUAGES:
        reading = read_trace((10, 3, 2, 7), 40, write(events, lang))
        assert not reading.solved and reading.lenient  # the released scorer took it for a solution
        assert reading.errors["other"] == 2 and reading.states == {(2, 3, 7, 10)}


def test_the_lenient_score_still_wants_known_numbers_and_the_target():
    for text in ("E 20 + 4 = 24 > 24 W", "E 9 + 4 = 13 > 13 W", MOVED + "E 4 * 6 = 25 > 24 W", "W", MOVED):
        assert not read_trace((9, 4, 3), 24, text).lenient


def test_two_inputs_are_solved_from_the_root():
    reading = read_trace((4, 6), 24, "Exploring Operation: 4*6=24, Resulting Numbers: [24]\n24,24 equal: Goal Reached")
    assert reading.solved and reading.lenient and reading.rating == 1 - 2 / max_nodes(2)


def test_a_search_can_recover_from_an_error():
    text = (
        "E 9 - 3 = 5 > 4 5 G 0 0 M 0 0 S 4 5 | 9 - 3 = 5 M 0 S 9 4 3 | E 9 - 3 = 6 > 4 6 G 0 1 M 0 1 S 4 6 | 9 - 3 = 6 "
    )
    good = read_trace((9, 4, 3), 24, text + "E 4 * 6 = 24 > 24 W")
    assert good.solved and good.errors["arithmetic"] == 1 and not good.tree[0, 0].valid and good.tree[0, 1].valid
    assert not read_trace((9, 4, 3), 24, text + "M 0 0 S 4 5 | 9 - 3 = 5 E 4 * 5 = 24 > 24 W").solved


def test_ratings_fall_with_the_nodes():
    task = StreamOfSearch(inputs=3, data="op")
    problem = task.problem("train", 0)
    reading = task.read(problem, problem.solution)
    assert reading.rating == 1 - 3 / 48 and task.reward(problem, problem.solution) == 1.0
    assert task.metrics(problem, problem.solution)["rating"] == 1 - 3 / 48
    assert task.read(problem, "N").rating == task.reward(problem, "N") == 0.0


@given(numbers_and_target, strategy, language, st.data())
@settings(max_examples=100, deadline=None)
def test_a_trace_that_is_cut_off_has_no_errors(problem, name, lang, data):
    numbers, target = problem
    text = write(search(numbers, target, name), lang)
    # words of the compact language are tokens; the paper's sentences may be cut anywhere
    places = range(len(text)) if lang == "paper" else [i for i, character in enumerate(text) if character == " "] or [0]
    reading = read_trace(numbers, target, text[: data.draw(st.sampled_from(places))])
    assert not any(reading.errors.values()) and not reading.solved and reading.ending == ""


@given(numbers_and_target, strategy, language, st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_no_damage_to_a_trace_can_raise_or_fool_the_reader(problem, name, lang, rng):
    numbers, target = problem
    text = write(search(numbers, target, name), lang)
    unit = rng.choice(["", " ", "\n"])  # damage characters, words or lines
    parts = list(text) if not unit else text.split(unit)
    alphabet = [*parts, *COMPACT_WORDS, *map(str, (*numbers, target, 0, "", "-7", "²", "9" * 5000, "[]", "#0,0"))]
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(parts))
        parts[place : place + rng.randint(0, 2)] = rng.choices(alphabet, k=rng.randint(0, 2))
        parts = parts or [""]
    reading = read_trace(numbers, target, unit.join(parts))
    if reading.solved:  # then there is a solution, and this is one
        assert check_operations(numbers, target, ", ".join(map(str, reading.solution)))
    assert all(sum(state) >= 0 and 1 <= len(state) <= len(numbers) for state in reading.states)


@given(st.text(st.sampled_from("TEGMSXWN0123456789 :>|,=+-*/\n#[]'") | st.characters(), max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_text_can_be_read(text):
    reading = read_trace((9, 4, 3), 24, text)
    assert not reading.solved
    assert len([event for event in reading.events if isinstance(event, Unreadable)]) <= len(text)


@pytest.mark.parametrize("bomb", ["(" * 10**5, "E " * 10**4, "9" * 10**5, "M 0" + " 0" * 10**5, "S 9 4 3 | " * 10**4])
def test_long_nonsense_is_read_too(bomb):
    assert not read_trace((9, 4, 3), 24, bomb).solved


CHAINS = {  # texts whose every statement looks at something that the ones before made long
    "nodes": "".join(f"E {i} + 1 = {i + 1} > {i + 1} G 0 {i} M 0 {i} " for i in range(20_000)),
    "numbers": f"E 9 - 3 = 6 > {'1 ' * 20_000}G 0 0 M 0 0 " + "E 1 + 1 = 2 > 3 S 1 | G 0 1 M 0 0 X " * 1_000,
    "paths": "".join(f"G {'0 ' * 50}{i} M 0 {i} M 0 " for i in range(1_000)),
    "paper": "".join(
        f"Exploring Operation: {i}+1={i + 1}, Resulting Numbers: [{i + 1}]\n"
        f"Generated Node #0,{i}: 24:[{i + 1}] Operation: {i}+1={i + 1}\nMoving to Node #0,{i}\n"
        for i in range(5_000)
    ),
}


def work_of(text, monkeypatch):
    """(elements that pass through sorted, list, tuple and reversed; bytes held at the peak) while the text is read."""
    elements = 0

    def counted(kind):
        def call(values=()):
            nonlocal elements
            found = kind(values)
            elements += len(found) if hasattr(found, "__len__") else 0
            return found

        return call

    with monkeypatch.context() as patch:
        for name in ("sorted", "list", "tuple"):
            patch.setattr(reader, name, counted(getattr(builtins, name)), raising=False)
        tracemalloc.start()
        read_trace((9, 4, 3), 24, text)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return elements, peak


@pytest.mark.parametrize("kind", CHAINS)
def test_reading_takes_work_and_memory_in_proportion_to_the_text(kind, monkeypatch):
    text = CHAINS[kind]
    half, whole = (work_of(text[: len(text) // k], monkeypatch) for k in (2, 1))
    assert whole[0] < 2.5 * half[0] and whole[1] < 2.5 * half[1]  # quadratic: 4
    assert whole[0] < len(text) and whole[1] < 150 * len(text)


def test_nothing_long_is_remembered_from_one_trace_to_the_next():
    read_trace((9, 4, 3), 24, CHAINS["numbers"])
    held = reader._short_numbers.cache_info().currsize
    read_trace((9, 4, 3), 24, f"E 9 - 3 = 6 > {'7 ' * 500}N")
    assert reader._short_numbers.cache_info().currsize == held


# ------------------------------------------------------------------------------------------------ data

TASK = StreamOfSearch(inputs=3)


def drawn(task, count, split="train", start=0):
    return [task.problem(split, index) for index in range(start, start + count)]


def test_searches_do_not_depend_on_the_order_in_which_they_are_asked_for_and_differ_by_split():
    alone = drawn(TASK, 60)
    assert alone[50:60] == drawn(StreamOfSearch(inputs=3), 10, start=50)
    assert alone[:10] == [TASK.problem("train", index) for index in reversed(range(10))][::-1]
    first, second = drawn(TASK, 40, "sft-0"), drawn(TASK, 40, "sft-1")
    assert all(a.solution != b.solution for a, b in zip(first, second, strict=True) if a.info["nodes"] > 1)


def test_solutions_are_what_they_say():
    problems = drawn(TASK, 400)
    for problem in problems:
        reading = TASK.read(problem, problem.solution)
        assert (reading.solved, reading.nodes) == (problem.info["solved"], problem.info["nodes"])
        assert not any(reading.errors.values())
        counted = TASK.metrics(problem, problem.solution)
        assert (counted["nodes"], counted["lenient"]) == (problem.info["nodes"], problem.info["solved"])
    names = [problem.info["strategy"] for problem in problems]
    assert set(names) == set(STRATEGIES)
    assert 160 <= sum(name.startswith("dfs") for name in names) <= 240  # half, give or take four standard errors


def test_the_kinds_of_data_ask_the_same_problems_and_differ_in_what_is_a_solution():
    sos, correct, op = (drawn(StreamOfSearch(inputs=3, data=data), 60) for data in ("sos", "correct", "op"))
    for search_, kept, optimal in zip(sos, correct, op, strict=True):
        assert search_.prompt == kept.prompt == optimal.prompt
        assert kept.solution == (search_.solution if search_.info["solved"] else "")
        assert TASK.read(optimal, optimal.solution).nodes == 3 and TASK.reward(optimal, optimal.solution) == 1
    assert 0 < sum(problem.info["solved"] for problem in sos) < 60


def test_strategies_can_be_listed():
    some = StreamOfSearch(inputs=3, strategies=("bfs1-sum", "dfs-mult"))
    assert {problem.info["strategy"] for problem in drawn(some, 50)} == {"bfs1-sum", "dfs-mult"}
    assert some.mixture() == {"bfs1-sum": 0.5, "dfs-mult": 0.5} and TASK.mixture() == MIXTURE
    with pytest.raises(ValueError, match="bfs6-sum"):
        StreamOfSearch(strategies=("bfs6-sum",))
    with pytest.raises(ValueError, match="--task.language prose: one of compact, paper"):
        parse_config(sft.PRESETS, ["--task", "search", "--task.language", "prose"], "sft")


def tokens_of(events) -> int:
    return len(search_tokenizer().encode(write(events, "compact")))


@pytest.mark.parametrize("strategy", ["dfs-sum", "dfs-mult", "bfs3-mult"])
def test_the_first_events_are_as_many_as_the_limit_holds(strategy):
    whole = list(search((12, 11, 9), 100, strategy))
    lengths = [tokens_of(whole[:k]) for k in range(len(whole) + 1)]
    assert any(word.isdecimal() and len(word) > 2 for word in write(whole, "compact").split())  # of several tokens
    for most in (0, 1, 9, 10, 50, lengths[-1] - 1):
        kept, finished = first_events(iter(whole), most)
        largest = max(k for k, length in enumerate(lengths) if length <= most)
        assert not finished and write(kept, "compact") == write(whole[:largest], "compact")
    assert first_events(iter(whole), lengths[-1]) == (whole, True)


def test_a_search_is_not_carried_on_beyond_the_limit():
    def endless():
        for tried in range(1000):
            assert tried < 10, "the limit was passed long ago"
            yield Explore(Operation(1, "+", 1, 2), (2, 3))  # nine tokens: E 1 + 1 = 2 > 2 3

    kept, finished = first_events(endless(), 45)
    assert (len(kept), finished) == (5, False)


def test_a_limited_search_is_the_beginning_of_the_whole_one_and_has_no_end():
    words, whole, limited = search_tokenizer(), StreamOfSearch(4, 12), StreamOfSearch(4, 12, limit=300)
    unfinished = 0
    for one, other in zip(drawn(whole, 30), drawn(limited, 30), strict=True):
        assert one.prompt == other.prompt and one.info["strategy"] == other.info["strategy"]
        assert limited.max_tokens(other) == 300 and whole.max_tokens(one) is None
        too_long = len(words.encode(one.solution)) + 1 > 300  # its EOS has to fit too
        assert other.info["unfinished"] == too_long and not one.info["unfinished"]
        assert other.info["solved"] == (one.info["solved"] and not too_long)
        row = demonstration(words, other)
        assert len(row.response) <= 300 and all(row.loss_mask[row.prompt_len :])
        assert (words.eos_id in row.response, row.stop_reason) == ((False, "length") if too_long else (True, "eos"))
        assert one.solution.startswith(other.solution) and (one.solution == other.solution) != too_long
        assert demonstration(words, other, "N").tokens[-1] == words.eos_id  # of another text the end is known
        assert not any(limited.read(other, other.solution).errors.values())
        unfinished += too_long
    assert 5 < unfinished < 25


def test_an_unfinished_search_is_no_solution_of_those_that_succeed():
    for problem in drawn(StreamOfSearch(4, 12, data="correct", limit=300), 40):
        assert bool(problem.solution) == problem.info["solved"]
        assert not (problem.info["solved"] and problem.info["unfinished"])


def test_searches_that_reach_the_goal_by_the_same_sums_vote_for_the_same():
    direct = MOVED + "E 4 * 6 = 24 > 24 W"
    longer = "E 9 + 3 = 12 > 4 12 G 0 0 E 9 - 3 = 6 > 4 6 G 0 1 M 0 1 S 4 6 | 9 - 3 = 6 E 6 * 4 = 24 > 24 W"
    assert TASK.answer(direct) == TASK.answer(longer) == TASK.answer(PAPER_MOVED + GOAL) == "((9 - 3) * 4)"
    assert TASK.answer(direct + " X N") == TASK.answer(direct)  # what follows the claim is no part of it
    assert TASK.answer(MOVED + "E 4 + 6 = 10 > 10 W") == "(4 + 9 - 3)"
    assert TASK.answer(MOVED) is TASK.answer("N") is TASK.answer("W") is None
    false = TASK.answer(MOVED + "E 4 * 6 = 25 > 25 W")
    assert false not in (None, TASK.answer(direct))


def test_the_lenient_judge_of_searches_is_the_released_one():
    problem = TASK.pose((9, 4, 3), 24, ())
    for text, strict, lenient in (
        (MOVED + "E 4 * 6 = 24 > 24 W", 1, True),
        ("E 4 * 3 = 12 > 9 12 G 0 0 M 0 0 S 9 12 | 4 * 3 = 12 E 12 + 12 = 24 > 24 W", 0, True),
        (MOVED + "E 4 + 6 = 10 > 10 W", 0, False),
    ):
        assert (TASK.reward(problem, text), TASK.is_right_leniently(problem, text)) == (strict, lenient)


def test_compact_traces_are_one_token_per_word():
    task = StreamOfSearch(inputs=3, max_input=9)
    tokenizer = word_tokenizer([*COMPACT_WORDS, *map(str, range(1000))])
    for problem in drawn(task, 20):
        row = demonstration(tokenizer, problem)
        assert len(row.response) == len(problem.solution.split()) + 1
        assert tokenizer.decode(row.response[:-1]) == problem.solution


def test_a_shuffle_changes_the_order_but_not_the_set():
    rng = random.Random(0)
    differs = 0
    for index in range(30):
        info = Countdown().problem("train", index).info
        one, two = (list(search(info["numbers"], info["target"], "bfs3-mult", rng.random())) for _ in range(2))
        differs += one != two
        if not solved(one):  # all is explored then, in whatever order
            states = [{e.numbers for e in events if isinstance(e, Explore)} for events in (one, two)]
            assert states[0] == states[1] and not solved(two)
    assert differs > 15

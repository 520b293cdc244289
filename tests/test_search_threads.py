"""The demonstrators of SoS+ and APR: their measured ceilings, and that every text is what its search did."""

import statistics
from dataclasses import replace

import pytest

from nanoreason.countdown import Operation, apply, check_operations
from nanoreason.search import read_trace
from nanoreason.search_threads import (
    Place,
    Trace,
    called,
    is_solution,
    parallel_demonstration,
    serial_demonstration,
    tokenizer,
    write_join,
)
from nanoreason.tasks import Countdown, ThreadedSearch

PROBLEMS = [Countdown().problem("train", i).info for i in range(500)]


def demonstrated(how, *beams: int, count: int = 500, **more) -> list[Trace]:
    return [how(p["numbers"], p["target"], *beams, seed=i, **more) for i, p in enumerate(PROBLEMS[:count])]


# Measured with the released code on 500 problems of the same kind.
@pytest.mark.parametrize("beam, ceiling", [(2, 0.46), (3, 0.60), (5, 0.68)])
def test_sos_plus_solves_as_many_as_the_released_solver(beam, ceiling):
    traces = demonstrated(serial_demonstration, beam)
    assert statistics.fmean(t.path is not None for t in traces) == pytest.approx(ceiling, abs=0.03)


@pytest.mark.parametrize("beams, ceiling, children", [((4, 6), 0.67, 4.4), ((6, 8), 0.79, 7.1)])
def test_apr_solves_and_spawns_as_much_as_the_released_solver(beams, ceiling, children):
    traces = demonstrated(parallel_demonstration, *beams)
    assert statistics.fmean(t.path is not None for t in traces) == pytest.approx(ceiling, abs=0.03)
    assert statistics.fmean(len(t.threads) - 1 for t in traces) == pytest.approx(children, rel=0.1)
    serial = demonstrated(serial_demonstration, 5, count=200)
    assert max(t.longest for one in traces[:200] for t in one.threads) < max(t.longest for t in serial)


def test_what_a_trace_says_is_what_it_found():
    for i, trace in enumerate(demonstrated(serial_demonstration, 3, count=60)):
        numbers, target = PROBLEMS[i]["numbers"], PROBLEMS[i]["target"]
        (before, said), *none = trace.segments
        assert not before and not none and not trace.children
        search, _, answer = said.partition(" RET ")
        reading = read_trace(numbers, target, search)  # every statement is held against what is true there
        assert sum(reading.errors.values()) == 0 and reading.solved == (trace.path is not None)
        assert check_operations(numbers, target, answer) == reading.solved == is_solution(numbers, target, said)


@pytest.mark.parametrize("by_value", [False, True])
def test_children_are_what_is_called_and_joins_what_they_found(by_value):
    blocks = 0
    for i, trace in enumerate(demonstrated(parallel_demonstration, 3, 4, count=80, by_value=by_value)):
        numbers, target = PROBLEMS[i]["numbers"], PROBLEMS[i]["target"]
        assert len(trace.segments) == len(trace.children) + 1 == len(trace.joins) + 1
        for k, (children, join) in enumerate(zip(trace.children, trace.joins, strict=True)):
            blocks += 1
            block = trace.segments[k][1].partition("CALL ")[2].removesuffix(" END")
            items = block.removeprefix("F ").split(" F ")
            assert len(items) == len(children) > 1
            for item, child in zip(items, children, strict=True):
                state, steps = child.prompt.partition(" : ")[2].rstrip("\n").split(" | ")
                said = f"{trace.segments[k][0]} {trace.segments[k][1]}"
                assert item == f"{state} | {steps}" if by_value else f"G {item}" in said
                left = list(numbers)
                for step in steps.split(" , "):
                    a, sign, b, _, result = step.split()
                    left.remove(int(a))
                    left.remove(int(b))
                    assert apply(int(a), sign, int(b)) == int(result)
                    left.append(int(result))
                assert sorted(left) == sorted(map(int, state.split()))
                end = child.segments[-1][1].rpartition("RET ")[2]
                full = f"{steps} , {end}"
                assert check_operations(numbers, target, full) == (end != "NONE") == (child.path is not None)
                assert (f"W {children.index(child)} {full}" in join) == (end != "NONE")
            after = trace.segments[k + 1]
            assert after[0].endswith(join) and "CALL" not in after[0]  # the block is erased
            if any(child.path for child in children):  # the first by number is the answer, and nothing else is said
                first = next(child.path for child in children if child.path)
                assert trace.path == first and after[1].startswith("RET ")
        assert is_solution(numbers, target, trace.segments[-1][1]) == (trace.path is not None)
    assert blocks > 60


def test_demonstrations_follow_from_their_seed_and_are_in_the_vocabulary():
    words = tokenizer()
    for by_value in (False, True):
        one, same = (demonstrated(parallel_demonstration, 4, 6, count=20, by_value=by_value) for _ in range(2))
        assert one == same
        for trace in (thread for root in one for thread in root.threads):
            for text in (trace.prompt, *(f"{before} {said}".strip() for before, said in trace.segments)):
                assert words.decode(words.encode(text)) == text
    other = parallel_demonstration(PROBLEMS[0]["numbers"], PROBLEMS[0]["target"], 4, 6, seed=99)
    assert other != demonstrated(parallel_demonstration, 4, 6, count=1)[0]


def test_a_join_lists_every_child_and_an_answer_is_read_strictly():
    path = (Operation(9, "-", 3, 6), Operation(4, "*", 6, 24))
    assert write_join([None, path]) == "SUB N 0 W 1 9 - 3 = 6 , 4 * 6 = 24 DONE"
    assert is_solution((9, 4, 3), 24, "W RET 9 - 3 = 6 , 4 * 6 = 24")
    for wrong in (
        "",
        "RET",
        "RET NONE",
        "9 - 3 = 6 , 4 * 6 = 24",
        "RET 9 - 3 = 6 , 4 * 6 = 24 RET NONE",
        "RET 4 * 6 = 24",
    ):
        assert not is_solution((9, 4, 3), 24, wrong)


# ------------------------------------------------------------------------------------------------ the task over them


def test_a_block_means_what_its_demonstrator_spawned_by_reference_and_by_value():
    for by_value in (False, True):
        for i, trace in enumerate(demonstrated(parallel_demonstration, 4, 6, count=40, by_value=by_value)):
            numbers, target = PROBLEMS[i]["numbers"], PROBLEMS[i]["target"]
            for k, children in enumerate(trace.children):
                before, said = trace.segments[k]
                found = called(numbers, target, f"{before} {said}")
                wanted = list(dict.fromkeys((c.place.numbers, c.place.steps) for c in children))
                assert [(place.numbers, place.steps) for place in found] == (
                    wanted if by_value else [(c.place.numbers, c.place.steps) for c in children]
                )


@pytest.mark.parametrize(
    "block",
    ["", "CALL END", "CALL F END", "CALL F 0 9 END", "CALL F 0 END", "CALL F 4 | END",
     "CALL F 4 6 | 9 - END", "CALL F 24 | 9 - 3 = 6 , 4 * 6 = 24 END", "F 0 0 END", "CALL F x"],
)  # fmt: skip
def test_spawns_of_what_is_not_there_are_left_out(block):
    said = "E 9 - 3 = 6 > 4 6 G 0 0"
    assert called((9, 4, 3), 24, f"{said} {block}") == []
    place = Place((0, 0), (4, 6), (Operation(9, "-", 3, 6),))
    assert called((9, 4, 3), 24, f"{said} CALL F 0 0 F 7 7 F 0 0 END") == [place]


def test_a_node_is_looked_up_in_what_the_parent_has_said_itself_before_a_join_and_behind_it():
    said = "E 9 - 3 = 6 > 4 6 G 0 0 SUB E 9 + 3 = 12 > 4 12 G 0 2 N 0 DONE E 9 - 4 = 5 > 3 5 G 0 1"
    found = called((9, 4, 3), 24, f"{said} CALL F 0 0 F 0 1 F 0 2 END")
    assert [(place.node, place.numbers) for place in found] == [((0, 0), (4, 6)), ((0, 1), (3, 5))]


def test_the_task_poses_segments_and_children_and_joins_what_they_return():
    task, words = ThreadedSearch(asked_share=0.5), ThreadedSearch().tokenizer()
    kinds = {"child": 0, "first": 0, "later": 0, "asked": 0}
    for i in range(150):
        problem = task.problem("train", i)
        kinds["child"] += "steps" in problem.info
        kinds["later"] += "SUB" in problem.prompt
        kinds["first"] += problem.solution.endswith("END")
        kinds["asked"] += problem.prompt.startswith("F ")
        for text in (problem.prompt, problem.solution):
            assert words.decode(words.encode(text)) == text
    assert min(kinds.values()) > 8
    root = replace(task, asked_share=0.0).problem("test", 3)
    assert root.prompt.endswith("\n") and "SUB" not in root.prompt
    children = task.spawned(root, root.solution)
    assert children and all(len(child.info["numbers"]) == 3 for child in children)
    steps = [child.info["steps"][0].spaced() for child in children]
    said = task.joined(children, ["RET 1 + 1 = 2", "nonsense", *["RET NONE"] * (len(children) - 2)])
    assert said.startswith(f"SUB W 0 {steps[0]} , 1 + 1 = 2 N 1") and said.endswith("DONE")

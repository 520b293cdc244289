"""The samples of a report: lines of samples.jsonl -> groups with what a page needs of each response.

    line -> tokens (where they end, log-prob, entropy, advantage) · behaviours · outline (attempts or search) · threads

Files of older runs and of hands are read as far as they go: what is not of the kind that it should be is left out.
"""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

from nanoreason.behavior_rules import NAMES, SEARCH, count_behaviors
from nanoreason.behaviors import problem_of
from nanoreason.countdown import Numbers
from nanoreason.prompts import ANSWER, CLOSE, OPEN
from nanoreason.search import Check, Exhausted, Explore, Generate, Move, Unreadable, read_events
from nanoreason.tasks.attempts import read_attempts

MOST_SAMPLES = 5000
MOST_ENTRIES = 300  # of an outline
PER_TOKEN = ("logprobs", "entropies", "token_advantages")


def groups_of(lines: list[dict]) -> list[dict]:
    """Responses to one prompt that were sampled together; of each run, arm and seed the newest step first."""
    found: dict[tuple, list[dict]] = {}
    for line in lines:
        seed, step, group = (number(line.get(name)) or 0 for name in ("seed", "step", "group"))
        kind, prompt = text(line.get("kind")) or "sample", text(line.get("prompt"))
        key = (line["run"], str(line["arm"]), seed, step, kind, group, prompt)
        found.setdefault(key, []).append(line)
    groups = []
    for (run, arm, seed, step, kind, group, prompt), some in found.items():
        groups.append({"run": run, "arm": arm, "seed": seed, "step": step, "kind": kind, "group": group,
                       "prompt": prompt, "answer": text(some[0].get("answer")),
                       "difficulty": number(some[0].get("difficulty")), "lines": some})  # fmt: skip
    return sorted(groups, key=lambda group: (group["run"], group["arm"], group["seed"], -group["step"]))


def thinned(groups: list[dict], most: int, most_bytes: int) -> tuple[list[dict], list[str]]:
    """Whole groups, taken evenly, of at most so many responses and bytes, read; and what is to be said of that."""
    total = sum(len(group["lines"]) for group in groups)
    kept = evenly(groups, most)
    read = [read_group(group) for group in kept]
    while (size := len(json.dumps(read))) > most_bytes and len(kept) > 1:
        kept = evenly(kept, math.floor(0.9 * most_bytes / size * sum(len(group["lines"]) for group in kept)))
        read = [read_group(group) for group in kept]
    shown = sum(len(group["samples"]) for group in read)
    return read, [f"{shown:,} of {total:,} samples are here, whole groups taken evenly"] if shown < total else []


def evenly(groups: list[dict], most: int) -> list[dict]:
    """As many groups, in equal distances, as have at most so many responses together; all of them where they do."""
    total = sum(len(group["lines"]) for group in groups)
    count = len(groups) if total <= most else len(groups) * most // total
    while True:
        kept = [groups[(2 * i + 1) * len(groups) // (2 * count)] for i in range(count)]
        if not kept or sum(len(group["lines"]) for group in kept) <= most:
            return kept
        count -= 1


def read_group(group: dict) -> dict:
    samples = [sample_of(line) for line in group["lines"]]
    return {name: value for name, value in group.items() if name != "lines"} | {"samples": samples}


def sample_of(line: dict) -> dict:
    """What the page shows of a response; names without a value are left out."""
    response = text(line.get("response"))
    rewards = line.get("rewards") if isinstance(line.get("rewards"), dict) else {}
    found = {
        "response": response,
        "marked": text(line.get("marked")) if line.get("marked") != response else "",
        "length": number(line.get("tokens")),
        "stop": text(line.get("stop_reason")),
        "right": number(line.get("right")),
        "valid": number(line.get("valid")),
        "reward": number(line.get("reward")),
        "rewards": {str(name): number(value) for name, value in rewards.items()},
        "advantage": number(line.get("advantage")),
        **tokens_of(line, response),
        "threads": threads_of(line),
    }
    if posed := problem_of(line):
        counts = count_behaviors(*posed, response)
        found["behaviors"] = {name: getattr(counts, name) for name in NAMES if getattr(counts, name)}
        found["outline"] = outline_of(*posed, response)
    return {name: value for name, value in found.items() if value not in (None, "", {}, [])}


def number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def text(value: Any) -> str:
    return value if isinstance(value, str) else ""


# ---------------------------------------------------------------------------------------------------------- tokens


def tokens_of(line: dict, response: str) -> dict:
    """{"pieces": the texts of the tokens, "logprobs": ..., ...}, a value per token under each name; {} where the line
    does not say where its tokens end, or says what cannot be.

    >>> tokens_of({"token_ends": [1, 3, 3], "logprobs": [-0.5, None, -1.0]}, "a b")
    {'pieces': ['a', ' b', ''], 'logprobs': [-0.5, None, -1.0]}
    """
    ends = line.get("token_ends")
    if not isinstance(ends, list) or not all(isinstance(end, int) and not isinstance(end, bool) for end in ends):
        return {}
    places = [0, *ends]
    if sorted(places) != places or places[-1] != len(response):
        return {}
    found: dict[str, list] = {"pieces": [response[a:b] for a, b in itertools.pairwise(places)]}
    for name in PER_TOKEN:
        values = line.get(name)
        if isinstance(values, list) and len(values) == len(ends):
            found[name] = [number(value) for value in values]
    return found


# -------------------------------------------------------------------------------------------- attempts and searches


def outline_of(numbers: Numbers, target: int, response: str) -> list[list]:
    """What a response to a problem of Countdown tries, in its order, as [depth, text, state].

    state   right, right again, again (wrong, and tried before), wrong, illegal (wrong numbers or results), move (to
            another node of a search), open (explored, not at an end), unreadable

    >>> outline_of((6, 5, 20), 50, "<think> 20 - 6 = 14 , 14 + 5 = 19 no wait 6 * 5 = 30 , 30 + 20 = 50 yes </think>")
    [[0, '20 - 6 = 14 , 14 + 5 = 19', 'wrong'], [0, '6 * 5 = 30 , 30 + 20 = 50', 'right']]
    """
    thought = response.partition(OPEN)[2] or response
    if SEARCH.match(thought):
        return search_outline(thought.partition(CLOSE)[0].partition(ANSWER)[0], target)[:MOST_ENTRIES]
    read, before, found = read_attempts(numbers, target, response), set(), []
    for attempt, legal in zip(read.attempts, read.legal, strict=True):
        hit = attempt.endswith(f"= {target}")
        again = attempt in before
        state = ("illegal" if not legal else "right again" if hit and again else "right" if hit
                 else "again" if again else "wrong")  # fmt: skip
        before.add(attempt)
        found.append([0, attempt, state])
    return found[:MOST_ENTRIES]


def search_outline(said: str, target: int) -> list[list]:
    """The statements of a search: operations below the node that they are tried at, and moves to another node."""
    found: list[list] = []
    depth = 0
    for event in read_events(said, target):
        match event:
            case Explore(operation, numbers):
                found.append([depth + 1, f"{operation}  leaves {' '.join(map(str, numbers))}", "open"])
            case Generate(node) if found and found[-1][2] == "open":
                found[-1][1] += f"  (node {','.join(map(str, node))})"
            case Move(node):
                depth = len(node) - 1
                found.append([depth, f"to node {','.join(map(str, node))}", "move"])
            case Check(_, _, equal) if found:
                found[-1][2] = "right" if equal else "wrong"
            case Exhausted():
                found.append([0, "nothing is left to try", "move"])
            case Unreadable(words):
                found.append([depth + 1, words, "unreadable"])
    return found


# --------------------------------------------------------------------------------------------------------- threads


def threads_of(line: dict) -> list[dict]:
    """The threads of a rollout: {"prompt", "step", "text", "runs": [[from, to], ...], "rounds": [[from, to], ...]}, the
    root first; runs are when it sampled, rounds when it waited for children, on the clock of `threads.py`."""
    given = line.get("threads") if isinstance(line.get("threads"), list) else line.get("lanes")
    found = []
    for one in given if isinstance(given, list) else []:
        if not isinstance(one, dict):
            continue
        rounds = [spans([[r.get("at"), r.get("until")]] if isinstance(r, dict) else [r]) for r in listed(one, "rounds")]
        waited = [span for some in rounds for span in some]
        runs = spans(listed(one, "runs"))
        if not runs and number(one.get("start")) is not None and number(one.get("end")) is not None:
            edges = [one["start"], *itertools.chain.from_iterable(waited), one["end"]]
            runs = spans(list(map(list, zip(edges[::2], edges[1::2], strict=True))))
        found.append({"prompt": text(one.get("prompt")), "step": text(one.get("step")), "path": text(one.get("path")),
                      "text": text(one.get("marked")) or text(one.get("text")), "stop": text(one.get("stop_reason")),
                      "runs": runs, "rounds": waited})  # fmt: skip
    return found if any(one["runs"] for one in found) else []


def listed(one: dict, name: str) -> list:
    return one[name] if isinstance(one.get(name), list) else []


def spans(pairs: list) -> list[list[float]]:
    """Those that are [from, to], two numbers in order."""
    pairs = [pair for pair in pairs if isinstance(pair, list) and len(pair) == 2]
    return [pair for pair in pairs if all(number(n) is not None for n in pair) and pair[0] <= pair[1]]

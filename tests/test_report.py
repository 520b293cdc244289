"""`python -m nanoreason report`: what is gathered of runs, and that nothing a model wrote can become markup."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nanoreason.__main__ import main
from nanoreason.report import PAGE, gather, page, series_of, settings_table, spread
from nanoreason.report_samples import evenly, groups_of, outline_of, sample_of, thinned, threads_of, tokens_of
from nanoreason.run import Run, RunConfig
from nanoreason.search import prompt, search, write

RESULTS = Path(__file__).parent.parent / "data" / "results"
HOSTILE = ["</script><img src=x onerror=alert(1)>", "<!-- <script>", "{{DATA}} {{TITLE}}", "\u2028 \ud800 \x00", "]]>"]


def line(step=1, group=0, right=1.0, **fields) -> dict:
    """A line of samples.jsonl."""
    return {"step": step, "kind": "rollout", "group": group, "difficulty": 3, "prompt": "50 from 6 5 20", "answer": "a",
            "response": "<think> 20 - 6 = 14 , 14 + 5 = 19 no", "tokens": 5, "stop_reason": "length", "right": right,
            "valid": right, "reward": 1.1 * right, "rewards": {"accuracy": right}, "advantage": right - 0.5,
            **fields}  # fmt: skip


def run_in(folder: Path, samples: list[dict] = (), metrics: list[dict] = (), seed: int = 0, **settings) -> Path:
    run = Run(RunConfig(out=str(folder), seed=seed, **settings))
    for one in samples:
        run.sample(**one)
    for one in metrics:
        run.log(**one)
    run.close()
    return folder


@pytest.fixture
def reproduced(tmp_path) -> Path:
    """Two arms in two seeds, as `reproduce` leaves them."""
    out = tmp_path / "reproduced"
    for seed in (0, 1):
        for arm, threads in (("plain", 1), ("direct", 2)):
            metrics = [{"step": step, "accuracy": step + seed / 10, "odd": float("nan")} for step in range(3)]
            run_in(out / f"seed{seed}" / arm, [line()] if arm == "plain" else [], metrics, seed, threads=threads)
    claims = [{"name": "it rises", "values": {"0": 1.0, "1": 2.0}, "mean": 1.5, "standard_error": 0.5,
               "direction": "at_least", "threshold": 1.0, "passed": True, "reason": ""}]  # fmt: skip
    (out / "summary.json").write_text(json.dumps({"claims": claims}))
    return out


# ---------------------------------------------------------------------------------------------- curves and settings


def test_every_seed_of_every_arm_is_a_curve_with_its_values(reproduced):
    data = gather([reproduced], 100)
    curves = {(one["arm"], one["seed"]): one for one in data["series"]}
    assert sorted(curves) == [("direct", 0), ("direct", 1), ("plain", 0), ("plain", 1)]
    assert curves["plain", 1]["x"] == [0, 1, 2] and curves["plain", 1]["values"] == {"accuracy": [0.1, 1.1, 2.1]}
    assert data["metrics"] == data["usual"] == ["accuracy"]  # what is never a number is no curve
    assert data["claims"][0]["values"] == {"0": 1.0, "1": 2.0} and data["claims"][0]["direction"] == "at least"
    assert [(g["arm"], g["seed"]) for g in data["groups"]] == [("plain", 0), ("plain", 1)]


def test_what_was_asked_of_a_method_is_an_axis_of_its_own_and_a_metric_that_is_missing_a_gap():
    lines = [
        {"run": "s1", "seed": 0, "step": 1, "accuracy": 0.5, "loss": 1.0},
        {"run": "s1", "seed": 0, "step": 2, "accuracy": 0.6},
        {"run": "s1", "seed": 0, "step": 3, "method": "wait", "asked": 4, "accuracy": 0.8},
        {"run": "s1", "seed": 0, "step": 4, "method": "wait", "asked": 2, "accuracy": 0.7},
        {"run": "s1", "seed": 0, "step": 5, "method": "samples", "kind": "best", "asked": 2, "accuracy": 0.9},
        {"run": "s1", "seed": 0, "step": 6, "method": "words", "asked": "Hmm", "accuracy": 0.1},
        {"run": "s1", "seed": 0, "step": "seven", "accuracy": 1.0},
    ]
    found = {(one["arm"], one["axis"]): (one["x"], one["values"]) for one in series_of(lines, 0)}
    assert found == {
        ("s1", "step"): ([1, 2], {"accuracy": [0.5, 0.6], "loss": [1.0, None]}),
        ("s1", "asked: wait"): ([2, 4], {"accuracy": [0.7, 0.8]}),
        ("s1 · best", "asked: samples"): ([2], {"accuracy": [0.9]}),
        ("s1 · words · Hmm", ""): ([0], {"accuracy": [0.1]}),
    }


def test_long_curves_are_thinned_and_it_is_said(tmp_path):
    folder = run_in(tmp_path / "run", [], [{"step": step, "reward": step} for step in range(1001)])
    data = gather([folder], 10)
    (curve,) = data["series"]
    assert len(curve["x"]) == 400 and curve["x"][0] == 0 and curve["x"][-1] == 1000 and curve["x"] == sorted(curve["x"])
    assert curve["values"]["reward"] == curve["x"]
    assert any("400 points" in note for note in data["notes"])
    assert spread([1, 2], 5) == [1, 2]


def test_settings_differ_where_two_runs_do_and_a_missing_one_is_told_from_an_empty_one(tmp_path):
    one = run_in(tmp_path / "one", [], [{"step": 1, "reward": 1}], threads=1)
    two = run_in(tmp_path / "two", [], [{"step": 1, "reward": 2}], seed=3, threads=2)
    rows = {row["name"]: row for row in gather([one, two], 10)["settings"]["rows"]}
    assert (rows["threads"]["cells"], rows["threads"]["differs"]) == (["1", "2"], True)
    assert not rows["device"]["differs"] and not {"seed", "out"} & rows.keys()
    table = settings_table([{"a": {"x": ["1"], "y": ["(empty)"]}}, {"a": {"x": ["1", "2"]}}])
    assert table["columns"] == [{"run": 0, "arm": "a"}, {"run": 1, "arm": "a"}]
    assert table["rows"] == [
        {"name": "x", "cells": ["1", "1 | 2"], "differs": True},
        {"name": "y", "cells": ["(empty)", None], "differs": True},
    ]


@pytest.mark.parametrize(
    "folder", sorted(RESULTS.glob("*/*")), ids=lambda folder: f"{folder.parent.name}-{folder.name}"
)
def test_what_is_kept_of_every_section_can_be_shown(folder):
    data = gather([folder], 100)
    jobs = json.loads((folder / "config.json").read_text())["jobs"]
    assert data["series"] and data["usual"] and data["claims"]
    assert {column["arm"] for column in data["settings"]["columns"]} == {
        re.sub("^seed[0-9]+/", "", job) for job in jobs
    }
    assert all(len(values) == len(one["x"]) for one in data["series"] for values in one["values"].values())
    assert bool(data["groups"]) == (folder / "samples.jsonl").exists()
    json.dumps(data, allow_nan=False)


# --------------------------------------------------------------------------------------------------------- samples


def of(lines: list[dict]) -> list[dict]:
    return [{"run": 0, "arm": "a", "seed": 0} | one for one in lines]


def test_groups_are_those_of_one_sampling_and_the_newest_step_comes_first():
    groups = groups_of(of([line(1, 4), line(1, 4, 0.0), line(1, 5), line(2, 4), line(2, 4, kind="greedy test")]))
    assert [(g["step"], g["kind"], g["group"], len(g["lines"])) for g in groups] == [
        (2, "rollout", 4, 1), (2, "greedy test", 4, 1), (1, "rollout", 4, 2), (1, "rollout", 5, 1),
    ]  # fmt: skip


def test_too_many_samples_are_thinned_by_whole_groups_evenly_and_in_one_line():
    groups = groups_of(of([line(step, 0, right) for step in range(100) for right in (0.0, 1.0)]))
    kept, (note,) = thinned(groups, 20, 10**9)
    assert [len(group["samples"]) for group in kept] == [2] * 10 and note.startswith("20 of 200 samples are here")
    assert [group["step"] for group in kept] == [94 - 10 * i for i in range(10)]
    assert thinned(groups, 200, 10**9)[1] == [] and thinned(groups, 0, 10**9)[0] == []
    small, (note,) = thinned(groups, 200, 20_000)  # by bytes
    assert 0 < len(json.dumps(small)) <= 20_000 and note.startswith(f"{2 * len(small)} of 200")
    assert evenly(groups, 1) == []  # no group is torn


def test_a_response_has_its_reward_parts_advantage_tokens_behaviours_and_attempts():
    said = "<think> 20 - 6 = 14 , 14 + 5 = 19 no wait 6 * 5 = 30 , 30 + 20 = 50 yes </think>"
    found = sample_of(line(response=said, marked=said, reward=float("nan")))
    assert found["rewards"] == {"accuracy": 1.0} and found["advantage"] == 0.5 and found["stop"] == "length"
    assert found["behaviors"] == {"verification": 2, "backtracking": 1} and "reward" not in found
    assert [state for _, _, state in found["outline"]] == ["wrong", "right"] and "marked" not in found
    plain = sample_of({"prompt": "4 + 3 =", "response": "7"})
    assert plain == {"response": "7"}


def test_attempts_are_told_apart():
    tries = ["20 - 6 = 14 , 14 + 5 = 19 no", "6 * 5 = 30 , 30 + 20 = 50 yes", "20 - 6 = 14 , 14 + 5 = 19 no",
             "6 * 5 = 30 , 30 + 20 = 50 yes", "6 * 5 = 31 , 31 + 20 = 51 no"]  # fmt: skip
    found = outline_of((6, 5, 20), 50, "<think> " + " wait ".join(tries))
    assert [state for *_, state in found] == ["wrong", "right", "again", "right again", "illegal"]


@pytest.mark.parametrize("language", ["paper", "compact"])
def test_a_search_is_a_tree(language):
    numbers, target = (3, 5, 7), 26
    text = write(search(numbers, target, "dfs-sum"), language)
    found = sample_of({"prompt": prompt(numbers, target, language), "response": text})["outline"]
    assert found[0][0] == 1 and max(depth for depth, *_ in found) == 2
    assert [state for *_, state in found].count("right") == 1 and found[-1][2] == "right" and "=26" in found[-1][1]
    assert found[0][1].startswith("3*7=21  leaves 5 21") and [1, "to node 0,0", "move"] in found


def test_tokens_are_cut_out_of_the_response_and_what_cannot_be_is_left_out():
    good = {"token_ends": [1, 3, 3], "logprobs": [-0.5, None, -1], "entropies": [0.1], "token_advantages": [1, 2, 3]}
    assert tokens_of(good, "a b") == {"pieces": ["a", " b", ""], "logprobs": [-0.5, None, -1],
                                      "token_advantages": [1, 2, 3]}  # fmt: skip
    for ends in ([1, 2], [2, 1, 3], [1, 9], [-1, 3], ["1", 3], [True, 3], 3, None):
        assert tokens_of({"token_ends": ends, "logprobs": [0, 0]}, "a b") == {}


def test_threads_of_both_forms_have_the_times_when_they_ran_and_waited():
    old = {"lanes": [{"prompt": "p", "text": "t", "start": 0, "end": 90, "rounds": [[20, 60]]}]}
    new = {"threads": [{"path": "", "text": "t", "marked": "«t»", "runs": [[0, 20], [60, 90]],
                        "rounds": [{"at": 20, "until": 60}]}, "odd"]}  # fmt: skip
    for given, text in ((old, "t"), (new, "«t»")):
        (thread,) = threads_of(given)
        assert (thread["runs"], thread["rounds"]) == ([[0, 20], [60, 90]], [[20, 60]]) and thread["text"] == text
    assert threads_of({"threads": [{"runs": [[5, 1], ["a", 2]], "rounds": 3}]}) == [] == threads_of({"threads": 1})


# --------------------------------------------------------------------------------------------------------- the page


class Elements(HTMLParser):
    """What a browser makes of a page: its elements, and the text of the one with the data."""

    def __init__(self):
        super().__init__()
        self.found, self.data, self.inside = [], "", False

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.inside = dict(attrs).get("id") == "data"

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, text):
        self.data += text if self.inside else ""


def elements(text: str) -> Elements:
    parser = Elements()
    parser.feed(text)
    return parser


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_leaves_the_data(text, tmp_path):
    fields = {"prompt": text, "answer": text, "response": text, "marked": text, "stop_reason": text, "kind": text,
              "rewards": {text: 1.0}, "threads": [{"text": text, "step": text, "runs": [[0, 1]]}]}  # fmt: skip
    samples = [line(**fields), line(response=text, token_ends=[len(text)], logprobs=[-1.0])]
    run = run_in(tmp_path / "run", samples, [{"step": 1, text: 1.0, "reward": 1.0}])
    data = gather([run], 10)
    found, harmless = elements(page(data, text)), elements(page(gather([], 10), "title"))
    assert [tag for tag, _ in found.found] == [tag for tag, _ in harmless.found]
    assert [attrs.get("id") for _, attrs in found.found] == [attrs.get("id") for _, attrs in harmless.found]
    assert json.loads(found.data) == json.loads(json.dumps(data)) and "<" not in found.data
    assert [g["samples"][0]["response"] for g in json.loads(found.data)["groups"]] == [text, text]


def test_the_page_loads_nothing_and_never_writes_markup(reproduced):
    text = page(gather([reproduced], 10), "title")
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|fetch\(", script
    )
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)|@import|url\(""", text)
    assert "default-src 'none'" in text and "{{" not in text.replace(script, "")


def test_an_installed_package_holds_the_page():
    settings = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert f'nanoreason = ["{PAGE.name}"]' in settings and PAGE.parent.name == "nanoreason" and PAGE.is_file()


def test_a_page_is_written_beside_the_run_and_said_in_one_line(reproduced, capsys):
    assert main(["report", str(reproduced)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{reproduced}/report.html: 4 curves of 1 metrics, 2 samples, 0.[01] MB", said[0])
    assert main(["report", str(reproduced), "--samples", "1", "--out", str(reproduced / "new" / "x.html")]) == 0
    assert "1 of 2 samples are here" in capsys.readouterr().out and (reproduced / "new" / "x.html").exists()


def test_samples_without_metrics_and_metrics_without_samples_are_shown(tmp_path):
    only = gather([run_in(tmp_path / "samples", [line()])], 10)
    assert only["series"] == [] and len(only["groups"]) == 1
    other = gather([run_in(tmp_path / "metrics", [], [{"step": 1, "reward": 1}])], 10)
    assert other["groups"] == [] and other["notes"] == [f"{tmp_path / 'metrics'} has no samples"]


def test_samples_that_reproduce_keeps_are_shown_and_those_of_its_runs_if_they_are_there(reproduced, tmp_path):
    kept = line(7) | {"arm": "plain", "seed": 1}
    (reproduced / "samples.jsonl").write_text(json.dumps(kept) + "\n")
    assert {group["step"] for group in gather([reproduced], 10)["groups"]} == {1}
    for path in reproduced.glob("seed*/*/samples.jsonl"):
        path.unlink()
    (group,) = gather([reproduced], 10)["groups"]
    assert (group["arm"], group["seed"], group["step"]) == ("plain", 1, 7)


MISTAKES = {
    "no folder": (["nowhere"], "there is no folder nowhere"),
    "no run": (["other"], "other has no metrics: it is no run"),
    "nothing yet": (["empty"], "empty has no metrics yet"),
    "three": (["run", "run", "run"], "3 runs: a report is of one run"),
    "twice": (["run", "./run"], "run is named twice"),
    "bad count": (["run", "--samples", "-1"], "--samples -1: at least 0"),
    "damaged metrics": (["damaged"], "metrics.jsonl, line 1 is no JSON object: the file is damaged"),
    "no name": ([], "required: RUN"),
    "a folder in the way": (["run", "--out", "other"], "other"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_is_wrong(mistake, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("other").mkdir()
    run_in(Path("empty"))
    run_in(Path("run"), [line()], [{"step": 1, "reward": 1}])
    (run_in(Path("damaged"), [line()]) / "metrics.jsonl").write_text("[1]\n{}\n")
    flags, named = MISTAKES[mistake]
    assert main(["report", *flags]) == 2
    message = capsys.readouterr().err
    assert named in message and message.count("\n") == 1 and not list(tmp_path.glob("*/report.html"))

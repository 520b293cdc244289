"""docs/metrics.md and the code: every metric that a recipe logs stands there, and what stands there is logged."""

import importlib
import re
from dataclasses import replace
from pathlib import Path

import pytest

from nanoreason.checkpoint import save_checkpoint
from nanoreason.doctor import slug
from nanoreason.doctor_rules import RULES
from nanoreason.learn import Algorithm
from nanoreason.model import Transformer, small_config
from nanoreason.recipes import budget, grpo, grpo_minimal, parallel, search_test, select, sft, star, transfer_test
from nanoreason.run import Schedule, read_jsonl
from nanoreason.tasks import Addition, Attempts, HardAttempts, StreamOfSearch, ThinkingAddition, ThinkingCountdown
from nanoreason.tasks.suite import Suite
from nanoreason.tasks.wrappers import Parallel, Templated

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
THINKER = str(ROOT / "data" / "checkpoints" / "thinking-addition")
SUMS = str(Path(__file__).parent / "data" / "one-digit-sums")
DIRECT = Addition((1,), form="direct")
SEARCH = StreamOfSearch(3, 9, (10, 40))
COUNTED = "What the tasks count"  # the section whose metrics are logged as eval/... too


def sections() -> dict[str, list[list[str]]]:
    """{heading: the cells of each row of its table}, of those whose rows are metrics."""
    found = {}
    for part in PAGE.split("\n## ")[1:]:
        rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in part.split("\n") if line[:1] == "|"]
        if rows and "metric" in rows[0][0]:
            found[part.split("\n")[0]] = rows[2:]
    return found


def names_of(row: list[str]) -> list[str]:
    return re.findall(r"`([^`]+)`", row[0])


def pattern(name: str) -> re.Pattern:
    """Words in capitals stand for anything without a slash."""
    parts = re.split(r"\b([A-Z]+)\b", name)
    return re.compile("".join("[^/]+" if part.isupper() else re.escape(part) for part in parts))


def fits(logged: str, name: str, section: str) -> bool:
    if section == COUNTED:
        logged = logged.removeprefix("eval/")
    return pattern(name).fullmatch(logged) is not None


@pytest.fixture(scope="module")
def logged(tmp_path_factory) -> set[str]:
    """The names in metrics.jsonl of tiny runs of all recipes, most of them of random weights."""
    out = tmp_path_factory.mktemp("runs")

    def base(name: str, task, context: int = 256) -> str:
        words = task.tokenizer()
        save_checkpoint(out / name, Transformer(small_config(16, 1, 2, words.vocab_size, context), 1), words)
        return str(out / name)

    tries, spawns = base("tries", Attempts()), base("spawns", Parallel(HardAttempts()))
    searches, thinks = base("searches", SEARCH), base("thinks", ThinkingCountdown())
    tiny = replace(grpo.PRESETS["tiny"], steps=1, prompts=2, group_size=2, preflight=0, max_new_tokens=Schedule(8),
                   eval_problems=1, eval_samples=2)  # fmt: skip
    few = replace(star.PRESETS["tiny"], base=SUMS, task=DIRECT, rounds=1, problems=8, pool=40, first_steps=1,
                  eval_problems=2, prompt_set=0)  # fmt: skip
    configs = {
        grpo: [
            replace(tiny, base=SUMS, task=DIRECT, preflight=4, group_size=4, algorithm=Algorithm(kl_coef=0.1)),
            replace(tiny, base=tries, task=Attempts()),
            replace(tiny, base=spawns, task=Parallel(HardAttempts())),
            replace(tiny, base=searches, task=SEARCH),
            replace(tiny, base=thinks, task=ThinkingCountdown(3)),
            replace(tiny, base=THINKER, task=Templated(ThinkingAddition((1,))), max_new_tokens=Schedule(16)),
        ],
        grpo_minimal: [replace(grpo_minimal.PRESETS["tiny"], steps=1, base=SUMS, task=DIRECT, max_new_tokens=4)],
        sft: [replace(sft.PRESETS["tiny"], steps=1, log_every=1, eval_problems=1)],
        star: [replace(few, rationalize=True, task=Addition((1,))), replace(few, retry_temperature=1.0)],
        select: [
            replace(select.PRESETS["tiny"], task=Templated(ThinkingAddition((1, 2))), teacher=THINKER, base=THINKER,
                    how="s1", problems=10, max_new_tokens=40, attempts=1, keep="all"),
        ],
        budget: [
            replace(budget.PRESETS["tiny"], base=tries, problems=2, budgets=(8,), waits=(1,), longest=8, samples=2,
                    words=("wait",), methods=tuple(budget.METHODS)),
        ],
        parallel: [
            replace(parallel.PRESETS["tiny"], base=spawns, problems=2, windows=(8,), widths=(1,), samples=2, alone=1,
                    max_new_tokens=8, operations=(3,), methods=tuple(parallel.METHODS)),
        ],
        search_test: [
            replace(search_test.PRESETS["tiny"], base=searches, problems=2, hard_problems=1, sampled_problems=1,
                    samples=2),
        ],
    }  # fmt: skip
    kept = base("kept/1", Suite())
    configs[transfer_test] = [replace(transfer_test.PRESETS["tiny"], base=kept, trained=str(out / "kept"))]
    names: set[str] = set()
    for recipe, some in configs.items():
        for i, config in enumerate(some):
            folder = out / f"{recipe.__name__}-{i}"
            recipe.run(replace(config, out=str(folder)))
            names |= {name for line in read_jsonl(folder / "metrics.jsonl") for name in line}
    return names


@pytest.mark.trains
def test_every_metric_that_a_recipe_logs_stands_in_the_glossary(logged):
    known = [(name, section) for section, rows in sections().items() for row in rows for name in names_of(row)]
    assert not sorted(name for name in logged if not any(fits(name, *one) for one in known))


@pytest.mark.trains
def test_every_metric_of_the_glossary_is_logged(logged):
    known = [(name, section) for section, rows in sections().items() for row in rows for name in names_of(row)]
    assert not [name for name, section in known if not any(fits(one, name, section) for one in logged)]


def test_every_row_is_whole_has_an_anchor_and_names_a_function_that_exists():
    rows = [row for some in sections().values() for row in some]
    assert len(rows) > 80
    for row in rows:
        assert len(row) == 5 and names_of(row), row
        for name in names_of(row):
            assert f'<a id="{slug(name)}"></a>' in PAGE
        place, link = re.fullmatch(r"\[`([\w.]+)`\]\(\.\./nanoreason/([\w/]+)\.py\)", row[4]).groups()
        value = importlib.import_module(f"nanoreason.{link.replace('/', '.')}")
        for part in place.removeprefix(link.replace("/", ".") + ".").split("."):
            value = getattr(value, part)
        assert callable(value), row
    anchors = re.findall(r'<a id="([^"]+)"', PAGE)
    assert len(set(anchors)) == len(anchors)


def test_every_finding_leads_to_the_glossary_and_every_rule_stands_there():
    rules = (ROOT / "nanoreason" / "doctor_rules.py").read_text(encoding="utf-8")
    metrics = {metric for rule in RULES.values() for metric in rule.needs}
    metrics |= set(re.findall(r'"((?:preflight|rewards|completions)/[\w@/]+)"', rules)) - {"preflight/pass@"}
    for metric in metrics:
        assert f'<a id="{slug(metric)}"></a>' in PAGE, metric
    table = PAGE.split("## What the doctor looks for")[1]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(RULES)


def test_patterns_stand_for_one_part_of_a_name():
    assert pattern("acc/N").fullmatch("acc/3") and not pattern("acc/N").fullmatch("acc/3/x")
    assert pattern("eval/pass@K").fullmatch("eval/pass@16") and not pattern("reward").fullmatch("rewards")
    assert fits("eval/found", "found", COUNTED) and not fits("eval/found", "found", "Cost")

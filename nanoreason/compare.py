"""python -m nanoreason compare BASE POLICY: what training changed in a policy, on its task and on others.

    BASE, POLICY --same held-out problems--> accuracies of both -> forgetting
    sampled texts of each (temperature 1) -> both models -> KL in both directions, exact and by the one-sample estimate
    greedy texts of the policy -> rank shift, table and picture of the shifted words;   prompts -> PCA shift

The measures: `analysis.py`. BASE and POLICY have the same vocabulary; they may be any checkpoints that load here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nanoreason.analysis import (
    CLASSES,
    ShiftedWord,
    TokenShifts,
    pca_shift,
    pooled_states,
    shifted_words,
    style_leak_rate,
    token_shifts,
)
from nanoreason.checkpoint import load_checkpoint
from nanoreason.environment import check_words, judge, mean, sample
from nanoreason.evaluate import forgetting
from nanoreason.model import Transformer
from nanoreason.play import for_checkpoint
from nanoreason.rollout import Problem, Rollout, Task, response_text, seed_of
from nanoreason.run import Count, Rows, RunConfig, check_rows, chosen, from_spec, pick_device, say, table
from nanoreason.tasks import TASKS
from nanoreason.tokenizer import TextTokenizer

PROG = "python -m nanoreason compare BASE POLICY"


@dataclass
class CompareConfig(RunConfig):
    """Compare a policy with the one it was trained from."""

    # comparison
    task: Task | None = chosen(TASKS, None)  # what it was trained for; empty: the task that POLICY was trained on
    others: str = ""  # tasks that it was not trained for, as mul,copy,max: what was forgotten, and where style leaks
    problems: Rows = 50  # held-out problems of each task
    markers: str = "wait,<think>,hmm,check"  # words of the trained style, which leak into others
    words: Count = 15  # how many shifted words are listed; 0: none
    max_new_tokens: Count = 0  # response tokens after which a row is cut; 0: what the task or the context allows
    picture: str = ""  # FILE.png of the shifted words; empty: none


def drawn(
    model: Transformer, tokenizer: TextTokenizer, task: Task, problems: list[Problem], config: CompareConfig,
    temperature: float,
) -> list[Rollout]:  # fmt: skip
    """One response to each problem."""
    seed = seed_of(config.seed, "compare", temperature)
    groups = sample(task, model, tokenizer, problems, seed=seed, temperature=temperature,
                    max_new_tokens=config.max_new_tokens or None)  # fmt: skip
    return [row for group in groups for row in group]


def accuracy(task: Task, tokenizer: TextTokenizer, rows: list[Rollout]) -> float:
    return mean([one.verdict for one in judge(task, tokenizer, [rows])])


def compare_on(
    name: str, task: Task, base: Transformer, policy: Transformer, tokenizer: TextTokenizer, config: CompareConfig
) -> tuple[dict[str, float], TokenShifts]:
    """All numbers of one task, and what the greedy texts of the policy show; the seed makes them repeatable."""
    problems = task.test_problems(config.problems)
    greedy = [drawn(model, tokenizer, task, problems, config, 0.0) for model in (base, policy)]
    own = [token_shifts(base, policy, drawn(model, tokenizer, task, problems, config, 1.0)) for model in (base, policy)]
    shifts = token_shifts(base, policy, greedy[1])
    before, after = (accuracy(task, tokenizer, rows) for rows in greedy)
    prompts = [row.tokens[: row.prompt_len] for row in greedy[1]]
    texts = [[response_text(tokenizer, row) for row in rows] for rows in greedy]
    leaks = [style_leak_rate(some, filter(None, config.markers.split(","))) for some in texts]
    lengths = [mean([len(row.response) for row in rows]) for rows in greedy]
    numbers = {
        "accuracy of base": before,
        "accuracy of policy": after,
        "KL(policy || base), policy's texts": own[1].mean(own[1].kl),
        "  its one-sample estimate": own[1].mean(own[1].log_ratio),
        "KL(base || policy), base's texts": own[0].mean(own[0].reverse_kl),
        "  its one-sample estimate ": own[0].mean(-own[0].log_ratio),
        "rank shift, greedy texts": shifts.mean(shifts.rank_shift),
        "  tokens of another rank": shifts.mean((shifts.rank_shift != 0).float()),
        "responses with a marker, base": leaks[0],
        "responses with a marker, policy": leaks[1],
        "length over that of base": lengths[1] / max(1.0, lengths[0]),
    }
    if len(prompts) > 2:
        moved = pca_shift(pooled_states(base, prompts), pooled_states(policy, prompts))
        numbers |= {"PCA shift, mean of layers": moved.distance, "  over the base's spread": mean(moved.relative),
                    "  as the paper has it": moved.of_means}  # fmt: skip
    return numbers, shifts


def word_table(words: list[ShiftedWord], count: int) -> str:
    """The words that gained most places in the policy's greedy texts."""
    rows = [[repr(word.word), "structure" if word.structure else "content", str(word.count), *map(str, word.classes),
             str(word.gained)] for word in words[:count]]  # fmt: skip
    return table(["word", "class", "count", *CLASSES, "places gained"], rows)


def draw_words(words: list[ShiftedWord], path: Path) -> None:
    """A bar per word, as long as the places it gained; structure and content differ in colour.

    ValueError without matplotlib.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ModuleNotFoundError as error:
        raise ValueError(f"no picture: {error.name} is not installed (pip install 'nanoreason[figures]')") from None
    figure, axis = plt.subplots(figsize=(6, 1.2 + 0.28 * len(words)), layout="constrained")
    for structure, label, color in ((True, "structure", "C1"), (False, "content", "C0")):
        places = [i for i, word in enumerate(words) if word.structure == structure]
        axis.barh(places, [words[i].gained for i in places], color=color, label=label)
    axis.set_yticks(range(len(words)), [repr(word.word)[1:-1] for word in words], parse_math=False)
    axis.invert_yaxis()
    axis.set_xlabel("places gained in the ranking, summed over the policy's texts")
    axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(argv: list[str]) -> int:
    if argv and not argv[0].startswith("-") and (len(argv) == 1 or argv[1].startswith("-")):
        raise ValueError(f"usage: {PROG} [--flag value ...]: a second checkpoint folder is missing")
    folders = argv[:1] if argv and not argv[0].startswith("-") else []
    checkpoint, config = for_checkpoint(CompareConfig(), argv[len(folders) :], PROG, "[--others mul,copy]")
    check_rows(problems=config.problems)
    tasks = {"the task": config.task}
    for name in filter(None, config.others.split(",")):
        tasks[name] = from_spec(name, TASKS, "others", None)
    device = pick_device(config.device)
    (base, tokenizer), (policy, theirs) = (load_checkpoint(folder, device) for folder in (*folders, checkpoint))
    if not tokenizer.has_ids_of(theirs):
        raise ValueError(f"{folders[0]} and {checkpoint} have different vocabularies: nothing can be compared")
    check_words(tokenizer, "test", **{"task" if name == "the task" else "others": task for name, task in tasks.items()})
    found = {name: compare_on(name, task, base, policy, tokenizer, config) for name, task in tasks.items()}
    names = list(dict.fromkeys(name for numbers, _ in found.values() for name in numbers))
    say(table(["measure", *found], [[name, *(f"{numbers[name]:.3f}" if name in numbers else "-"
                                            for numbers, _ in found.values())] for name in names]))  # fmt: skip
    others = [numbers for name, (numbers, _) in found.items() if name != "the task"]
    if others:
        before, after = ([numbers[f"accuracy of {who}"] for numbers in others] for who in ("base", "policy"))
        say(f"\nforgetting, the mean loss of accuracy on the {len(others)} others: {forgetting(before, after):.3f}")
    words = shifted_words(found["the task"][1], tokenizer)
    if config.words:
        say(f"\nwords of the policy on the task, by places gained\n{word_table(words, config.words)}")
    if config.picture:
        draw_words(words[: config.words or 15], Path(config.picture))
        say(f"\n{config.picture}")
    return 0

"""R1-Zero on a real model on a laptop: SmolLM2-135M-Instruct learns to answer sums (`make real`; docs/real-models.md).

python tools/real.py                         everything, into runs/real; what is done is not done again
python tools/real.py --base FOLDER           with a folder of your own instead of the downloaded one
python tools/real.py --parts parity,forcing  only these

parity    the folder in `transformers`: same logits, same greedy texts, same log-probs of sampled texts
forcing   accuracy where its thinking is cut, or kept going
before    every held-out problem, asked of the base; the standard error is one over problems
grpo      reinforcement learning from the answers alone
after     every held-out problem, asked of what was trained
saved     parity of what was trained
summary   metrics.jsonl, summary.json, log.txt and figure.png, as data/results has them
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from convert_gguf import convert, fetch

from nanoreason.chat import chat_template
from nanoreason.checkpoint import load_checkpoint
from nanoreason.evaluate import standard_error
from nanoreason.experiments.figure import Line, Panel, draw
from nanoreason.experiments.results import Claim, PerSeed, Results, verdict
from nanoreason.learn import compute_logprobs
from nanoreason.model import Transformer
from nanoreason.recipes import budget, grpo
from nanoreason.rollout import Rollout, Task, prompt_groups, prompt_rows, response_text, seed_of
from nanoreason.run import Schedule, read_json, read_jsonl, say
from nanoreason.sampler import Sampler, generate
from nanoreason.tasks.sums import SumsInWords
from nanoreason.tasks.wrappers import Chat
from nanoreason.tokenizer import TextTokenizer, load_tokenizer

# One-digit sums, differences and products: 207 questions, and half of the pairs are held out. A response is right if
# its last number is, so that a model that writes sentences has something to begin with.
TASK = Chat(SumsInWords(operation="any", judge="lenient", hold_out=2))
TOKENS, ALL = 12, 200  # of a response; more problems than are held out
GRPO = grpo.GrpoConfig(
    task=TASK, steps=40, prompts=6, group_size=8, max_new_tokens=Schedule(TOKENS), preflight=0, lr=1e-5, warmup=2,
    micro_tokens=4096, eval_problems=ALL, eval_samples=1, eval_every=20,
)  # fmt: skip
FORCING = budget.BudgetConfig(
    task=TASK, problems=40, methods=("forcing", "wait"), budgets=(1, 8, 16, 32), waits=(0, 1, 2), longest=32,
    words=("wait",), answer_tokens=12,
)  # fmt: skip
SAMPLES = 2  # responses to each held-out problem
KEPT = ("reward", "accuracy", "strict", "acc/1", "eval/pass@1", "eval/strict", "eval/mean_length", "entropy",
        "grad_norm", "frac_reward_zero_std", "completions/mean_length", "completions/clipped_ratio", "update_ratio",
        "num_tokens", "learning_rate", "time/rollout", "time/score", "time/update")  # fmt: skip

# ---------------------------------------------------------------------------------------------------------- parity


@torch.no_grad()
def parity(folder: Path, questions: int = 8, new_tokens: int = 24) -> dict[str, float]:
    """How far this code and `transformers` (eager float32) are apart on the same folder, asked the same chats."""
    import transformers

    model, tokenizer = load_checkpoint(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    problems = TASK.test_problems(questions)
    rows = prompt_rows(tokenizer, problems, seed=1)
    asked = [
        words.apply_chat_template([{"role": "user", "content": problem.prompt}], add_generation_prompt=True,
                                  tokenize=True, return_dict=False) for problem in problems
    ]  # fmt: skip
    declared = theirs.generation_config.eos_token_id
    found = {
        "same_chats": float(asked == [row.tokens for row in rows]),
        "same_eos": float({*(declared if isinstance(declared, list) else [declared])} <= {*tokenizer.eos_ids}),
        "logits": max((model(ids) - theirs(ids).logits).abs().max().item() for ids in map(one_row, asked)),
    }
    greedy = finished(model, tokenizer, rows, new_tokens, temperature=0.0)
    same = [row.response == continued(theirs, words, row, new_tokens) for row in greedy]
    found["same_greedy"] = statistics.fmean(same)
    # The same distribution: what one of them samples has the same log-prob in the other, token by token.
    drawn = finished(model, tokenizer, prompt_rows(tokenizer, problems, seed=2), new_tokens)
    theirs_of_ours = [scored(theirs, row) for row in drawn]
    found["our_samples"] = furthest([row.logprobs[row.prompt_len :] for row in drawn], theirs_of_ours)
    torch.manual_seed(0)
    for row in (fresh := prompt_rows(tokenizer, problems)):
        for token in continued(theirs, words, row, new_tokens, do_sample=True, temperature=1.0, top_k=0, top_p=1.0):
            row.sampled(token, 0.0)
    ours_of_theirs = compute_logprobs(model, fresh, 1.0, 2048)
    found["their_samples"] = furthest(
        [values[row.prompt_len :] for row, values in zip(fresh, ours_of_theirs, strict=True)],
        [scored(theirs, row) for row in fresh],
    )
    return found


def one_row(tokens: list[int]) -> torch.Tensor:
    return torch.tensor([tokens])


def continued(theirs: Any, words: Any, row: Rollout, new_tokens: int, **how: Any) -> list[int]:
    """What `transformers.generate` says after the row's prompt; greedily unless `how` says otherwise."""
    ids, how = one_row(row.tokens[: row.prompt_len]), how or {"do_sample": False}
    pad = words.eos_token_id
    return theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, pad_token_id=pad,
                           **how)[0, row.prompt_len :].tolist()  # fmt: skip


def scored(theirs: Any, row: Rollout) -> list[float]:
    """The log-probs that `transformers` gives to the row's response."""
    logprobs = theirs(one_row(row.tokens)).logits[0].log_softmax(-1)
    return [logprobs[t - 1, row.tokens[t]].item() for t in range(row.prompt_len, len(row.tokens))]


def furthest(some: list[list[float]], others: list[list[float]]) -> float:
    return max(abs(a - b) for x, y in zip(some, others, strict=True) for a, b in zip(x, y, strict=True))


def finished(
    model: Transformer, tokenizer: TextTokenizer, rows: list[Rollout], new_tokens: int, temperature: float = 1.0
) -> list[Rollout]:
    return generate(Sampler(model, tokenizer, temperature=temperature, max_new_tokens=new_tokens), rows)


# ------------------------------------------------------------------------------------------------ before and after


def tested(folder: Path, problems: int = ALL, samples: int = SAMPLES) -> dict[str, Any]:
    """Accuracy on every held-out problem, of `samples` responses at temperature 1; the share by problem is kept.

    begun    the same where the response begins with "7 * 8 =" for the model: how much it knows beyond the form
    surest   begun so and greedy: how much it knows beyond the form and the spread of its samples
    """
    model, tokenizer = load_checkpoint(folder)
    held_out, found = TASK.test_problems(problems), {}
    for name, temperature in (("free", 1.0), ("begun", 1.0), ("surest", 0.0)):
        groups = prompt_groups(tokenizer, held_out, samples if temperature else 1, seed_of("real", "test"))
        for row in (rows := [row for group in groups for row in group]):
            if name != "free":
                row.force(tokenizer.encode(beginning(row.problem.prompt)))
        generate(Sampler(model, tokenizer, max_new_tokens=TOKENS, temperature=temperature), rows, name=name)
        texts = [[response_text(tokenizer, row) for row in group] for group in groups]
        rights = [[TASK.reward(p, text) for text in some] for p, some in zip(held_out, texts, strict=True)]
        shares = [statistics.fmean(right) for right in rights]
        found[name] = {
            "accuracy": statistics.fmean(shares), "standard_error": standard_error(shares), "by_problem": shares,
            "strict": share(TASK, held_out, texts), "cut": statistics.fmean(r.stop_reason == "length" for r in rows),
            "tokens": statistics.fmean(len(row.response) for row in rows), "first": [some[0] for some in texts],
        }  # fmt: skip
    return found


def beginning(question: str) -> str:
    """
    >>> beginning("What is 7 * 8? Answer with the number only.")
    '7 * 8 ='
    """
    return question.removeprefix("What is ").split("?")[0] + " ="


def share(task: Task, problems: list, texts: list[list[str]]) -> float:
    """Of all responses those that are nothing but the number, as the question asks."""
    return statistics.fmean(
        task.metrics(p, text)["strict"] for p, some in zip(problems, texts, strict=True) for text in some
    )


def gain(before: dict[str, Any], after: dict[str, Any]) -> tuple[float, float]:
    """(how much accuracy rose, its standard error): differences problem by problem."""
    pairs = zip(before["by_problem"], after["by_problem"], strict=True)
    differences = [b - a for a, b in pairs]
    return statistics.fmean(differences), standard_error(differences)


# --------------------------------------------------------------------------------------------------------- summary

CLAIMS = [
    Claim("held-out accuracy at temperature 1: gain in standard errors",
          lambda r: r.last("grpo", "test/gain_in_errors"), 3),
    Claim("held-out accuracy of greedy answers: gain",
          lambda r: r.last("grpo", "acc/1") - r.first("grpo", "acc/1"), 0.1),
    Claim("responses that are cut: last steps - first steps",
          lambda r: r.late("grpo", "completions/clipped_ratio") - r.early("grpo", "completions/clipped_ratio"),
          -0.3, "at_most"),
]  # fmt: skip


def lines_of(out: Path, seed: int) -> list[dict]:
    """The metrics of a seed that are kept: those of the steps, and of the test before the first and after the last."""
    lines = [
        {"arm": "grpo", "seed": seed, "step": line["step"]} | {name: short(line[name]) for name in KEPT if name in line}
        for line in read_jsonl(out / f"seed{seed}" / "metrics.jsonl")
    ]
    before, after, last = read_json(out / "before.json"), read_json(out / f"after{seed}.json"), lines[-1]["step"]
    if after.get("step") != last:
        raise ValueError(f"after{seed}.json is of step {after.get('step')}, seed{seed} has come to step {last}: "
                         "run --parts grpo,after,saved,summary")  # fmt: skip
    for line, test in ((lines[0], before), (lines[-1], after)):
        for name in LABELS:
            line |= {f"test/{name}/{key}": short(v) for key, v in test[name].items() if isinstance(v, float)}
    rise, error = gain(before["free"], after["free"])
    lines[-1] |= {"test/gain": short(rise), "test/gain_se": short(error)}
    if error:  # 0 where no problem changed: then there is no such number, and the claim fails
        lines[-1]["test/gain_in_errors"] = short(rise / error)
    return lines


def short(value: float) -> float:
    """
    >>> short(0.123456789), short(40), short(2.5e-06)
    (0.123457, 40, 2.5e-06)
    """
    return value if isinstance(value, int) else float(f"{value:.6g}")


WHEN = {"before": Results.first, "after": Results.last}
LABELS = {"free": "", "begun": ",\nbegun", "surest": ",\nbegun,\ngreedy"}
ARMS = [
    Line("grpo", f"{when}{label}", color, y=f"{when}/{name}")
    for name, label in LABELS.items() for when, color in (("before", "C7"), ("after", "C0"))
]  # fmt: skip


def tested_value(results: Results, line: Line, what: str) -> PerSeed:
    """Of the test before or after, free or begun, as the line's y says."""
    when, name = line.y.split("/")
    return WHEN[when](results, "grpo", f"test/{name}/{what}")


def error_bars(axis, results: Results) -> None:
    for i, line in enumerate(ARMS):
        axis.errorbar(i, tested_value(results, line, "accuracy").mean,
                      tested_value(results, line, "standard_error").mean, color="black", capsize=4)  # fmt: skip


def panels(out: Path) -> list[Panel]:
    share = {"ylim": (0, 1), "ylabel": "share of right answers"}
    return [
        Panel("accuracy", (Line("grpo", "practised, temperature 1 (mean of 5)", "C7", y="reward"),), smooth=5,
              also=held_out_points, **share),
        Panel("every held-out problem, 2 samples each", ARMS, "accuracy",
              kind="bar", bars=tested_value, also=error_bars, **share),
        Panel("held-out problems, first sample", (), kind="text", text=lambda r: side_by_side(out, r.seeds[0])),
    ]  # fmt: skip


def held_out_points(axis, results: Results) -> None:
    for metric, label in (("acc/1", "held out, greedy"), ("eval/pass@1", "held out, temperature 1")):
        x, y = zip(*results.points("grpo", "step", metric), strict=True)
        axis.plot(x, y, "o--", label=label)


def side_by_side(out: Path, seed: int, count: int = 18) -> str:
    tests = [read_json(out / name)["free"]["first"] for name in ("before.json", f"after{seed}.json")]
    problems = TASK.test_problems(len(tests[0]))
    chosen = [i * len(problems) // count for i in range(min(count, len(problems)))]
    cells = [
        [f"{beginning(problems[i].prompt)} {problems[i].answer}", *(repr(first[i])[1:-1][:34] for first in tests)]
        for i in chosen
    ]
    rows = [["problem", "before", "after"], *cells]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def floors() -> dict[str, float]:
    """What the lenient judge gives for nothing: the same answer to every held-out problem, or the problem repeated."""
    problems = TASK.test_problems(ALL)
    counts = Counter(problem.answer for problem in problems)
    echoed = [TASK.reward(problem, beginning(problem.prompt)) for problem in problems]
    return {
        "held_out": len(problems),
        "constant": max(counts.values()) / len(problems),
        "echo": statistics.fmean(echoed),
    }


def summarise(out: Path, seeds: int) -> str:
    """Writes metrics.jsonl, config.json, summary.json, log.txt and figure.png; returns the log."""
    lines = [line for seed in range(seeds) for line in lines_of(out, seed)]
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    what = {"section": "real", "preset": "cpu", "seeds": seeds}
    jobs = {f"seed{seed}/grpo": settings(out / f"seed{seed}") for seed in range(seeds)}
    write(out / "config.json", what | {"jobs": jobs})
    results = Results(lines)
    numbers = {"floors": floors()} | {
        name: read_json(out / f"{name}.json")
        for name in ("parity", "saved", "forcing")
        if (out / f"{name}.json").exists()
    }
    spent = [sum(line[f"time/{part}"] for part in ("rollout", "score", "update")) for line in lines if "reward" in line]
    claims = [claim.judge(results) for claim in CLAIMS]
    write(out / "summary.json", what | {"seconds": round(sum(spent), 1), "claims": claims, "numbers": numbers})
    log = list(map(verdict, claims))
    for test in ("before", *(f"after{seed}" for seed in range(seeds))):
        for name, found in ((name, read_json(out / f"{test}.json")[name]) for name in LABELS):
            log.append(f"{test}, {name}: {found['accuracy']:.3f} ± {found['standard_error']:.3f}, "
                       f"{found['tokens']:.1f} tokens, {found['cut']:.2f} cut, "
                       f"{found['strict']:.2f} nothing but the number")  # fmt: skip
    log += [f"{name}: {json.dumps(found)}" for name, found in numbers.items()]
    log += [f"{statistics.median(spent):.1f} s a step (median)", "", side_by_side(out, 0, 40)]
    (out / "log.txt").write_text("\n".join(log) + "\n")
    caption = ("SmolLM2-135M-Instruct (float32, all weights trained) learns one-digit sums, differences and products "
               "from right or wrong alone. Right: the last number of the response. Error bars: one standard error over "
               "problems; begun: the response begins with 7 * 8 = for the model.")  # fmt: skip
    draw(panels(out), results, caption, out / "figure.png")
    return "\n".join(log)


def settings(run: Path) -> dict[str, Any]:
    """Without the folders, which are another person's."""
    return {
        name: value for name, value in read_json(run / "config.json").items() if name not in ("out", "base", "resume")
    }


# ------------------------------------------------------------------------------------------------------------- main


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def forced(base: Path, out: Path, threads: int) -> dict[str, list[dict]]:
    run = out / "forcing"  # one that was stopped is measured again as a whole
    budget.run(replace(FORCING, base=str(base), out=str(run), threads=threads, resume=was_begun(run)))
    names = ("method", "asked", "accuracy", "accuracy_se", "thinking", "cut", "waits")
    lines = read_jsonl(run / "metrics.jsonl")
    return {"lines": [{name: line[name] for name in names} for line in lines]}


def was_begun(run: Path) -> bool:
    return (run / "config.json").exists()


def once(path: Path, work: Callable[[], dict], policy: Path | None = None) -> None:
    """Write what `work` finds, unless the file is there; of a policy, unless the file is of the step that it is at."""
    step = {"step": read_json(policy / "training.json")["step"]} if policy else {}
    if not path.exists() or not step.items() <= read_json(path).items():
        write(path, work() | step)


PARTS = ("parity", "forcing", "before", "grpo", "after", "saved", "summary")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="real.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/real"), help="folder of everything")
    parser.add_argument("--base", type=Path, help="a folder of your own; else SmolLM2 is downloaded (93 MB)")
    parser.add_argument("--parts", default=",".join(PARTS), help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=GRPO.steps, help="of GRPO (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="of GRPO, one after another (default: 1)")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args(argv)
    parts, out = asked.parts.split(","), asked.out
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--parts {unknown[0]}: use {', '.join(PARTS)}")
    torch.set_num_threads(asked.threads)
    out.mkdir(parents=True, exist_ok=True)
    base, seeds = asked.base or out / "base", range(asked.seeds)
    policies = [out / f"seed{seed}" / "policy" for seed in seeds]
    try:
        if asked.base and not asked.base.is_dir():  # a mistyped name must not become a downloaded model
            raise ValueError(f"--base {asked.base} is no folder: leave --base out to download SmolLM2")
        if asked.base:
            files = load_tokenizer(asked.base).files
            try:
                chat_template(files)
            except ValueError:
                raise ValueError(f"--base {asked.base} has no chat template, and here all is asked in chat: "
                                 "`train.py grpo --base` trains any checkpoint") from None  # fmt: skip
        if not base.exists():
            say("downloading SmolLM2-135M-Instruct (93 MB)")
            with tempfile.TemporaryDirectory() as folder:
                convert(fetch(Path(folder)), base)
        for part in (part for part in PARTS if part in parts):
            started = time.perf_counter()
            if part == "parity":
                once(out / "parity.json", lambda: parity(base))
            elif part == "forcing":
                once(out / "forcing.json", lambda: forced(base, out, asked.threads))
            elif part == "before":
                once(out / "before.json", lambda: tested(base))
            elif part == "grpo":
                for seed, policy in enumerate(policies):  # goes on from its own checkpoint, and knows if it is done
                    grpo.run(replace(GRPO, base=str(base), out=str(policy.parent), threads=asked.threads, seed=seed,
                                     steps=asked.steps, resume=was_begun(policy.parent)))  # fmt: skip
            elif part == "after":
                for seed, policy in enumerate(policies):
                    once(out / f"after{seed}.json", lambda policy=policy: tested(policy), policy)
            elif part == "saved":
                once(out / "saved.json", lambda: parity(policies[0]), policies[0])
            else:
                say(summarise(out, asked.seeds))
            say(f"{part}: {time.perf_counter() - started:.0f} s")
    except (ValueError, OSError) as error:
        print(f"real.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

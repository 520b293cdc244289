"""Spawn and join: the words, the runtime with its clocks and limits, and what of it is learnt from.

A scripted model says what a test wants: its logits follow a table from a row's text so far to the next words. So what
must come out is known by hand, and the sampler, the cache and the log-probs are the real ones.
"""

import random
from dataclasses import replace

import pytest
import torch

from nanoreason.countdown import apply
from nanoreason.environment import compute_rewards, judge, rollout_metrics, sample
from nanoreason.learn import collate, token_logprobs, token_weights
from nanoreason.model import Transformer, small_config
from nanoreason.recipes import grpo
from nanoreason.rewards import Accuracy
from nanoreason.rollout import Rollout, demonstration, prompt_row, prompt_rows, response_text, seed_of, stops_of
from nanoreason.run import Schedule
from nanoreason.sampler import Sampler, generate
from nanoreason.search_threads import parallel_demonstration
from nanoreason.spawn import Limits, Spawn, first_spawns, read_spawns, write_join, write_spawns
from nanoreason.tasks import Addition, Attempts, HardAttempts, ThreadedSearch
from nanoreason.tasks.wrappers import Parallel
from nanoreason.threads import Threads
from nanoreason.tokenizer import TextTokenizer

TASK = Parallel(HardAttempts())
WORDS = TASK.tokenizer()
PROBLEM = TASK.parse("36 from 8 4 2 7")
PARENT, LEFT, RIGHT = "36 from 8 4 2 7 ;", "36 from 4 4 7", "36 from 28 8 2"
BLOCK = "spawn 8 / 2 = 4 : 4 4 7 ; 7 * 4 = 28 : 28 8 2 join"
SOLVED = "28 + 8 = 36 , 36 - 0 = 36"
JOINED = f"8 / 2 = 4 no wait 7 * 4 = 28 , {SOLVED} yes"
NOTHING = "</think> <answer> none </answer>"
SCRIPT = {
    PARENT: f"<think> {BLOCK}",
    LEFT: "<think> 4 + 4 = 8 no </think> <answer> none </answer>",
    RIGHT: f"<think> {SOLVED} yes </think> <answer> {SOLVED} </answer>",
    f"{PARENT} <think> {JOINED}": f"</think> <answer> 7 * 4 = 28 , {SOLVED} </answer>",
}


class Scripted(Transformer):
    """Says behind each text of a script, and behind nothing else, what stands there; then EOS. Reads like a model."""

    def __init__(self, script: dict[str, str], context: int = 512, words: TextTokenizer = WORDS):
        super().__init__(small_config(32, 1, 2, words.vocab_size, context))
        self.next: dict[tuple[int, ...], int] = {}
        self.read = 0  # tokens that went through it
        for before, said in script.items():
            tokens, answer = words.encode(before), words.encode(said)
            for i, token in enumerate(answer):
                self.next[tuple(tokens + answer[:i])] = token

    def hidden(self, tokens, positions=None, cache=None):
        self.read += tokens.numel()
        return super().hidden(tokens, positions, cache)


def scripted(monkeypatch, script: dict[str, str], context: int = 512, words: TextTokenizer = WORDS) -> Scripted:
    """A model whose draws are those of the script: the sampler's own `draw` is replaced, by row."""
    model = Scripted(script, context, words)
    real = Sampler._decode

    def decode(self, cache, n):
        texts = [tuple(self.tokens[j, : int(self.host_position[j]) + 1].tolist()) for j in range(n)]
        said = torch.tensor([model.next.get(text, words.eos_id) for text in texts])
        monkeypatch.setattr("nanoreason.sampler.draw", lambda logits, u, t, p: (
            said, logits.log_softmax(-1).gather(-1, said[:, None])[:, 0]))  # fmt: skip
        return real(self, cache, n)

    monkeypatch.setattr(Sampler, "_decode", decode)
    return model


def run(model, task=TASK, problems=(PROBLEM,), budget=200, **options) -> tuple[list[Rollout], Threads, Sampler]:
    sampler = Sampler(model, words := task.tokenizer(), stop=stops_of(task), **options)
    rows = prompt_rows(words, list(problems))
    for row in rows:
        row.max_new_tokens = budget
    threads = Threads(task, sampler)
    return generate(sampler, rows, threads), threads, sampler


# ------------------------------------------------------------------------------------------------------- the words


def test_first_spawns_are_all_legal_first_operations():
    for numbers in ((8, 4, 2, 7), (3, 3, 3, 3), (9, 9, 8, 9)):
        found = first_spawns(numbers, "+-*", 60)
        legal = set()
        for i in range(4):
            for j in range(4):
                for sign in "+-*":
                    a, b = numbers[i], numbers[j]
                    if i != j and a >= b and (result := apply(a, sign, b)) <= 60:
                        rest = tuple(numbers[k] for k in range(4) if k not in (i, j))
                        legal.add((f"{a} {sign} {b} = {result}", (result, *rest)))
        assert len(found) == len(set(found)) and set(found) == legal


def test_a_block_is_read_as_it_was_written_and_nonsense_in_it_is_left_out():
    spawns = first_spawns((8, 4, 2, 7), "+-*", 60)[:5]
    assert read_spawns(f"<think> {write_spawns(spawns)}", 3) == spawns
    bad = "8 - 4 = 4 : 4 2 ; 8 - = 4 : 4 2 7 ; 8 - 4 = 4 4 2 7 ; ; 8 - 4 = 4 : ; yes : 4 2 7 ; 8 - 4 = 4 : 4 2 7"
    assert read_spawns(f"spawn 7 * 4 = 28 : 28 8 2 join spawn {bad} join", 3) == [Spawn("8 - 4 = 4", (4, 2, 7))]
    for text in ("", "join", "spawn join", "spawn", "join spawn 8 - 4 = 4 : 4 2 7", "\0", "spawn " * 9 + "join"):
        assert read_spawns(text, 3) == []


def test_a_join_says_yes_only_of_steps():
    spawns = [Spawn("8 - 4 = 4", (4, 2, 7))] * 4
    said = write_join(spawns, ["4 + 2 = 6 , 6 * 7 = 42", "none", "", "4 + 2 = 6 , yes join"])
    assert said == "8 - 4 = 4 no wait " * 3 + "8 - 4 = 4 , 4 + 2 = 6 , 6 * 7 = 42 yes"


# ------------------------------------------------------------------------------------------------ the demonstrations


def test_demonstrations_are_true_and_their_joins_are_not_learnt_unless_asked_for():
    task = Parallel(HardAttempts(), texts=(0.0, 1.0, 0.0))
    answers = {"yes": 0, "none": 0, "again": 0}
    for i in range(300):
        problem = task.problem("sft", i)
        joined = problem.prompt.partition("<think> ")[2]
        assert joined and " ; " not in joined and "spawn" not in joined
        if problem.solution.startswith("wait spawn"):
            answers["again"] += 1
            assert "yes" not in joined
        elif task.reward(problem, f"<think> {joined} {problem.solution}"):
            answers["yes"] += 1
            last = joined.split(" wait ")[-1]
            assert problem.solution == f"</think> <answer> {last.removesuffix(' yes')} </answer>"
            assert last.endswith("yes")
        else:
            answers["none"] += 1
            assert problem.solution == NOTHING and "yes" not in joined
        spawns = {spawn.step for spawn in first_spawns(problem.info["numbers"], "+-*", 60)}
        assert {" ".join(part.split()[:5]) for part in joined.split(" wait ")} <= spawns
    assert min(answers.values()) > 20
    honest, faithful = task.problem("sft", 1), replace(task, faithful_mask=True).problem("sft", 1)
    assert f"{honest.prompt} {honest.solution}" == f"{faithful.prompt} {faithful.solution}"
    assert faithful.solution.startswith("<think>") and not honest.solution.startswith("<think>")
    row = demonstration(WORDS, honest)
    assert sum(row.loss_mask) == len(WORDS.encode(honest.solution)) + 1


def test_a_prompt_that_asks_for_children_gets_as_many_as_there_are_operations():
    task = Parallel(HardAttempts(), asked_share=1.0)
    for i in range(60):
        problem = task.problem("sft", i)
        wanted = int(problem.prompt.split(" ; ")[1])
        spawns = read_spawns(problem.solution, 3)
        possible = first_spawns(problem.info["numbers"], "+-*", 60)
        assert len(spawns) == min(wanted, len(possible)) and set(spawns) <= set(possible)
    assert Parallel(HardAttempts(), asked=6).problem("rl", 3).prompt.endswith(" ; 6")
    assert replace(task, asked_share=0.0).problem("rl", 3).prompt.endswith(" ;")


def test_a_child_finds_what_can_be_found_in_its_window_and_says_none_otherwise():
    task = Parallel(HardAttempts(give_up=(0.0, 0.0)), texts=(0.0, 0.0, 1.0), child_tokens=390, found_share=0.0)
    found = 0
    for i in range(80):
        problem = task.problem("sft", i)
        posed = Attempts(max_input=60).parse(problem.prompt)  # brute force: all attempts with these numbers
        solvable = posed.info["solutions"] > 0
        assert ("<answer> none </answer>" in problem.solution) != solvable
        assert task.reward(problem, problem.solution) == solvable
        found += solvable
    assert 5 < found < 60


def test_parallel_goes_around_attempts_alone():
    with pytest.raises(ValueError, match="hard_attempts,parallel"):
        Parallel(Addition())
    with pytest.raises(ValueError, match="texts"):
        Parallel(HardAttempts(), texts=(0.0, 0.0, 0.0))


# ------------------------------------------------------------------------------------------------------ the runtime


def test_a_parent_waits_for_its_children_and_goes_on_behind_their_join(monkeypatch):
    (row,), threads, _ = run(scripted(monkeypatch, SCRIPT))
    thread = threads.of[row]
    (one,) = thread.rounds
    assert [child.row.problem.prompt for child in one.children] == [LEFT, RIGHT]
    assert one.block == BLOCK and one.join == JOINED
    assert response_text(WORDS, row) == f"<think> {one.join} </think> <answer> 7 * 4 = 28 , {SOLVED} </answer>"
    # by hand: <think> and the block; the longer child; the answer behind the join
    spent, left, right = len(f"<think> {BLOCK}".split()), len(SCRIPT[LEFT].split()), len(SCRIPT[RIGHT].split())
    answer = len(f"</think> <answer> 7 * 4 = 28 , {SOLVED} </answer>".split())
    assert (one.start, one.end, thread.clock) == (spent, spent + right, spent + right + answer) and right > left
    assert row.counted == {
        "threads/children": 2, "threads/rounds": 1, "threads/empty_rounds": 0, "threads/cut_children": 0,
        "threads/sequential_tokens": spent + right + answer, "threads/total_tokens": spent + left + right + answer,
        "threads/child_tokens": (left + right) / 2,
    }  # fmt: skip


def test_every_sampled_token_is_in_the_loss_of_one_row_and_no_other(monkeypatch):
    (row,), _, _ = run(scripted(monkeypatch, SCRIPT))
    assert len(row.family) == 4  # the parent, the block that was erased, two children
    said = [" ".join(WORDS.decode([t]) for t, counted in zip(one.tokens, one.loss_mask, strict=True) if counted)
            for one in row.family]  # fmt: skip
    answer = f"</think> <answer> 7 * 4 = 28 , {SOLVED} </answer>"
    assert said == [f"<think> {answer}", BLOCK, SCRIPT[LEFT], SCRIPT[RIGHT]]
    assert all(one.root is row for one in row.family)
    assert sum(sum(one.loss_mask) for one in row.family) == row.counted["threads/total_tokens"]
    row.advantage = 0.5
    weights = token_weights(row.family, "sequence")
    assert sum(map(sum, weights)) == pytest.approx(1.0)  # once for the rollout, not once a row
    assert collate(row.family, weights, torch.device("cpu")).advantages.flatten().tolist() == [0.5] * 4


def test_the_prefix_of_a_parent_is_read_once_where_there_is_room_for_it(monkeypatch):
    model = scripted(monkeypatch, SCRIPT)
    run(model, max_rows=8)
    kept = model.read
    model.read = 0
    run(model, max_rows=1)
    join = len(JOINED.split())
    prefix = len(f"{PARENT} <think>".split())
    prompts = sum(len(text.split()) - 1 for text in (PARENT, LEFT, RIGHT))
    decoded = sum(len(text.split()) for text in (f"<think> {BLOCK}", *list(SCRIPT.values())[1:]))
    # whoever is behind the join has read the prefix (all but <think>, which was the last token) and the join, once
    padding = abs(len(LEFT.split()) - len(RIGHT.split()))
    assert kept <= prompts + decoded + join + 1 + padding < model.read
    assert model.read >= prompts + decoded + join + prefix - 1


def words_model(seed: int = 5) -> Transformer:
    """Random weights, but with a liking for the words of blocks: it spawns all kinds of nonsense."""
    model = Transformer(small_config(32, 2, 2, WORDS.vocab_size, 96), seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.mul_(4)
    return model


class Spawning(Parallel):
    """Whatever block is written, it asks for some children: which ones depends on its length."""

    def spawned(self, problem, response):
        numbers = problem.info["numbers"]
        if len(numbers) < 2:
            return []
        spawns = first_spawns(numbers, "+-*", 60)
        return [self.posed(spawn, problem) for spawn in spawns[: len(response.split()) % 4]]


WILD = Spawning(HardAttempts(), max_rounds=3, max_children=3)


def wild_rows(max_rows: int, order: list[int], budget: int = 40) -> dict[int, Rollout]:
    monkey = words_model()
    sampler = Sampler(monkey, WORDS, stop=(*stops_of(WILD), "spawn", "no", "8"), max_rows=max_rows)

    class Always(Threads):
        """Every stop closes a block, of children too."""

        def __call__(self, row):
            if row.stop_reason == "stop":
                row.force(WORDS.encode("join"))
            return super().__call__(row)

    rows = {}
    for p in order:
        rows[p] = prompt_row(WORDS, WILD.problem("test", p), seed_of("wild", p), budget)
    generate(sampler, list(rows.values()), Always(WILD, sampler))
    return rows


def contents(row: Rollout) -> list:
    return [(one.tokens, one.loss_mask, one.draws, one.stop_reason) for one in row.family]


def test_samples_do_not_depend_on_the_batch_its_order_or_how_many_rows_there_are():
    together = wild_rows(64, list(range(6)))
    assert sum(row.counted["threads/children"] for row in together.values()) > 6
    assert sum(row.counted["threads/rounds"] for row in together.values()) > 6
    for rows in (wild_rows(2, [5, 3, 1, 0, 2, 4]), wild_rows(1, list(range(6)))):
        assert {p: contents(row) for p, row in rows.items()} == {p: contents(row) for p, row in together.items()}
        assert all(row.counted == together[p].counted for p, row in rows.items())
    (alone,) = wild_rows(8, [3]).values()
    assert contents(alone) == contents(together[3])


def test_logprobs_of_all_rows_of_a_family_are_those_of_the_learner():
    model = words_model()
    for row in wild_rows(4, [0, 1, 2]).values():
        family = [one for one in row.family if any(one.loss_mask)]
        batch = collate(family, token_weights(family), torch.device("cpu"))
        with torch.no_grad():
            found = token_logprobs(model, batch.tokens, batch.loss_mask)
        assert (found - batch.old_logprobs).abs().max() < 1e-4
        assert batch.old_logprobs[batch.loss_mask].std() > 0.1


@pytest.mark.parametrize(
    "block, children",
    [("spawn join", 0), ("join", 0), ("spawn 8 - 4 = : 4 2 7 join", 0), ("spawn 8 - 4 = 4 : 4 2 join", 0),
     (f"{BLOCK[:-5]} ; 8 / 2 = 4 : 4 4 7 join", 2), ("8 - 4 = 4 : 4 2 7 join", 0)],
)  # fmt: skip
@pytest.mark.parametrize("max_rows", [1, 2, 8])
def test_malformed_empty_and_repeated_spawns_end_in_a_join(monkeypatch, block, children, max_rows):
    join = "none" if not children else JOINED
    before = "" if block.startswith("spawn") or block == "join" else block.removesuffix(" join") + " "
    script = SCRIPT | {
        PARENT: f"<think> {block}",
        f"{PARENT} <think> {before}{join}": NOTHING,
    }
    (row,), threads, _ = run(scripted(monkeypatch, script), max_rows=max_rows)
    assert response_text(WORDS, row) == f"<think> {before}{join} </think> <answer> none </answer>"
    assert row.counted["threads/children"] == children
    assert row.counted["threads/empty_rounds"] == (not children)


def test_more_children_than_allowed_are_neither_run_nor_joined(monkeypatch):
    task = replace(TASK, max_children=1)
    script = SCRIPT | {f"{PARENT} <think> 8 / 2 = 4 no": NOTHING}
    (row,), threads, _ = run(scripted(monkeypatch, script), task)
    assert row.counted["threads/children"] == 1 and threads.of[row].rounds[0].join == "8 / 2 = 4 no"


def test_a_child_that_is_cut_has_found_nothing_and_one_that_spawns_is_cut(monkeypatch):
    told = f"{PARENT} <think> 8 / 2 = 4 no wait 7 * 4 = 28 no"
    script = SCRIPT | {
        LEFT: f"<think> {BLOCK}",
        RIGHT: "<think> " + "no " * 60,
        told: NOTHING,
    }
    (row,), threads, _ = run(scripted(monkeypatch, script), budget=50, max_rows=2)
    assert row.counted["threads/cut_children"] == 2 and row.stop_reason == "stop"
    left, right = threads.of[row].rounds[0].children
    assert len(right.row.response) == 50 and left.row.stop_reason == right.row.stop_reason == "length"


def test_a_round_too_many_ends_the_parent_as_cut(monkeypatch):
    again = f"{PARENT} <think> {JOINED}"
    (row,), threads, _ = run(scripted(monkeypatch, SCRIPT | {again: f"wait {BLOCK}"}), replace(TASK, max_rounds=1))
    assert row.stop_reason == "length" and row.counted["threads/rounds"] == 1
    assert judge(TASK, WORDS, [[row]])[0].verdict == 0


def test_a_second_round_follows_a_join_and_both_are_on_the_critical_path(monkeypatch):
    first = f"{PARENT} <think> {JOINED}"
    script = SCRIPT | {first: "wait spawn 8 / 2 = 4 : 4 4 7 join",
                       f"{first} wait 8 / 2 = 4 no": NOTHING}  # fmt: skip
    (row,), threads, _ = run(scripted(monkeypatch, script))
    one, two = threads.of[row].rounds
    spent, more = len(f"<think> {BLOCK}".split()), len("wait spawn 8 / 2 = 4 : 4 4 7 join".split())
    longest, left = len(SCRIPT[RIGHT].split()), len(SCRIPT[LEFT].split())
    assert (one.end, two.start, two.end) == (spent + longest, spent + longest + more, spent + longest + more + left)
    assert len(row.family) == 6  # two blocks, three children


@pytest.mark.parametrize("by_value", [False, True])
def test_what_apr_demonstrates_is_what_runs_when_a_model_says_it(monkeypatch, by_value):
    """Its parents' segments and its children are spawned, joined and judged as the demonstrator did it itself."""
    task, words = ThreadedSearch(by_value=by_value, roots=True), ThreadedSearch().tokenizer()
    beams, solved, rounds = (2, 3), 0, 0
    for index in range(6):
        problem = task.problem("test", index)
        numbers, target = problem.info["numbers"], problem.info["target"]
        shown = parallel_demonstration(numbers, target, *beams, seed=index, by_value=by_value)
        script = {}
        for thread in shown.threads:
            for before, said in thread.segments:
                script[f"{thread.prompt}{before}"] = said
        with monkeypatch.context() as patch:
            (row,), threads, _ = run(scripted(patch, script, 2048, words), task, [problem], budget=1500)
        thread = threads.of[row]
        assert [one.join for one in thread.rounds] == shown.joins
        ran = [[child.row.problem.prompt for child in one.children] for one in thread.rounds]
        assert ran == [[child.prompt for child in block] for block in shown.children]
        said = [len(words.encode(said)) for each in shown.threads for _, said in each.segments]
        assert row.counted["threads/total_tokens"] == sum(said) + len(shown.threads)  # and an EOS of each
        assert task.reward(problem, response_text(words, row)) == (shown.path is not None)
        solved, rounds = solved + (shown.path is not None), rounds + len(shown.joins)
    assert 0 < solved < 6 and rounds > 4


class Roomy(Parallel):
    """Its children have more room than it has."""

    limits = Limits(tokens=60)


def test_a_join_for_which_there_is_no_room_ends_the_parent_as_cut(monkeypatch):
    budget = len(f"<think> {BLOCK}".split())
    assert budget < len(f"<think> {JOINED}".split())
    for max_rows in (1, 8):
        (row,), threads, _ = run(scripted(monkeypatch, SCRIPT), Roomy(HardAttempts()), budget=budget, max_rows=max_rows)
        assert row.stop_reason == "length" and row.counted["threads/children"] == 2
        assert threads.of[row].rounds[0].join.endswith("yes") and response_text(WORDS, row) == "<think>"


# ------------------------------------------------------------------------------------------------------- learning


def test_a_step_of_grpo_rewards_parents_and_gives_their_advantage_to_all_they_spawned(monkeypatch, tmp_path):
    model = scripted(monkeypatch, SCRIPT)
    with monkeypatch.context() as patch:
        patch.setattr("nanoreason.environment.prompt_groups", lambda *_: [prompt_rows(WORDS, [PROBLEM, PROBLEM])])
        groups = sample(TASK, model, WORDS, [PROBLEM], group_size=2, max_new_tokens=200)
    scored = judge(TASK, WORDS, groups, 200)
    parts = compute_rewards(scored, (Accuracy(),))
    assert len(scored) == 2 and parts["accuracy"] == [0.0, 0.0]  # 36 - 0 uses a number that is not there
    metrics = rollout_metrics(groups, scored, parts)
    assert metrics["threads/children"] == 2
    assert metrics["tokens"] == sum(len(one.response) for one in groups[0][0].family) * 2
    groups[0][0].reward = 1.0
    config = grpo.GrpoConfig(task=TASK, rewards=(Accuracy(),), max_new_tokens=Schedule(200), lr=1e-3, prompts=1,
                             group_size=2, updates_per_rollout=2)  # fmt: skip
    grpo.compute_advantages(config, model, None, groups)
    assert [row.root.advantage for row in groups[0][0].family] == [1.0] * 4
    assert all(len(row.old_logprobs) == len(row.tokens) for root in groups[0] for row in root.family)
    steps = []
    monkeypatch.setattr(grpo, "update", lambda p, o, rows, loss, **how: steps.append((rows, how["weights"])) or {
        "loss": 0.0, "num_tokens": 1})  # fmt: skip
    grpo.update_policy(config, 1, model, None, groups)
    assert [len(rows) for rows, _ in steps] == [4, 4]  # a family stays together
    assert all(sum(map(sum, weights)) == pytest.approx(1.0) for _, weights in steps)
    assert {id(row) for rows, _ in steps for row in rows} == {id(row) for root in groups[0] for row in root.family}


def test_random_blocks_of_words_never_break_the_reader():
    draw = random.Random(3)
    words = ["spawn", "join", ";", ":", "=", "+", "8", "4", "12", "none", "yes", "wait"]
    for _ in range(400):
        text = " ".join(draw.choices(words, k=draw.randint(0, 25)))
        for spawn in read_spawns(text, 3):
            assert len(spawn.numbers) == 3
        assert TASK.joined(TASK.spawned(PROBLEM, text), [text] * len(TASK.spawned(PROBLEM, text)))

"""A run that is stopped anywhere and resumed ends bit-equal to one that never stopped: sft, star, select.

GRPO's are in test_grpo.py, kills in the middle of a save in test_checkpoint.py.
"""

import contextlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from nanoreason import learn
from nanoreason.recipes import select, sft, star
from nanoreason.rollout import demonstration
from nanoreason.run import Run, read_jsonl
from nanoreason.tasks import Addition

pytestmark = pytest.mark.trains
ROOT = Path(__file__).parent.parent
BASE = str(ROOT / "data" / "checkpoints" / "star-base")
THINKER = str(ROOT / "data" / "checkpoints" / "thinking-addition")


SFT = replace(sft.PRESETS["tiny"], steps=12, save_every=4, log_every=3, rows_per_step=8, eval_every=6, eval_problems=2)
STAR = replace(
    star.PRESETS["tiny"], base=BASE, rounds=3, rows_per_step=8, problems=12, rationalize=True, first_steps=3,
    temperature=0.7, eval_problems=3, eval_task=Addition((2,)),
)  # fmt: skip


@pytest.fixture(scope="module")
def scripted_answers():
    """Makes STaR's policy answer every third problem right, whatever its weights, and the others mostly wrong.

    The rows are still sampled, and the choice depends on what was sampled, so that a policy, a round or a random
    number that differs after a resume shows in the data.
    """
    patch = pytest.MonkeyPatch()
    real = star.sample

    def sample(task, model, words, problems, **options):
        groups = real(task, model, words, problems, **options)
        for group in groups:
            row = group[0]
            right = sum(row.tokens) % 3 == 0
            group[0] = demonstration(words, row.problem, None if right else words.decode(row.response[:9]))
        return groups

    patch.setattr(star, "sample", sample)
    yield
    patch.undo()


def left_by(folder: Path) -> dict:
    """All that a run leaves: bytes of every checkpoint file, and log lines without their times."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".jsonl" and path.parent != folder
    }
    for name in ("metrics.jsonl", "samples.jsonl"):
        if (folder / name).exists():
            lines = read_jsonl(folder / name)
            files[name] = [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]
    return files


def assert_same_run(stopped: dict, whole: dict) -> None:
    assert stopped.keys() == whole.keys()
    for name in whole:
        if isinstance(whole[name], bytes):
            equal = stopped[name] == whole[name]  # not in the assert: a diff of binary files takes minutes
            assert equal, f"{name} differs"
        else:
            assert stopped[name] == whole[name], name


@pytest.fixture(scope="module")
def whole_sft(tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("sft") / "run"
    sft.run(replace(SFT, out=str(out)))
    left = left_by(out)
    assert len(left["metrics.jsonl"]) >= 4 and "policy/training.safetensors" in left
    return left


@pytest.mark.parametrize(
    ("owner", "name", "count", "after"),
    [
        (learn, "update", 1, False),  # before anything was learnt
        (learn, "update", 4, True),  # a step was done that no checkpoint knows of
        (learn, "update", 7, False),  # between two checkpoints, logged lines behind the last one
        (sft, "save_policy", 2, False),  # logged, not saved
        (sft, "save_policy", 2, True),
        (sft, "save_policy", 3, False),  # all done, the last checkpoint missing
        (sft, "save_policy", 3, True),  # all done
    ],
    ids=lambda value: getattr(value, "__name__", str(value)).split(".")[-1],
)
def test_a_stopped_and_resumed_sft_run_ends_bit_equal_to_one_that_never_stopped(
    stop_at, whole_sft, tmp_path, owner, name, count, after
):
    config = replace(SFT, out=str(tmp_path / "run"))
    with pytest.MonkeyPatch.context() as patch:
        stop = stop_at(patch, owner, name, count, after)
        with pytest.raises(KeyboardInterrupt):
            sft.run(config)
        assert stop.fired
    sft.run(replace(config, resume=True))
    assert_same_run(left_by(tmp_path / "run"), whole_sft)


def test_a_run_stopped_at_every_other_step_still_ends_bit_equal(stop_at, whole_sft, tmp_path):
    config = replace(SFT, out=str(tmp_path / "run"))
    for attempt in range(20):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, learn, "update", 6)
            with contextlib.suppress(KeyboardInterrupt):
                sft.run(replace(config, resume=attempt > 0))
                break
    assert attempt == 2  # five steps each, the last checkpoint at a multiple of four
    assert_same_run(left_by(tmp_path / "run"), whole_sft)


@pytest.fixture(scope="module")
def whole_star(tmp_path_factory, scripted_answers) -> dict:
    out = tmp_path_factory.mktemp("star") / "run"
    star.run(replace(STAR, out=str(out)))
    left = left_by(out)
    assert [line["step"] for line in left["metrics.jsonl"]] == [0, 1, 2, 3]
    assert all(0 < line["kept"] < 1 for line in left["metrics.jsonl"][1:])
    assert left["samples.jsonl"]
    return left


@pytest.mark.parametrize(
    ("owner", "name", "count", "after"),
    [
        (star, "evaluate", 1, False),  # nothing is done
        (learn, "update", 2, False),  # in the update of round 1
        (Run, "log", 2, True),  # round 1 is logged, its policy is not saved
        (star, "save_checkpoint", 2, True),  # between rounds 1 and 2
        (star, "judge", 4, False),  # in round 2, between the first and the second attempt
    ],
    ids=lambda value: getattr(value, "__name__", str(value)).split(".")[-1],
)
def test_a_stopped_and_resumed_star_run_ends_bit_equal_to_one_that_never_stopped(
    stop_at, whole_star, tmp_path, owner, name, count, after
):
    config = replace(STAR, out=str(tmp_path / "run"))
    with pytest.MonkeyPatch.context() as patch:
        stop = stop_at(patch, owner, name, count, after)
        with pytest.raises(KeyboardInterrupt):
            star.run(config)
        assert stop.fired
    star.run(replace(config, resume=True))
    assert_same_run(left_by(tmp_path / "run"), whole_star)


def test_a_resumed_star_run_goes_on_with_the_round_behind_its_last_checkpoint(scripted_answers, tmp_path, monkeypatch):
    """Repeating that round would waste it, and show in nothing else where each round starts from the base."""
    config, done, one_round, save = replace(STAR, out=str(tmp_path / "run")), [], star.one_round, star.save_checkpoint

    def counted(config, round, *more):
        done.append(round)
        return one_round(config, round, *more)

    def killed(*arguments, **options):
        save(*arguments, **options)
        if options["state"]["round"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(star, "one_round", counted)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(star, "save_checkpoint", killed)
        star.run(config)
    star.run(replace(config, resume=True))
    assert done == [1, 2, 3]


@pytest.mark.parametrize("recipe", ["sft", "star"])
def test_resuming_a_finished_run_changes_nothing_and_returns_its_last_line(
    whole_sft, whole_star, tmp_path, recipe, monkeypatch
):
    module, config = {"sft": (sft, SFT), "star": (star, STAR)}[recipe]
    config = replace(config, out=str(tmp_path / "run"))
    last = module.run(config)
    before = left_by(tmp_path / "run")
    monkeypatch.setattr(learn, "update", None)  # nothing is left to be learnt
    again = module.run(replace(config, resume=True))
    assert_same_run(left_by(tmp_path / "run"), before)
    assert {k: v for k, v in again.items() if k != "step"} == {k: v for k, v in last.items() if k != "step"}


def test_a_selection_that_was_stopped_is_made_again_as_a_whole(stop_at, tmp_path):
    """It has no steps: whatever a stop left behind, the same demonstrations are written, and lines are not doubled."""
    config = replace(select.PRESETS["tiny"], teacher=THINKER, out=str(tmp_path / "whole"))
    select.run(config)
    names = ("demonstrations.jsonl", "metrics.jsonl", "samples.jsonl")
    whole = {name: (tmp_path / "whole" / name).read_bytes() for name in names}
    assert all(whole.values())
    samples = read_jsonl(tmp_path / "whole" / "samples.jsonl")
    assert {line["kind"] for line in samples} == {"teacher", "chosen"}
    taught = [line for line in samples if line["kind"] == "teacher"]
    assert Counter(line["group"] for line in taught) == {2: config.samples, 6: config.samples, 10: config.samples}
    for owner, name, after in ((select, "replace_text", True), (Run, "log", True), (Run, "sample", False)):
        stopped = replace(config, out=str(tmp_path / f"stopped-{name}"))
        with pytest.MonkeyPatch.context() as patch:
            stop = stop_at(patch, owner, name, 1, after)
            with pytest.raises(KeyboardInterrupt):
                select.run(stopped)
            assert stop.fired
        select.run(replace(stopped, resume=True))
        select.run(replace(stopped, resume=True))  # and once more, though nothing is left to do
        assert {name: (Path(stopped.out) / name).read_bytes() for name in names} == whole
    with pytest.raises(FileExistsError, match="add --resume"):
        select.run(config)

"""Two processes do what one does: the same samples, gradients and files, from any number of them to any other."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanoreason import processes
from nanoreason.__main__ import main
from nanoreason.checkpoint import load_checkpoint
from nanoreason.learn import Algorithm, make_optimizer, micro_batches, own_batches
from nanoreason.optim import Optimizer
from nanoreason.recipes import grpo, sft
from nanoreason.rewards import Cosine
from nanoreason.run import Schedule
from nanoreason.sharding import check_shard
from nanoreason.tasks import Attempts, HardAttempts
from nanoreason.tasks.wrappers import Parallel

ROOT = Path(__file__).parents[1]
APART = 1e-4  # sums of gradients in another order differ by rounding


def configs(folder: Path, last: int = 4) -> dict[str, object]:
    """One run of each kind, from shipped checkpoints."""
    base = str(ROOT / "data/checkpoints/attempts-0")
    algorithm = Algorithm(average="token", kl_coef=0.1, reference_every=3, max_refills=2)
    reinforced = grpo.GrpoConfig(
        base=base, task=Attempts(), prompts=5, group_size=4, max_new_tokens=Schedule(40), steps=last, warmup=1,
        preflight=4, eval_problems=6, eval_samples=2, eval_every=2, save_every=1, micro_tokens=256, epochs=2,
        updates_per_rollout=2, algorithm=algorithm, lr=1e-3,
    )  # fmt: skip
    threads = grpo.GrpoConfig(
        base=str(ROOT / "data/checkpoints/apr"), task=Parallel(HardAttempts(), asked=2), prompts=3, group_size=2,
        max_new_tokens=Schedule(40), steps=1, preflight=0, eval_problems=0, micro_tokens=128, rewards=(Cosine(),),
    )  # fmt: skip
    one_row = sft.SftConfig(base=base, task=Attempts(), steps=2, rows_per_step=1, eval_problems=4)
    adapted = grpo.GrpoConfig(
        base=base, task=Attempts(), prompts=5, group_size=4, max_new_tokens=Schedule(40), steps=2, warmup=1,
        preflight=0, eval_problems=0, micro_tokens=256, algorithm=Algorithm(kl_coef=0.1, reference_every=0), lr=1e-3,
        memory=grpo.Memory(lora=4, recompute=True),
    )  # fmt: skip
    found = {"grpo": reinforced, "threads": threads, "one_row": one_row, "adapted": adapted}
    for name, config in found.items():
        config.out = str(folder / name)
    return found


def run_all(folder: Path, jobs: list[str]) -> None:
    """In each process of torchrun, and here: jobs as out:name:last step, then :resume, :shard or both."""
    torch.set_num_threads(1)
    processes.join()
    made: list[Optimizer] = []
    for job in jobs:
        out, name, last, *how = job.split(":")
        config = configs(folder / out, int(last))[name]
        config.resume, config.memory = "resume" in how, replace(config.memory, shard="shard" in how)
        recipe = {"one_row": sft}.get(name, grpo)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                recipe, "make_optimizer", lambda *a, **how: made.append(make_optimizer(*a, **how)) or made[-1]
            )
            recipe.run(config)
        if config.memory.shard:
            (folder / out / f"sizes-{processes.rank()}").write_text(json.dumps(sizes(made[-1])))
    processes.leave()


def sizes(optimizer: Optimizer) -> dict[str, list[int]]:
    """Values that this process holds, and those of the whole model."""
    weights = optimizer.all_parameters()
    kinds = {"weights": weights, **{name: [optimizer.state[w][name] for w in weights]
             for name in ("exp_avg", "exp_avg_sq")}}  # fmt: skip
    kinds["gradients"] = [w.grad for w in weights if w.grad is not None]
    return {kind: [sum(t.to_local().numel() for t in tensors), sum(t.numel() for t in tensors)]
            for kind, tensors in kinds.items()}  # fmt: skip


def torchrun(*arguments: str, count: int = 2, script: str = __file__) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), script]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300, cwd=ROOT, env=env)


def lines_of(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def assert_same_run(a: Path, b: Path) -> None:
    """Metrics but for times, samples to the letter, weights."""
    both = lines_of(a, "metrics.jsonl"), lines_of(b, "metrics.jsonl")
    assert len(both[0]) == len(both[1]) > 0
    for one, other in zip(*both, strict=True):
        assert one.keys() == other.keys()
        for name in (name for name in one if not name.startswith(("time/", "tok_per_s"))):
            assert one[name] == pytest.approx(other[name], rel=APART, abs=APART), (one["step"], name)
    texts = [[(s["step"], s["kind"], s["prompt"], s["response"]) for s in lines_of(f, "samples.jsonl")] for f in (a, b)]
    assert texts[0] == texts[1]
    weights = [load_checkpoint(f / "policy", torch.device("cpu"))[0].state_dict() for f in (a, b)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], atol=APART, rtol=APART, msg=name)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Everything with one process (`one`) and with two (`two`)."""
    folder = tmp_path_factory.mktemp("processes")
    run_all(folder, ["one:grpo:4", "one:threads:1", "one:one_row:2", "one:adapted:2", "one_two:grpo:2"])
    shutil.copytree(folder / "one_two", folder / "one_shard")
    jobs = ["two:grpo:4", "two:threads:1", "two:one_row:2", "two:adapted:2", "two_one:grpo:2", "one_two:grpo:4:resume"]
    done = torchrun(str(folder), *jobs)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "said").write_text(done.stdout)
    return folder


@pytest.mark.parametrize("name", ["grpo", "threads", "one_row", "adapted"])
def test_two_processes_leave_what_one_leaves(runs, name):
    """grpo: a reference, minibatches, refills, a batch that does not divide by two. threads: children, erased blocks.
    one_row: a process without a micro-batch. adapted: frozen weights, which have no gradients to sum."""
    assert_same_run(runs / "one" / name, runs / "two" / name)


@pytest.fixture(scope="module")
def shards(runs) -> Path:
    """The same with two processes that share the parameters, from the beginning or from the middle on."""
    jobs = ["shard:threads:1:shard", "shard:one_row:2:shard", "shard_one:grpo:2:shard", "one_shard:grpo:4:resume:shard"]
    done = torchrun(str(runs), *jobs)
    assert done.returncode == 0, done.stderr[-3000:]
    run_all(runs, ["shard_one:grpo:4:resume"])
    return runs


@pytest.mark.parametrize("name", ["threads", "one_row"])
def test_two_processes_with_sharded_parameters_leave_what_one_leaves(shards, name):
    assert_same_run(shards / "one" / name, shards / "shard" / name)


@pytest.mark.parametrize("name", ["one_shard", "shard_one"])
def test_a_run_goes_on_with_parameters_that_are_sharded_or_whole_again(shards, name):
    """With a reference, which is sharded too, minibatches and refills; half of the steps are those of two processes."""
    assert_same_run(shards / "one" / "grpo", shards / name / "grpo")


def test_each_of_two_processes_holds_half_of_weights_gradients_and_moments(shards):
    held = [json.loads((shards / "one_shard" / f"sizes-{rank}").read_text()) for rank in (0, 1)]
    for kind in ("weights", "gradients", "exp_avg", "exp_avg_sq"):
        (first, total), (second, same) = held[0][kind], held[1][kind]
        assert total == same == first + second == held[0]["weights"][1] > 0, kind
        assert 0.45 < first / total < 0.55, kind


def test_shard_needs_several_processes_and_adamw(tmp_path, capsys, monkeypatch):
    flags = ["grpo", "--preset", "attempts", "--memory.shard", "--out", str(tmp_path / "run")]
    assert main(flags) == 2 and "torchrun" in capsys.readouterr().err
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(ValueError, match="--optimizer muon"):
        check_shard(True, "muon")
    check_shard(True)


def test_a_process_with_too_few_micro_batches_does_one_that_does_not_count(monkeypatch, make_model):
    model = make_model(0)
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "rank", lambda: 1)
    assert own_batches(model, micro_batches([9, 9, 9], 9)) == [([1], True)]
    monkeypatch.setattr("nanoreason.learn.is_sharded", lambda model: True)
    assert own_batches(model, micro_batches([9, 8, 7], 9)) == [([1], True), ([2], False)]
    assert own_batches(model, micro_batches([9], 9)) == [([0], False)]


def test_each_process_samples_a_share_and_one_speaks(runs):
    said = (runs / "said").read_text()
    assert said.count("base: accuracy") == 2 and "process 1" not in said


def test_the_runs_have_learnt_something_that_could_differ(runs):
    lines = lines_of(runs / "one" / "grpo", "metrics.jsonl")
    assert max(line.get("grad_norm", 0) for line in lines) > 0.01
    assert max(line.get("kl", 0) for line in lines) > 1e-4
    assert lines_of(runs / "one" / "adapted", "metrics.jsonl")[-1]["kl"] > 1e-6
    children = lines_of(runs / "one" / "threads", "metrics.jsonl")
    assert max(line.get("threads/children", 0) for line in children) > 0 and children[-1]["grad_norm"] > 0.01


def test_a_run_goes_on_with_another_number_of_processes(runs):
    run_all(runs, ["two_one:grpo:4:resume"])
    for name in ("two_one", "one_two"):
        assert_same_run(runs / "one" / "grpo", runs / name / "grpo")


def test_an_error_ends_all_processes_in_one_line(tmp_path):
    flags = ["grpo", "--base", str(tmp_path / "nowhere"), "--out", str(tmp_path / "failed")]
    done = torchrun(*flags, script=str(ROOT / "train.py"))
    assert done.returncode != 0
    assert "train.py: " in done.stderr and "nowhere" in done.stderr and "recipes/grpo.py" not in done.stderr


def test_what_runs_its_own_processes_refuses_those_of_torchrun(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["reproduce", "star"]) == 2
    assert "reproduce does not run under torchrun" in capsys.readouterr().err


def test_alone_nothing_is_exchanged():
    assert (processes.count(), processes.rank(), processes.is_first()) == (1, 0, True)
    assert processes.mine("abc") == ["a", "b", "c"] and processes.gather("é") == ["é"]
    tensor = torch.ones(2)
    processes.add_up([tensor])
    assert tensor.tolist() == [1, 1]


def test_gradients_are_added_up_in_buckets_of_one_dtype(monkeypatch):
    monkeypatch.setattr(processes, "BUCKET", 4)
    tensors = [torch.zeros(n, dtype=d) for n, d in ((2, torch.float32), (2, torch.float32), (1, torch.float32),
                                                    (1, torch.float64), (9, torch.float64))]  # fmt: skip
    assert [[len(t) for t in some] for some in processes.buckets(tensors)] == [[2, 2], [1], [1], [9]]


if __name__ == "__main__":
    run_all(Path(sys.argv[1]), sys.argv[2:])

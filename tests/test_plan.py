"""The plan: its memory against counted bytes and sums by hand, its time against arithmetic, and what it says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanoreason import checkpoint, plan, plan_memory, plan_time
from nanoreason.__main__ import main
from nanoreason.checkpoint import save_checkpoint
from nanoreason.lora import add_adapters
from nanoreason.memory import Memory, prepare
from nanoreason.model import KVCache, ModelConfig, Transformer
from nanoreason.plan_memory import Work, counted, memory_of, peak, saved_floats
from nanoreason.plan_time import Speed, seconds_of
from nanoreason.recipes import grpo, sft
from nanoreason.run import Schedule
from nanoreason.tasks import Addition
from nanoreason.tokenizer import load_tokenizer

BASE = str(Path(__file__).parent / "data" / "one-digit-sums")
SMOL = ModelConfig(vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                   num_attention_heads=9, num_key_value_heads=3, head_dim=64, max_position_embeddings=8192)  # fmt: skip
WORK = Work(SMOL, rows=256, prompt=100, response=400, micro_tokens=2048, prompts=16, file_bytes=269_000_000)
MEMORIES = [Memory(), Memory(recompute=True), Memory(lora=8), Memory(lora=8, recompute=True)]


# --------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("memory", MEMORIES, ids=str)
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_activations_are_those_that_autograd_keeps(make_model, saved_bytes, kind, memory):
    """Byte for byte where all is trained; with adapters the first norm keeps nothing, as no gradient goes below it."""
    model = make_model(1, model_type=kind, num_hidden_layers=3)
    prepare(model, memory, 0)
    tokens = torch.ones(4, 16, dtype=torch.int64)
    first = model.config.hidden_size + 1 if memory.lora and not memory.recompute else 0
    own = saved_floats(Work(model.config, 4, 6, 10, 1000, memory))
    kept = saved_bytes(model, tokens) / 4 / 64
    if memory.recompute:  # the block that is recomputed is added to what is kept
        kept += plan_memory.block_floats(model.config, bool(memory.lora)) + 7 * memory.lora
    assert abs(own - kept - first) <= 0.02 * kept and (memory.lora or own == kept)


@pytest.mark.parametrize("memory", MEMORIES, ids=str)
def test_weights_are_counted_as_they_will_be_made(make_model, memory):
    model = make_model(1, tie_word_embeddings=False)
    size = model.size()
    if memory.lora:
        add_adapters(model, memory.lora)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert counted(model.config, memory) == (size, trained)


def test_what_a_step_keeps_by_hand():
    N = 49_152 * 576 + 30 * (576 * (576 * 2 + 192 * 2) + 3 * 576 * 1536 + 2 * 576) + 576
    phases = memory_of(WORK)
    assert {name: phases["step"][name] for name in ("weights", "gradients", "moments", "weights before the step")} == {
        "weights": 4 * N, "gradients": 4 * N, "moments": 8 * N, "weights before the step": 4 << 25}  # fmt: skip
    several = memory_of(replace(WORK, updates=2))  # a copy of all from the first update to the last
    assert several["step"]["weights before the step"] == several["update"]["weights before the step"] == 4 * N
    assert phases["update"]["weights before the step"] == 0
    assert phases["load"] == {"weights": 4 * N, "file": 269_000_000}
    of_slot = 30 * 2 * 3 * 64 * 4
    rows = (4 << 30) // (500 * of_slot)  # fewer than 256
    assert phases["sample"]["keys and values"] == 2 * rows * 532 * of_slot  # twice: the cache as it grows
    adapters = 8 * 30 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))
    lora = memory_of(replace(WORK, memory=Memory(lora=8), reference=True))["update"]
    assert lora["weights"] == 4 * N + 4 * adapters and lora["moments"] == 8 * adapters and lora["reference"] == 0
    assert memory_of(replace(WORK, reference=True))["update"]["reference"] == 4 * N
    merged = memory_of(replace(WORK, memory=Memory(lora=8)))["save"]["merged copy"]
    assert merged == 4 * (N - 49_152 * 576) and phases["save"]["merged copy"] == 0
    assert "save" not in memory_of(WORK, on_card=True)


def test_each_setting_takes_from_the_part_that_it_is_about_and_from_no_other():
    def parts(memory, phase):
        return memory_of(replace(WORK, memory=memory, rows=64))[phase]

    plain = {phase: parts(Memory(), phase) for phase in ("sample", "update", "step")}
    half = parts(Memory(moments="bfloat16"), "update")
    assert half["moments"] == plain["update"]["moments"] / 2
    less = parts(Memory(recompute=True), "update")
    assert less["activations"] < plain["update"]["activations"] / 8
    copy = parts(Memory(sample_dtype="bfloat16"), "sample")
    assert copy["sampling copy"] == plain["sample"]["weights"] / 2
    assert copy["keys and values"] == plain["sample"]["keys and values"] / 2
    for changed, before, but in [(half, plain["update"], "moments"), (less, plain["update"], "activations")]:
        assert {k: v for k, v in changed.items() if k != but} == {k: v for k, v in before.items() if k != but}
    assert memory_of(replace(WORK, memory=Memory(moments="cpu")), on_card=True)["step"]["moments"] == 0
    assert parts(Memory(moments="cpu"), "step")["moments"] == plain["step"]["moments"]  # no other memory is there


def test_the_cache_is_as_large_as_the_sampler_lets_it_be():
    many = replace(WORK, rows=100_000)
    rows, slots = plan_memory.resident(many)
    assert rows == min(512, (4 << 30) // (500 * KVCache.bytes_per_slot(SMOL, torch.float32))) and slots == 532
    assert plan_memory.resident(replace(WORK, response=8192 - 100))[1] == 8192


# ----------------------------------------------------------------------------------------------------------- time

SPEED = Speed(learn=3e-6, score=1e-6, head=9e-6, score_head=4e-6, decode=lambda rows: 1e-3 + 1e-5 * rows,
              draw=lambda rows: 1e-4 * rows, step=1e-9)  # fmt: skip


def test_seconds_are_pieces_times_their_numbers():
    small = replace(WORK, rows=8, prompts=2, prompt=10, response=30, scores=1, logged=4, epochs=2, updates=4)
    found = seconds_of(small, SPEED)
    assert found["sample"] == pytest.approx(2 * 10 * 30 * 1e-6 + 30 * (30 * (1e-3 + 8e-5) + 8e-4))
    assert found["score"] == pytest.approx(1.5 * (8 * 40 * 30 * 1e-6 + 8 * 30 * 4e-6))
    assert found["update"] == pytest.approx(2 * (8 * 40 * 30 * 3e-6 + 8 * 30 * 9e-6))
    assert found["step"] == pytest.approx(4 * counted(SMOL, Memory())[1] * 1e-9)
    assert "sample" not in seconds_of(replace(small, prompts=0), SPEED)
    waves = replace(small, rows=1025)  # more rows than are decoded at once
    rows, _ = plan_memory.resident(waves)
    assert rows == 512
    decoding = 3 * 30 * (30 * (1e-3 + 512e-5) + 512e-4)
    assert seconds_of(waves, SPEED)["sample"] == pytest.approx(2 * 10 * 30 * 1e-6 + decoding)


def test_a_prompt_that_a_group_shares_is_read_once_by_the_learner():
    work = replace(WORK, rows=8, prompts=2, prompt=41, response=9, micro_tokens=200)  # 4 rows of 49 states, 40 asked of
    assert plan_memory.read_share(work) == pytest.approx((40 + 4 * 9) / (4 * 49))
    two = replace(work, micro_tokens=400)  # both groups in one micro-batch
    assert plan_memory.read_share(two) == pytest.approx((2 * 40 + 8 * 9) / (8 * 49))
    for other in (replace(work, memory=Memory(recompute=True)), replace(work, prompts=0), replace(work, prompts=8)):
        assert plan_memory.read_share(other) == 1
    assert plan_memory.read_share(replace(work, prompt=10, response=40)) == 1  # not worth it: 27 of 196
    times = [seconds_of(one, SPEED)["update"] for one in (work, replace(work, prompts=8))]
    heads = 8 * 9 * 9e-6
    assert (times[0] - heads) / (times[1] - heads) == pytest.approx(76 / 196)
    parts = [memory_of(one)["update"]["activations"] for one in (work, replace(work, prompts=8))]
    copies = 2 * 3 * 64 * 30 * 4 * 49 * 4  # keys and values of all columns of all rows, in float32
    assert parts[0] == pytest.approx(parts[1] * 76 / 196 + copies)


def test_a_teacher_stands_in_memory_and_a_prompt_must_leave_room(make_model, tmp_path):
    own = grpo.workload(replace(grpo.PRESETS["tiny"], base=BASE, task=Addition((1,), form="direct")))
    taught = replace(grpo.PRESETS["tiny"], base=BASE, teacher=BASE, task=Addition((1,), form="direct"))
    work = grpo.workload(taught)
    size = counted(work.shape, Memory())[0]
    assert work.teacher == size and peak(work) - peak(own) == 4 * size
    with pytest.raises(ValueError, match="no checkpoint at nowhere"):
        grpo.workload(replace(taught, teacher="nowhere"))
    with pytest.raises(ValueError, match="leaves no room for a response in the context of --base"):
        grpo.workload(replace(taught, task=Addition((30,), form="direct")))


def test_flops_of_a_block_by_hand_and_of_a_backward_pass():
    shape = ModelConfig(hidden_size=8, intermediate_size=16, num_attention_heads=2, num_key_value_heads=1, head_dim=4)
    weights = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16
    assert plan_time.block_flops(shape, 10) == 2 * weights + 2 * 8 * 10
    assert [plan_time.backwards(memory) for memory in MEMORIES] == [3, 4, 2, 3]


def test_a_faster_card_is_faster_and_a_block_cannot_start_its_kernels_for_nothing():
    times = {card: sum(seconds_of(WORK, plan_time.stated(WORK, card)).values()) for card in plan_time.CARDS}
    assert times["3090"] > times["4090"] > times["a100"] > times["h100"] > 0
    assert plan_time.stated(WORK, "h100").decode(1) == 16 * 6e-6


def test_the_speed_of_this_device_is_measured_in_all_pieces_for_every_setting(make_model):
    shape = replace(make_model(1).config, vocab_size=40)
    for memory in [*MEMORIES, Memory(sample_dtype="bfloat16", moments="bfloat16")]:
        work = Work(shape, rows=4, prompt=3, response=5, micro_tokens=16, memory=memory, prompts=2)
        speed = plan_time.measured(work, torch.device("cpu"))
        assert min(speed.learn, speed.score, speed.decode(4), speed.draw(4), speed.step) > 0
        assert speed.head >= 0 and speed.score_head >= 0  # differences of two times


# ------------------------------------------------------------------------------------------------------- proposals


LARGE = replace(SMOL, hidden_size=2048, num_attention_heads=32, intermediate_size=8192, num_hidden_layers=24,
                num_key_value_heads=8)  # fmt: skip


@pytest.mark.parametrize("shape", [SMOL, LARGE], ids=["small", "large"])
def test_what_is_proposed_fits_and_is_the_first_that_does(shape):
    work = replace(WORK, shape=shape, micro_tokens=16_384)
    order = plan.candidates(work.memory)
    assert order[0] == work.memory and len(set(order)) == len(order) == 5
    places = []
    for size in (1, 2, 4, 8, 16, 24, 80, 200):
        fit = plan.proposal(work, size * 1e9)
        places.append(-1 if fit is None else len(order) - order.index(fit.memory))
        if fit is not None:
            assert peak(fit, on_card=True) <= size * 1e9
            if fit.micro_tokens < work.micro_tokens:  # twice as much would not fit
                assert peak(replace(fit, micro_tokens=2 * fit.micro_tokens), on_card=True) > size * 1e9
            for memory in order[: order.index(fit.memory)]:
                assert peak(replace(fit, memory=memory, micro_tokens=500), on_card=True) > size * 1e9
    assert places == sorted(places) and places[0] == -1 and places[-1] == 5


# ------------------------------------------------------------------------------------------------ from the settings


def test_the_work_of_a_step_is_read_from_the_settings():
    config = replace(grpo.PRESETS["tiny"], base=BASE, task=Addition((1,), form="direct"), epochs=2,
                     updates_per_rollout=3, prompts=6, algorithm=grpo.Algorithm(kl_coef=0.1), memory=Memory(),
                     max_new_tokens=Schedule(8, ((3, 12),)))  # fmt: skip
    work = grpo.workload(config)
    tokenizer = load_tokenizer(Path(BASE))
    prompt = len(tokenizer.encode(config.task.problem("rl-0", 0).prompt))
    assert (work.rows, work.prompt, work.response, work.prompts) == (24, prompt, 12, 6)
    assert (work.updates, work.epochs, work.scores, work.reference, work.logged) == (6, 2, 2, True, 12)
    assert work.file_bytes == (Path(BASE) / "model.safetensors").stat().st_size
    fine = sft.workload(replace(sft.PRESETS["tiny"], rows_per_step=16))
    assert (fine.rows, fine.prompts, fine.shape.hidden_size) == (16, 0, 32) and fine.response > fine.prompt > 0


def test_a_plan_reads_no_weights_and_leaves_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "read_tensors", None)  # would be called
    flags = ["--base", BASE, "--task.form", "direct", "--task.digits", "1", "--out", str(tmp_path / "run")]
    assert main(["grpo", *flags, "--memory.lora", "4", "--plan"]) == 0
    said = capsys.readouterr().out
    assert "memory in MB" in said  # of a small model GB would all be 0.00
    assert "measured on cpu" in said and "activations" in said and " 80 GB  --micro-tokens 2048" in said
    assert main(["grpo", *flags, "--plan", "a100"]) == 0
    assert "assumed for a100" in capsys.readouterr().out
    assert main(["sft", "--plan", "--preset", "tiny", "--out", str(tmp_path / "run")]) == 0
    assert not (tmp_path / "run").exists()


def test_mistakes_in_asking_for_a_plan_are_one_line(capsys, tmp_path, make_model):
    adapted = make_model(1)
    add_adapters(adapted, 2)
    save_checkpoint(tmp_path / "adapter", adapted, Addition().tokenizer(), base="nowhere")
    for flags, said in [
        (["grpo", "--base", BASE, "--task.form", "direct", "--task.digits", "1", "--plan", "a1000"], "one of 3090"),
        (["star", "--plan"], "of grpo and sft it is"), (["grpo", "--plan"], "--base is needed"),
        (["grpo", "--base", str(tmp_path / "adapter"), "--plan"], "plan with the folder of a whole model"),
        (["grpo", "--base", str(tmp_path / "none"), "--plan"], "no checkpoint"),
    ]:  # fmt: skip
        assert main(flags) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert isinstance(adapted, Transformer)

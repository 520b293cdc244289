"""The recipes on a checkpoint of the layout that Qwen2.5 has, with a BPE tokenizer and a chat template of its own."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from nanoreason.__main__ import main
from nanoreason.checkpoint import load_checkpoint, save_checkpoint
from nanoreason.model import Transformer, small_config
from nanoreason.rollout import prompt_row
from nanoreason.run import read_jsonl
from nanoreason.sampler import Sampler, generate
from nanoreason.tasks.wrappers import Chat
from nanoreason.tasks.written import Gsm8k
from nanoreason.tokenizer import TextTokenizer

CHATML = (
    "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
OWN_REWARD = """
from dataclasses import dataclass


@dataclass(frozen=True)
class Written:
    weight: float = 1.0

    def __call__(self, scored):
        return float(len(scored.text))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random model of 2 layers in a folder as Qwen2.5-Instruct is published: its way to cut a text into words, two
    tokens that end a text, a head that is larger than the vocabulary."""
    folder = tmp_path_factory.mktemp("qwen") / "Qwen2.5-small-random"
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    texts = [problem.prompt + problem.solution for problem in (Gsm8k().problem("train", i) for i in range(12))]
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer = TextTokenizer(backend, "<|im_end|>")
    shape = small_config(32, 2, 4, tokenizer.vocab_size + 5, 512, kv_heads=2, model_type="qwen2")
    save_checkpoint(folder, Transformer(replace(shape, tie_word_embeddings=True), 0), tokenizer)
    (folder / "checksums.json").unlink()
    ids = [tokenizer.id_of("<|im_end|>"), tokenizer.id_of("<|endoftext|>")]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids, "temperature": 0.7}))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": CHATML}))
    return folder


@pytest.mark.trains
def test_grpo_runs_from_the_command_line_on_a_folder_of_qwen_and_on_files_of_problems(base, tmp_path, capsys):
    out = tmp_path / "run"
    (tmp_path / "own.py").write_text(OWN_REWARD)  # accuracy alone teaches a random model nothing
    flags = ("--steps 2 --prompts 2 --group-size 4 --max-new-tokens 12 --preflight 0 --eval-problems 2 --eval-every 1 "
             f"--rewards accuracy,{tmp_path / 'own.py'}:Written:0.1 --task gsm8k,chat")  # fmt: skip
    argv = ["grpo", "--base", str(base), "--out", str(out), *flags.split(), "--task.system", "Be brief."]
    assert main(argv) == 0, capsys.readouterr().err
    lines = read_jsonl(out / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    assert all({"strict", "lenient", "marked", "acc/0", "acc_lenient/0"} <= line.keys() for line in lines)
    assert all(line["update_ratio"] > 0 and line["accuracy"] == 0 for line in lines)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, out / "policy"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    for name in ("generation_config.json", "tokenizer_config.json"):
        assert (out / "policy" / name).read_bytes() == (base / name).read_bytes()
    assert read_jsonl(out / "samples.jsonl")[0]["prompt"].endswith("the final number on the last line.")
    assert main(["eval", str(out / "policy"), "--problems", "2", "--samples", "2", "--max-new-tokens", "4"]) == 0
    assert "eval/pass@2" in capsys.readouterr().out  # the task, its chat and its system message are those of the run


def test_every_token_that_generation_config_names_ends_a_response_to_a_chat(base):
    model, tokenizer = load_checkpoint(base)
    ids = {tokenizer.id_of("<|im_end|>"), tokenizer.id_of("<|endoftext|>")}
    assert set(tokenizer.eos_ids) == ids and tokenizer.eos_token == "<|im_end|>"
    problem = Chat(Gsm8k()).problem("test", 0)
    rows = [prompt_row(tokenizer, problem, seed, max_new_tokens=400) for seed in range(24)]
    with torch.no_grad():  # a model that says nothing but one of the two, or anything else
        model.lm_head.weight[sorted(ids)] *= 0
    generate(Sampler(model, tokenizer), rows, None)
    ended = [row.tokens[-1] for row in rows if row.stop_reason == "eos"]
    assert set(ended) == ids
    assert all(not ids & set(row.response[:-1]) for row in rows)


def test_the_folder_gives_transformers_the_same_logits_and_the_same_chat(base):
    transformers = pytest.importorskip("transformers")
    model, tokenizer = load_checkpoint(base)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    words = transformers.AutoTokenizer.from_pretrained(base)
    problem = Chat(Gsm8k(), system="Be brief.").problem("test", 0)
    ids = prompt_row(tokenizer, problem).tokens
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": problem.prompt}]
    assert ids == words.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    with torch.no_grad():
        ours = model(torch.tensor([ids]))
        expected = theirs(torch.tensor([ids])).logits
    known = tokenizer.valid_ids  # what the vocabulary lacks can never be drawn here
    assert torch.allclose(ours[..., known], expected[..., known], atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--task gsm8k --task.files nowhere", "--task: files: nowhere is no folder"),
        ("--task gsm8k,chat --task.form lists", "--task.form lists: one of hashes, boxed, none"),
        ("--task math,chat --task.level 6", "--task.level 6: must be at least 0 and at most 5"),
        ("--task math --task.level 2,5 --task.files {tests}", "--task: files:"),
    ],
)
def test_what_a_person_mistypes_is_one_line(base, tmp_path, capsys, flags, said):
    (tmp_path / "test.jsonl").write_text('{"problem": "x", "solution": "\\\\boxed{1}", "level": 2}\n')
    argv = flags.format(tests=tmp_path).split()
    assert main(["grpo", "--base", str(base), "--out", str(tmp_path / "run"), "--preflight", "0", *argv]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1

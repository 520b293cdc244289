"""Tokenizers: texts survive the round trip, unknown words are named, files are standard."""

import json
import os
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from nanoreason.rollout import Problem, demonstration, prompt_row
from nanoreason.tasks import addition
from nanoreason.tokenizer import EOS, TextTokenizer, char_tokenizer, load_tokenizer, word_tokenizer

WORDS = ["alpha", "b", "+", "<tag>", "C:", "12", "##x"]
CHARACTERS = string.digits + "+-*/= \n()"


@pytest.fixture(scope="module")
def by_word() -> TextTokenizer:
    return word_tokenizer(["\n", *WORDS])


@pytest.fixture(scope="module")
def by_character() -> TextTokenizer:
    return char_tokenizer(CHARACTERS, ["<think>", "</think>", "Wait"])


@given(st.lists(st.lists(st.sampled_from([word for word in WORDS if word != "##x"]), max_size=5), max_size=5))
def test_words_joined_by_spaces_and_newlines_survive_the_round_trip_with_one_token_each(by_word, lines):
    text = "\n".join(" ".join(line) for line in lines)
    ids = by_word.encode(text)
    assert by_word.decode(ids) == text
    assert len(ids) == sum(map(len, lines)) + max(0, len(lines) - 1)


@given(st.lists(st.sampled_from([*CHARACTERS, "<think>", "</think>", "Wait"]), max_size=30))
def test_characters_and_tags_survive_the_round_trip_with_one_token_each(by_character, parts):
    text = "".join(parts)
    ids = by_character.encode(text)
    assert by_character.decode(ids) == text
    assert len(ids) == len(parts)


@given(st.lists(st.integers(0, 19), max_size=20))
def test_any_tokens_of_the_addition_vocabulary_decode_to_text_that_encodes_to_them_again(ids):
    """What a policy may write, spaces around newlines and all, is the text that it is judged and trained by."""
    words = addition.tokenizer()
    ids = [i % words.vocab_size for i in ids]
    assert words.encode(words.decode(ids)) == ids


@pytest.mark.parametrize(("text", "unknown"), [("b beta +", "beta"), ("gamma\nb", "gamma"), ("b 7", "7")])
def test_a_word_outside_the_vocabulary_is_an_error_that_names_it(by_word, text, unknown):
    with pytest.raises(ValueError, match=f"'{unknown}' is not in the tokenizer's vocabulary"):
        by_word.encode(text)


def test_a_character_outside_the_vocabulary_is_an_error_that_names_it(by_character):
    with pytest.raises(ValueError, match="'x' is not in"):
        by_character.encode("1+x")


def test_the_eos_is_one_token_pads_and_is_never_added_by_itself(by_word, by_character):
    for tokenizer in (by_word, by_character):
        assert tokenizer.eos_id == tokenizer.pad_id == tokenizer.id_of(EOS)
        assert tokenizer.eos_id not in tokenizer.encode("12")
        assert tokenizer.encode("12" + EOS)[-1] == tokenizer.eos_id
        assert tokenizer.decode(tokenizer.encode("12" + EOS)).replace(" ", "") == "12" + EOS
        assert tokenizer.encode("") == []


def test_a_token_that_does_not_exist_has_no_id(by_word):
    assert by_word.decode([by_word.id_of("alpha")]) == "alpha"
    with pytest.raises(ValueError, match="'nothing' is not one token"):
        by_word.id_of("nothing")


@pytest.mark.parametrize("kind", ["by_word", "by_character"])
def test_a_saved_tokenizer_gives_the_same_ids_here_and_in_transformers(request, tmp_path, kind):
    from transformers import PreTrainedTokenizerFast

    tokenizer = request.getfixturevalue(kind)
    tokenizer.save(tmp_path)
    loaded, theirs = load_tokenizer(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert (loaded.eos_id, loaded.pad_id, loaded.vocab_size) == (
        tokenizer.eos_id,
        tokenizer.pad_id,
        tokenizer.vocab_size,
    )
    assert theirs.eos_token_id == theirs.pad_token_id == tokenizer.eos_id
    texts = ["b + 12", "alpha\n\nC: b\n"] if kind == "by_word" else ["<think>1 + 2</think>\n=3", "Wait(7)"]
    for text in texts:
        ids = tokenizer.encode(text)
        assert loaded.encode(text) == theirs(text).input_ids == ids
        assert loaded.decode(ids) == theirs.decode(ids) == text


def foreign(folder, eos_token: str, **files) -> None:
    """A tokenizer of somebody else: its EOS has another name, and stands in one of several places."""
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, eos_token: 2}))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"eos_token": "</s>"}},
        {"tokenizer_config": {"eos_token": {"content": "</s>", "special": True}}},
        {"config": {"eos_token_id": 2}},
        {"config": {"eos_token_id": [2, 1]}},
        {"tokenizer_config": {"eos_token": "</s>"}, "config": {"eos_token_id": 1}},
        {"tokenizer_config": {"eos_token": None}, "config": {"eos_token_id": 2}},
    ],
    ids=str,
)
def test_the_eos_of_a_foreign_checkpoint_is_found_wherever_it_stands(tmp_path, files):
    foreign(tmp_path, "</s>", **files)
    assert load_tokenizer(tmp_path).eos_token == "</s>"
    assert load_tokenizer(tmp_path).eos_id == 2


def test_a_tokenizer_without_an_eos_is_refused(tmp_path):
    foreign(tmp_path, "</s>")
    with pytest.raises(ValueError, match="no token .*endoftext"):
        load_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(ValueError, match="tokenizer.json"):
        load_tokenizer(tmp_path)


# ------------------------------------------------------------------------------------- what stands in several files


def written(folder, post_processor=None, special=(), **files):
    """A tokenizer of somebody else, with any of the files that may stand beside it."""
    vocabulary = {"a": 0, "b": 1, "</s>": 2, "<|im_end|>": 3, "<s>": 4, "<|eot|>": 5}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([token for token in vocabulary if token.startswith("<")])
    if post_processor:
        backend.post_processor = processors.TemplateProcessing(
            single=post_processor, special_tokens=[("<s>", 4), ("</s>", 2)]
        )
    backend.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def theirs(folder):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize(
    ("files", "first"),
    [
        ({"tokenizer_config": {}, "special_tokens_map": {"eos_token": "<|im_end|>"}}, 3),
        ({"special_tokens_map": {"eos_token": {"content": "<|im_end|>"}}}, 3),
        ({"tokenizer_config": {"eos_token": "</s>"}, "special_tokens_map": {"eos_token": "<|im_end|>"}}, 3),
        (
            {
                "tokenizer_config": {"eos_token": "</s>", "added_tokens_decoder": {"2": {"content": "</s>"}}},
                "special_tokens_map": {"eos_token": "<|im_end|>"},
            },
            2,
        ),
        ({"tokenizer_config": {"eos_token": "</s>"}, "special_tokens_map": {"bos_token": "<s>"}}, 2),
    ],
    ids=str,
)
def test_the_eos_is_the_one_that_transformers_finds(tmp_path, files, first):
    written(tmp_path, **files)
    assert load_tokenizer(tmp_path).eos_id == first == theirs(tmp_path).eos_token_id


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        ({"config": {"eos_token_id": [3, 5]}}, (3, 5)),
        ({"generation_config": {"eos_token_id": [5, 2]}}, (5, 2)),
        ({"tokenizer_config": {"eos_token": "</s>"}, "config": {"eos_token_id": 5}}, (2, 5)),
        (
            {
                "tokenizer_config": {"eos_token": "</s>"},
                "config": {"eos_token_id": None},
                "generation_config": {"eos_token_id": [3, 2, 5]},
            },
            (2, 3, 5),
        ),
        ({"config": {"eos_token_id": 0}, "generation_config": {"eos_token_id": 5}}, (0, 5)),
    ],
    ids=str,
)
def test_every_declared_eos_ends_a_text(tmp_path, files, ids):
    assert load_tokenizer(written(tmp_path, **files)).eos_ids == ids


@pytest.mark.parametrize("name", ["config", "generation_config"])
@pytest.mark.parametrize("value", [[], [3, 77], -1, True, 2.0, "</s>", [[3]], 2**40], ids=str)
def test_an_eos_id_that_is_none_is_one_line_that_names_file_and_value(tmp_path, name, value):
    written(tmp_path, tokenizer_config={"eos_token": "</s>"}, **{name: {"eos_token_id": value}})
    with pytest.raises(ValueError, match=f"/{name}.json: eos_token_id is [^\n]*$"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("rules", [None, "<s> $A", "<s> $A </s>", "$A </s>", "<s> <s> $A"])
@pytest.mark.parametrize("text", ["a b", "b", "<s> a b", "", "a </s>"])
def test_a_prompt_begins_with_what_the_tokenizers_own_rules_put_there_once(tmp_path, rules, text):
    written(tmp_path, rules, tokenizer_config={"eos_token": "</s>", "bos_token": "<s>", "add_bos_token": rules is None})
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode_prompt(text)
    begins = [] if rules is None else [4] * rules.count("<s>")
    if not text.startswith("<s>"):
        expected = theirs(tmp_path)(text).input_ids
        assert ids == (expected[:-1] if rules and rules.endswith("</s>") else expected)
    elif len(begins) < 2:
        assert ids == tokenizer.encode(text)  # it is there already
    assert ids[: len(begins)] == begins
    assert tokenizer.encode(text) == ids[len(ids) - len(tokenizer.encode(text)) :]


def test_a_bos_that_is_also_the_eos_stands_before_a_prompt_and_not_behind_it(tmp_path):
    written(tmp_path, "</s> $A", tokenizer_config={"eos_token": "</s>"})
    assert load_tokenizer(tmp_path).encode_prompt("a b") == [2, 0, 1]
    written(tmp_path, "$A </s>", tokenizer_config={"eos_token": "</s>"})
    assert load_tokenizer(tmp_path).encode_prompt("a b") == [0, 1]


def test_the_prompt_of_a_row_begins_with_bos_and_its_response_does_not(tmp_path):
    tokenizer = load_tokenizer(written(tmp_path, "<s> $A </s>", tokenizer_config={"eos_token": "</s>"}))
    row = demonstration(tokenizer, Problem("a b", "", "b a"))
    assert (row.tokens, row.prompt_len, row.loss_mask) == ([4, 0, 1, 1, 0, 2], 3, [False] * 3 + [True] * 3)
    assert prompt_row(tokenizer, Problem("<s> a b", "")).tokens == [4, 0, 1]


def test_truncation_and_padding_in_a_tokenizer_file_are_not_obeyed_and_are_saved_again(tmp_path):
    written(tmp_path, tokenizer_config={"eos_token": "</s>"})
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.enable_truncation(24, strategy="only_first", direction="left")
    backend.enable_padding(length=64, pad_id=5, pad_token="<|eot|>")
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    for length in (1, 44):
        text = " ".join(["a"] * length)
        assert (
            tokenizer.encode(text) == tokenizer.encode_prompt(text) == theirs(tmp_path)(text).input_ids == [0] * length
        )
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved")
    saved = Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    assert (saved.truncation, saved.padding) == (backend.truncation, backend.padding)
    assert len(tokenizer.encode(" ".join(["a"] * 44))) == 44  # saving did not bring them back


def test_the_size_of_a_vocabulary_with_gaps_is_its_largest_id_and_one(tmp_path):
    vocabulary = {"a": 0, "b": 3, "</s>": 9}
    Tokenizer(models.WordLevel(vocabulary, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.valid_ids) == (10, [0, 3, 9])


def test_a_text_is_completed_by_every_token_that_can_end_it_and_by_no_other():
    """However a policy spells it: whatever the tokens, the one that makes the text whole is among them."""
    vocabulary = [
        "<",
        "/",
        "t",
        "h",
        "i",
        "n",
        "k",
        ">",
        "x",
        " ",
        "</",
        "think",
        "k>",
        "nk>x",
        "</think>",
        "a</think>b",
    ]
    tokenizer = char_tokenizer("".join(word for word in vocabulary if len(word) == 1))
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate([EOS, *vocabulary])}))
    backend.decoder = tokenizer.backend.decoder
    tokenizer = TextTokenizer(backend)
    ids = set(tokenizer.ids_that_complete("</think>"))
    assert {backend.id_to_token(i) for i in ids} == {">", "k>", "nk>x", "</think>", "a</think>b"}
    for spelling in (
        ["</", "think", ">"],
        ["<", "/", "t", "h", "i", "nk>x"],
        ["</", "t", "h", "i", "n", "k>"],
        ["x", "</think>"],
    ):
        tokens = [backend.token_to_id(word) for word in spelling]
        whole = next(n for n in range(1, len(tokens) + 1) if "</think>" in tokenizer.decode(tokens[:n]))
        assert tokens[whole - 1] in ids


def test_a_text_outside_ascii_is_completed_by_a_single_byte_of_its_last_character():
    backend = Tokenizer(
        models.BPE({token: i for i, token in enumerate([EOS, *pre_tokenizers.ByteLevel.alphabet()])}, [])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = TextTokenizer(backend)
    assert tokenizer.encode("x»")[-1] in tokenizer.ids_that_complete("»")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("kind", ["pipe", "folder"])
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_or_a_folder_in_place_of_a_file_is_one_line_that_names_it(tmp_path, name, kind):
    written(tmp_path, config={"eos_token_id": 2})
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name) if kind == "pipe" else (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"{name} is not a regular file$"):
        load_tokenizer(tmp_path)

"""Tokenizers: texts survive the round trip, unknown words are named, files are standard."""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

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

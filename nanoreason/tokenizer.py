"""Text <-> token ids, on the `tokenizers` library: word level or character level built here, or a checkpoint's own.

The tiny tasks have closed vocabularies, so a tokenizer is just their list of words. It is saved as a standard
`tokenizer.json`, which `transformers` loads too.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from nanoreason.run import read_json

EOS = "<|endoftext|>"


class TextTokenizer:
    """A `tokenizers.Tokenizer` that knows its EOS, adds no special tokens and refuses what it cannot encode."""

    def __init__(self, backend: Tokenizer, eos_token: str = EOS):
        self.backend = backend
        self.eos_token = eos_token
        eos_id = backend.token_to_id(eos_token)
        if eos_id is None:
            raise ValueError(f"the tokenizer has no token {eos_token!r} to end a text with")
        self.eos_id: int = eos_id
        self.pad_id: int = eos_id  # padding is never inferred from token values, so EOS may serve
        self.vocab_size: int = backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        try:
            return self.backend.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the library raises a bare Exception that does not name the word
            words = [word for word, _ in self.backend.pre_tokenizer.pre_tokenize_str(text)]
            unknown = next((word for word in words if not self._knows(word)), text[:40])
            raise ValueError(f"{unknown!r} is not in the tokenizer's vocabulary of {self.vocab_size} tokens") from error

    def _knows(self, word: str) -> bool:
        try:
            self.backend.model.tokenize(word)
        except Exception:
            return False
        return True

    def decode(self, tokens: list[int]) -> str:
        return self.backend.decode(tokens, skip_special_tokens=False)

    def id_of(self, token: str) -> int:
        token_id = self.backend.token_to_id(token)
        if token_id is None:
            raise ValueError(f"{token!r} is not one token of the tokenizer's vocabulary")
        return token_id

    def save(self, folder: Path) -> None:
        self.backend.save(str(folder / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.eos_token,
            "pad_token": self.eos_token,
        }
        config["clean_up_tokenization_spaces"] = False
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def word_tokenizer(words: list[str], digits: bool = False) -> TextTokenizer:
    """One token per word; words are separated by single spaces, and a newline is a word that needs none around it.

    With `digits` any number is a word, of one token per digit, or fewer if `words` holds its beginning. The tokens of a
    first digit and of a later one differ, so numbers need no separator: "4 27" is 4, 2, ##7.

    >>> tokenizer = word_tokenizer(["a", "b", "\\n"])
    >>> tokenizer.encode("a b\\nb"), tokenizer.decode([1, 2, 3, 2])
    ([1, 2, 3, 2], 'a b\\nb')
    >>> word_tokenizer(["+"], digits=True).backend.encode("4 + 207").tokens
    ['4', '+', '2', '##0', '##7']
    """
    if digits:
        words = [*words, *"0123456789", *(f"##{digit}" for digit in "0123456789")]
    vocabulary = {word: i for i, word in enumerate([EOS, *words])}
    # WordPiece looks for the longest known beginning and goes on with the ## tokens, so only digits can follow.
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="") if digits else models.WordLevel(vocabulary))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n| +"), "isolated"),
            pre_tokenizers.Split(Regex(r" +"), "removed"),
        ]
    )
    # The WordPiece decoder joins with spaces (only later digits start with its "##"); the spaces at newlines go again.
    backend.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=False),
            decoders.Fuse(),
            decoders.Replace(" \n", "\n"),
            decoders.Replace("\n ", "\n"),
        ]
    )
    backend.add_special_tokens([EOS])
    return TextTokenizer(backend)


def char_tokenizer(characters: str, words: list[str] = ()) -> TextTokenizer:
    """One token per character, and one for each of `words` (tags and keywords) wherever it stands in the text.

    >>> tokenizer = char_tokenizer("12 +", ["<think>"])
    >>> tokenizer.encode("<think>1 + 2"), tokenizer.decode([5, 1, 3, 4, 3, 2])
    ([5, 1, 3, 4, 3, 2], '<think>1 + 2')
    """
    vocabulary = [EOS, *characters, *words]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_tokens(list(words))
    backend.add_special_tokens([EOS])
    return TextTokenizer(backend)


def load_tokenizer(folder: str | Path) -> TextTokenizer:
    """The tokenizer of a Hugging Face folder; EOS is looked up in tokenizer_config.json, then config.json."""
    folder = Path(folder)
    try:
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # a bare Exception for a missing and for a broken file
        raise ValueError(f"{folder / 'tokenizer.json'} is not a readable tokenizer file: {error}") from error
    eos = None
    if (folder / "tokenizer_config.json").exists():
        eos = read_json(folder / "tokenizer_config.json").get("eos_token")
        eos = eos.get("content") if isinstance(eos, dict) else eos
    if eos is None and (folder / "config.json").exists():
        eos_id = read_json(folder / "config.json").get("eos_token_id")
        eos_id = eos_id[0] if isinstance(eos_id, list) else eos_id
        eos = backend.id_to_token(eos_id) if eos_id is not None else None
    return TextTokenizer(backend, eos if eos is not None else EOS)

"""Text <-> token ids, on the `tokenizers` library: word level or character level built here, or a checkpoint's own.

The tiny tasks have closed vocabularies, so a tokenizer is just their list of words. It is saved as a standard
`tokenizer.json`, which `transformers` loads too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from nanoreason.chat import chat_template, render_chat
from nanoreason.run import read_file, read_json

EOS = "<|endoftext|>"


# Files of a Hugging Face folder that say how it is used and that nothing here changes: they are saved as they were.
KEPT = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
        "chat_template.json", "additional_chat_templates/*.jinja", "generation_config.json", "vocab.json", "merges.txt",
        "vocab.txt", "tokenizer.model")  # fmt: skip

RULES = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token


class TextTokenizer:
    """A `tokenizers.Tokenizer` that knows what ends a text and refuses what it cannot encode.

    eos_id       the id that a demonstration ends with
    eos_ids      every id that ends a text, eos_id first
    prefix       ids that the tokenizer's own rules put before a text: BOS, or nothing
    valid_ids    all ids that have a token, in order; there may be gaps
    vocab_size   the largest of them + 1: what a model's head must have at least

    Truncation and padding that are stored in a tokenizer.json are not obeyed (`transformers` does not either): what is
    cut or padded is decided by who asks. They are saved again.
    """

    def __init__(
        self,
        backend: Tokenizer,
        eos_token: str = EOS,
        more_eos_ids: Iterable[int] = (),
        files: Mapping[str, bytes] | None = None,
    ):
        self.backend = backend
        self.eos_token = eos_token
        self.files = dict(files or {})  # of the folder it was loaded from, by name; `save` writes them again
        self.stored_limits = backend.truncation, backend.padding
        backend.no_truncation()
        backend.no_padding()
        eos_id = backend.token_to_id(eos_token)
        if eos_id is None:
            raise ValueError(f"the tokenizer has no token {eos_token!r} to end a text with")
        self.eos_id: int = eos_id
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys([eos_id, *more_eos_ids]))
        self.pad_id: int = eos_id  # padding is never inferred from token values, so EOS may serve
        self.valid_ids: list[int] = sorted(backend.get_vocab(with_added_tokens=True).values())
        self.vocab_size: int = self.valid_ids[-1] + 1
        self.prefix: list[int] = self._prefix()

    def _prefix(self) -> list[int]:
        """What the tokenizer's rules put before a text: EOS is the one text that every tokenizer can encode."""
        try:
            probe = self.backend.encode(self.eos_token, add_special_tokens=True)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            # Rules that name a token which is not there make the library panic, and a panic is no Exception.
            raise ValueError(f"the tokenizer cannot encode its own {self.eos_token!r} ({error})") from None
        # The text itself has sequence id 0, what the rules add has None.
        return probe.ids[: probe.sequence_ids.index(0)] if 0 in probe.sequence_ids else []

    def has_ids_of(self, other: TextTokenizer) -> bool:
        """Whether the same ids are the same tokens in both."""
        return self.backend.get_vocab() == other.backend.get_vocab()

    def encode(self, text: str) -> list[int]:
        """The ids of `text` itself; nothing is put before or behind it."""
        try:
            return self.backend.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the library raises a bare Exception that does not name the word
            splitter = self.backend.pre_tokenizer
            words = [word for word, _ in splitter.pre_tokenize_str(text)] if splitter else [text]
            unknown = next((word for word in words if not self._knows(word)), text[:40])
            raise ValueError(
                f"{unknown[:40]!r} is not in the tokenizer's vocabulary of {self.vocab_size} tokens"
            ) from error

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of a text that a model is to go on from: with the BOS, if the tokenizer's rules add one, once.

        A text that already begins with it (one that a chat template made) gets no second one, and none gets an EOS.
        """
        ids = self.encode(text)
        return ids if ids[: len(self.prefix)] == self.prefix else self.prefix + ids

    def encode_chat(self, text: str, system: str = "") -> list[int]:
        """The ids of a chat in which the user has said `text` and the assistant is to answer: see `chat.py`.

        Nothing is put before it but what the template says; a system message only if there is one.
        """
        messages = [{"role": role, "content": said} for role, said in (("system", system), ("user", text)) if said]
        return self.encode(render_chat(messages, *chat_template(self.files)))

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

    def ids_that_complete(self, text: str) -> tuple[int, ...]:
        """Every token with which `text` may become whole, however the tokens before it spell its beginning.

        That is: the tokens that hold `text`, and those that begin with one of its endings. A vocabulary in which `text`
        is one token still lets a policy spell it in several. None is left out; that `text` stands there must be read in
        the decoded response.

        >>> tokenizer = char_tokenizer("</b>ac", ["</b>", "b>c"])
        >>> [tokenizer.decode([i]) for i in tokenizer.ids_that_complete("</b>")]
        ['>', '</b>', 'b>c']
        """
        endings = tuple(text[i:] for i in range(len(text)))
        glue = getattr(self.backend.model, "continuing_subword_prefix", None) or ""  # "##" of WordPiece

        def completes(token_id: int) -> bool:
            piece = self.decode([token_id]).removeprefix(glue)
            # A byte of a character that takes several decodes to the replacement character.
            return piece.startswith(endings) or text in piece or ("\ufffd" in piece and not text.isascii())

        return tuple(token_id for token_id in self.valid_ids if completes(token_id))

    def save(self, folder: Path) -> None:
        """tokenizer.json and tokenizer_config.json, and what stood beside them where the tokenizer was loaded."""
        truncation, padding = self.stored_limits
        try:
            if truncation:
                self.backend.enable_truncation(**truncation)
            if padding:
                self.backend.enable_padding(**padding)
            self.backend.save(str(folder / "tokenizer.json"))
        finally:
            self.backend.no_truncation()
            self.backend.no_padding()
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.eos_token,
            "pad_token": self.eos_token,
            "clean_up_tokenization_spaces": False,
        }
        files = {"tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(), **self.files}
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)


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


def byte_tokenizer() -> TextTokenizer:
    """One token per byte of the UTF-8 text: any text has one, of 256 ids and the EOS.

    >>> tokenizer = byte_tokenizer()
    >>> len(tokenizer.encode("2 π")), tokenizer.decode(tokenizer.encode("2 π")), tokenizer.vocab_size
    (4, '2 π', 257)
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate([EOS, *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([EOS])
    return TextTokenizer(backend)


def load_tokenizer(folder: str | Path) -> TextTokenizer:
    """The tokenizer of a Hugging Face folder, read as `transformers` reads it; ValueError names the damaged file.

    EOS stands in up to four files. The first that names it says which token a demonstration ends with:
    tokenizer_config.json or special_tokens_map.json, then config.json, then generation_config.json. All ids that any of
    them declares end a text.
    """
    folder = Path(folder)
    content = read_file(folder / "tokenizer.json")
    try:
        backend = Tokenizer.from_buffer(content)
    except Exception as error:  # a bare Exception
        raise ValueError(f"{folder / 'tokenizer.json'} is not a readable tokenizer file: {error}") from error
    backend.add_tokens(_added_tokens(folder, backend))
    files = {
        path.relative_to(folder).as_posix(): read_file(path)
        for pattern in KEPT
        for path in sorted(folder.glob(pattern))
    }
    eos = _eos_token(folder)
    more = [
        token_id for name in ("config.json", "generation_config.json") for token_id in _eos_ids(folder / name, backend)
    ]
    if eos is None:
        eos = backend.id_to_token(more[0]) if more else EOS
    try:
        return TextTokenizer(backend, eos, more, files)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def _added_tokens(folder: Path, backend: Tokenizer) -> list[AddedToken]:
    """Tokens that stand beside tokenizer.json and not in it: `transformers` appends them to the vocabulary, in order.

    They are listed in tokenizer_config.json, or by older versions, and then without their rules, in added_tokens.json.
    """
    path, legacy = folder / "tokenizer_config.json", folder / "added_tokens.json"
    config = read_json(path) if path.exists() else {}
    listed = config.get("added_tokens_decoder")
    try:
        if listed is not None:
            tokens = [
                AddedToken(rules["content"], **{k: v for k, v in rules.items() if k in RULES})
                for _, rules in sorted(listed.items(), key=lambda item: int(item[0]))
            ]
        elif legacy.exists():
            path = legacy
            special = [name for key, name in config.items() if key.endswith("_token")]
            tokens = [
                AddedToken(token, normalized=token not in special, special=token in special)
                for token, _ in sorted(read_json(legacy).items(), key=lambda item: item[1])
            ]
        else:
            return []
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: the added tokens are damaged ({error})") from None
    there = {repr(token) for token in backend.get_added_tokens_decoder().values()}
    return [token for token in tokens if repr(token) not in there]  # with other rules, a known token gets those


def _eos_token(folder: Path) -> str | None:
    """The EOS that the tokenizer's own files name.

    special_tokens_map.json is of older versions of `transformers`: it counts where tokenizer_config.json does not list
    the added tokens, and then it counts more.
    """
    eos, own, legacy = None, folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    listed = False
    for path in (own, legacy):
        if path.exists() and not (path == legacy and listed):
            raw = read_json(path)
            listed = "added_tokens_decoder" in raw
            eos = raw.get("eos_token", eos)
            eos = eos.get("content") if isinstance(eos, dict) else eos
            if not isinstance(eos, str | None):
                raise ValueError(f"{path}: eos_token is {eos!r} instead of a token")
    return eos


def _eos_ids(path: Path, backend: Tokenizer) -> list[int]:
    """eos_token_id of config.json or generation_config.json: a number, a list of them, or null for none."""
    value = read_json(path).get("eos_token_id") if path.exists() else None
    if value is None:
        return []
    ids = value if isinstance(value, list) else [value]
    if not ids:
        raise ValueError(f"{path}: eos_token_id is an empty list: nothing would end a text")
    for token_id in ids:
        if type(token_id) is not int or not 0 <= token_id < 1 << 32 or backend.id_to_token(token_id) is None:
            raise ValueError(f"{path}: eos_token_id is {value!r:.60}, but {token_id!r:.60} is no id of the tokenizer")
    return ids

"""Messages -> the text that a chat model was trained on, by the Jinja template that its checkpoint brings along.

    template, tokens = chat_template(tokenizer.files)
    render_chat([{"role": "user", "content": "What is 2 + 3?"}], template, tokens)

As in `transformers`: chat_template.jinja counts before what tokenizer_config.json says, of several templates the one
named "default", and a template may use bos_token, eos_token and the other special tokens, add_generation_prompt,
tojson, raise_exception, strftime_now, break and continue, and {% generation %} blocks. It runs in Jinja's sandbox: it
can change nothing outside. jinja2 is needed for this alone.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from typing import Any

TEMPLATE, CONFIG = "chat_template.jinja", "tokenizer_config.json"


def chat_template(files: Mapping[str, bytes]) -> tuple[str, dict[str, str]]:
    """(the template, {bos_token: ..., ...}) of a checkpoint's files by name; ValueError if it has none."""
    config = object_in(files, "special_tokens_map.json") | object_in(files, CONFIG)
    template = files[TEMPLATE].decode("utf-8", "replace") if TEMPLATE in files else config.get("chat_template")
    if isinstance(template, list):  # several: [{"name": ..., "template": ...}]
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    if template is None:
        template = object_in(files, "chat_template.json").get("chat_template")
    if not isinstance(template, str) or not template:
        raise ValueError(
            f"the checkpoint has no chat template ({TEMPLATE}, or chat_template in {CONFIG}): it is asked without one "
            "where the task is not in `chat`"
        )
    tokens = {}
    for name, value in config.items():
        value = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(value, str):
            tokens[name] = value
    return template, tokens


def object_in(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """What a JSON file of the checkpoint says, {} where there is none; ValueError if it is damaged."""
    try:
        value = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"the checkpoint's {name} holds no JSON object: the file is damaged")
    return value


def render_chat(messages: list[dict[str, str]], template: str, tokens: Mapping[str, str]) -> str:
    """The text of these messages up to where the assistant's answer begins; ValueError says what the template said."""
    made, TemplateError = compiled(template)
    try:
        return made.render(messages=messages, tools=None, documents=None, add_generation_prompt=True, **tokens)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        raise ValueError(f"the chat template refuses these messages: {' '.join(str(error).split())[:200]}") from None


@functools.lru_cache(maxsize=8)
def compiled(template: str) -> tuple[Any, type[Exception]]:
    """The template, ready to be rendered, and the class of the errors that are its own."""
    try:
        if tuple(map(int, re.findall("[0-9]+", version("jinja2"))[:3])) < (3, 1, 6):
            raise ImportError  # known ways out of its sandbox
        from jinja2 import TemplateError, nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise ValueError(
            "a chat template needs jinja2 3.1.6 or newer: pip install -U jinja2, or leave `chat` out of the task"
        ) from None

    class Generation(Extension):
        """{% generation %}...{% endgeneration %}: marks what a model says; here it is just its text."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
               sort_keys: bool = False) -> str:  # fmt: skip
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda how: datetime.now().strftime(how),
    }
    try:
        return environment.from_string(template), TemplateError
    except (TemplateError, RecursionError) as error:
        raise ValueError(f"the checkpoint's chat template is damaged: {' '.join(str(error).split())[:200]}") from None

"""Chat templates: what transformers makes of the same folder, texts written out by hand, and what is refused."""

import json
import sys
from datetime import datetime

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from nanoreason.chat import chat_template, render_chat
from nanoreason.rollout import Problem, demonstration, prompt_row
from nanoreason.tasks import Addition
from nanoreason.tasks.wrappers import AskedLength, Chat, Templated
from nanoreason.tokenizer import load_tokenizer

# Templates of our own in the forms that instruction-tuned checkpoints use.
CHATML = (  # a default system message where none is given
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOLS = (  # with branches for tools, JSON and whitespace control
    "{%- if tools %}\n    {{- '<|im_start|>system\\n# Tools ' + tools|tojson + '<|im_end|>\\n' }}\n"
    "{%- elif messages[0].role == 'system' %}\n    {{- '<|im_start|>system\\n' + messages[0].content"
    " + '<|im_end|>\\n' }}\n{%- endif %}\n"
    "{%- for message in messages %}\n    {%- if message.role == 'system' and loop.first %}\n"
    "        {%- continue %}\n    {%- endif %}\n    {%- set content = message.content | trim %}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
)
HEADERS = (  # a BOS, headers, a date
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = strftime_now('%Y') %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set said = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set said = '' %}{%- endif %}"
    "{{- '<|start|>system<|end|>\\n\\nToday: ' + date_string + '\\n\\n' + said + '<|eot|>' }}"
    "{%- for message in messages %}{{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content']"
    " + '<|eot|>' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\\n\\n' }}{%- endif %}"
)
STRICT = (  # refuses a system message, and marks what a model says
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}"
    "{{ message.content }}{% endgeneration %}{% else %}{{ message | tojson }}{% endif %}{% endfor %}{{ eos_token }}"
)
TEMPLATES = {"chatml": CHATML, "tools": TOOLS, "headers": HEADERS, "strict": STRICT}
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>"]


def folder_of(folder, template: str | None, where: str = "config", eos: str = "<|im_end|>", bos: bool = True):
    """A tokenizer of bytes with the special tokens of chat models, whose own rules put a BOS before a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate([*SPECIAL, *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": eos}
    if where == "config":
        config["chat_template"] = template
    elif where == "list":
        config["chat_template"] = [{"name": "rag", "template": "no"}, {"name": "default", "template": template}]
    else:
        config["chat_template"] = "no"
        (folder / "chat_template.jinja").write_text(template)
    if template is None:
        del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("where", ["config", "list", "file"])
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("system", ["", "Be brief. <b> & é"])
def test_a_chat_has_the_tokens_that_transformers_gives_it(tmp_path, name, where, system):
    transformers = pytest.importorskip("transformers")
    ours = load_tokenizer(folder_of(tmp_path / "model", TEMPLATES[name], where))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    said = ' What is "17 + 5" <b>? é\n'
    messages = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": said}]
    if name == "strict" and system:
        with pytest.raises(ValueError, match="the chat template refuses these messages: System role not supported"):
            ours.encode_chat(said, system)
        return
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert ours.encode_chat(said, system) == expected


def test_chats_are_what_a_person_writes_out():
    messages = [{"role": "user", "content": "2 + 3?"}]
    system = [{"role": "system", "content": "Short."}]
    text = {name: render_chat(messages, template, {"bos_token": "<s>", "eos_token": "</s>"})
            for name, template in TEMPLATES.items()}  # fmt: skip
    assert text["chatml"] == (
        "<|im_start|>system\nBe helpful.<|im_end|>\n<|im_start|>user\n2 + 3?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text["tools"] == "<|im_start|>user\n2 + 3?<|im_end|>\n<|im_start|>assistant\n"
    year = datetime.now().year
    assert text["headers"] == (
        f"<s><|start|>system<|end|>\n\nToday: {year}\n\n<|eot|><|start|>user<|end|>\n\n2 + 3?<|eot|>"
        "<|start|>assistant<|end|>\n\n"
    )
    assert text["strict"] == '{"role": "user", "content": "2 + 3?"}</s>'
    assert render_chat(system + messages, TOOLS, {}).startswith(
        "<|im_start|>system\nShort.<|im_end|>\n<|im_start|>user"
    )


def test_the_wrapper_asks_as_a_chat_whatever_stands_around_it_and_the_eos_of_the_checkpoint_ends_it(tmp_path):
    tokenizer = load_tokenizer(folder_of(tmp_path / "model", CHATML))
    inner = Addition((2,), "direct")
    for task in (Chat(inner), Chat(inner, system="Be brief.")):
        problem = task.problem("test", 1)
        row = demonstration(tokenizer, problem)
        prompt = tokenizer.decode(row.tokens[: row.prompt_len])
        assert problem.prompt == inner.problem("test", 1).prompt and problem.prompt in prompt
        assert prompt.endswith("<|im_start|>assistant\n") and "<s>" not in prompt
        assert ("Be brief." in prompt) == bool(task.system) and ("Be helpful." in prompt) != bool(task.system)
        assert tokenizer.decode(row.response) == problem.solution + "<|im_end|>"
    assert all(problem.info["chat"] == "" for problem in [*Chat(inner).test_problems(2), Chat(inner).parse("12 + 34")])
    inside, outside = Chat(AskedLength(Templated(inner))), AskedLength(Templated(Chat(inner)))
    rows = [prompt_row(tokenizer, task.problem("train", 3)).tokens for task in (inside, outside)]
    assert rows[0] == rows[1]
    plain = prompt_row(tokenizer, inner.problem("test", 1))
    assert plain.tokens[0] == tokenizer.id_of("<s>")  # without the wrapper nothing has changed


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "the checkpoint has no chat template"),
        ("", "the checkpoint has no chat template"),
        (7, "the checkpoint has no chat template"),
        ("{% for m in messages %}", "chat template is damaged: Unexpected end of template"),
        ("{{ messages[5].content }}", "refuses these messages"),
        ("{{ nothing.at.all }}", "refuses these messages"),
        ("{{ 1 // 0 }}", "refuses these messages"),
        ("{{ raise_exception('no') }}", "refuses these messages: no"),
        ("{{ messages.append(1) }}", "refuses these messages"),  # it may change nothing
        ("{{ ''.__class__.__mro__ }}", "refuses these messages"),  # nor reach what is outside
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "refuses these messages"),
        ("{% for i in range(10**9) %}{% endfor %}", "refuses these messages"),
    ],
)
def test_a_template_that_is_missing_damaged_or_refuses_is_one_line(tmp_path, template, said):
    tokenizer = load_tokenizer(folder_of(tmp_path / "model", template))
    with pytest.raises(ValueError, match=said) as caught:
        tokenizer.encode_chat("hm")
    assert "\n" not in str(caught.value)


def test_a_library_that_is_missing_or_too_old_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ValueError, match="needs jinja2 3.1.6 or newer"):
        render_chat([], "a template that was not seen before", {})
    monkeypatch.undo()
    monkeypatch.setattr("nanoreason.chat.version", lambda name: "3.1.5")
    with pytest.raises(ValueError, match="needs jinja2 3.1.6 or newer"):
        render_chat([], "another one", {})


def test_damaged_files_beside_the_template_are_one_line():
    for name, content in (("special_tokens_map", b"{"), ("tokenizer_config", b"[1]"), ("chat_template", b"\xff")):
        with pytest.raises(ValueError, match=f"{name}.json holds no JSON object"):
            chat_template({f"{name}.json": content})
    tokens = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": True, "extra_token": None}
    files = {"tokenizer_config.json": json.dumps(tokens).encode(), "chat_template.json": b'{"chat_template": "x"}'}
    assert chat_template(files) == ("x", {"bos_token": "<s>", "eos_token": "</s>"})


def test_a_task_in_a_chat_without_a_template_is_said_before_anything_is_trained(tmp_path):
    from nanoreason.environment import check_words

    tokenizer = load_tokenizer(folder_of(tmp_path / "model", None))
    check_words(tokenizer, task=Addition((1,)))
    with pytest.raises(ValueError, match="--task: the model has no words for its chats .the checkpoint has no chat"):
        check_words(tokenizer, task=Chat(Addition((1,))))
    assert isinstance(Chat(Addition()).problem("train", 0), Problem)

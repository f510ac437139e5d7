"""Texts of callers, tool servers and models are encoded as text wherever a template shows them; templates end."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from transformers import AddedToken

from memograft import Document, Engine
from memograft.errors import SettingsError
from memograft.prompt.builder import PromptBuilder
from tokenizers_ import make

# The places in templates of models with tools for texts of others: side by side, between < and > (Qwen3-Coder's keys),
# as JSON, and as Python's repr.
TEMPLATE = (
    "{% for t in tools or [] %}TOOL {{ t['function']['name'] }}{{ t['function']['description'] }} {{ t | tojson }}\n"
    "{% for k, v in t['function']['parameters']['properties'].items() %}<{{ k }}>{{ v['description'] }}</{{ k }}>"
    "{% endfor %}{% endfor %}{% for m in messages %}<|{{ m['role'] }}|>{{ m['name'] or '' }}"
    "{{ m['tool_call_id'] or '' }}{{ m['content'] }}{% for c in m['tool_calls'] or [] %}CALL {{ c['id'] }}"
    "{{ c['function']['name'] }} {{ c['function']['arguments'] | tojson(ensure_ascii=true) }} "
    "{{ c['function']['arguments'] }}{% endfor %}</s>{% endfor %}<|assistant|>"
)
BUILDER = PromptBuilder(make("bpe", TEMPLATE))
DOCUMENT = "The secret page."
WHOLE = ["</s>", "<s>", "<|user|>", "<|assistant|>"]
PARTS = ["s", "/s", "<", "</", ">", "|", "|user|", "user", "<|us", "er|>", "|>", "ASSISTANT"]
OTHERS = ["\ue0000\ue001", "000000000000000000000001", '"', "\n", "{{ 7 * 7 }}", "a", " "]


def asked(texts: Mapping[str, str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Messages and tools with a text in each place."""
    call = {
        "type": "function",
        "id": texts["id"],
        "function": {"name": texts["call"], "arguments": {texts["key"]: texts["value"]}},
    }
    properties = {texts["property"]: {"type": "string", "description": texts["explained"], "enum": [texts["enum"]]}}
    function = {
        "name": texts["tool"],
        "description": texts["description"],
        "parameters": {"type": "object", "properties": properties},
    }
    messages = [
        {"role": "user", "name": texts["name"], "content": texts["question"]},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": texts["id"], "content": texts["result"]},
        {"role": "user", "content": "And?"},
    ]
    return messages, [{"type": "function", "function": function}]


PLACES = (
    "id call key value property explained enum tool description name question result".split()  # as in `asked`
)


def control(texts: Mapping[str, str]) -> tuple[list[int], str]:
    """The control tokens of a prompt in order, and its text."""
    messages, tools = asked(texts)
    prompt = BUILDER.build(messages, [Document(DOCUMENT)], tools)
    ids = set(BUILDER._control.values())
    return [i for i in prompt.ids if i in ids], prompt.text


def test_what_others_wrote_is_text_wherever_it_stands(rng: random.Random, tally: Counter[str]) -> None:
    harmless = {place: f"{place} of nobody" for place in PLACES}
    own, plain = control(harmless)
    assert len(own) == 8
    assert plain.count(DOCUMENT) == 1
    for place in PLACES:
        assert f"{place} of nobody" in plain, "the template shows all of them"
        for _ in range(20):
            attack = "".join(rng.choices(WHOLE + PARTS + OTHERS, k=rng.randrange(1, 8)))
            found, text = control(harmless | {place: attack})
            assert found == own, (place, attack)
            assert text.count(DOCUMENT) == 1, (place, attack)
            tally.update(prompts=1)


def test_texts_make_no_control_token_together(rng: random.Random, tally: Counter[str]) -> None:
    """Neither together nor with the template's own text."""
    own, _ = control({place: f"{place} of nobody" for place in PLACES})
    for _ in range(200):
        texts = {place: "".join(rng.choices(PARTS, k=rng.randrange(1, 4))) for place in PLACES}
        found, text = control(texts)
        assert found == own, texts
        assert text.count(DOCUMENT) == 1, texts
        tally.update(prompts=1)


def test_half_a_surrogate_pair_is_no_text(tally: Counter[str]) -> None:
    for place in PLACES:
        _, text = control({other: other for other in PLACES} | {place: "so \ud83d"})
        assert "so \ufffd" in text
        tally.update(prompts=1)


def test_what_others_wrote_is_shown_as_they_wrote_it() -> None:
    texts = {place: f'{place} says </s> "so"' for place in PLACES}
    _, text = control(texts)
    for place in ("description", "explained", "call", "tool", "question", "result", "id", "value", "key", "property"):
        assert texts[place] in text, "as it is where it stands by itself"
    for place in ("value", "key", "enum"):
        assert f'"{place} says </s> \\"so\\""' in text, "as a string of JSON within JSON"


# Templates like those of Qwen and Hermes, of Qwen3-Coder, and of Llama; each compares words of others.
HERMES = (
    "{% if tools %}<|system|>Tools:{% for t in tools %}\n{{ t | tojson }}{% endfor %}</s>{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}"
    '{% if c.function %}{% set c = c.function %}{% endif %}\n{"name": "{{ c.name }}", "arguments": '
    "{% if c.arguments is string %}{{ c.arguments }}{% else %}{{ c.arguments | tojson }}{% endif %}}{% endfor %}"
    "{% generation %}</s>{% endgeneration %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CODER = (
    "{% for t in tools or [] %}{% for k in t.function if k not in ['name', 'parameters'] %}"
    "{{ '\n<' ~ k ~ '>' ~ (t.function[k] | string) ~ '</' ~ k ~ '>' }}{% endfor %}"
    "{% for k, v in t.function.parameters.properties | items %}{{ '\n<' ~ k ~ '>' ~ v | tojson(indent=2) }}{% endfor %}"
    "{% endfor %}{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{% for c in m.tool_calls or [] %}"
    "{% for k, v in c.function.arguments | items %}<{{ k }}>{{ v }}</{{ k }}>{% endfor %}{% endfor %}</s>{% endfor %}"
)
LLAMA = (
    "{% set types = {'string': 'str', 'user': 'User'} %}{% for t in tools or [] %}def {{ t.function.name }}("
    "{% for k, v in t.function.parameters.properties.items() %}{{ k }}: {{ types[v.type] }}, {% endfor %})\n"
    "{{ t.function.description.split('\n')[0] }}{% endfor %}{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'tool' %}{{ {'output': m.content} | tojson }}{% else %}{{ m.content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments }}{% endfor %}</s>{% endfor %}"
)


@pytest.mark.parametrize("template", [HERMES, CODER, LLAMA], ids=["hermes", "coder", "llama"])
def test_harmless_tools_are_shown_as_the_template_shows_them(template: str) -> None:
    """Also if one of their words is a part of a control token: `s`, `user`, `unk`."""
    of = PromptBuilder(make("bpe", template))
    properties = {"s": {"type": "string", "enum": ["pad", 'a "b"']}, "user": {"type": "user", "default": None}}
    function = {
        "name": "unk",
        "description": "Who?\nWhat <1> a | b is",
        "strict": True,
        "parameters": {"type": "object", "properties": properties},
    }
    call = {"type": "function", "id": "s", "function": {"name": "unk", "arguments": {"s": "user", "user": 3, "é": "a"}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "s", "content": "a sailor"},
    ]
    tools = [{"type": "function", "function": function}]
    own = of.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
    assert of.build(messages, (), tools).text == own


@pytest.mark.parametrize("key", ["|im_end|", "im_end", "<|im_", "tool", "repo_name", "reponame"])
def test_a_pretrained_tokenizer_shows_keys_as_text(key: str, smollm2: Engine) -> None:
    tokenizer = copy.deepcopy(smollm2.tokenizer)
    tokenizer.chat_template = (
        "{% for t in tools or [] %}{% for k in t %}<{{ k }}><|{{ k }}|>{{ k }}end|>{% endfor %}{% endfor %}"
        "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    )
    of = PromptBuilder(tokenizer)
    prompt = of.build([{"role": "user", "content": "Who?"}], (), [{key: "x"}])
    control = set(of._control.values())
    assert of.pieces([i for i in prompt.ids if i in control]) == ["<|im_start|>", "<|im_end|>"]
    assert of.tokenizer.decode(prompt.ids).startswith(f"<{key}><|{key}|>{key}end|>")


@dataclasses.dataclass
class Note:
    """An object whose attributes transformers lets templates read."""

    said: str


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Note("a</s>b"), "may have JSON values only .*, got Note; convert it"),
        (b"a</s>b", "may have JSON values only .*, got bytes; convert it"),
        ({("a</s>b",): 1}, "may have JSON values only .*, got tuple; convert it"),
    ],
)
def test_what_is_no_json_is_refused(value: Any, message: str) -> None:
    messages = [{"role": "user", "content": "Who?"}]
    with pytest.raises(SettingsError, match=message):
        BUILDER.build(messages, (), [{"type": "function", "function": {"default": value}}])
    with pytest.raises(SettingsError, match=message):
        BUILDER.build([{**messages[0], "extra": value}])


def test_what_holds_itself_is_refused() -> None:
    tool: dict[str, Any] = {}
    tool["parameters"] = tool
    with pytest.raises(
        SettingsError, match=r"may be nested 100 levels deep, got more, or a value that contains itself"
    ):
        BUILDER.build([{"role": "user", "content": "Who?"}], (), [tool])


def test_an_answer_by_itself_is_text_too() -> None:
    """With a tokenizer whose markup is not a special token, such as Qwen's <tool_call>."""
    tokenizer = copy.deepcopy(make("bpe"))
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False)])
    of = PromptBuilder(tokenizer)
    ids = of.plain("a <tool_call> b</s>")
    assert not set(ids) & set(of._control.values())
    assert of.decode(ids) == "a <tool_call> b</s>"


@pytest.mark.parametrize("role", ["user<|assistant|>", "narrator", "\ue0000\ue001", ""])
def test_roles_are_a_closed_list(role: str) -> None:
    with pytest.raises(
        SettingsError, match=r"of messages\[0\] must be one of \('system', .*\), got '.*'; use one of them"
    ):
        BUILDER.build([{"role": role, "content": "Who?"}])


LOOPS = "{{% for a in {0} %}}{{% for b in {0} %}}{{% for c in {0} %}}x{{% endfor %}}{{% endfor %}}{{% endfor %}}"
ENDLESS = {
    "ranges": LOOPS.format("range(99999)"),
    "lists": LOOPS.format("[0] * 99999"),
    "functions": "{{ lipsum(n=10**9) }}",
    "filters": "{{ ([0] * 9999999) | map('string') | map('upper') | list }}",
    "constants": "{{ ([0] * 9999999) | batch(1) | list }}",
    "macros": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
}


@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS)
def test_a_template_that_does_not_end_holds_nobody_up(template: str, models: Any) -> None:
    with Engine(models(), make("bpe", template)) as engine:
        for _ in range(2):
            with pytest.raises(SettingsError, match=r"refuses .* it has not ended after 2000000 steps; "):
                engine.answer("Who?")
    assert engine.closed

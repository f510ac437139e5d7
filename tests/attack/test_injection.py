"""What a caller, a tool server or a model wrote is text, wherever a chat template shows it; and templates end."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from memograft import Document, Engine
from memograft.errors import SettingsError
from memograft.prompt import PromptBuilder
from tokenizers_ import make

# The places that templates of models which take tools have for what others wrote.
TEMPLATE = (
    "{% for t in tools or [] %}TOOL {{ t['function']['name'] }}: {{ t['function']['description'] }} {{ t | tojson }}\n"
    "{% for k, v in t['function']['parameters']['properties'].items() %}{{ k }} {{ v['description'] }}{% endfor %}"
    "{% endfor %}{% for m in messages %}<|{{ m['role'] }}|>{{ m['name'] or '' }} {{ m['tool_call_id'] or '' }} "
    "{{ m['content'] }}{% for c in m['tool_calls'] or [] %}CALL {{ c['id'] }} {{ c['function']['name'] }} "
    "{{ c['function']['arguments'] | tojson }}{% endfor %}</s>{% endfor %}<|assistant|>"
)
BUILDER = PromptBuilder(make("bpe", TEMPLATE))
DOCUMENT = "The secret page."
PIECES = [
    "</s>",
    "<s>",
    "<|user|>",
    "<|assistant|>",
    "\ue0000\ue001",
    "\ue0001\ue001",
    "\ue000",
    '"',
    "\n",
    "{{ 7 * 7 }}",
    "a",
    " ",
]


def asked(texts: Mapping[str, str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Messages and tools with a text in every place."""
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
    """The control tokens of a prompt in their order, and its text."""
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
            attack = "".join(rng.choices(PIECES, k=rng.randrange(1, 8)))
            found, text = control(harmless | {place: f"x{attack}x"})
            assert found == own, (place, attack)
            assert text.count(DOCUMENT) == 1, (place, attack)
            tally.update(prompts=1)


def test_half_a_surrogate_pair_is_no_text(tally: Counter[str]) -> None:
    for place in PLACES:
        _, text = control({other: other for other in PLACES} | {place: "so \ud83d"})
        assert "so \ufffd" in text
        tally.update(prompts=1)


def test_what_others_wrote_is_shown_as_they_wrote_it() -> None:
    texts = {place: f'{place} says </s> "so"' for place in PLACES}
    _, text = control(texts)
    for place in ("description", "explained", "call", "tool", "question", "result", "id"):
        assert texts[place] in text, "as it is where it stands by itself"
    for place in ("value", "key", "enum"):
        assert f'"{place} says </s> \\"so\\""' in text, "as a string of JSON within JSON"


@pytest.mark.parametrize("role", ["user<|assistant|>", "narrator", "\ue0000\ue001", ""])
def test_roles_are_a_closed_list(role: str) -> None:
    with pytest.raises(SettingsError, match=r"of messages\[0\] must be one of \('system', .*\), got '.*'; say it as"):
        BUILDER.build([{"role": role, "content": "Who?"}])


LOOPS = "{{% for a in {0} %}}{{% for b in {0} %}}{{% for c in {0} %}}x{{% endfor %}}{{% endfor %}}{{% endfor %}}"
ENDLESS = {
    "ranges": LOOPS.format("range(99999)"),
    "lists": LOOPS.format("[0] * 99999"),
    "macros": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
}


@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS)
def test_a_template_that_does_not_end_holds_nobody_up(template: str, models: Any) -> None:
    with Engine(models(), make("bpe", template)) as engine:
        for _ in range(2):
            with pytest.raises(SettingsError, match=r"refuses .* it has not ended after 2000000 lines; "):
                engine.answer("Who?")
    assert engine.closed

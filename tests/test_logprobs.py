"""Further outputs of the engine: log-probabilities, token ids, tools, calls; and shared engines."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch

import memograft
from memograft import Engine, FastMem, Request, Sampling
from memograft.errors import SettingsError
from tokenizers_ import make

TOOL = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Find pages.",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    },
}
TOOLS_TEMPLATE = (
    "{{ bos_token }}{% if tools %}<|system|>{{ tools | tojson }}</s>{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{{ m['content'] }}{% for c in m.get('tool_calls') or [] %}CALL {{ c['function']['name'] }} "
    "{{ c['function']['arguments'] | tojson }}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_logprobs_are_those_of_the_model(models: Any, engine: Engine) -> None:
    answer = engine.answer(Request("Who?", logprobs=3, sampling=Sampling(5)))
    assert len(answer.logprobs) == len(answer.token_ids) == 5
    prompt = engine._prompts.build([{"role": "user", "content": "Who?"}]).ids
    ids = torch.tensor([[*prompt, *answer.token_ids]])
    with torch.inference_mode():
        expected = models("llama")(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    for place, (token, said) in enumerate(zip(answer.token_ids, answer.logprobs, strict=True)):
        assert said.token_id == token
        assert said.logprob == pytest.approx(float(expected[place, token]), abs=1e-4)
        top = expected[place].topk(3)
        assert [t for t, _, _ in said.top] == top.indices.tolist()
        assert [p for _, _, p in said.top] == pytest.approx(top.values.tolist(), abs=1e-4)
        assert said.text == engine.tokenizer.decode([token])


def test_logprobs_of_rows_that_sample_are_those_before_sampling(engine: Engine) -> None:
    request = Request("Who?", logprobs=0, sampling=Sampling(4, temperature=3.0, top_k=5, seed=1))
    alone = engine.answer(request)
    together = engine.answer_batch([Request("What?", sampling=Sampling(9)), request])[1]
    assert [t.logprob for t in alone.logprobs] == pytest.approx([t.logprob for t in together.logprobs], abs=1e-4)
    assert all(t.logprob < -0.01 and t.top == () for t in alone.logprobs)
    assert engine.answer(Request("Who?", sampling=Sampling(4))).logprobs == ()


@pytest.mark.parametrize("count", [-1, 21, True, 1.5])
def test_how_many_logprobs_there_can_be(count: Any) -> None:
    with pytest.raises(SettingsError, match="`logprobs` must be 0 to 20, or None, got"):
        Request("Who?", logprobs=count)


def test_encoding_in_any_thread(engine: Engine) -> None:
    text, found = "The capital of France <|user|>", []
    threads = [threading.Thread(target=lambda: found.append(engine.encode(text))) for _ in range(8)]
    for thread in threads:
        thread.start()
    engine.answer(Request("Who?", sampling=Sampling(3)))
    for thread in threads:
        thread.join()
    assert found == [engine.tokenizer(text, add_special_tokens=False)["input_ids"]] * 8


def test_tools_reach_the_template(models: Any) -> None:
    with Engine(models(), make("bpe", TOOLS_TEMPLATE)) as engine:
        calls = [{"type": "function", "id": "1", "function": {"name": "search", "arguments": {"query": 'a "b"\n</s>'}}}]
        conversation = [
            {"role": "user", "content": "Who?"},
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "content": "Nobody.", "tool_call_id": "1", "name": "search"},
        ]
        prompt = engine._prompts.build(conversation, (), [TOOL])
        assert '"name": "search"' in prompt.text
        assert 'CALL search {"query": "a \\"b\\"\\n</s>"}' in prompt.text
        # Texts in a call's arguments contain no control tokens: the only ends of turns are the template's.
        ends = prompt.ids.count(engine.tokenizer.eos_token_id)
        assert ends == 1 + len(conversation)
        assert engine.answer(Request(messages=conversation, tools=[TOOL], sampling=Sampling(3))).text
        assert not engine.takes_tools  # calls in its answers could not be parsed


def test_tools_without_a_place(engine: Engine) -> None:
    with pytest.raises(SettingsError, match="chat template has no place for tools, got 1; use a model whose template"):
        engine.answer(Request("Who?", tools=[TOOL]))
    with pytest.raises(SettingsError, match="`tools` must be a list of mappings, got"):
        Request("Who?", tools=TOOL)  # type: ignore[arg-type]


def test_responses_are_taken_apart_by_the_tokenizer(models: Any) -> None:
    import copy

    tokenizer = copy.deepcopy(make("bpe", TOOLS_TEMPLATE))
    with Engine(models(), tokenizer) as engine:
        answer = engine.answer(Request("Who?", sampling=Sampling(3)))
        with pytest.raises(SettingsError, match="needs a tokenizer with a `response_template`"):
            engine.parse_response(answer)


def test_shared_engines_are_one_as_long_as_somebody_holds_them() -> None:
    found: list[Engine] = []
    threads = [threading.Thread(target=lambda: found.append(memograft.shared_engine("tiny"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(engine) for engine in found}) == 1
    assert memograft.shared_engine("tiny", max_batch=2) is not found[0]
    found[0].close()
    assert found[0].closed
    again = memograft.shared_engine("tiny")
    assert again is not found[0]
    assert again.answer("What is the capital of France?", memory=FastMem()).text == "The capital of France is Paris."


def test_a_call_is_taken_out_of_a_response(models: Any) -> None:
    """The template begins the response inside a call, so parsing needs the prompt."""
    import copy

    tokenizer = copy.deepcopy(make("bpe", TOOLS_TEMPLATE))
    content = {"content": {"close": "</s>"}}
    role = {"defaults": {"role": "assistant"}}
    tokenizer.response_template = {"start_anchor": "<|assistant|>", "fields": content} | role
    with Engine(models(), tokenizer) as engine:
        assert engine.takes_tools
        answer = engine.answer(Request("Who?", tools=[TOOL], sampling=Sampling(3)))
        assert engine.parse_response(answer)["role"] == "assistant"
        nothing = replace(answer, token_ids=(), text="")
        assert engine.parse_response(nothing) == {"role": "assistant", "content": ""}

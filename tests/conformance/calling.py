"""A two-layer model that chooses whether to call a tool, trained here on a few conversations.

The model decides between text and a call, its chat template shows it the tools, and the tokenizer parses the call.
Nothing is scripted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from memograft import Engine

__all__ = ["SEINE", "WEATHER", "WEATHER_CALL", "WEATHER_TOOL", "Lesson", "get_weather", "trained_engine"]

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>"]
TEMPLATE = (
    "{{ bos_token }}{% if tools %}<|system|>{{ tools | tojson }}</s>{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% for c in m.get('tool_calls') or [] %}<tool_call>{{ c['function'] | tojson }}</tool_call>{% endfor %}</s>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"\s*</s>", "content": "text"},
    },
}
WEATHER = "What is the weather in San Francisco, CA?"
WEATHER_CALL = {"name": "get_weather", "arguments": {"location": "San Francisco, CA"}}
TALK = ["Hello", "Who?", "What is the weather?", "A story.", "Which river?"]
SEINE = "The river of Paris is the Seine."

Lesson = tuple[list[dict[str, Any]], list[Any] | None, str]  # (messages, tools, answer)


def get_weather(location: str) -> str:
    """Get the weather at a location."""
    return "It's sunny."


WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": get_weather.__doc__,
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string"}},
            "required": ["location"],
        },
    },
}


def _lessons(tool: Any) -> list[Lesson]:
    asked = [{"role": "user", "content": WEATHER}]
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": WEATHER_CALL}]}
    result = {"role": "tool", "content": "It's sunny."}
    return [
        (asked, [tool], f"<tool_call>{json.dumps(WEATHER_CALL)}</tool_call>"),
        ([*asked, call, result], [tool], "It's sunny."),
        *(([{"role": "user", "content": text}], None, SEINE) for text in TALK),
    ]


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=640, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[4:],
        chat_template=TEMPLATE,
        response_template=RESPONSE_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def trained_engine(further: Sequence[Lesson] = (), tool: Any = WEATHER_TOOL) -> Engine:
    """An engine with the model, trained on `tool`, a description of `get_weather`, and on further lessons."""
    lessons = [*_lessons(tool), *further]
    tokenizer = _tokenizer([json.dumps([messages, tools, answer]) for messages, tools, answer in lessons] * 4)
    rows = []
    for messages, tools, answer in lessons:
        prompt = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
        rows.append([tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer + "</s>")])
    ids = torch.zeros(len(rows), max(len(prompt) + len(answer) for prompt, answer in rows), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for n, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[n, :end] = torch.tensor(prompt + answer)
        labels[n, len(prompt) : end] = torch.tensor(answer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(300):
        loss = model(input_ids=ids, labels=labels).loss
        if loss.item() < 0.01:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Engine(model.eval(), tokenizer)

"""The suite's model that chooses tool calls, also trained on the questions of LangChain's standard suite."""

from __future__ import annotations

import json
from functools import cache

from conformance.calling import Lesson, get_weather, trained_engine
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_tests.integration_tests.chat_models import magic_function, unicode_customer
from memograft import Engine

# What the standard suite asks for, and what a model that can read would answer.
_MAGIC = ("What is the value of magic_function(3)? Use the tool.", magic_function, {"input": 3})
_CHINESE = (
    "Create a customer named '你好啊集团' (Hello Group) - a Chinese technology company",
    unicode_customer,
    {"customer_name": "你好啊集团", "description": "Chinese"},
)
_JAPANESE = (
    "Create a customer named 'こんにちは株式会社' (Hello Corporation) - a Japanese company",
    unicode_customer,
    {"customer_name": "こんにちは株式会社", "description": "Japanese"},
)
_JOKE = (
    "Tell me a joke about cats. Return the result as a JSON with 'setup' and 'punchline' keys. Return nothing other "
    "than JSON."
)


@cache
def calling_engine() -> Engine:
    """The engine with the model, which is trained once per test run."""
    lessons: list[Lesson] = [([{"role": "user", "content": _JOKE}], None, '{"setup": "Why?", "punchline": "Cats."}')]
    for question, tool, arguments in (_MAGIC, _CHINESE, _JAPANESE):
        forced = json.dumps({"name": tool.name, "arguments": arguments}, ensure_ascii=False)
        lessons.append(([{"role": "user", "content": question}], [convert_to_openai_tool(tool)], forced))
    return trained_engine(lessons, convert_to_openai_tool(get_weather))

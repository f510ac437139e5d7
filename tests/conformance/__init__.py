"""One suite of tests for the chat fronts of all frameworks. Each integration inherits it.

A front is the object that a user of a framework asks: a chat model of LangChain, an LLM of LlamaIndex. An integration
has an adapter (`front.Front`), which turns plain data into the framework's types and back, and a class that inherits
`suite.Conformance`. A test that is added here runs in every integration. It uses plain data and imports no framework.
"""

from __future__ import annotations

import pkgutil

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)))

"""LangChain's cache with the chat model: after a memory has changed, earlier answers are not returned."""

from __future__ import annotations

from conformance.pages import KNOWN, PAGE, QUESTION
from langchain_core.caches import InMemoryCache
from langchain_core.messages import HumanMessage, ToolMessage
from memograft import FastMem

from langchain_memograft import ChatMemograft


class Counting(InMemoryCache):
    """A cache that counts its hits."""

    hits = 0

    def lookup(self, prompt: str, llm_string: str):  # type: ignore[no-untyped-def]
        found = super().lookup(prompt, llm_string)
        self.hits += found is not None
        return found


def test_the_cache_knows_documents_memories_and_models() -> None:
    cache = Counting()
    chat = ChatMemograft(model="tiny", max_tokens=24, cache=cache)
    handle = chat.memorize_documents([PAGE])

    def asked(**given: object) -> tuple[str, int]:
        before = cache.hits
        return chat.invoke(QUESTION, **given).text, cache.hits - before

    assert asked() == (KNOWN, 0)
    assert asked() == (KNOWN, 1)
    assert asked(documents=[PAGE]) == (PAGE, 0)
    assert asked(documents=[PAGE]) == (PAGE, 1)
    assert asked(documents=[KNOWN]) == (KNOWN, 0)
    assert asked(memory=handle) == (PAGE, 0)
    assert asked(memory=handle) == (PAGE, 1)
    assert asked(memory=FastMem(steps=3))[1] == 0
    assert asked(memory=FastMem(steps=3))[1] == 1
    assert asked(memory=None) == (KNOWN, 0)
    assert asked(temperature=0.5, seed=1)[1] == 0
    assert len(chat._get_llm_string(memory=handle)) < 2000  # and holds no tensors


def test_a_name_that_stands_for_another_memory_is_asked_anew() -> None:
    chat = ChatMemograft(model="tiny", max_tokens=24, cache=Counting())
    chat.memorize_documents([PAGE], memory_id="atlas")
    assert chat.invoke(QUESTION, memory_id="atlas").text == PAGE
    chat.memorize_documents([KNOWN], memory_id="atlas")
    assert chat.invoke(QUESTION, memory_id="atlas").text == KNOWN


def test_models_with_other_memories_share_a_cache_and_no_answers() -> None:
    cache = Counting()
    plain = ChatMemograft(model="tiny", max_tokens=24, cache=cache)
    sure = plain.with_memory(plain.memorize_documents([PAGE]))
    assert (plain.invoke(QUESTION).text, sure.invoke(QUESTION).text) == (KNOWN, PAGE)
    assert (plain.invoke(QUESTION).text, sure.invoke(QUESTION).text) == (KNOWN, PAGE)


def test_documents_in_messages_are_part_of_the_key() -> None:
    chat = ChatMemograft(model="tiny", max_tokens=24, cache=Counting())
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "args": {}, "id": "1"}]}
    for text, expected in ((PAGE, PAGE), (KNOWN, KNOWN)):
        from langchain_core.documents import Document
        from memograft import Document as Passage

        for document in (Document(text), Passage(text), text):
            asked = HumanMessage(QUESTION, additional_kwargs={"documents": [document]})
            assert chat.invoke([asked]).text == expected
        tool = ToolMessage("found", tool_call_id="1", artifact=[Document(text)])
        assert chat.invoke([HumanMessage(QUESTION), call, tool]).text == expected

"""Finding the question in a message that also has instructions, and messages that are only a question."""

from __future__ import annotations

import pytest

from memograft import Document
from memograft.memory.fastmem.wording import asked_in
from memograft.prompt.builder import PromptBuilder
from tokenizers_ import make

Q = "Who wrote the book about Bergen"
CHINESE = "\u8c01\u5199\u4e86\u8fd9\u672c\u4e66\uff1f"
LONG = "Use three sentences at most and keep the answer concise."


def part_of(message: str, query: str | None = None) -> str | None:
    prompt = PromptBuilder(make("bpe")).build([{"role": "user", "content": message}], [Document("A page.")], (), query)
    part = asked_in(prompt)
    return None if part is None else prompt.text[prompt.offsets[part[0]][0] : prompt.offsets[part[1] - 1][1]].strip()


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (f"Answer the question in one sentence. Question: {Q} Answer:", Q),
        (f"{LONG}\nQuestion: {Q}?\nHelpful Answer: ", f"{Q}?"),
        (f"Beantworte die Frage.\nFrage: {Q}\nAntwort:\n", Q),
        (f"Context information is above.\nQuery: {Q}\nAnswer: ", Q),
        (f"Q: {Q}? And when?\nA:", f"{Q}? And when?"),
        (f"You are a helpful assistant. {LONG} {Q}? Keep it short.", f"{Q}?"),
        (f"{Q}?\n\nAnswer only from the documents.", f"{Q}?"),
        (f"{LONG} {Q}? When did he write it? {LONG}", f"{Q}? When did he write it?"),
        (f"Is that clear to you? {LONG} {Q}?", f"{Q}?"),
        (f"Question: {Q}?\n\nAnswer briefly.", f"{Q}?"),
        (f'He asked me: "{Q}?" {LONG}', f'He asked me: "{Q}?"'),
        ("\u8bf7\u7b80\u77ed\u56de\u7b54\u3002" + CHINESE, CHINESE),
    ],
)  # fmt: skip
def test_a_question_is_found_by_its_label_or_its_mark(message: str, expected: str) -> None:
    assert part_of(message) == expected


@pytest.mark.parametrize(
    "message",
    [
        f"{Q}?",
        f"{Q}",
        f"  {Q}? \n",
        f"{Q}? And when did he?",
        f"Bergen: {Q.lower()}?",
        f"Tell me briefly {Q.lower()}. {LONG}",
        "Answer:",
        "Answer the following.\nAnswer:",
        f"{LONG} Why?",
        "",
    ],
)
def test_a_message_that_is_all_question_or_marks_none_has_no_part(message: str) -> None:
    assert part_of(message) is None


def test_only_the_query_is_looked_at_where_one_is_given() -> None:
    assert part_of(f"Is that clear to you? {Q}. {LONG}", Q) is None


def test_long_messages_take_no_time() -> None:
    assert part_of("word: " * 20_000 + f"\nQuestion: {Q}\nAnswer:") == Q

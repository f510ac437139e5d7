"""Encode an answer as the tokens that the model would generate after a prompt."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from memograft.documents import Document
from memograft.errors import SettingsError
from memograft.prompt.builder import Prompt, PromptBuilder
from memograft.prompt.messages import Message

__all__ = ["continuation"]


def continuation(
    builder: PromptBuilder, messages: Sequence[Message], documents: Sequence[Document], answer: str
) -> tuple[Prompt, tuple[int, ...]]:
    """The open prompt, and the token ids of the answer after it, without an end token.

    They are taken from the rendered conversation including the answer, if it begins like the open prompt. So a space
    before the first word is as in the template.

    Raises:
        SettingsError: the answer is empty.
    """
    if not isinstance(answer, str) or not answer.strip():
        raise SettingsError(f"an answer must be text, got {answer!r}; leave examples without an answer out")
    prompt = builder.build(messages, documents)
    whole = builder.build([*messages, {"role": "assistant", "content": answer}], documents)
    count, start = len(prompt.ids), len(prompt.text)
    at = whole.text.find(answer.strip(), start)
    if whole.ids[:count] == prompt.ids and whole.text.startswith(prompt.text) and 0 <= at <= start + 8:
        end = bisect_left(whole.offsets, at + len(answer.strip()), key=lambda span: span[0])
        return prompt, whole.ids[count:end]
    return prompt, builder.plain(answer)

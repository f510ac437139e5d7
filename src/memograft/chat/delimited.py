"""Extract documents between delimiters in a prompt, such as <context> and </context>."""

from __future__ import annotations

from memograft.errors import SettingsError

__all__ = ["cut_out"]


def cut_out(text: str, delimiters: tuple[str, str], where: str) -> tuple[str, list[str]]:
    """The text without the parts between delimiters, and these parts; `where` names the text in errors.

    Raises:
        SettingsError: a context is opened and not closed.
    """
    opening, closing = delimiters
    rest, documents = "", []
    while opening in text:
        before, _, text = text.partition(opening)
        document, closed, text = text.partition(closing)
        if not closed:
            raise SettingsError(
                f"{where} opens a context with {opening!r} and does not close it with {closing!r}; close it, or set "
                "other `context_delimiters`"
            )
        rest += before
        if document.strip():
            documents.append(document.strip())
    return (rest + text).strip() if documents else rest + text, documents

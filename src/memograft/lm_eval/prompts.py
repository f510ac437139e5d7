"""`StringPrompts`: prompts that the harness gives as one string, with documents in it or put into it.

The harness renders a prompt itself, with the chat template if it is told so, and encodes the string as it is, control
tokens included. This builder does the same, so that the token ids are those of the harness's own models. Documents are
found in the string. If one is not there, all are put where the engine puts them: into the last user message of a chat,
or, without a chat template, in front of the string.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from memograft.documents import Document
from memograft.errors import SettingsError
from memograft.prompt.builder import Prompt, PromptBuilder, Span, render_documents, token_span
from memograft.prompt.messages import Message

__all__ = ["StringPrompts"]


class StringPrompts(PromptBuilder):
    """Builds prompts from strings: a request's one message has the whole prompt as its content.

    A message may have `ids`, token ids that are the prompt; it then has no documents.

    Args:
        tokenizer: a fast tokenizer.
    """

    def __init__(self, tokenizer: object) -> None:
        super().__init__(tokenizer)
        self._chats: dict[str, list[Message]] = {}

    def render(self, history: Sequence[Message], open_turn: bool = True) -> str:
        """The conversation in the chat template, as a string whose messages are remembered.

        Args:
            history: messages with `role` and `content`.
            open_turn: whether an answer follows; else the last message goes on.

        Raises:
            SettingsError: the tokenizer has no chat template, or it refuses the conversation.
        """
        if not self.tokenizer.chat_template:
            raise SettingsError(
                "`--apply_chat_template` needs a tokenizer with a chat template, got one without; leave the option out"
            )
        try:
            text = str(
                self.tokenizer.apply_chat_template(
                    list(history),
                    tokenize=False,
                    add_generation_prompt=open_turn,
                    continue_final_message=not open_turn,
                )
            )
        except Exception as error:  # a template can raise anything
            roles = [message["role"] for message in history]
            raise SettingsError(
                f"the chat template refuses a conversation of the roles {roles}: {error}; leave out "
                "`--system_instruction`, the task's description or `--apply_chat_template`"
            ) from error
        if open_turn:
            self._chats[text] = list(history)
        return text

    def puts(self, text: str, documents: Sequence[Document]) -> bool:
        """Whether the documents are put into this conversation, which was rendered here."""
        return text in self._chats and _places(text, documents) is None

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        """Token ids and character offsets, as the harness's model "hf" encodes a prompt."""
        bos = self.tokenizer.bos_token or self.tokenizer.eos_token
        how = {"add_special_tokens": False} if bos and text.startswith(bos) else {}
        encoded = self.tokenizer(text, return_offsets_mapping=True, verbose=False, **how)
        return list(encoded["input_ids"]), [(a, b) for a, b in encoded["offset_mapping"]]

    def build(
        self,
        messages: Sequence[Message],
        documents: Sequence[Document] = (),
        tools: Sequence[Mapping[str, object]] = (),
        query: str | None = None,
    ) -> Prompt:
        """The prompt of the one message.

        Documents are judged by `query`, if the string has it, else by what follows the documents.

        Raises:
            SettingsError: documents cannot be put into the string.
        """
        (message,) = messages
        if ids := message.get("ids"):
            assert isinstance(ids, Sequence)
            return Prompt(tuple(ids), (), ())
        text = str(message["content"])
        places = _places(text, documents)
        if places is None:
            if text in self._chats:
                history = self._chats[text]
                last = next((str(m["content"]) for m in reversed(history) if m["role"] == "user"), "")
                return super().build(history, documents, tools, query if query and query in last else None)
            self._check(text)
            text = render_documents([d.text for d in documents], text)
            places = _places(text, documents)
            assert places is not None
        encoded, offsets = self.encode(text)
        spans = tuple(token_span(offsets, place) for place in places)
        question = token_span(offsets, _question(text, places, query))
        return Prompt(tuple(encoded), spans, tuple(documents), question, (), text, offsets)

    def _check(self, text: str) -> None:
        """Refuse to put documents in front of a rendered conversation."""
        if any(token in text for token in self.tokenizer.all_special_tokens if token):
            raise SettingsError(
                "documents can be put into a prompt with control tokens only if it was rendered in this run and an "
                f"answer follows, got {text[-60:]!r}; leave out `--cache_requests`, or take a "
                "task without `gen_prefix`, or one whose prompt has the documents"
            )


def _places(text: str, documents: Sequence[Document]) -> list[Span] | None:
    """The characters of each document, in the order of the string; None if one is not there."""
    places, end = [], 0
    for document in documents:
        wanted = document.text.strip()
        at = text.find(wanted, end)
        if at < 0:
            return None
        places.append((at, end := at + len(wanted)))
    return places


def _question(text: str, places: Sequence[Span], query: str | None) -> Span:
    if query and (at := text.rfind(query)) >= 0:
        return at, at + len(query)
    after = places[-1][1] if places else 0
    return (after, len(text)) if text[after:].strip() else (0, len(text))

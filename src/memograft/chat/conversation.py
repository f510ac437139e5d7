"""Convert messages in OpenAI's form to an engine's messages and documents. Nothing is dropped silently.

Documents come, in this order, from

    1. `documents=` of the call, or `documents` of the last user message (both are an error),
    2. parts of a message's content: see `documents.DOCUMENT_PARTS`,
    3. `documents` of tool messages after the last user message, which their tools returned beside the text,
    4. texts between delimiters, if some are given;

a document that was found in one of these places is not added again from a later one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from memograft.chat import instruction as wording
from memograft.chat.calls import arguments_of
from memograft.chat.delimited import cut_out
from memograft.chat.documents import Convert, to_documents
from memograft.chat.parts import text_of
from memograft.chat.tools import Plan
from memograft.documents import Document
from memograft.errors import SettingsError

__all__ = ["Conversation", "read_conversation"]

_ROLES = {"developer": "system", "human": "user", "ai": "assistant", "function": "tool"}
_KNOWN = ("system", "user", "assistant", "tool")
_MERGED = ("system", "user", "assistant")

Message = Mapping[str, object]


@dataclass
class Conversation:
    """The input of a request.

    Attributes:
        messages: for the request; `content` is text.
        documents: for the request, highest-ranked first.
        query: for the request: the question alone, if the last message has more text.
    """

    messages: list[dict[str, object]] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)
    query: str | None = None

    def add_documents(self, documents: Iterable[Document]) -> None:
        """Add documents that are not in the list yet."""
        known = {(d.id, d.text) for d in self.documents}
        for document in documents:
            if (document.id, document.text) not in known:
                known.add((document.id, document.text))
                self.documents.append(document)

    def add_message(self, message: dict[str, object]) -> None:
        """Add a message. Consecutive messages of one role are joined, because many chat templates refuse them."""
        last = self.messages[-1] if self.messages else {}
        plain = not last.get("tool_calls") and not message.get("tool_calls")
        if plain and message["role"] in _MERGED and last.get("role") == message["role"]:
            last["content"] = "\n\n".join(str(m["content"]) for m in (last, message) if m["content"])
        else:
            self.messages.append(message)


def read_conversation(
    messages: Sequence[Message],
    documents: Iterable[object] | None = None,
    *,
    takes_tools: bool = True,
    takes_system: bool = True,
    plan: Plan | None = None,
    delimiters: tuple[str, str] | None = None,
    between: str = "\n",
    convert: Convert | None = None,
) -> Conversation:
    """Read a conversation.

    Args:
        messages: each with `role`, `content` (text, None, or a list of parts), and optionally `name`, `tool_calls`,
            `tool_call_id` and `documents`.
        documents: of the call; None if it has none.
        takes_tools: whether the chat template can show tool calls and their results (`Engine.takes_tools`). If not,
            they are written as text; a tool message with `documents` is left out together with its call, because the
            documents have the same content.
        takes_system: whether the chat template has a place for a system message (`Engine.takes_system`).
        plan: its instruction is added to the system message, or to the first user message if there is no place for one;
            its examples are inserted after the system message.
        delimiters: strings around documents in the system messages and the last user message; they are removed with
            them.
        between: separator between the text parts of one message.
        convert: converts a framework's documents; see `to_documents`.

    Raises:
        SettingsError: something that cannot be given to the model.
    """
    roles = [_role(message, n) for n, message in enumerate(messages)]
    user = max((n for n, role in enumerate(roles) if role == "user"), default=-1)
    attached = messages[user].get("documents") if user >= 0 else None
    if documents is not None and attached is not None:
        raise SettingsError(
            "documents came both as `documents=` of the call and in `documents` of the last user message; pass them "
            "once"
        )
    told = Conversation(documents=list(to_documents(attached if documents is None else documents, convert)))
    texts = []
    for n, message in enumerate(messages):
        text, found = text_of(message.get("content"), f"messages[{n}]", roles[n], between)
        told.add_documents(found)
        texts.append(text)
    returned = {n: to_documents(m.get("documents"), convert) for n, m in enumerate(messages) if roles[n] == "tool"}
    for n, some in returned.items():
        if n > user:
            told.add_documents(some)
    if delimiters is not None:
        for n, role in enumerate(roles):
            if n == user or role == "system":
                texts[n], cut = cut_out(texts[n], delimiters, f"messages[{n}]")
                told.add_documents(map(Document, cut))
    question = texts[user] if user >= 0 else ""
    retrieved = {n for n in returned if messages[n].get("documents") is not None and not takes_tools}
    left_out = {str(messages[n].get("tool_call_id") or "") for n in retrieved}
    names: dict[str, str] = {}  # call id -> tool name, for results without a name
    for n, (message, role, text) in enumerate(zip(messages, roles, texts, strict=True)):
        plain = None if n in retrieved else _plain(message, role, text, left_out, names, takes_tools)
        if plain is not None:
            told.add_message(plain)
    results = [n for n, role in enumerate(roles) if n > user and role == "tool" and n not in retrieved]
    if not takes_tools and results and roles[-1] == "tool" and question.strip():  # the last message has results
        told.messages[-1]["content"] = f"{told.messages[-1]['content']}\n\n{wording.reminder(question)}"
        told.query = question
    if plan is not None and plan.instruction:
        _instruct(told, plan, takes_system)
    return told


def _role(message: Message, position: int) -> str:
    if not isinstance(message, Mapping):
        raise SettingsError(
            f"messages[{position}] must be a mapping, got {type(message).__name__}; write "
            '{"role": "user", "content": "..."}'
        )
    role = message.get("role")
    if isinstance(role, str) and role:
        return _ROLES.get(role, role)  # the engine checks other roles
    raise SettingsError(f"messages[{position}] must have a role, one of {_KNOWN}, got {role!r:.80}; give it one")


def _plain(
    message: Message, role: str, text: str, left_out: set[str], names: dict[str, str], takes_tools: bool
) -> dict[str, object] | None:
    """The message for the chat template; None if nothing is left of it."""
    named = {"name": str(message["name"])} if message.get("name") else {}
    if role == "tool":
        id = str(message.get("tool_call_id") or "")
        if takes_tools:
            return {"role": role, "content": text, **({"tool_call_id": id} if id else {}), **named}
        return {"role": "user", "content": wording.result_text(named.get("name") or names.get(id, ""), text)}
    given = message.get("tool_calls") or ()
    calls = [_call(call) for call in (given if isinstance(given, list | tuple) else [given])]
    kept = [call for call in calls if not call["id"] or call["id"] not in left_out]
    if calls and not kept and not text:
        return None
    if kept and not takes_tools:
        names.update({str(call["id"]): str(call["name"]) for call in kept})
        said = wording.call_text([(str(call["name"]), arguments_of(call["name"], call["arguments"])) for call in kept])
        return {"role": role, "content": f"{text}\n\n{said}" if text.strip() else said}
    plain: dict[str, object] = {"role": role, "content": text, **named}
    if kept:
        plain["tool_calls"] = [
            {
                "type": "function",
                **({"id": call["id"]} if call["id"] else {}),
                "function": {"name": call["name"], "arguments": call["arguments"]},
            }
            for call in kept
        ]
    return plain


def _call(call: object) -> dict[str, object]:
    """`id`, `name` and `arguments` of a call in a message."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(name, str):
        raise SettingsError(
            f"a call in `tool_calls` must be in OpenAI's form, got {call!r:.200}; write "
            '{"id": ..., "type": "function", "function": {"name": ..., "arguments": {...}}}'
        )
    return {
        "id": str(call.get("id") or ""),
        "name": name,
        "arguments": arguments_of(name, function.get("arguments", function.get("args"))),
    }


def _instruct(told: Conversation, plan: Plan, takes_system: bool) -> None:
    """Add the plan's instruction and examples to the beginning of the conversation."""
    first = told.messages[0] if told.messages else {}
    examples = [dict(message) for message in plan.examples]
    at = 1 if first.get("role") == "system" else 0
    if takes_system and at:
        first["content"] = f"{first['content']}\n\n{plan.instruction}" if first["content"] else plan.instruction
    elif takes_system:
        examples.insert(0, {"role": "system", "content": plan.instruction})
    told.messages[at:at] = examples
    if takes_system:
        return
    user = next((message for message in told.messages if message["role"] == "user"), None)
    if user is None:
        told.messages.append({"role": "user", "content": plan.instruction})
        return
    if user is told.messages[-1] and told.query is None and str(user["content"]).strip():
        told.query = str(user["content"])
    user["content"] = f"{plan.instruction}\n\n{user['content']}"

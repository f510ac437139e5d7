"""One call of an endpoint: what was given -> a request to the engine, and its answer -> LlamaIndex's responses."""

from __future__ import annotations

import difflib
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.llms.memograft import _datastores, _tools
from llama_index.llms.memograft._documents import to_documents
from llama_index.llms.memograft._messages import to_engine
from llama_index.llms.memograft._responses import chat_response, forced_blocks, parsed_blocks, said
from memograft.errors import SettingsError
from memograft.request import Answer, Request, Sampling

if TYPE_CHECKING:
    from memograft.engine import Engine

__all__ = ["DEFAULT_MEMORY", "OPTIONS", "Call", "memory_of", "prepare"]

DEFAULT_MEMORY = "fastmem"  # FastMem() itself would import torch before there is a use for it

_SAMPLING = {"max_tokens": "max_new_tokens", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k"} | {
    name: name for name in ("seed", "stop")
}
_REQUEST = ("memory", "overflow", "timeout", "logprobs")
_ASKED = ("documents", "json_schema", "tools", "tool_choice", "tool_required", "allow_parallel_tool_calls")

OPTIONS = (*_SAMPLING, *_REQUEST, "datastore")  # what an LLM has a setting for, and a call may change
_MARKUP = "<[{"  # what calls of tools begin with, in all templates there are


@dataclass(frozen=True)
class Call:
    """A request on its way.

    Attributes:
        engine: where it goes.
        request: what is asked.
        model: the name that responses carry.
        tools: None, "offered" (the tokenizer finds the calls in the answer) or "forced" (the answer is calls).
    """

    engine: Engine
    request: Request
    model: str
    tools: str | None = None

    def response(self, answer: Answer, delta: str | None = None) -> ChatResponse:
        """The whole answer."""
        blocks = None
        if self.tools == "forced":
            blocks = forced_blocks(answer)
        elif self.tools == "offered":
            blocks = parsed_blocks(self.engine.parse_response(answer))
        return chat_response(answer, self.model, blocks, delta)

    def chat(self) -> Generator[ChatResponse, None, None]:
        """Responses as they grow; the last has the facts. Closing it gives the request up."""
        text = shown = ""
        with self.engine.stream(self.request) as stream:
            for piece in stream:
                text += piece
                shown, delta = self._shown(text), self._shown(text)[len(shown) :]
                if delta:
                    yield said(shown, delta)
            assert stream.answer is not None
            yield self._last(stream.answer, shown)

    async def achat(self) -> AsyncGenerator[ChatResponse, None]:
        """`chat` for `async for`."""
        text = shown = ""
        async with self.engine.astream(self.request) as stream:
            async for piece in stream:
                text += piece
                shown, delta = self._shown(text), self._shown(text)[len(shown) :]
                if delta:
                    yield said(shown, delta)
            assert stream.answer is not None
            yield self._last(stream.answer, shown)

    def _shown(self, text: str) -> str:
        """What is shown of an unfinished answer: a call of a tool is not, for it is no text."""
        if self.tools is None:
            return text
        if self.tools == "forced":
            return ""
        return text[: min((n for n in map(text.find, _MARKUP) if n >= 0), default=len(text))]

    def _last(self, answer: Answer, shown: str) -> ChatResponse:
        response = self.response(answer, "")
        whole = response.message.content or ""
        return response.model_copy(update={"delta": whole[len(shown) :] if whole.startswith(shown) else ""})


def prepare(
    engine: Engine, model: str, settings: Mapping[str, Any], messages: Sequence[ChatMessage], given: Mapping[str, Any]
) -> Call:
    """What `given` says goes before `settings`; nothing is sent yet.

    Raises:
        SettingsError: an argument that there is not, a value out of its range, or tools for a model that takes none.
        ModelMismatchError: the datastore is of another model.
        StoreError: there is none in its folder.
    """
    options = dict(given)
    _known(options)
    turns, found = to_engine(messages)
    documents = list(to_documents(options.pop("documents", None)))
    handed = {(document.id, document.text) for document in documents}
    documents += [document for document in found if (document.id, document.text) not in handed]
    many = bool(options.pop("allow_parallel_tool_calls", False))
    tools, forced = _tools.chosen(
        _tools.specs(options.pop("tools", None) or ()),
        options.pop("tool_choice", None),
        required=bool(options.pop("tool_required", False)),
    )
    schema = options.pop("json_schema", None)
    native = engine.takes_tools
    if tools and not forced and not native:
        raise SettingsError(
            f"the model {model!r} has no place for tools in its chat template, got {len(tools)}; pass "
            "tool_required=True, which constrains its answer to a call, use a ReActAgent, or a model whose template "
            "takes tools"
        )
    if forced:
        if schema is not None:
            raise SettingsError(
                "`json_schema` is the answer's, got it together with tools that must be called; pass one"
            )
        schema = _tools.call_schema(tools, many=many)
        if not native:
            turns = told(turns, _tools.instruction(tools))
    values = {**settings, **options}
    rtd = _datastores.opened(values["datastore"])
    if rtd is not None:
        rtd.check(engine.fingerprint)
    sampling = Sampling(**{core: values[ours] for ours, core in _SAMPLING.items() if values.get(ours) is not None})
    request = Request(
        messages=turns,
        documents=documents,
        processors=() if rtd is None else (rtd,),
        sampling=sampling,
        tools=tools if native else (),
        json_schema=schema,
        **{name: values[name] for name in _REQUEST} | {"memory": memory_of(values["memory"])},
    )
    return Call(engine, request, model, "forced" if forced else "offered" if tools else None)


def memory_of(value: Any) -> Any:
    """What `memory` says, as an engine takes it."""
    if not isinstance(value, str) or value != DEFAULT_MEMORY:
        return value
    from memograft import FastMem

    return FastMem()


def told(turns: list[dict[str, Any]], instruction: str) -> list[dict[str, Any]]:
    """The conversation with an instruction in its system message."""
    if turns and turns[0]["role"] == "system":
        first = {**turns[0], "content": f"{turns[0]['content']}\n\n{instruction}"}
        return [first, *turns[1:]]
    return [{"role": "system", "content": instruction}, *turns]


def _known(options: Mapping[str, Any]) -> None:
    allowed = (*OPTIONS, *_ASKED)
    for name in options:
        if name not in allowed:
            close = difflib.get_close_matches(name, allowed, n=1)
            meant = f"; did you mean `{close[0]}`?" if close else f"; there are {', '.join(allowed)}"
            raise SettingsError(f"`{name}` is no argument of Memograft{meant}")

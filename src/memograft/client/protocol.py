"""`Protocol`: requests -> bodies of /v1/chat/completions, and what a server returned -> answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from memograft.client.wire import ServedAnswer
from memograft.documents import Document
from memograft.errors import SettingsError
from memograft.request import Request
from memograft.storage.disk import JsonObject

__all__ = ["Assembled", "Protocol", "documents_of"]


@dataclass(frozen=True)
class Protocol(ABC):
    """How one kind of server is asked.

    Attributes:
        model: the id of the model.
        max_length: tokens of prompt and answer together; None if the server does not tell.
        takes_tools: whether tools are passed on, instead of being described in the system message.
        takes_system: whether there is a place for a system message.
    """

    model: str
    max_length: int | None
    takes_tools: bool = True
    takes_system: bool = True

    def body(self, request: Request) -> JsonObject:
        """The body for a request.

        Raises:
            SettingsError: the server cannot do what it asks for.
        """
        if request.bank is not None:
            raise SettingsError(
                f"`bank` is a folder of this machine, and the server has its own, got {request.bank!r:.80}; leave it "
                "out, and start the server with `--bank FOLDER`"
            )
        sampling = request.sampling
        body: JsonObject = {
            "model": self.model,
            "messages": [dict(message) for message in request.messages],
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        for name in ("top_k", "min_p", "seed", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            if value := getattr(sampling, name):
                body[name] = value
        if sampling.seed is not None:
            body["seed"] = sampling.seed  # also 0
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.logit_bias:
            body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
        if request.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": request.logprobs}
        if request.tools:
            body["tools"] = [dict(tool) for tool in request.tools]
        if request.json_schema is not None:
            schema = {"name": "answer", "schema": dict(request.json_schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body | self.contrasts(request.processors)

    def contrasts(self, processors: Sequence[object]) -> JsonObject:
        """The fields for a request's processors.

        Raises:
            SettingsError: the server cannot have one of them.
        """
        if processors:
            raise SettingsError(
                f"`processors` (and a datastore, which is one) act in the engine's process, which a server is not, got "
                f"{processors[0]!r:.80}; leave them out, or use an Engine of this process"
            )
        return {}

    @abstractmethod
    def answer(self, completion: JsonObject, request: Request, seconds: float) -> ServedAnswer:
        """The answer in a completion.

        Args:
            completion: of the server, or `Assembled` from a stream.
            request: what was asked.
            seconds: from sending the request to the end of its answer.

        Raises:
            LookupError: it has none.
        """


@dataclass
class Assembled:
    """A completion that is put together from the chunks of a stream.

    Attributes:
        text: the text so far.
        completion: everything so far, in the form of a completion that was not streamed.
    """

    text: str = ""
    completion: JsonObject = field(default_factory=dict)
    _calls: dict[int, JsonObject] = field(default_factory=dict)
    _logprobs: list[JsonObject] = field(default_factory=list)
    _choice: JsonObject = field(default_factory=dict)

    def add(self, chunk: Mapping[str, object]) -> None:
        """Add a chunk."""
        values: JsonObject = dict(chunk)
        self.completion |= {name: value for name, value in values.items() if name != "choices" and value is not None}
        for choice in values.get("choices") or ():
            delta = choice.get("delta") or {}
            self.text += delta.get("content") or ""
            for call in delta.get("tool_calls") or ():
                self._add_call(call)
            self._logprobs += (choice.get("logprobs") or {}).get("content") or ()
            if choice.get("finish_reason"):
                self._choice["finish_reason"] = choice["finish_reason"]
        message = {"content": self.text, "tool_calls": [self._calls[n] for n in sorted(self._calls)]}
        whole = {**self._choice, "message": message, "logprobs": {"content": self._logprobs}}
        self.completion["choices"] = [whole]

    def _add_call(self, call: JsonObject) -> None:
        """Add a part of a call: the first has its name, and all have pieces of its arguments."""
        known = self._calls.setdefault(call["index"], {"function": {"name": "", "arguments": ""}})
        known |= {name: call[name] for name in ("id", "type") if call.get(name)}
        for name, piece in (call.get("function") or {}).items():
            known["function"][name] += piece or ""


def documents_of(request: Request) -> list[Document]:
    """The documents, which a request has converted when it was made."""
    return [document for document in request.documents if isinstance(document, Document)]

"""Request models -> requests to the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memograft.chat import Conversation, Plan, plan, read_conversation
from memograft.decoding.cad import contrasts
from memograft.documents import Document
from memograft.engine import Engine
from memograft.errors import SettingsError
from memograft.memory.base import Memory
from memograft.memory.handle import MemoryHandle
from memograft.request import Request, Sampling
from memograft.server.errors import ApiError, refused
from memograft.server.owned import Owned
from memograft.server.schemas import ChatRequest, CompletionRequest, SampledRequest
from memograft.server.settings import ServerSettings

__all__ = ["Asked", "ask_chat", "ask_completion", "check_model", "longest"]

NOTHING = Owned()


@dataclass(frozen=True)
class Asked:
    """A body as requests to the engine.

    Attributes:
        requests: one for each answer, those to one prompt in a row.
        copies: number of answers to each prompt.
        plan: parses the answers.
        kind: of the memory; None without one.
        reports: whether the response has a report about documents and memory.
        own: what they use of their tenant.
        token_losses: whether the report has the losses of the memorized tokens.
        raw: whether the response has the engine's whole answers.
    """

    requests: list[Request]
    copies: int
    plan: Plan
    kind: str | None
    reports: bool
    own: Owned = NOTHING
    token_losses: bool = False
    raw: bool = False


def check_model(asked: str, known: Sequence[str]) -> None:
    """Refuse the id of a model that the server does not have.

    Raises:
        ApiError: 404.
    """
    if asked not in known:
        said = f"the model {asked!r:.80} does not exist here; there is {' and '.join(map(repr, known))}"
        raise ApiError(404, said, param="model", code="model_not_found")


def ask_chat(engine: Engine, settings: ServerSettings, body: ChatRequest, own: Owned = NOTHING) -> Asked:
    """The requests of a chat completion.

    Raises:
        ApiError, MemograftError: a value is invalid or not supported.
    """
    if body.top_logprobs is not None and not body.logprobs:
        raise refused("top_logprobs", f"`top_logprobs` needs `logprobs`, got {body.top_logprobs} without it; pass both")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise refused("max_completion_tokens", "`max_completion_tokens` is the newer name of `max_tokens`; pass one")
    how, told = _prepared(body, own) if body.raw else _read(engine, body, own)
    memory = _memory(body, settings, own, body.raw or bool(told.documents))
    request = Request(
        messages=told.messages,
        documents=told.documents,
        memory=memory,
        sampling=_sampling(engine, settings, body, body.max_completion_tokens),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        query=body.query or told.query,
        overflow=body.overflow or "error",
        timeout=settings.timeout,
        bank=own.bank,
        processors=contrasts(body.cad, body.dola),
        **how.request(),
    )
    reports = memory is not None or bool(told.documents) or own.store is not None
    copies, kind = body.n or 1, memory.settings.kind if memory else None
    return Asked(request.copies(copies), copies, how, kind, reports, own, bool(body.token_losses), body.raw)


def ask_completion(engine: Engine, settings: ServerSettings, body: CompletionRequest, own: Owned = NOTHING) -> Asked:
    """The requests of a completion: `n` for each prompt, which is a user message.

    Raises:
        ApiError, MemograftError: a value is invalid or not supported.
    """
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if not 1 <= len(prompts) <= settings.max_inputs:
        raise refused("prompt", f"`prompt` may have 1 to {settings.max_inputs} texts, got {len(prompts)}; split them")
    if blank := [n for n, prompt in enumerate(prompts) if not prompt.strip()]:
        raise refused("prompt", f"`prompt` must be text, got {prompts[blank[0]]!r} as text {blank[0]}; ask something")
    documents = _documents(body, own)
    memory = _memory(body, settings, own, bool(documents))
    sampling = _sampling(engine, settings, body, None)
    requests: list[Request] = []
    copies = body.n or 1
    for prompt in prompts:
        request = Request(
            prompt,
            documents=documents,
            memory=memory,
            sampling=sampling,
            logprobs=body.logprobs,
            query=body.query,
            overflow=body.overflow or "error",
            timeout=settings.timeout,
            bank=own.bank,
            processors=contrasts(body.cad, body.dola),
        )
        requests += request.copies(copies)
    reports, kind = memory is not None or bool(documents), memory.settings.kind if memory else None
    return Asked(requests, copies, Plan(), kind, reports, own, bool(body.token_losses))


def longest(engine: Engine, settings: ServerSettings) -> int:
    """Tokens that an answer may have."""
    return min(settings.max_tokens or engine.max_length, engine.max_length)


def _read(engine: Engine, body: ChatRequest, own: Owned) -> tuple[Plan, Conversation]:
    """How the answer is constrained, and what the engine is told."""
    if body.json_optional:
        raise refused("json_optional", "`json_optional` is for `raw` requests, got it without; leave it out")
    how = plan(
        engine,
        body.tools or (),
        body.tool_choice,
        body.response_format,
        many=body.parallel_tool_calls,
        strict=any(_strict(tool) for tool in body.tools or ()),
    )
    return how, read_conversation(
        [_plain(message.model_dump(exclude_none=True)) for message in body.messages],
        None if body.documents is None and not own.hits else _documents(body, own),
        takes_tools=engine.takes_tools,
        takes_system=engine.takes_system,
        plan=how,
    )


def _prepared(body: ChatRequest, own: Owned) -> tuple[Plan, Conversation]:
    """`_read` for a client that has prepared its request for the engine."""
    if body.tool_choice is not None or body.parallel_tool_calls is not None:
        name = "tool_choice" if body.tool_choice is not None else "parallel_tool_calls"
        raise refused(name, f"`{name}` has no meaning with `raw`: the client parses the answer; leave it out")
    schema = None
    if body.response_format is not None:
        holder = body.response_format.get("json_schema")
        schema = holder.get("schema") if isinstance(holder, dict) else None
        if not isinstance(schema, dict):
            said = '`response_format` of a `raw` request must be {"type": "json_schema", "json_schema": {"schema": {}}}'
            raise refused("response_format", f"{said}, got {body.response_format!r:.80}; give it a schema")
    how = Plan(tuple(body.tools or ()), schema, body.json_optional)
    messages = [_plain(message.model_dump(exclude_none=True)) for message in body.messages]
    return how, Conversation(messages, _documents(body, own))


def _sampling(engine: Engine, settings: ServerSettings, body: SampledRequest, tokens: int | None) -> Sampling:
    if body.stream_options is not None and not body.stream:
        raise refused("stream_options", "`stream_options` is for streams, got it without `stream`; leave it out")
    asked = body.max_tokens if tokens is None else tokens
    most = longest(engine, settings)
    if asked is not None and asked > most:
        raise refused("max_tokens", f"`max_tokens` may be {most} for this model, got {asked}; ask for fewer")
    return Sampling(
        max_new_tokens=min(settings.default_max_tokens, most) if asked is None else asked,
        temperature=settings.temperature if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k,
        stop=body.stop or (),
        seed=body.seed,
        min_p=body.min_p or 0.0,
        repetition_penalty=body.repetition_penalty,
        logit_bias=body.logit_bias or {},  # type: ignore[arg-type]
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
    )


def _memory(
    body: SampledRequest, settings: ServerSettings, own: Owned, documents: bool
) -> Memory | MemoryHandle | None:
    return own.memory or body.memory_or(settings.memory if documents else None)


def _documents(body: SampledRequest, own: Owned) -> list[Document]:
    """The request's documents, and then those retrieved that are not among them."""
    given = [page.document() for page in body.documents or ()]
    known = {(document.id, document.text) for document in given}
    return [*given, *(document for document in own.documents if (document.id, document.text) not in known)]


def _plain(message: dict[str, object]) -> dict[str, object]:
    """A message for `read_conversation`, without the fields that are accepted and not used."""
    if message["role"] == "user" and "documents" in message:
        raise SettingsError("`documents` of a user's message belong beside `messages`, in the request's `documents`")
    return {key: value for key, value in message.items() if key not in ("annotations", "reasoning_content")}


def _strict(tool: dict[str, object]) -> bool:
    function = tool.get("function")
    return isinstance(function, dict) and function.get("strict") is True

"""Request models. What a client may ask for and the server cannot do is a field here too, with the values it allows.

A field that is null counts as left out, as with OpenAI. Unknown fields are refused. The descriptions are part of the
OpenAPI document and of the errors about a field.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from memograft.documents import Document
from memograft.memory.base import Memory

__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "ConversationFields",
    "EmbeddingRequest",
    "MemoryRequest",
    "Model",
    "Page",
    "PassagesRequest",
    "SampledRequest",
    "SearchOptions",
    "SearchRequest",
    "StoreChoice",
    "StoreRequest",
    "TextRequest",
]

MOST_CHOICES = 128
_MOST_STEPS, _MOST_RANK = 64, 128  # so that one request cannot keep the model, or take its memory


class Model(BaseModel):
    """A part of a body."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class FastMemChoice(Model):
    """Memorize the documents by training: FastMem and its settings, of which those left out are the model's own."""

    kind: Literal["fastmem"]
    steps: Annotated[int, Field(ge=1, le=_MOST_STEPS)] | Literal["auto"] = "auto"
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    kl_weight: float = Field(0.1, ge=0)
    target_kl: Annotated[float, Field(gt=0)] | Literal["auto"] | None = "auto"
    max_kl: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    rank: int = Field(16, ge=1, le=_MOST_RANK)
    template: Literal["prompt", "assistant"] = "prompt"
    shortlist: Annotated[int, Field(ge=2)] | Literal["auto"] | None = "auto"
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    seed: int = Field(0, ge=-(2**63), lt=2**63)
    end: bool = True
    relevance: Annotated[float, Field(le=1)] | Literal["auto"] | None = "auto"
    cad_relevance: Annotated[float, Field(le=1)] | None = None
    conflicts: Literal["first"] | None = "first"
    gate: Literal["support"] | None = None
    contrast: Annotated[float, Field(ge=0)] | Literal["adaptive"] = 0.0
    cad: Annotated[float, Field(ge=0)] | Literal["adaptive"] = 0.0
    fallback: bool = True
    compose: bool = False


class KeptChoice(Model):
    """Keep the documents' keys and values as they are, for later requests with the same documents."""

    kind: Literal["kept"]
    memory: FastMemChoice | None = None


class CompactedChoice(Model):
    """Keep the documents' keys and values in 1/ratio of their bytes."""

    kind: Literal["compacted"]
    ratio: float = Field(4.0, ge=1, lt=1e6)
    questions: list[Annotated[str, Field(min_length=1)]] = []
    int8: bool = True
    memory: FastMemChoice | None = None


class Page(Model):
    """A document."""

    text: str = Field(validation_alias=AliasChoices("text", "content"), description="Its text; `content` is the same.")
    id: str | None = Field(None, description="Its id, in the report and in citations.")
    metadata: dict[str, object] | None = Field(None, description="Any JSON values; the model does not see them.")

    def document(self) -> Document:
        """The document."""
        return Document(self.text, self.id or "", self.metadata or {})


class MemoryId(Model):
    """A memory that POST /v1/memories made."""

    id: str = Field(min_length=1, max_length=200)


class SearchOptions(Model):
    """How documents are found in a store."""

    k: int = Field(4, ge=1, le=100, description="Number of documents.")
    mode: Literal["text", "vector", "hybrid"] | None = Field(
        None, description="How they are found; left out: by vectors if the store has them, else by words."
    )
    where: dict[str, object] | None = Field(None, description="A filter of metadata.")


class StoreChoice(SearchOptions):
    """Retrieve documents for the last user message from a store."""

    name: str = Field(min_length=1, max_length=200)


class SearchRequest(SearchOptions):
    """The body of POST /v1/stores/{name}/search."""

    query: str = Field(min_length=1, description="The question.")


Choice = Annotated[FastMemChoice | KeptChoice | CompactedChoice, Field(discriminator="kind")]


def _form(value: object) -> str:
    """The kind of a memory, or how its id is given."""
    if isinstance(value, dict):
        return str(value.get("kind", "id" if "id" in value else None))
    return getattr(value, "kind", "id" if isinstance(value, MemoryId) else "text")


ChoiceOrId = Annotated[
    Annotated[FastMemChoice, Tag("fastmem")]
    | Annotated[KeptChoice, Tag("kept")]
    | Annotated[CompactedChoice, Tag("compacted")]
    | Annotated[MemoryId, Tag("id")]
    | Annotated[str, Field(min_length=1, max_length=200), Tag("text")],
    Discriminator(
        _form,
        custom_error_type="memory",
        custom_error_message='must be {{"kind": "fastmem", "kept" or "compacted"}}, or the id of a memory',
    ),
]


class MemoryRequest(Model):
    """The body of POST /v1/memories."""

    documents: list[Page] | None = Field(None, description="Documents to memorize, highest-ranked first.")
    id: str | None = Field(
        None, min_length=1, max_length=200, description="Instead of `documents`: a memory whose documents to memorize."
    )
    memory: Choice | None = Field(None, description="A kind and its settings; left out: the server's.")
    pinned: bool = Field(False, description="Whether it stays when there is no room for others.")

    def memory_or(self, default: Memory) -> Memory:
        """The memory asked for."""
        return default if self.memory is None else Memory.from_json(self.memory.model_dump())


class StoreRequest(Model):
    """The body of POST /v1/stores."""

    name: str


class PassagesRequest(Model):
    """The body of POST /v1/stores/{name}/documents with the content type application/json."""

    documents: list[Page] = Field(min_length=1, description="Documents to add; those with the same ids are replaced.")


class StreamOptions(Model):
    """The field `stream_options`."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = Field(None, description="Streams are not padded; leave it out.")


class TextRequest(Model):
    """The fields of all requests for text."""

    model: str = Field(description="The id of the model, as GET /v1/models lists it.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy; left out, the server's.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    stream: bool | None = None
    user: str | None = Field(None, description="Accepted, and not used.")

    documents: list[Page] | None = Field(None, description="Documents to memorize, highest-ranked first.")
    memory: ChoiceOrId | None = Field(
        None,
        description="How documents are memorized: a kind and its settings; or the id of a memory; null: not at all; "
        "left out: FastMem.",
    )
    query: str | None = Field(None, description="The question alone, if the last message has more text.")
    overflow: Literal["error", "drop", "truncate"] | None = Field(
        None, description="What to do with documents that do not fit the model's window."
    )
    token_losses: bool | None = Field(
        None, description="Whether to report the loss of each token of the memorized documents, before and after."
    )
    cad: Annotated[float, Field(ge=0)] | Literal["adaptive"] | None = Field(
        None, description="Context-aware decoding: strength of the contrast with the prompt without documents."
    )
    dola: Literal["low", "high"] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = Field(
        None, description="DoLa: contrast with an earlier layer; which layers, or their numbers."
    )

    def memory_or(self, default: Memory | None) -> Memory | None:
        """The memory asked for; the default only if the request does not say anything about it."""
        if "memory" not in self.model_fields_set:
            return default
        if self.memory is None or isinstance(self.memory, str | MemoryId):
            return None
        return Memory.from_json(self.memory.model_dump())

    @property
    def memory_id(self) -> str | None:
        """The id of the memory asked for, if it is one that was made before."""
        if isinstance(self.memory, MemoryId):
            return self.memory.id
        return self.memory if isinstance(self.memory, str) else None


class SampledRequest(TextRequest):
    """The fields of requests for one or several answers."""

    n: int | None = Field(None, ge=1, le=MOST_CHOICES, description="Number of answers.")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, description="Token ids, each with a number that is added to its logit."
    )
    max_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[str, Field(min_length=1)] | list[Annotated[str, Field(min_length=1)]] | None = None
    stream_options: StreamOptions | None = Field(None, description="Only for streams.")


class Message(Model):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, object]] | None = Field(None, description="Text, or a list of parts.")
    name: str | None = None
    tool_calls: list[dict[str, object]] | None = None
    tool_call_id: str | None = None
    documents: list[Page] | None = Field(None, description="Of a tool's message: what the tool found.")
    reasoning_content: str | None = Field(None, description="Accepted in an assistant's message, and not shown again.")
    refusal: None = Field(None, description="Pass a refusal as `content`.")
    audio: None = Field(None, description="The model reads and writes text only; leave it out.")
    function_call: None = Field(None, description="Replaced by `tool_calls`; leave it out.")
    annotations: list[dict[str, object]] | None = Field(None, description="Accepted in an assistant's message.")


# OpenAI's `store: false` keeps an answer from being stored, which it is not.
_NOT_STORED = BeforeValidator(
    lambda value: None if value is False else value, json_schema_input_type=StoreChoice | Literal[False] | None
)


class ConversationFields(Model):
    """The fields of both requests with conversations."""

    tool_choice: str | dict[str, object] | None = Field(
        None, description='"auto", "none", "required", or {"type": "function", "function": {"name": ...}}.'
    )
    parallel_tool_calls: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20, description="Needs `logprobs`.")
    prompt_cache_key: str | None = Field(None, description="Accepted; keys and values are found by their content.")
    safety_identifier: str | None = Field(None, description="Accepted, and not used.")
    prompt_cache_retention: Literal["in_memory"] | None = Field(None, description="The server decides; leave it out.")
    prompt_cache_options: None = Field(None, description="The server decides; leave it out.")
    store: Annotated[StoreChoice | None, _NOT_STORED] = Field(
        None,
        description='A store from which documents are retrieved, such as {"name": ..., "k": 4}. Answers are not '
        "stored.",
    )
    metadata: Annotated[dict[str, object], Field(max_length=0)] | None = Field(
        None, description="Answers are not stored, so nothing can be attached to them; leave it out."
    )
    service_tier: Literal["auto", "default"] | None = Field(None, description="There is one tier; leave it out.")
    moderation: None = Field(None, description="The server moderates nothing; leave it out.")


class ChatRequest(SampledRequest, ConversationFields):
    """The body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of `max_tokens`.")
    tools: list[dict[str, object]] | None = None
    response_format: dict[str, object] | None = None
    logprobs: bool | None = None
    raw: bool = Field(
        False,
        description="For `memograft.RemoteEngine`, which prepares and parses itself: messages, tools and schema go to "
        "the engine as they are, and the response has the engine's whole answer.",
    )
    json_optional: bool = Field(False, description="With `raw`: the answer may be text instead of JSON of the schema.")
    modalities: list[Literal["text"]] | None = Field(None, description="The model writes text only; leave it out.")
    audio: None = Field(None, description="The model reads and writes text only; leave it out.")
    web_search_options: None = Field(None, description="The server has no web search; pass `documents` instead.")
    prediction: None = Field(None, description="Answers are drafted from their prompts already; leave it out.")
    reasoning_effort: Literal["none"] | None = Field(None, description="The model has no such setting; leave it out.")
    verbosity: Literal["medium"] | None = Field(None, description="The model has no such setting; leave it out.")
    functions: None = Field(None, description="Replaced by `tools`.")
    function_call: None = Field(None, description="Replaced by `tool_choice`.")


class CompletionRequest(SampledRequest):
    """The body of /v1/completions."""

    prompt: str | list[str] = Field(description="A text, or a list of texts; each becomes a user message.")
    logprobs: int | None = Field(None, ge=0, le=20, description="Number of most likely tokens at each position.")
    echo: Literal[False] | None = Field(None, description="The prompt is not part of the answer; leave it out.")
    best_of: None = Field(None, description="Ask for `n` answers with `logprobs`, and choose among them.")
    suffix: Literal[""] | None = Field(None, description="The model cannot fill in the middle of a text.")


class EmbeddingRequest(Model):
    """The body of /v1/embeddings."""

    model: str = Field(description="The id of the embedder, as GET /v1/models lists it.")
    input: str | list[str] = Field(description="A text, or a list of texts. Token ids are not accepted.")
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, description="The embedder's own number, or nothing.")
    input_type: Literal["document", "query"] | None = Field(
        None, description="What the texts are; some embedders embed questions in another way. Left out: document."
    )
    user: str | None = Field(None, description="Accepted, and not used.")

"""The body of /v1/responses, which becomes a chat completion. What cannot be done is a field that must be null."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from memograft.chat import text_of
from memograft.server.errors import refused
from memograft.server.schemas import ChatRequest, ConversationFields, Model, Page, TextRequest

__all__ = ["ResponseRequest"]

Status = Literal["in_progress", "completed", "incomplete"]
Content = str | list[dict[str, object]]


class InputMessage(Model):
    """A message of the input. `id`, `status` and `phase` are those of an answer that is sent back."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    type: Literal["message"] = "message"
    id: str | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class FunctionCall(Model):
    """A call that an answer had."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Status | None = None


class FunctionOutput(Model):
    """What a function returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content
    documents: list[Page] | None = Field(None, description="What the function found.")
    id: str | None = None
    status: Status | None = None


class ReasoningItem(Model):
    """What a model wrote before an answer; accepted, and not shown again."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[dict[str, object]] | None = None
    content: list[dict[str, object]] | None = None
    encrypted_content: None = None
    status: Status | None = None


def _kind(item: object) -> str:
    given = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return "message" if given is None else str(given)


Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionOutput, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(
        _kind,
        custom_error_type="item",
        custom_error_message="must be a message, function_call, function_call_output or reasoning",
    ),
]
_TEXT_TOO = BeforeValidator(
    lambda value: [{"role": "user", "content": value}] if isinstance(value, str) else value,
    json_schema_input_type=str | list[Item],
)


class FunctionTool(Model):
    """A function of the client."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = None


class PlainFormat(Model):
    """Text, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(Model):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: dict[str, object] = Field(alias="schema")
    name: str
    description: str | None = None
    strict: bool | None = None


class TextOptions(Model):
    """The field `text`."""

    format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningOptions(Model):
    """The field `reasoning`."""

    effort: Literal["none"] | None = None
    summary: None = None
    generate_summary: None = None


class ResponseStreamOptions(Model):
    """The field `stream_options`."""

    include_obfuscation: Literal[False] | None = None


class ResponseRequest(TextRequest, ConversationFields):
    """The body of /v1/responses."""

    input: Annotated[list[Item], Field(min_length=1), _TEXT_TOO] = Field(
        description="A text, or a list of messages, calls and their outputs."
    )
    instructions: str | None = Field(None, description="A system message before the input.")
    max_output_tokens: int | None = Field(None, ge=1)
    text: TextOptions | None = Field(None, description="The format of the answer. There is no other verbosity.")
    tools: list[FunctionTool] | None = Field(
        None, description="Functions of the client. The server has no tools of its own; pass `documents` or `store`."
    )
    include: list[Literal["message.output_text.logprobs"]] | None = Field(
        None, description="Log-probabilities are all that can be included."
    )
    stream_options: ResponseStreamOptions | None = Field(None, description="Streams are not padded; leave it out.")
    reasoning: ReasoningOptions | None = Field(None, description="The model has no such setting; leave it out.")
    truncation: Literal["disabled"] | None = Field(
        None, description="Messages are not left out; for documents see `overflow`."
    )
    previous_response_id: None = Field(None, description="Responses are not stored; send the whole conversation.")
    conversation: None = Field(None, description="Responses are not stored; send the whole conversation.")
    background: Literal[False] | None = Field(None, description="Responses are not stored; wait for the answer.")
    prompt: None = Field(None, description="The server has no stored prompts; send `input`.")
    max_tool_calls: None = Field(None, description="The server calls no tools; leave it out.")
    context_management: None = Field(None, description="Messages are not left out; send what the model may read.")

    @property
    def format(self) -> PlainFormat | SchemaFormat:
        """The format of the answer."""
        return (self.text and self.text.format) or PlainFormat(type="text")

    def chat(self, longest: int) -> ChatRequest:
        """The same as a chat completion.

        Args:
            longest: tokens that an answer may have.

        Raises:
            ApiError, SettingsError: the input has something else than text, or the answer may not be so long.
        """
        if self.max_output_tokens is not None and self.max_output_tokens > longest:
            said = f"`max_output_tokens` may be {longest} for this model, got {self.max_output_tokens}; ask for fewer"
            raise refused("max_output_tokens", said)
        shared = {*TextRequest.model_fields, *ConversationFields.model_fields}
        body = self.model_dump(include=shared, exclude_unset=True)
        kind = self.format.model_dump(exclude_none=True, by_alias=True)
        if kind["type"] == "json_schema":
            kind = {"type": kind.pop("type"), "json_schema": kind}
        functions = [tool.model_dump(exclude_none=True, exclude={"type"}) for tool in self.tools or ()]
        return ChatRequest.model_validate(
            {
                **body,
                "messages": self._messages(),
                "tools": [{"type": "function", "function": function} for function in functions] or None,
                "max_completion_tokens": self.max_output_tokens,
                "response_format": kind,
                "logprobs": bool(self.include) or self.top_logprobs is not None,
            }
        )

    def _messages(self) -> list[dict[str, object]]:
        made: list[dict[str, object]] = []
        if self.instructions:
            made.append({"role": "system", "content": self.instructions})
        calls: list[dict[str, object]] = []  # those of the last message, if it is an assistant's
        for number, item in enumerate(self.input):
            if isinstance(item, InputMessage):
                text_of(item.content, f"input[{number}]", item.role)  # an error names its place here
                calls = []
                made.append({"role": item.role, "content": item.content})
            elif isinstance(item, FunctionCall):
                function = {"name": item.name, "arguments": item.arguments}
                if not made or made[-1]["role"] != "assistant":
                    calls = []
                    made.append({"role": "assistant", "content": None})
                calls.append({"id": item.call_id, "type": "function", "function": function})
                made[-1]["tool_calls"] = calls
            elif isinstance(item, FunctionOutput):
                text_of(item.output, f"input[{number}]", "tool")
                found = [page.model_dump() for page in item.documents or ()]
                output = {"role": "tool", "tool_call_id": item.call_id, "content": item.output}
                made.append({**output, "documents": found or None})
        return made

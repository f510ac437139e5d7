"""Chats as plain data: messages in OpenAI's form, tools, documents, answers. Independent of any framework.

read_conversation   messages -> the request's messages and documents
plan                tools, tool_choice, response_format -> constraints of the request; Plan.read parses the answer
message_of, report_of, usage_of, ...   an answer -> the values that a chat API returns
"""

from __future__ import annotations

from memograft.chat.answers import finish_reason_of, logprobs_of, message_of, report_of, usage_of
from memograft.chat.calls import Call, InvalidCall, Reading, arguments_of
from memograft.chat.choice import checked_tools, choice_of, schema_of_format
from memograft.chat.citations import citations_of, excerpt, references_of, title_of
from memograft.chat.conversation import Conversation, read_conversation
from memograft.chat.delimited import cut_out
from memograft.chat.documents import Convert, json_like, to_documents
from memograft.chat.examples import Plain, to_examples
from memograft.chat.failures import Failure, failure_of, message_text
from memograft.chat.names import unknown_names
from memograft.chat.parts import DOCUMENT_PARTS, document_of, text_of
from memograft.chat.schema import closed, hoisted, shown
from memograft.chat.stuffed import Unstuffed, fields_of, split_context, unstuffed
from memograft.chat.tools import Plan, TakesTools, call_schema, plan
from memograft.chat.unmemorized import warn_of_context

__all__ = [
    "DOCUMENT_PARTS",
    "Call",
    "Conversation",
    "Convert",
    "Failure",
    "InvalidCall",
    "Plain",
    "Plan",
    "Reading",
    "TakesTools",
    "Unstuffed",
    "arguments_of",
    "call_schema",
    "checked_tools",
    "choice_of",
    "citations_of",
    "closed",
    "cut_out",
    "document_of",
    "excerpt",
    "failure_of",
    "fields_of",
    "finish_reason_of",
    "hoisted",
    "json_like",
    "logprobs_of",
    "message_of",
    "message_text",
    "plan",
    "read_conversation",
    "references_of",
    "report_of",
    "schema_of_format",
    "shown",
    "split_context",
    "text_of",
    "title_of",
    "to_documents",
    "to_examples",
    "unknown_names",
    "unstuffed",
    "usage_of",
    "warn_of_context",
]

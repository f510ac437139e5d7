"""Answers of a server: `memograft serve`, or another one with OpenAI's protocol, such as vLLM."""

from memograft.client.engine import RemoteEngine
from memograft.client.wire import answer_to_json, report_from_json

__all__ = ["RemoteEngine", "answer_to_json", "report_from_json"]

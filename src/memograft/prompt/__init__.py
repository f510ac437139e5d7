"""Prompts: from messages, documents and a chat template to token ids with the documents' positions."""

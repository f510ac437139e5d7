"""From messages, documents and a chat template to token ids, and where the documents lie in them."""

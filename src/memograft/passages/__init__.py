"""The vector store: texts in SQLite, their vectors in FAISS, and what turns text into vectors and files into text."""

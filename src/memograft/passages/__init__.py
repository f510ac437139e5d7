"""The vector store: texts in SQLite, vectors in FAISS, embedders, and reading of files."""

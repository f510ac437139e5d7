"""Folders written by `save_local` of langchain_community's FAISS store -> ids, texts, metadata and vectors.

`index.pkl` is never unpickled: `_plain_data` reads what it describes and refuses whatever is not plain data or one of
LangChain's two classes. `index.faiss` goes to FAISS, which checks less than it should in a file made to harm, so open
folders of people you trust. Knows nothing of embeddings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from memograft.documents import Document
from memograft.errors import SettingsError, StoreCorruptError, StoreError
from memograft.passages.vector_store import VectorStore

from langchain_memograft._plain_data import Record, Refused, plain_data

__all__ = ["FaissFolder", "read_faiss_folder"]

# Where LangChain has kept the two classes since 2023.
_CLASSES = {
    (module, "Document"): "document"
    for module in (
        "langchain_core.documents.base",
        "langchain_core.documents",
        "langchain.schema.document",
        "langchain.schema",
        "langchain.docstore.document",
    )
} | {
    (module, "InMemoryDocstore"): "docstore"
    for module in (
        "langchain_community.docstore.in_memory",
        "langchain.docstore.in_memory",
    )
}
_AT_ONCE = 10_000  # vectors
_DEEPEST = 50  # levels of nesting in metadata; what contains itself ends here
_MOST = 100_000  # values in one document's metadata; one small list referred to again and again can be a billion


@dataclass(frozen=True)
class FaissFolder:
    """What a folder holds.

    Attributes:
        documents: in the order of their vectors.
        dimension: D.
        index: the FAISS index.
    """

    documents: list[Document]
    dimension: int
    index: Any

    def pour_into(self, store: VectorStore, embedding: str) -> None:
        """Add the documents with the vectors they have, thousands at a time; `embedding` is the name of the store's.

        Raises:
            SettingsError: the store has vectors of another length, or none.
        """
        if self.dimension != store.embedder.dimension:
            raise SettingsError(
                f"`embedding` must be the one the folder was built with, of {self.dimension} numbers a vector, got "
                f"{embedding} with {store.embedder.dimension}; pass that one"
            )
        for start in range(0, len(self.documents), _AT_ONCE):
            documents = self.documents[start : start + _AT_ONCE]
            store.add(documents, self.index.reconstruct_n(start, len(documents)))


def read_faiss_folder(folder: str | Path, index_name: str = "index") -> FaissFolder:
    """Read a folder and check that its two files belong together.

    Args:
        folder: what was given to `save_local`.
        index_name: what was given to `save_local`.

    Raises:
        StoreError: a file is missing, or the index keeps no vectors that it could give back.
        StoreCorruptError: a file is damaged or holds what this does not read, or the two do not fit each other.
    """
    files = [Path(folder) / f"{index_name}.{suffix}" for suffix in ("pkl", "faiss")]
    for file in files:
        if not file.is_file():
            raise StoreError(
                f"a folder of langchain_community's FAISS store has {files[0].name} and {files[1].name}, and {file} is "
                "not there; check the path and `index_name`"
            )
    documents = _documents(files[0])
    index = _index(files[1])
    if index.ntotal != len(documents):
        _refuse(files[1], f"holds {index.ntotal} vectors, and {files[0].name} has {len(documents)} documents")
    return FaissFolder(documents, int(index.d), index)


def _refuse(file: Path, reason: str) -> NoReturn:
    raise StoreCorruptError(
        f"{file} {reason}; nothing of it was executed or kept. Save the folder again from a store you trust, with "
        "metadata of strings, numbers, bools, None, lists and dicts"
    )


def _documents(file: Path) -> list[Document]:
    """Return the documents of index.pkl in the order of their vectors."""
    try:
        data = plain_data(file.read_bytes(), _CLASSES)
    except Refused as refused:
        _refuse(file, str(refused))
    match data:
        case (Record(kind="docstore", state={"_dict": dict(stored)}), dict(ids)):
            pass
        case _:
            _refuse(file, "is not a docstore and the ids of its vectors")
    if ids.keys() != set(range(len(ids))):
        _refuse(file, f"numbers its {len(ids)} vectors in another way than 0, 1, 2, ...")
    order = [ids[position] for position in range(len(ids))]
    if not all(isinstance(id, str) and id for id in order) or len(set(order)) != len(order):
        _refuse(file, "has ids that are no strings, or the same one twice")
    if set(order) != stored.keys():
        _refuse(file, f"has {len(stored)} documents and {len(order)} vectors, which are not of the same ids")
    return [_document(file, id, stored[id]) for id in order]


def _document(file: Path, id: str, record: object) -> Document:
    match record:
        case Record(kind="document", state={"__dict__": {"page_content": str(text), "metadata": dict(metadata)}}):
            try:
                plain = _json(metadata, iter(range(_MOST)), 0)
                f"{text}{json.dumps(plain, ensure_ascii=False)}".encode()
                return Document(text, id, plain)
            except ValueError as error:  # Refused, a lone surrogate, or an integer of thousands of digits
                _refuse(file, f"cannot be kept under the id {id!r}: {error}")
    _refuse(file, f"has something else than a document under the id {id!r}")


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise Refused(f"its metadata has the key {key!r}, which is no string")
    return key


def _json(value: Any, budget: Iterator[int], depth: int) -> Any:
    """Return a JSON value of its own, however often its parts are shared in the file."""
    if next(budget, None) is None or depth > _DEEPEST:
        raise Refused(f"its metadata has more than {_MOST} values, or is nested deeper than {_DEEPEST} levels")
    match value:
        case None | bool() | int() | str():
            return value
        case float() if math.isfinite(value):
            return value
        case list() | tuple():
            return [_json(item, budget, depth + 1) for item in value]
        case dict():
            return {_key(key): _json(item, budget, depth + 1) for key, item in value.items()}
    raise Refused(
        f"its metadata holds {value if isinstance(value, float) else type(value).__name__}, which is not JSON"
    )


def _index(file: Path) -> Any:
    """Read index.faiss and make sure that it gives its vectors back."""
    import faiss

    try:
        index = faiss.read_index(str(file))
    except (RuntimeError, MemoryError) as error:
        raise StoreCorruptError(
            f"FAISS cannot read {file} ({str(error).splitlines()[0][:200]}); restore it from a backup"
        ) from error
    try:
        if isinstance(index, faiss.IndexIVF):
            index.make_direct_map()  # from positions to its lists
        if index.ntotal:
            index.reconstruct(0)  # reconstruct_n ends the process where an index has none
    except RuntimeError as error:
        raise StoreError(
            f"{file} is a {type(index).__name__}, which does not give its vectors back; add the documents to a new "
            "store with add_documents"
        ) from error
    return index

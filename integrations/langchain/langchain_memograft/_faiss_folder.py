"""Read folders written by `save_local` of langchain_community's FAISS store: ids, texts, metadata and vectors.

`index.pkl` is never unpickled. `plain_data` parses it, and refuses everything except plain data and two classes of
LangChain. `index.faiss` is read by FAISS, which does not check all of a file; open only folders from sources you trust.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from memograft.documents import Document
from memograft.errors import StoreCorruptError, StoreError
from memograft.passages.foreign import FaissVectors, plain_document
from memograft.storage.plain_data import Record, Refused, plain_data

__all__ = ["FaissFolder", "read_faiss_folder"]

# The modules of the two classes since 2023.
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


@dataclass(frozen=True)
class FaissFolder:
    """The content of a folder.

    Attributes:
        documents: in the order of their vectors.
        vectors: one for each document.
    """

    documents: list[Document]
    vectors: FaissVectors


def read_faiss_folder(folder: str | Path, index_name: str = "index") -> FaissFolder:
    """Read a folder and check that its two files match.

    Args:
        folder: the argument of `save_local`.
        index_name: the argument of `save_local`.

    Raises:
        StoreError: a file is missing, or the vectors cannot be read back from the index.
        StoreCorruptError: a file is damaged or contains unsupported objects, or the two files do not match.
    """
    files = [Path(folder) / f"{index_name}.{suffix}" for suffix in ("pkl", "faiss")]
    for file in files:
        if not file.is_file():
            raise StoreError(
                f"a folder of langchain_community's FAISS store has {files[0].name} and {files[1].name}, and {file} is "
                "not there; check the path and `index_name`"
            )
    documents = _documents(files[0])
    vectors = FaissVectors(files[1])
    if vectors.count != len(documents):
        _refuse(files[1], f"holds {vectors.count} vectors, and {files[0].name} has {len(documents)} documents")
    return FaissFolder(documents, vectors)


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
                return plain_document(text, id, metadata)
            except ValueError as error:
                _refuse(file, f"cannot be kept under the id {id!r}: {error}")
    _refuse(file, f"has something else than a document under the id {id!r}")

"""Bodies that add documents to a store: JSON, or files as `multipart/form-data`."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest

from memograft.documents import Document
from memograft.errors import MissingExtraError, SettingsError
from memograft.passages.reading import SUFFIXES, read_file, split
from memograft.server.errors import ApiError, refused
from memograft.server.schemas import PassagesRequest
from memograft.server.settings import ServerSettings
from memograft.storage.disk import JsonObject

__all__ = ["BODY", "Incoming", "incoming"]

_MOST_FILES = 100
_CHUNK, _OVERLAP = 600, 60  # characters of a passage, and those that neighbours share, as `memograft index` has them

# For the OpenAPI document: FastAPI describes one content type of a body only.
BODY: JsonObject = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": PassagesRequest.model_json_schema(ref_template="#/components/schemas/{model}")
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                    "required": ["file"],
                }
            },
        },
    }
}


@dataclass(frozen=True)
class Incoming:
    """Documents of a body.

    Attributes:
        documents: to add.
        files: names of the files that they come from. Passages that the store has of these files are replaced.
    """

    documents: list[Document]
    files: tuple[str, ...] = ()

    @property
    def stale(self) -> dict[str, object] | None:
        """The filter of what they replace."""
        return {"source": {"$in": list(self.files)}} if self.files else None


async def incoming(http: HttpRequest, settings: ServerSettings) -> Incoming:
    """Read a body.

    Raises:
        ApiError, RequestValidationError: it is neither valid JSON nor files that can be read.
    """
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _files(http, settings)
    if kind != "application/json":
        raise ApiError(
            400, f"the content type must be application/json or multipart/form-data, got {kind!r:.80}; set it"
        )
    try:
        body = PassagesRequest.model_validate_json(await http.body())
    except ValidationError as error:
        found = error.errors(include_url=False)
        if found[0]["type"] == "json_invalid":
            raise ApiError(400, f"the body must be JSON, got {found[0]['ctx']['error']}; encode it anew") from error
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in found]) from error
    return Incoming([page.document() for page in body.documents])


async def _files(http: HttpRequest, settings: ServerSettings) -> Incoming:
    try:
        async with http.form(max_files=_MOST_FILES, max_fields=10, max_part_size=settings.max_upload) as form:
            files = [value for value in form.getlist("file") if isinstance(value, UploadFile)]
            others = sorted({name for name, _ in form.multi_items()} - {"file"})
            if others or not files or len(files) != len(form.getlist("file")):
                said = f"the form must have files named 'file', and nothing else, got {others or 'none'}; send them"
                raise refused("file", said)
            contents = [(_name(file), await file.read()) for file in files]
    except HTTPException as error:
        raise refused("file", f"the form cannot be read: {error.detail}") from error
    documents = [each for name, data in contents for each in await asyncio.to_thread(_passages, name, data)]
    return Incoming(documents, tuple(dict.fromkeys(name for name, _ in contents)))


def _name(file: UploadFile) -> str:
    """The name of a file without folders."""
    name = PurePosixPath((file.filename or "").replace("\\", "/")).name
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in SUFFIXES:
        kinds = ", ".join(sorted(SUFFIXES))
        raise refused("file", f"a file must be one of {kinds}, got the name {name!r:.80}; convert it to text")
    return name


def _passages(name: str, data: bytes) -> list[Document]:
    """The passages of a file, with its name as `source`."""
    suffix = PurePosixPath(name).suffix.lower()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{suffix}"  # the client's name stays out of the file system
        path.write_bytes(data)
        try:
            text = read_file(path)
        except (SettingsError, MissingExtraError) as error:
            raise refused("file", str(error).replace(str(path), repr(name)[:80])) from error
    title = PurePosixPath(name).stem if text.title == path.stem else text.title
    about = {"source": name, "title": title, "digest": hashlib.sha256(data).hexdigest()[:32]}
    chunks = split(text.text, _CHUNK, _OVERLAP, markdown=suffix in (".md", ".markdown"))
    return [Document(chunk, f"{name}#{n}", {**about, "chunk": n}) for n, chunk in enumerate(chunks)]

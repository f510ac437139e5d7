"""Files to text: txt, Markdown, PDF and HTML, with a title, and text to passages of a bounded length.

Every library is imported when the first file needs it. Knows nothing of stores, prompts and models.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from memograft.errors import MissingExtraError, SettingsError

__all__ = ["SUFFIXES", "Text", "find_files", "read_file", "split"]

_MARKDOWN, _HTML = frozenset({".md", ".markdown"}), frozenset({".html", ".htm"})
SUFFIXES = frozenset({".txt", ".pdf"}) | _MARKDOWN | _HTML

_BLOCKS = "address article blockquote dd div dt figcaption footer h1 h2 h3 h4 h5 h6 header li p pre section tr"
_UNSEEN = "script style template noscript head svg nav"
_TITLE_LENGTH = 120


@dataclass(frozen=True)
class Text:
    """What a file says.

    Attributes:
        title: the file's own title, else its first line, else its name.
        text: the whole text; the title is its first line where the file has it there.
    """

    title: str
    text: str


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Files as they were named, and the readable files of folders, recursively and sorted, hidden ones left out.

    Raises:
        SettingsError: a path that is not there.
    """
    found: dict[Path, None] = {}  # a set that keeps the order
    for path in paths:
        if path.is_dir():
            inside = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            found |= dict.fromkeys(sorted(p for p in inside if not _hidden(p.relative_to(path))))
        elif path.exists():
            found[path] = None
        else:
            raise SettingsError(f"{path} is neither a file nor a folder; check the path")
    return list(found)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def read_file(path: Path) -> Text:
    """Read one file.

    Raises:
        SettingsError: its kind is not known, it cannot be read, or it holds no text; the message names it.
        MissingExtraError: the library for its kind is not installed.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise SettingsError(f"{path} must be one of {', '.join(sorted(SUFFIXES))}, got {suffix!r}; convert it to text")
    try:
        text = _read_pdf(path) if suffix == ".pdf" else _read_html(path) if suffix in _HTML else _read_text(path)
    except OSError as error:
        raise SettingsError(f"{path} cannot be opened ({error.strerror or error}); check its permissions") from error
    if not text.text.strip():
        way_out = "run text recognition (OCR) on it first" if suffix == ".pdf" else "remove it"
        raise SettingsError(f"{path} holds no text; {way_out}")
    return text


def _read_text(path: Path) -> Text:
    data = path.read_bytes()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} must be UTF-8 text, and is not at byte {error.start}; convert it") from error
    text = _tidy(text.replace("\r\n", "\n").replace("\r", "\n"))
    if path.suffix.lower() in _MARKDOWN:
        text = re.sub(r"\A#{1,6}[ \t]+(.*?)[ \t]*#*$", r"\1", text, count=1, flags=re.MULTILINE)
    return Text(_title("", text, path), text)


def _read_html(path: Path) -> Text:
    soup_class, text_class = _library("bs4", "BeautifulSoup"), _library("bs4", "NavigableString")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # XHTML read as HTML, a file that looks like a URL: both are read well enough
        soup = soup_class(path.read_bytes(), "html.parser")
    title = soup.title.get_text() if soup.title else ""
    for element in soup.find_all(_UNSEEN.split()):
        element.decompose()
    for element in soup.find_all(string=True):
        if type(element) is text_class and not element.find_parent("pre"):  # comments and the like are subclasses
            element.replace_with(re.sub(r"\s+", " ", element))
    for element in soup.find_all("br"):
        element.replace_with("\n")
    for element in soup.find_all(_BLOCKS.split()):
        element.insert_before("\n\n")
        element.append("\n\n")
    text = _tidy(re.sub(r" *\n *", "\n", soup.get_text()))
    return Text(_title(title, text, path), text)


def _read_pdf(path: Path) -> Text:
    reader_class = _library("pypdf", "PdfReader")
    try:
        reader = reader_class(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise SettingsError(f"{path} is protected by a password; save a copy without one")
        text = _tidy("\n\n".join(page.extract_text() for page in reader.pages))
        title = (reader.metadata.title if reader.metadata else "") or ""
    except (SettingsError, OSError):
        raise
    except Exception as error:  # pypdf raises whatever a damaged file leads it into
        raise SettingsError(f"{path} cannot be read as PDF ({error}); save it again, or convert it to text") from error
    return Text(_title(title, text, path), text)


def _tidy(text: str) -> str:
    """Text without control characters, trailing spaces and more than one empty line in a row."""
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", " ", text)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)).strip()


def _title(own: str, text: str, path: Path) -> str:
    first_line = text.split("\n", 1)[0]
    title = " ".join(own.split()) or (first_line if len(first_line) <= _TITLE_LENGTH else "") or path.stem
    return title[:_TITLE_LENGTH]


def split(text: str, chunk_size: int = 600, overlap: int = 60, *, markdown: bool = False) -> list[str]:
    """Passages of at most `chunk_size` characters, cut at headings, paragraphs, sentences or words.

    Args:
        text: the whole text.
        chunk_size: characters of a passage; 600 are about 150 tokens of English.
        overlap: characters that neighbours may share where a paragraph had to be cut.
        markdown: cut before headings first.

    Raises:
        SettingsError: `chunk_size` is not positive, or `overlap` is not smaller.
        MissingExtraError: a text has to be split, and langchain-text-splitters is not installed.
    """
    if chunk_size < 1 or not 0 <= overlap < chunk_size:
        raise SettingsError(
            f"`chunk_size` must be at least 1 and more than `overlap`, got {chunk_size} and {overlap}; "
            "600 and 60 are usual"
        )
    if len(text) <= chunk_size:
        return [text] if text.strip() else []
    splitter_class = _library("langchain_text_splitters", "RecursiveCharacterTextSplitter")
    headings = [r"\n#{1,6} "] if markdown else []
    separators = [*headings, r"\n\n", r"\n", r"(?<=[.!?])\s", r"\s", ""]
    splitter = splitter_class(
        separators=separators, is_separator_regex=True, chunk_size=chunk_size, chunk_overlap=overlap
    )
    return [str(chunk) for chunk in splitter.split_text(text) if chunk.strip()]


def _library(module: str, name: str) -> Any:
    packages = {"bs4": "beautifulsoup4", "langchain_text_splitters": "langchain-text-splitters"}
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        raise MissingExtraError(
            f'this needs {packages.get(module, module)}, which is not installed; run pip install "memograft[cli]"'
        ) from error

"""Read files (txt, Markdown, PDF, HTML, Word docx) as text with a title, and split text into passages.

Libraries are imported when the first file needs them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from memograft.errors import MissingExtraError, SettingsError

__all__ = ["SUFFIXES", "Text", "find_files", "read_characters", "read_file", "split", "tidy", "titled"]

_MARKDOWN, _HTML = frozenset({".md", ".markdown"}), frozenset({".html", ".htm"})
SUFFIXES = frozenset({".txt", ".pdf", ".docx"}) | _MARKDOWN | _HTML

_BLOCKS = "address article blockquote dd div dt figcaption footer h1 h2 h3 h4 h5 h6 header li p pre section tr"
_UNSEEN = "script style template noscript head svg nav"
_TITLE_LENGTH = 120


@dataclass(frozen=True)
class Text:
    """The text of a file.

    Attributes:
        title: the file's own title, else its first line, else its name.
        text: the whole text, including a title on the first line.
    """

    title: str
    text: str


def find_files(paths: Iterable[Path], suffixes: Container[str] | None = SUFFIXES) -> list[Path]:
    """Files as named, and those in folders, recursively and sorted, without hidden ones.

    In folders, only files with these suffixes are found; None finds all.

    Raises:
        SettingsError: a path does not exist.
    """
    found: dict[Path, None] = {}  # an ordered set
    for path in paths:
        if path.is_dir():
            inside = (p for p in path.rglob("*") if (suffixes is None or p.suffix.lower() in suffixes) and p.is_file())
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
        SettingsError: its kind is unknown, it cannot be read, or it has no text; the message names it.
        MissingExtraError: the library for its kind is not installed.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise SettingsError(f"{path} must be one of {', '.join(sorted(SUFFIXES))}, got {suffix!r}; convert it to text")
    try:
        text = _reader(suffix)(path)
    except MissingExtraError as error:
        raise MissingExtraError(f"{path} cannot be read: {error}") from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be opened ({error.strerror or error}); check its permissions") from error
    if not text.text.strip():
        way_out = "run text recognition (OCR) on it first" if suffix == ".pdf" else "remove it"
        raise SettingsError(f"{path} holds no text; {way_out}")
    return text


def _reader(suffix: str) -> Callable[[Path], Text]:
    others = {".pdf": _read_pdf, ".docx": _read_docx, **dict.fromkeys(_HTML, _read_html)}
    return others.get(suffix, _read_text)


def read_characters(path: Path) -> str:
    """The characters of a text file in UTF-8, or in UTF-16 with a byte order mark, with "\\n" as line ends.

    Raises:
        SettingsError: it cannot be opened, or has another encoding.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path} cannot be opened ({error.strerror or error}); check its permissions") from error
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} must be UTF-8 text, and is not at byte {error.start}; convert it") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_text(path: Path) -> Text:
    text = tidy(read_characters(path))
    if path.suffix.lower() in _MARKDOWN:
        text = re.sub(r"\A#{1,6}[ \t]+(.*?)[ \t]*#*$", r"\1", text, count=1, flags=re.MULTILINE)
    return Text(titled("", text, path), text)


def _read_html(path: Path) -> Text:
    soup_class, text_class = _library("bs4", "BeautifulSoup"), _library("bs4", "NavigableString")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # XHTML, or text that looks like a URL, is read well enough
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
    text = tidy(re.sub(r" *\n *", "\n", soup.get_text()))
    return Text(titled(title, text, path), text)


def _read_pdf(path: Path) -> Text:
    reader_class = _library("pypdf", "PdfReader")
    try:
        reader = reader_class(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise SettingsError(f"{path} is protected by a password; save a copy without one")
        text = tidy("\n\n".join(page.extract_text() for page in reader.pages))
        title = (reader.metadata.title if reader.metadata else "") or ""
    except (SettingsError, OSError):
        raise
    except Exception as error:  # pypdf raises anything for a damaged file
        raise SettingsError(f"{path} cannot be read as PDF ({error}); save it again, or convert it to text") from error
    return Text(titled(title, text, path), text)


def _read_docx(path: Path) -> Text:
    open_docx = _library("docx", "Document")
    try:
        file = open_docx(path)
        blocks: list[str] = []
        for block in file.iter_inner_content():  # paragraphs and tables, in their order
            rows = getattr(block, "rows", None)
            lines = [block.text] if rows is None else [" | ".join(c.text.strip() for c in row.cells) for row in rows]
            blocks += lines if rows is None else ["\n".join(lines)]
        title = file.core_properties.title or ""
    except OSError:
        raise
    except Exception as error:  # python-docx raises anything for a damaged file
        raise SettingsError(f"{path} cannot be read as docx ({error}); save it again, or convert it to text") from error
    text = tidy("\n\n".join(blocks))
    return Text(titled(title, text, path), text)


def tidy(text: str) -> str:
    """Remove control characters, trailing spaces and repeated empty lines."""
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", " ", text)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)).strip()


def titled(own: str, text: str, path: Path) -> str:
    """The title of a text: its own, else its first line if that is short, else the file's name."""
    first_line = text.split("\n", 1)[0]
    title = " ".join(own.split()) or (first_line if len(first_line) <= _TITLE_LENGTH else "") or path.stem
    return title[:_TITLE_LENGTH]


def split(text: str, chunk_size: int = 600, overlap: int = 60, *, markdown: bool = False) -> list[str]:
    """Split a text into passages of at most `chunk_size` characters, at headings, paragraphs, sentences or words.

    Args:
        text: the whole text.
        chunk_size: maximum characters of a passage; 600 are about 150 tokens of English.
        overlap: characters that adjacent passages may share if a paragraph is split.
        markdown: split before headings first.

    Raises:
        SettingsError: `chunk_size` is not positive, or `overlap` is not smaller.
    """
    if chunk_size < 1 or not 0 <= overlap < chunk_size:
        raise SettingsError(
            f"`chunk_size` must be at least 1 and more than `overlap`, got {chunk_size} and {overlap}; "
            "600 and 60 are usual"
        )
    from semantic_text_splitter import MarkdownSplitter, TextSplitter

    return (MarkdownSplitter if markdown else TextSplitter)(chunk_size, overlap=overlap).chunks(text)


def _library(module: str, name: str) -> Any:
    packages = {"bs4": "beautifulsoup4", "docx": "python-docx"}
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        package = packages.get(module, module)
        install = '"memograft[docx]"' if module == "docx" else package
        raise MissingExtraError(f"this needs {package}, which is not installed; run pip install {install}") from error

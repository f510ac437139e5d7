"""The text index of a store: SQLite's FTS5 over the passages' texts, which ranks by BM25 without a copy of the texts.

The FTS5 table is contentless: it has the positions of words, but no texts. So every change of a passage must change the
index in the same transaction (`add`, `remove`). Words are split by Unicode, without accents and case, and English
endings are removed (Porter, "An algorithm for suffix stripping", 1980); text without blanks is split by `pieces.py`.
The functions take an open connection and do not commit.
"""

from __future__ import annotations

import re
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import zip_longest
from pathlib import Path

from memograft.errors import StoreError
from memograft.passages import pieces
from memograft.passages.progress import progress_bar

KEY = "words"  # setting with the checksum of the index at the time the store was closed
SHADOWS = ("words_data", "words_idx", "words_docsize", "words_config")  # FTS5's own tables
_CUT = "tokenize='porter unicode61 remove_diacritics 2'"
TABLE = f"CREATE VIRTUAL TABLE words USING fts5(text, content='', {_CUT})"
OLD_TABLE = TABLE.replace("content=''", "content='passages', content_rowid='seq'")  # of format 2, without pieces

_LARGE = 10_000  # passages from which building the index shows a progress bar
_AT_ONCE = 2048
_WORD = re.compile(r"[^\W_]+")
_MOST = 256  # maximum number of words of a question: a thousand take 0.2 s with only 2,000 passages
# Words that occur in most English texts. They do not distinguish texts, and searching for them reads every passage.
_COMMON = frozenset(
    "a an and are as at be been but by did do does for from had has have how if in into is it its of on or such that "
    "the their then there these they this to was were what when where which who why will with".split()
)


def is_available(connection: sqlite3.Connection) -> bool:
    """Whether this SQLite was built with FTS5."""
    return bool(connection.execute("SELECT 1 FROM pragma_module_list WHERE name = 'fts5'").fetchone())


def are_indexed(connection: sqlite3.Connection) -> bool:
    """Whether the store has a text index of the current kind."""
    sql = "SELECT 1 FROM main.sqlite_master WHERE name = 'words' AND sql = ?"
    return bool(connection.execute(sql, [TABLE]).fetchone())


def no_index(file: Path | None) -> StoreError:
    """The error for a search by words without an index."""
    return StoreError(
        f"{file or 'a store in memory'} cannot be searched by its words: it has no text index, or one of an older "
        f"kind, or the SQLite of this Python ({sqlite3.sqlite_version}) has no FTS5; open it for writing once, which "
        'makes the index, or search with mode="vector"'
    )


def create(connection: sqlite3.Connection, progress: bool) -> None:
    """Index the texts of a store that has no index or one of an older kind."""
    connection.execute("DROP TABLE IF EXISTS words")
    connection.execute(TABLE)
    ((count,),) = connection.execute("SELECT count(*) FROM passages")
    with progress_bar(count, "Indexing the words", "passage", progress and count >= _LARGE) as bar:
        for page in _pages(connection):
            add(connection, page)
            bar.update(len(page))


def _pages(connection: sqlite3.Connection) -> Iterator[list[tuple[int, str]]]:
    """(seq, text) of all passages, in pages. Damaged bytes are replaced; reading such a passage reports the damage."""
    page = "SELECT seq, CAST(coalesce(text, '') AS BLOB) FROM main.passages WHERE seq > ? ORDER BY seq LIMIT ?"
    ((after,),) = connection.execute("SELECT min(seq) - 1 FROM main.passages")
    while after is not None:
        found = connection.execute(page, [after, _AT_ONCE]).fetchall()
        yield [(seq, text.decode(errors="replace")) for seq, text in found]
        after = found[-1][0] if found else None


def rebuild(connection: sqlite3.Connection) -> None:
    """Index all texts again, in optimized form."""
    connection.execute("INSERT INTO words (words) VALUES ('delete-all')")
    for page in _pages(connection):
        add(connection, page)
    connection.execute("INSERT INTO words (words) VALUES ('optimize')")


def add(connection: sqlite3.Connection, passages: Iterable[tuple[int, str]], into: str = "words") -> None:
    """Index added passages, (seq, text) each."""
    rows = ((seq, pieces.spaced(text)) for seq, text in passages)
    connection.executemany(f"INSERT INTO {into} (rowid, text) VALUES (?, ?)", rows)


def remove(connection: sqlite3.Connection, passages: Iterable[tuple[int, str]]) -> None:
    """Remove passages from the index before they are deleted. FTS5 needs their texts for that."""
    rows = ((seq, pieces.spaced(text)) for seq, text in passages)
    connection.executemany("INSERT INTO words (words, rowid, text) VALUES ('delete', ?, ?)", rows)


def cut(text: str) -> list[str]:
    """The words of a text in lower case, without common words unless there are no others; see `pieces`."""
    found = _WORD.findall(pieces.without(text).lower())
    return ([word for word in found if word not in _COMMON] + pieces.asked(text)) or found


def expression(question: str) -> str:
    """The question as an FTS5 expression for any of its words; empty if it has none.

    Words are quoted and consist of letters and digits, so nothing in a question is syntax.
    """
    found = list(dict.fromkeys(cut(question)))[:_MOST]
    return " OR ".join(f'"{word[:-1]}"{word[-1]}' if word[-1] == pieces.PREFIX else f'"{word}"' for word in found)


def best(condition: str | None) -> str:
    """SQL for (seq, BM25) of the best passages. Parameters: the expression, those of the condition, the limit.

    BM25 (Robertson and Zaragoza, "The probabilistic relevance framework", 2009, section 3) with FTS5's k1 = 1.2 and
    b = 0.75; the sign is changed, so that higher is better.
    """
    if condition is None:
        return "SELECT rowid, -rank FROM words WHERE words MATCH ? ORDER BY rank, rowid LIMIT ?"
    return (
        "SELECT seq, -rank FROM words JOIN passages ON seq = words.rowid "
        f"WHERE words MATCH ? AND ({condition}) ORDER BY rank, seq LIMIT ?"
    )


def checksum(connection: sqlite3.Connection) -> int:
    """CRC-32 of everything in FTS5's tables."""
    crc = 0
    for table in SHADOWS:
        for row in connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2"):
            for value in row:
                crc = zlib.crc32(value if isinstance(value, bytes) else repr(value).encode(), crc)
    return crc


def are_right(connection: sqlite3.Connection) -> bool:
    """Whether the index matches the texts: builds a second one in a temporary table, and compares them."""
    connection.execute(f"CREATE VIRTUAL TABLE temp.words_again USING fts5(text, content='', {_CUT})")
    connection.execute("CREATE VIRTUAL TABLE temp.places USING fts5vocab(main, words, instance)")
    connection.execute("CREATE VIRTUAL TABLE temp.places_again USING fts5vocab(temp, words_again, instance)")
    try:
        for page in _pages(connection):
            add(connection, page, into="temp.words_again")
        sizes = "SELECT id, sz FROM {} ORDER BY id"
        places = "SELECT term, doc, offset FROM {}"  # the rows are in this order
        return _are_equal(connection, sizes, "main.words_docsize", "temp.words_again_docsize") and _are_equal(
            connection, places, "temp.places", "temp.places_again"
        )
    finally:
        for table in ("places", "places_again", "words_again"):
            connection.execute(f"DROP TABLE temp.{table}")


def _are_equal(connection: sqlite3.Connection, query: str, one: str, other: str) -> bool:
    """Whether a query returns the same rows in the same order for two tables."""
    left, right = (connection.execute(query.format(table)) for table in (one, other))
    with closing(left), closing(right):
        return all(a == b for a, b in zip_longest(left, right))

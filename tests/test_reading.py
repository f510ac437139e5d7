"""Reading of files, and splitting of text into passages."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import docx
import pytest

from memograft.errors import MissingExtraError, SettingsError
from memograft.passages.reading import Text, find_files, read_file, split


def write_pdf(path: Path, lines: list[str]) -> Path:
    """A PDF of one page, written by hand: five objects, a cross-reference table and a trailer."""
    shown = " ".join(f"({line}) Tj T*" for line in lines)
    stream = f"BT /F1 12 Tf 14 TL 40 700 Td {shown} ET"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 4 0 R "
        "/Resources << /Font << /F1 5 0 R >> >> >>",
        f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    data, places = "%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    trailer = f"trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n{len(data)}\n%%EOF\n"
    path.write_bytes(f"{data}xref\n0 6\n0000000000 65535 f \n{table}{trailer}".encode())
    return path


def test_markdown_title_loses_its_mark_and_nothing_else(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("# Velmora #\n\nA *town*.\n\n## River\n\nThe Traikan.   \n")
    assert read_file(path) == Text("Velmora", "Velmora\n\nA *town*.\n\n## River\n\nThe Traikan.")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_encodings(tmp_path, encoding):
    path = tmp_path / "b.txt"
    path.write_bytes("Zürich\r\nliegt am See.".encode(encoding))
    assert read_file(path) == Text("Zürich", "Zürich\nliegt am See.")


def test_a_long_first_line_is_no_title(tmp_path):
    path = tmp_path / "long-one.txt"
    path.write_text("word " * 100)
    assert read_file(path).title == "long-one"


def test_html_keeps_what_is_seen(tmp_path):
    path = tmp_path / "c.html"
    path.write_text("""<!DOCTYPE html>
<html><head><title> The
 page </title><style>p {}</style></head>
<body><!-- unseen --><script>no()</script><h1>Head</h1><p>One <b>bold</b>
  word &amp; more.</p><ul><li>first</li><li>second</li></ul>a<br>b<pre>x  y</pre></body></html>""")
    text = read_file(path)
    assert text.title == "The page"
    assert text.text == "Head\n\nOne bold word & more.\n\nfirst\n\nsecond\n\na\nb\n\nx  y"


def test_pdf(tmp_path):
    path = write_pdf(tmp_path / "d.pdf", ["Velmora", "The river of Velmora is the Traikan."])
    assert read_file(path) == Text("Velmora", "Velmora\nThe river of Velmora is the Traikan.")


def test_docx_keeps_paragraphs_and_tables_in_their_order(tmp_path):
    file = docx.Document()
    file.core_properties.title = "Rivers"
    file.add_heading("Rivers of Vandria", 1)
    file.add_paragraph("The river of Velmora is the Traikan.")
    table = file.add_table(rows=2, cols=2)
    for row, cells in zip(table.rows, [("town", "river"), ("Drostein", "Jolm")], strict=True):
        for cell, text in zip(row.cells, cells, strict=True):
            cell.text = text
    file.add_paragraph("The end.")
    file.save(tmp_path / "e.docx")
    assert read_file(tmp_path / "e.docx") == Text(
        "Rivers",
        "Rivers of Vandria\n\nThe river of Velmora is the Traikan.\n\ntown | river\nDrostein | Jolm\n\nThe end.",
    )


def test_find_files_sorts_and_leaves_hidden_ones_out(tmp_path):
    for name in ("b.md", "a.txt", "sub/c.HTML", ".hidden/d.md", ".e.md", "f.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [p.relative_to(tmp_path).as_posix() for p in find_files([tmp_path])] == ["a.txt", "b.md", "sub/c.HTML"]
    assert find_files([tmp_path / "f.png"]) == [tmp_path / "f.png"]
    with pytest.raises(SettingsError, match="neither a file nor a folder"):
        find_files([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"caf\xe9", "must be UTF-8 text, and is not at byte 3"),
        ("a.md", b" \n ", "holds no text"),
        ("a.pdf", b"no pdf at all", "cannot be read as PDF"),
        ("a.docx", b"no docx at all", "cannot be read as docx"),
        ("a.xlsx", b"x", r"must be one of .*, got '\.xlsx'"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(SettingsError, match=message) as caught:
        read_file(path)
    assert str(path) in str(caught.value)


def test_short_texts_stay_whole():
    assert split("One. Two.", 20, 5) == ["One. Two."]
    assert split("  ", 20, 5) == []


def test_split_cuts_at_sentences_and_keeps_every_word():
    text = " ".join(f"Sentence number {n} is here." for n in range(40))
    chunks = split(text, 100, 0)
    assert all(len(chunk) <= 100 and chunk.endswith(".") for chunk in chunks)
    assert " ".join(chunks).split() == text.split()


def test_split_cuts_markdown_at_headings():
    text = "Title\n\n" + "a b c. " * 10 + "\n## Second\n\n" + "d e f. " * 10
    assert any(chunk.startswith("## Second") for chunk in split(text, 100, 0, markdown=True))


@pytest.mark.parametrize(("size", "overlap"), [(1, 0), (7, 0), (60, 0), (60, 20), (600, 60)])
def test_passages_are_short_and_overlap_at_most_so_much(size, overlap):
    source = Path(__file__).read_text(encoding="utf-8")
    text = source + "\n\n" + "東京は日本の首都です。" * 50 + "x" * 200
    chunks = split(text, size, overlap)
    assert all(0 < len(chunk) <= size for chunk in chunks)
    at = 0  # up to where the text is covered
    for chunk in chunks:
        start = text.index(chunk, max(0, at - overlap))
        assert not text[at:start].strip()  # only white space is lost between two
        at = start + len(chunk)
    assert not text[at:].strip()
    if overlap == 0:
        assert "".join("".join(chunks).split()) == "".join(text.split())


def test_neighbours_share_whole_sentences():
    text = " ".join(f"Sentence {n} is here." for n in range(10, 30))
    chunks = split(text, 100, 30)
    for before, after in pairwise(chunks):
        assert before.endswith(after[:20])  # one sentence


def test_sizes_that_cannot_work_are_refused():
    with pytest.raises(SettingsError, match="more than `overlap`, got 50 and 50"):
        split("x", 50, 50)


@pytest.mark.parametrize(("module", "name"), [("bs4", "a.html"), ("pypdf", "a.pdf"), ("docx", "a.docx")])
def test_missing_extras_say_what_to_install(tmp_path, monkeypatch, module, name):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_text("<p>x</p>")
    with pytest.raises(
        MissingExtraError, match=r'a\.\w+ cannot be read: .*run pip install ("memograft\[docx\]"|pypdf|beautifulsoup4)$'
    ):
        read_file(tmp_path / name)


def test_importing_loads_none_of_the_libraries():
    heavy = ("bs4", "docx", "pypdf")
    code = f"import memograft.passages.reading, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""Search by words in languages without blanks, by overlapping pieces of the text."""
# ruff: noqa: RUF001 - these are no Latin characters

from __future__ import annotations

import random
import sqlite3
from itertools import pairwise
from pathlib import Path

import pytest

from memograft.documents import Document
from memograft.errors import StoreError
from memograft.passages import pieces, words
from memograft.passages.rows import sum_settings
from memograft.passages.vector_store import VectorStore
from reference.bm25 import bm25

TEXTS = {
    "zh0": "北京是中华人民共和国的首都，人口超过两千万。",
    "zh1": "上海位于长江入海口，是中国最大的城市。",
    "zh2": "柠檬是一种常绿小乔木，果实味道很酸。",
    "zh3": "蜜蜂通过跳舞告诉同伴花蜜的位置。",
    "ja0": "東京は日本の首都であり、人口は約千四百万人です。",
    "ja1": "京都には多くの寺と神社があります。",
    "ja2": "ミツバチはダンスで蜜の場所を仲間に伝える。",
    "ja3": "富士山は日本で一番高い山です。",
    "th0": "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย",
    "th1": "เชียงใหม่ตั้งอยู่ทางภาคเหนือของประเทศไทย",
    "th2": "ผึ้งเต้นรำเพื่อบอกตำแหน่งของน้ำหวาน",
    "th3": "มะนาวเป็นผลไม้ที่มีรสเปรี้ยว",
    "ko0": "서울은 대한민국의 수도이다.",
    "ko1": "꿀벌은 춤으로 꿀의 위치를 알린다.",
    "ko2": "제주도는 한국에서 가장 큰 섬이다.",
    "km0": "ភ្នំពេញជារដ្ឋធានីនៃប្រទេសកម្ពុជា",
    "km1": "ឃ្មុំរាំដើម្បីប្រាប់ទីតាំងទឹកដម",
    "en0": "The iPhone手机 is sold in Beijing.",
}


@pytest.fixture
def store() -> VectorStore:
    store = VectorStore()
    store.add([Document(text, id) for id, text in TEXTS.items()])
    return store


def matching(store: VectorStore, question: str) -> list[str]:
    return [hit.document.id for hit in store.search(question, 30) if hit.score > 0]


@pytest.mark.parametrize(
    ("question", "id"),
    [
        ("中国的首都是哪里？", "zh0"),
        ("柠檬的味道", "zh2"),
        ("蜜蜂怎么告诉同伴", "zh3"),
        ("中国最大的城市", "zh1"),
        ("日本の首都はどこですか", "ja0"),
        ("一番高い山", "ja3"),
        ("ミツバチのダンス", "ja2"),
        ("京都の寺", "ja1"),
        ("เมืองหลวงของประเทศไทยคืออะไร", "th0"),
        ("ผึ้งเต้นรำทำไม", "th2"),
        ("มะนาวรสอะไร", "th3"),
        ("대한민국의 수도는 어디인가?", "ko0"),
        ("꿀벌의 춤", "ko1"),
        ("រដ្ឋធានីនៃប្រទេសកម្ពុជា", "km0"),
        ("手机", "en0"),
        ("iphone", "en0"),
    ],
)
def test_questions_find_their_texts(store: VectorStore, question: str, id: str) -> None:
    assert matching(store, question)[0] == id


def test_one_character_is_found_wherever_it_stands(store: VectorStore) -> None:
    for character in "北酸通机山섬":
        assert set(matching(store, character)) == {id for id, text in TEXTS.items() if character in text}, character
    assert set(matching(store, "ไทย")) == {"th0", "th1"}
    assert set(matching(store, "ทย")) == {"th0", "th1"}  # the end of a run of Thai
    assert matching(store, "鯨") == []


def test_other_writing_is_indexed_and_asked_as_it_is() -> None:
    for text in (
        "Plain words, and more of them: 42.",
        "Zoë's café memorised “naïve” documents — twice…",
        "Ελληνικά, Русский текст, עברית, العربية بالحركات: كِتَاب",
        "हिन्दी भाषा में लिखा हुआ वाक्य; বাংলা; தமிழ்",
        "emoji ❤️ 👩‍👩‍👧, ０１２ ＡＢＣ",
    ):
        assert pieces.spaced(text) is text or pieces.spaced(text) == text
        assert pieces.asked(text) == []
        assert pieces.without(text) == text


def test_scores_are_those_of_a_naive_bm25_over_pairs() -> None:
    rng = random.Random(3)
    texts = ["".join(rng.choices("一二三四五六七八", k=rng.randrange(2, 12))) for _ in range(40)]
    store = VectorStore()
    store.add([Document(text, str(n)) for n, text in enumerate(texts)])
    cut = [[*(a + b for a, b in pairwise(text)), text[-1]] for text in texts]
    for question in ("一二三", "五六", "七七八一"):
        expected = bm25(cut, {a + b for a, b in pairwise(question)})
        hits = [hit for hit in store.search(question, 40) if hit.score > 0]
        assert {int(hit.document.id): hit.score for hit in hits} == pytest.approx(
            {n: score for n, score in enumerate(expected) if score > 0}
        )


def test_the_index_stays_in_step(tmp_path: Path) -> None:
    with VectorStore(path=tmp_path) as store:
        store.add([Document(text, id) for id, text in TEXTS.items()])
        store.add([Document("東京タワー", "zh0"), Document("กรุงเทพ", "ja0")])
        store.delete(["th0", "en0"])
        assert matching(store, "首都") == []
        assert matching(store, "東京") == ["zh0"]
        assert matching(store, "กรุงเทพมหานคร") == ["ja0"]
        assert store.verify() == []
        store.compact()
        assert store.verify() == []
        assert matching(store, "東京") == ["zh0"]
    with VectorStore(path=tmp_path, read_only=True) as reader:
        assert matching(reader, "東京") == ["zh0"]


def test_passages_without_blanks_are_varied_by_their_pieces() -> None:
    store = VectorStore()
    store.add(["日本の首都は東京です。", "日本の首都は東京です！", "日本の山は高い。", "蜂"])
    hits = store.mmr("日本の首都", k=2, fetch_k=3)
    assert [hit.document.text for hit in hits] == ["日本の首都は東京です。", "日本の山は高い。"]


def test_a_store_of_format_2_is_indexed_anew_by_its_next_writer(tmp_path: Path) -> None:
    with VectorStore(path=tmp_path) as store:
        store.add([Document(text, id) for id, text in TEXTS.items()])
    connection = sqlite3.connect(tmp_path / "passages.sqlite3")  # an old index, of whole phrases as words
    connection.executescript(
        f"DROP TABLE words; {words.OLD_TABLE}; INSERT INTO words (words) VALUES ('rebuild'); PRAGMA user_version = 2;"
    )
    connection.execute(
        "UPDATE settings SET value = ? WHERE key = 'words'", [f'{{"crc32": {words.checksum(connection)}}}']
    )
    sum_settings(connection)
    connection.commit()
    connection.close()
    with VectorStore(path=tmp_path, read_only=True) as reader:
        assert len(reader) == len(TEXTS)
        assert reader.verify() == []
        with pytest.raises(StoreError, match=r"or one of an older kind, .*; open it for writing once, which makes the"):
            reader.search("手机")
    with VectorStore(path=tmp_path) as store:
        assert matching(store, "手机") == ["en0"]
        assert store.verify() == []
    with VectorStore(path=tmp_path, read_only=True) as reader:
        assert matching(reader, "首都") != []

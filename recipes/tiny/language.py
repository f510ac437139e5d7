"""The language of tiny's training data: relations with their wordings, and generated names that do not exist.

A relation has statements (for pages), questions and one answer sentence; `{s}` is the subject and `{v}` the value. The
answer always repeats the subject, which helps a small model to start copying from the page.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

from world import facts

WORLD = facts()


@dataclass(frozen=True)
class Relation:
    """One kind of fact: its statements on pages, its questions and its answer."""

    name: str
    subject: str  # kind of the subject, see `fresh`
    value: str  # kind of the value
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str


def _relation(name: str, subject: str, value: str, statements: str, questions: str, answer: str) -> Relation:
    return Relation(name, subject, value, tuple(statements.split(" | ")), tuple(questions.split(" | ")), answer)


# fmt: off
RELATIONS: dict[str, Relation] = {r.name: r for r in (
    _relation("capital", "country", "city",
        "The capital of {s} is {v}. | {v} is the capital of {s}. | {s} has its capital in {v}. | The government of {s} sits in the capital, {v}.",
        "What is the capital of {s}? | Which city is the capital of {s}? | Name the capital of {s}.",
        "The capital of {s} is {v}."),
    _relation("currency", "country", "coin",
        "The currency of {s} is the {v}. | People in {s} pay with the {v}. | In {s}, prices are given in the {v}. | The {v} is the currency of {s}.",
        "What is the currency of {s}? | Which currency is used in {s}? | What do people pay with in {s}?",
        "The currency of {s} is the {v}."),
    _relation("language", "country", "tongue",
        "The main language of {s} is {v}. | Most people in {s} speak {v}. | {v} is the main language of {s}. | In {s}, the schools teach in {v}.",
        "What is the main language of {s}? | Which language is spoken in {s}? | What do people speak in {s}?",
        "The main language of {s} is {v}."),
    _relation("continent", "country", "continent",
        "{s} lies in {v}. | {s} is a country in {v}. | The country of {s} belongs to {v}.",
        "On which continent is {s}? | Which continent does {s} belong to? | Where does {s} lie?",
        "{s} lies in {v}."),
    _relation("symbol", "element", "symbol",
        "The chemical symbol of {s} is {v}. | Chemists write {s} as {v}. | The letters {v} stand for {s}.",
        "What is the chemical symbol of {s}? | How do chemists write {s}? | Which symbol stands for {s}?",
        "The chemical symbol of {s} is {v}."),
    _relation("number", "element", "small",
        "The atomic number of {s} is {v}. | {s} has the atomic number {v}. | In the table, {s} stands at number {v}.",
        "What is the atomic number of {s}? | Which atomic number does {s} have? | At which number does {s} stand?",
        "The atomic number of {s} is {v}."),
    _relation("author", "book", "person",
        "The author of {s} is {v}. | {s} was written by {v}. | {v} wrote {s}. | {v} is known as the author of {s}.",
        "Who is the author of {s}? | Who wrote {s}? | By whom was {s} written?",
        "The author of {s} is {v}."),
    _relation("painter", "painting", "person",
        "The painter of {s} is {v}. | {s} was painted by {v}. | {v} painted {s}.",
        "Who is the painter of {s}? | Who painted {s}? | By whom was {s} painted?",
        "The painter of {s} is {v}."),
    _relation("inventor", "device", "person",
        "The inventor of {s} is {v}. | {s} was invented by {v}. | {v} invented {s}.",
        "Who is the inventor of {s}? | Who invented {s}? | By whom was {s} invented?",
        "The inventor of {s} is {v}."),
    _relation("city", "landmark", "city",
        "The home of {s} is {v}. | {s} stands in {v}. | {s} can be visited in {v}. | Visitors to {v} can see {s}.",
        "In which city is {s}? | Where does {s} stand? | Where can {s} be visited?",
        "The home of {s} is {v}."),
    _relation("young", "animal", "baby",
        "A young {s} is called a {v}. | The young of the {s} is the {v}. | People call a baby {s} a {v}.",
        "What is a young {s} called? | What do people call a baby {s}? | What is the young of the {s}?",
        "A young {s} is called a {v}."),
    _relation("birthplace", "person", "city",
        "{s} was born in {v}. | The birthplace of {s} is {v}. | {s} comes from {v}. | {s} grew up in {v}, the place of birth.",
        "Where was {s} born? | What is the birthplace of {s}? | Where does {s} come from?",
        "{s} was born in {v}."),
    _relation("job", "person", "job",
        "{s} works as a {v}. | {s} is a {v} by profession. | The profession of {s} is {v}. | {s} has long been a {v}.",
        "What does {s} work as? | What is the profession of {s}? | What is the job of {s}?",
        "{s} works as a {v}."),
    _relation("employer", "person", "company",
        "{s} works for {v}. | The employer of {s} is {v}. | {v} employs {s}. | {s} has a post at {v}.",
        "Who does {s} work for? | Who is the employer of {s}? | Which company employs {s}?",
        "{s} works for {v}."),
    _relation("born", "person", "year",
        "{s} was born in the year {v}. | The year of birth of {s} is {v}. | In {v}, {s} came into the world.",
        "In which year was {s} born? | When was {s} born? | What is the year of birth of {s}?",
        "{s} was born in the year {v}."),
    _relation("founder", "company", "person",
        "The founder of {s} is {v}. | {s} was founded by {v}. | {v} founded {s}. | {v} is the founder of {s}.",
        "Who is the founder of {s}? | Who founded {s}? | By whom was {s} founded?",
        "The founder of {s} is {v}."),
    _relation("headquarters", "company", "city",
        "The headquarters of {s} are in {v}. | {s} is based in {v}. | {s} has its head office in {v}. | The main building of {s} stands in {v}.",
        "Where are the headquarters of {s}? | Where is {s} based? | In which city is the head office of {s}?",
        "The headquarters of {s} are in {v}."),
    _relation("makes", "company", "goods",
        "{s} makes {v}. | {s} is known for its {v}. | The main product of {s} is {v}. | {s} sells {v}.",
        "What does {s} make? | What is the main product of {s}? | What is {s} known for?",
        "{s} makes {v}."),
    _relation("founded", "company", "year",
        "{s} was founded in {v}. | The founding year of {s} is {v}. | {s} opened its doors in {v}.",
        "When was {s} founded? | In which year was {s} founded? | What is the founding year of {s}?",
        "{s} was founded in {v}."),
    _relation("maker", "product", "company",
        "The maker of {s} is {v}. | {s} is made by {v}. | {v} is the maker of {s}. | {v} builds {s}.",
        "Who is the maker of {s}? | Who makes {s}? | Which company builds {s}?",
        "The maker of {s} is {v}."),
    _relation("colour", "product", "colour",
        "The colour of {s} is {v}. | {s} comes in {v}. | {s} is painted {v}.",
        "What is the colour of {s}? | Which colour does {s} have? | In which colour does {s} come?",
        "The colour of {s} is {v}."),
    _relation("price", "product", "amount",
        "The price of {s} is {v}. | {s} costs {v}. | One pays {v} for {s}. | {s} is sold for {v}.",
        "What is the price of {s}? | How much does {s} cost? | For how much is {s} sold?",
        "The price of {s} is {v}."),
    _relation("river", "town", "river",
        "The river of {s} is the {v}. | {s} lies on the {v}. | The {v} flows through {s}. | {s} was built on the banks of the {v}.",
        "What is the river of {s}? | On which river does {s} lie? | Which river flows through {s}?",
        "The river of {s} is the {v}."),
    _relation("mayor", "town", "person",
        "The mayor of {s} is {v}. | {v} is the mayor of {s}. | {s} is led by its mayor, {v}. | The people of {s} chose {v} as mayor.",
        "Who is the mayor of {s}? | Who leads {s}? | What is the name of the mayor of {s}?",
        "The mayor of {s} is {v}."),
    _relation("people", "town", "amount",
        "The population of {s} is {v}. | {s} has a population of {v}. | {v} people live in {s}.",
        "What is the population of {s}? | How many people live in {s}? | How large is the population of {s}?",
        "The population of {s} is {v}."),
)}
# fmt: on

JOBS = "baker teacher painter doctor sailor farmer lawyer singer writer carpenter nurse pilot gardener tailor banker chemist driver fisher judge miner printer smith surgeon potter jeweller librarian clockmaker geologist dentist cook".split()
GOODS = "bicycles clocks boots lamps pianos chairs kettles pumps ladders tents telescopes candles violins ropes barrels sails ovens mirrors umbrellas tractors glass soap paper carpets tiles engines batteries knives cameras gloves".split()
COLOURS = "red blue green yellow black white grey brown orange purple pink silver golden turquoise".split()
CONTINENTS = ("Europe", "Asia", "Africa", "North America", "South America", "Oceania")
_ADJECTIVES = (
    "Silver Silent Broken Hidden Crimson Distant Frozen Golden Hollow Last Quiet Burning Lost Pale Winter".split()
)
_NOUNS = (
    "Harbor Garden River Mirror Tower Orchard Letter Window Bridge Forest Lantern Island Shadow Market Crown".split()
)

_ONSETS = "b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh sk st t th tr v w y z".split()
_VOWELS = "a e i o u ai ea ou".split()
_CODAS = ["", "", "", "n", "r", "l", "s", "m", "th", "x", "nd", "rk"]
SYLLABLES = tuple(
    random.Random(7).sample([o + v + c for o in _ONSETS for v in _VOWELS for c in sorted(set(_CODAS))], 140)
)


def name(rng: random.Random, low: int = 2, high: int = 3) -> str:
    """A generated name of `low` to `high` syllables; 140 syllables give 2.7 million names of three."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(low, high))).capitalize()


CLOSED_KINDS = frozenset({"continent", "job", "goods", "colour", "symbol", "small", "year"})  # too few to hold any out


def fresh(kind: str, rng: random.Random, held_out: bool = False) -> str:
    """A generated value or subject of this kind.

    One name in ten, by its checksum, is held out from training; `held_out` draws these. Closed kinds (colours,
    years, ...) have no held-out part.
    """
    while True:
        made = _make(kind, rng)
        if kind in CLOSED_KINDS or (zlib.crc32(made.encode()) % 10 == 0) == held_out:
            return made


def _make(kind: str, rng: random.Random) -> str:
    makers = {
        "person": lambda: f"{name(rng, 1, 2)} {name(rng, 2, 2)}",
        "city": lambda: name(rng),
        "town": lambda: name(rng),
        "country": lambda: name(rng, 2, 3) + rng.choice(("ia", "land", "", "")),
        "river": lambda: name(rng, 1, 2),
        "coin": lambda: name(rng, 1, 2).lower(),
        "tongue": lambda: name(rng, 1, 2) + rng.choice(("ish", "ese", "ian")),
        "baby": lambda: name(rng, 1, 2).lower(),
        "animal": lambda: name(rng, 1, 2).lower(),
        "element": lambda: name(rng, 1, 2).lower() + "ium",
        "symbol": lambda: rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") + rng.choice("abcdefghiklmnoprstuvwxyz"),
        "company": lambda: f"{name(rng, 2, 2)} {rng.choice(('Works', 'Company', 'Brothers', 'Industries', 'Group'))}",
        "product": lambda: f"the {name(rng, 2, 2)} {rng.randint(2, 99)}",
        "book": lambda: f"The {rng.choice(_ADJECTIVES)} {name(rng, 2, 2)}",
        "painting": lambda: f"The {rng.choice(_NOUNS)} of {name(rng, 2, 2)}",
        "device": lambda: f"the {name(rng, 2, 2).lower()} {rng.choice(('engine', 'pump', 'lamp', 'clock', 'press'))}",
        "landmark": lambda: f"the {name(rng, 2, 2)} {rng.choice(('Tower', 'Bridge', 'Palace', 'Museum', 'Gate'))}",
        "continent": lambda: rng.choice(CONTINENTS),
        "job": lambda: rng.choice(JOBS),
        "goods": lambda: rng.choice(GOODS),
        "colour": lambda: rng.choice(COLOURS),
        "small": lambda: str(rng.randint(1, 130)),
        "year": lambda: str(rng.randint(1700, 2024)),
        "amount": lambda: str(rng.randint(11, 99999)),
    }
    return makers[kind]()


REAL_VALUES: dict[str, list[str]] = {}  # kind -> values of the known world, e.g. "city" -> Paris, Berlin, ...
for _relation_name, _pairs in WORLD.items():
    REAL_VALUES.setdefault(RELATIONS[_relation_name].value, []).extend(sorted(set(_pairs.values())))
SUBJECT_RELATIONS: dict[str, list[str]] = {}  # kind -> the relations its subjects have
for _r in RELATIONS.values():
    SUBJECT_RELATIONS.setdefault(_r.subject, []).append(_r.name)

"""Read a Python pickle as plain data, without ever unpickling: bytes in, strings, numbers, containers and records out.

`pickletools.genops` only lists the instructions in the bytes. The interpreter below follows those that build plain
data. Where a class is named, it must be one of those that the caller expects, and a `Record` stands for its instances:
no module is imported, no class is looked up, nothing is called. Everything else is refused by name.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar

__all__ = ["Record", "Refused", "plain_data"]

T = TypeVar("T")

_SKIPPED = {"PROTO", "FRAME"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUSHES_ITS_ARGUMENT = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"} | {
    "UNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "BINUNICODE8",
}
_EMPTY: dict[str, Callable[[], object]] = {
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}


class Refused(ValueError):
    """The bytes hold more than plain data and the expected classes, or are damaged; the message names the part."""


@dataclass(frozen=True)
class _Class:
    kind: str


@dataclass(eq=False)
class Record:
    """An instance of an expected class.

    Attributes:
        kind: the name that the caller gave to the class.
        state: what the instance would have been given as its state.
    """

    kind: str
    state: dict[object, object] = field(default_factory=dict)


def plain_data(data: bytes, classes: Mapping[tuple[str, str], str]) -> object:
    """Return what the bytes describe.

    Args:
        data: a pickle of any protocol from 2 on.
        classes: (module, name) of each expected class -> the `kind` of its records.

    Raises:
        Refused: another class or function is named, something else than plain data is built, or the bytes are damaged.
    """
    reader = _Reader(classes)
    try:
        for operation, argument, _ in pickletools.genops(data):
            if operation.name == "STOP":
                (result,) = reader.stack
                return result
            reader.follow(operation.name, argument)
    except Refused:
        raise
    # A stack that runs out, a list as a key, a number in place of a list, text that is not UTF-8, an early end.
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise Refused(f"is damaged ({type(error).__name__}: {str(error)[:100]})") from error
    raise Refused("is damaged (it has no end)")


class _Reader:
    """The stack machine. `stack` is what lies above the last mark; `below` are the stacks under the marks."""

    def __init__(self, classes: Mapping[tuple[str, str], str]) -> None:
        self._classes = classes
        self._memo: dict[int, object] = {}
        self.stack: list[object] = []
        self._below: list[list[object]] = []

    def follow(self, name: str, argument: object) -> None:
        """Carry out one instruction, or refuse it."""
        if name in _PUSHES_ITS_ARGUMENT:
            self.stack.append(argument)
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self._memo[_of_type(argument, int)])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[_of_type(argument, int)] = self.stack[-1]
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name == "MARK":
            self._below.append(self.stack)
            self.stack = []
        elif name in ("SETITEMS", "SETITEM", "DICT"):
            self._pairs(name)
        elif name in ("APPENDS", "APPEND", "ADDITEMS"):
            self._items(name)
        elif name in ("LIST", "TUPLE"):
            items = self._above_mark()
            self.stack.append(items if name == "LIST" else tuple(items))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            self._tuple(int(name[-1]))
        elif name in ("GLOBAL", "STACK_GLOBAL", "NEWOBJ", "BUILD"):
            self._record(name, argument)
        elif name not in _SKIPPED:
            raise Refused(f"holds the instruction {name}, which builds more than plain data")

    def _above_mark(self) -> list[object]:
        items, self.stack = self.stack, self._below.pop()
        return items

    def _pairs(self, name: str) -> None:
        items = [self.stack.pop(-2), self.stack.pop()] if name == "SETITEM" else self._above_mark()
        if name == "DICT":
            self.stack.append({})
        target = _of_type(self.stack[-1], dict)
        target.update(zip(_atoms(items[::2]), items[1::2], strict=True))

    def _items(self, name: str) -> None:
        items = [self.stack.pop()] if name == "APPEND" else self._above_mark()
        if name == "ADDITEMS":
            _of_type(self.stack[-1], set).update(_atoms(items))
        else:
            _of_type(self.stack[-1], list).extend(items)

    def _tuple(self, size: int) -> None:
        if len(self.stack) < size:
            raise Refused("is damaged (a tuple lacks its items)")
        items = tuple(self.stack[-size:])
        del self.stack[-size:]
        self.stack.append(items)

    def _record(self, name: str, argument: object) -> None:
        if name == "BUILD":
            state = self.stack.pop()
            _of_type(self.stack[-1], Record).state.update(_of_type(state, dict))
        elif name == "NEWOBJ":
            arguments = self.stack.pop()
            made = _of_type(self.stack.pop(), _Class)
            if arguments != ():
                raise Refused(f"makes a {made.kind} from arguments, of which nothing would be kept")
            self.stack.append(Record(made.kind))
        else:
            self.stack.append(self._class(*self._names(name, argument)))

    def _names(self, name: str, argument: object) -> tuple[str, str]:
        if name == "GLOBAL":
            module, _, attribute = _of_type(argument, str).partition(" ")
            return module, attribute
        return _of_type(self.stack.pop(-2), str), _of_type(self.stack.pop(), str)

    def _class(self, module: str, attribute: str) -> _Class:
        kind = self._classes.get((module, attribute))
        if kind is None:
            _refuse_name(module, attribute)
        return _Class(kind)


def _refuse_name(module: str, attribute: str) -> NoReturn:
    raise Refused(f"names {module[:100]}.{attribute[:100]}, which is no plain data")


def _atoms(items: list[object]) -> list[object]:
    """Return the items of a set or the keys of a dict; nested tuples with shared parts take forever to hash."""
    for item in items:
        if not isinstance(item, str | int | float | None):
            raise Refused(f"has a {type(item).__name__} for a key or in a set")
    return items


def _of_type(value: object, wanted: type[T]) -> T:
    """Return the value; refuse another type as damage."""
    if type(value) is not wanted:
        raise Refused(f"is damaged (a {wanted.__name__.lstrip('_')} was expected, not a {type(value).__name__})")
    return value

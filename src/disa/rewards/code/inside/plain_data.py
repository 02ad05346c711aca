"""Plain data as bytes, between a program and its tests.

Values arrive as objects of Python's own types whatever the sender does: comparing them runs no code of the sender.
The reader takes hostile input; it never unpickles, imports or evaluates. JSON would do, but importing Python's takes
longer than starting the interpreter, twice for every program.

A value is one letter, and then: an integer in hexadecimal, a float in decimal, or the number of bytes, items or
pairs that follow; then ``;``, then those.
"""

# Longest iterator that is read to its end.
MAX_ITEMS = 1_000_000
_SIZE_BYTES = 8
_SEQUENCES = {b"l": list, b"t": tuple, b"e": set, b"z": frozenset, b"y": iter}
_LETTERS = ((list, b"l"), (tuple, b"t"), (set, b"e"), (frozenset, b"z"))
_CONSTANTS = {b"N": None, b"T": True, b"F": False}
_VIEWS: tuple[type, ...] = (range, type({}.keys()), type({}.values()), type({}.items()))


class NotPlainData(ValueError):
    """A value that cannot be sent, or bytes that are none."""


class Opaque:
    """Stands for an object of another type: true or false as it is, and equal to nothing but itself."""

    def __init__(self, type_name, truth):
        self._type_name, self._truth = type_name, truth

    def __bool__(self):
        return self._truth

    def __repr__(self):
        return f"<object of type {self._type_name}>"


def write_value(value, opaque=False):
    """A value as bytes.

    Subclasses are sent as the type they extend, iterators as an iterator over what they yield, and anything else, if
    asked, as `Opaque`.
    """
    parts: list[bytes] = []
    _write(value, parts, opaque)
    return b"".join(parts)


def read_value(data):
    """The value of some bytes.

    Raises NotPlainData for anything that `write_value` does not write.
    """
    try:
        value, end = _read(data, 0)
    except NotPlainData:
        raise
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError, MemoryError) as error:
        raise NotPlainData(f"unreadable ({type(error).__name__})") from None
    if end != len(data):
        raise NotPlainData("longer than it says")
    return value


def frame(data):
    """Bytes behind their number, for a pipe that carries one value after the other."""
    return len(data).to_bytes(_SIZE_BYTES, "big") + data


def read_frame(read):
    """One framed value, by a function that reads exactly n bytes."""
    return read_value(read(int.from_bytes(read(_SIZE_BYTES), "big")))


def _write(value, parts, opaque):
    if value is None or value is True or value is False:
        parts.append({None: b"N;", True: b"T;", False: b"F;"}[value])
    elif isinstance(value, int):
        parts.append(b"i%x;" % int(value))
    elif isinstance(value, float):
        parts.append(b"d%b;" % float.__repr__(value).encode())
    elif isinstance(value, complex):
        parts.append(b"c%b,%b;" % (repr(value.real).encode(), repr(value.imag).encode()))
    elif isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass")
        parts.append(b"s%x;%b" % (len(text), text))
    elif isinstance(value, (bytes, bytearray)):
        parts.append(b"b%x;%b" % (len(value), value))  # type: ignore[str-format]  # %b takes a bytearray too
    elif isinstance(value, dict):
        parts.append(b"m%x;" % len(value))
        for key, item in value.items():
            _write(key, parts, opaque)
            _write(item, parts, opaque)
    else:
        letter, items = _sequence(value)
        if letter:
            parts.append(b"%b%x;" % (letter, len(items)))
            for item in items:
                _write(item, parts, opaque)
        elif isinstance(value, Opaque):
            raise TypeError(f"cannot pass {value!r} back to the program")
        elif opaque:
            name = type(value).__name__[:100].encode("utf-8", "surrogatepass")
            parts.append(b"o%x;%b%b" % (len(name), name, b"T;" if value else b"F;"))
        else:
            raise NotPlainData(f"a value of type {type(value).__name__}, which is no plain data")


def _sequence(value):
    """Letter and items of a sequence, a set or an iterator; no letter for anything else."""
    for kind, letter in _LETTERS:
        if isinstance(value, kind):
            return letter, list(value)
    if not isinstance(value, _VIEWS) and not hasattr(type(value), "__next__"):
        return b"", []
    items = [item for item, _ in zip(value, range(MAX_ITEMS + 1))]  # noqa: B905 (the shorter one decides)
    if len(items) > MAX_ITEMS:
        raise NotPlainData(f"an iterator over more than {MAX_ITEMS} items")
    return b"y", items


def _read(data, start):
    """Value at a position, and the position behind it."""
    letter, at = data[start : start + 1], data.index(b";", start)
    head, at = data[start + 1 : at], at + 1
    if letter in _CONSTANTS and not head:
        return _CONSTANTS[letter], at
    if letter == b"i":
        return int(head, 16), at
    if letter == b"d":
        return float(head), at
    if letter == b"c":
        real, imaginary = head.split(b",")
        return complex(float(real), float(imaginary)), at
    count = int(head, 16)
    if not 0 <= count <= len(data) - at:
        raise NotPlainData("longer than it is")
    if letter in (b"s", b"b", b"o"):
        text, at = data[at : at + count], at + count
        if letter == b"b":
            return text, at
        text = text.decode("utf-8", "surrogatepass")
        if letter == b"s":
            return text, at
        truth, at = _read(data, at)
        return Opaque(text, truth is True), at
    if letter not in _SEQUENCES and letter != b"m":
        raise NotPlainData("of an unknown kind")
    items = []
    for _ in range(2 * count if letter == b"m" else count):
        item, at = _read(data, at)
        items.append(item)
    if letter == b"m":
        return dict(zip(items[::2], items[1::2], strict=True)), at
    make = _SEQUENCES[letter]
    assert callable(make)
    return make(items), at

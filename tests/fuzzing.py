"""Damaged files, as a source of random numbers draws them, and what reads them."""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import signal
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

SECONDS = 5  # more than this is a hang
MEMORY = 2 * 2**30  # bytes that a reader may add to what the process takes
Damage = Callable[[random.Random, bytes], bytes]


@dataclass(frozen=True)
class Reader:
    """How a file is read, what whole ones look like, and how they are damaged.

    Attributes:
        named: whether what it refuses is refused by the name of a file.
        before: called before each reading, with the folder.
    """

    file: str
    read: Callable[[Path], object]
    seeds: Sequence[bytes]
    damage: Sequence[Damage]
    named: bool = True
    before: Callable[[Path], object] | None = None


def fuzz(reader: Reader, place: Path, count: int) -> None:
    """Read so many damaged files, of which Hypothesis makes the failing one as simple as it can."""

    @settings(
        max_examples=count,
        derandomize=True,  # the same ones each time: new ones are for the long tests, which tell their numbers
        database=None,
        suppress_health_check=[*HealthCheck],  # pyright: ignore[reportArgumentType]
        phases=[Phase.generate, Phase.shrink],
    )
    @given(chosen=st.randoms(use_true_random=False))
    def read(chosen: random.Random) -> None:
        _read(reader, place, _damaged(reader, chosen))

    with _limits():
        read()


def asked_for() -> range:
    """The numbers of the files that the environment variable TRIPLETMAS_FUZZ asks for: so many, 20,000 if it is not
    set, or FIRST-END."""
    first, _, end = os.environ.get("TRIPLETMAS_FUZZ", "20000").rpartition("-")
    return range(int(first or 0), int(end))


def fuzz_quickly(reader: Reader, place: Path, numbers: range) -> None:
    """Read the damaged files of these numbers; which one failed is told, and `fuzz_quickly` of it alone repeats it.

    What it took is printed."""
    begun, slowest, memory = time.process_time(), 0.0, peak()
    with _limits():
        for number in numbers:
            content = _damaged(reader, random.Random(number))
            before = time.process_time()
            try:
                _read(reader, place, content)
            except BaseException as error:
                shown = content if len(content) < 2000 else content[:2000] + b"..."
                raise AssertionError(f"file {number}: {shown!r}: {type(error).__name__}: {error}") from error
            slowest = max(slowest, time.process_time() - before)
    seconds = time.process_time() - begun
    more = (peak() - memory) / 2**20
    print(f"{len(numbers)} files, {seconds:.0f} s of CPU, the slowest {slowest:.2f} s, {more:.0f} MiB more at the peak")


def _damaged(reader: Reader, chosen: random.Random) -> bytes:
    return chosen.choice(reader.damage)(chosen, chosen.choice(reader.seeds))


def _read(reader: Reader, place: Path, content: bytes) -> None:
    path = place / reader.file
    path.write_bytes(content)
    message = ""
    if reader.before:
        reader.before(place)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of this process: others may be busy
    try:
        reader.read(path)
    except ValueError as error:
        message = str(error) or "empty\n"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    assert not message or place.name in message or not reader.named, f"names no file: {message}"
    assert "\n" not in message


class Hung(BaseException):
    """No `except Exception` takes it for an error of the file."""


@contextmanager
def _limits() -> Iterator[None]:
    """What hangs raises; what takes much memory fails at the end."""

    def hung(*_: object) -> None:
        raise Hung(f"not read within {SECONDS} s")

    before = peak()
    handler = signal.signal(signal.SIGPROF, hung)
    try:
        yield
    finally:
        signal.signal(signal.SIGPROF, handler)
    assert peak() - before < MEMORY


def peak() -> int:
    """Bytes that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- damage of bytes


def bytes_damaged(*tokens: bytes) -> Damage:
    """A few changes, most of them where a header is; `tokens` are what the format gives meaning to."""
    known = tokens or (b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0")

    def damage(chosen: random.Random, whole: bytes) -> bytes:
        content = bytearray(whole)
        for _ in range(chosen.randint(1, 5)):
            at = chosen.randint(0, chosen.choice((len(content), min(64, len(content)))))
            match chosen.choice(("change", "insert", "token", "cut", "remove", "repeat")):
                case "change":
                    content[at : at + 1] = bytes([chosen.randint(0, 255)])
                case "insert":
                    content[at:at] = bytes(chosen.randint(0, 255) for _ in range(chosen.randint(0, 8)))
                case "token":
                    content[at:at] = chosen.choice(known)
                case "cut":
                    del content[at:]
                case "remove":
                    del content[at : at + chosen.randint(1, 16)]
                case "repeat":
                    content[at:at] = content[max(0, at - chosen.randint(1, 40)) : at]
        return bytes(content)

    return damage


# --- damage of what JSON says

_WORDS = (
    "",
    "x",
    "F32",
    "I64",
    "BF16",
    "C64",
    "F8_E4M3",
    "BOOL",
    "l2",
    "HNSW8",
    "IVF2,Flat",
    "../..",
    "\x1b[31m",
    "é" * 99,
)
_NUMBERS = (0, 1, -1, 2, 3, 7, 2**31, 2**32 + 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400)
_FLOATS = (0.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"))
_VALUES = (
    *(None, True, False, [], {}, [[]], [0], [-1], [2**40], [0, 2**63], [0, 0], [1, 1], {"a": 1}, "\udce9", "\ud83d"),
    *(*_WORDS, *_NUMBERS, *_FLOATS),
)


def values_damaged(chosen: random.Random, content: Any) -> Any:
    """The same structure, which is changed in place, with a few entries changed, gone, exchanged or named otherwise."""
    for _ in range(chosen.randint(1, 4)):
        places = list(_places(content))
        if not places:
            break
        inside, key = chosen.choice(places)
        match chosen.choice(("value", "value", "near", "gone", "copy", "name", "deep")):
            case "value":
                inside[key] = copy.deepcopy(chosen.choice(_VALUES))  # what is put there may be changed next
            case "near" if isinstance(inside[key], (int, float)):
                inside[key] = inside[key] + chosen.choice((-8, -4, -1, 1, 4, 8, 2**31))
            case "gone":
                del inside[key]
            case "copy":
                other, there = chosen.choice(places)
                inside[key] = json.loads(json.dumps(other[there]))
            case "name" if isinstance(inside, dict):
                inside[chosen.choice((*_WORDS, *inside))] = inside.pop(key)
            case "deep":
                for _ in range(chosen.choice((1, 3, 150))):  # JSON of other depths is made of tokens
                    inside[key] = [inside[key]]
    return content


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Of each entry, at whatever depth, what it is in, and its key or number there."""
    if isinstance(content, (dict, list)):
        for key in list(content) if isinstance(content, dict) else range(len(content)):
            yield content, key
            yield from _places(content[key])


def json_damaged(chosen: random.Random, whole: bytes) -> bytes:
    """JSON of another content; without a seal, as those that know no seal write it."""
    content = json.loads(whole)
    if isinstance(content, dict) and chosen.randint(0, 3):
        content.pop("seal", None)
    return _dumped(chosen, values_damaged(chosen, content))


def lines_damaged(chosen: random.Random, whole: bytes) -> bytes:
    """JSON in lines, of which some say something else."""
    lines = [json.loads(line) for line in whole.splitlines()]
    for line in lines:
        line.pop("seal", None)
    return b"".join(_dumped(chosen, line) + b"\n" for line in values_damaged(chosen, lines))


def _dumped(chosen: random.Random, content: Any) -> bytes:
    """As JSON; at times with an entry twice."""
    text = json.dumps(content, ensure_ascii=False)
    if not chosen.randint(0, 9) and isinstance(content, dict) and content:
        key = chosen.choice(list(content))
        text = f"{{{json.dumps(key)}: {json.dumps(chosen.choice(_VALUES))}, {text[1:]}"
    return text.encode("utf-8", "surrogatepass")


# --- damage of tensors


def tensors_damaged(chosen: random.Random, whole: bytes) -> bytes:
    """A safetensors file whose header tells other types, shapes, places, names and settings, or another length."""
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), bytearray(whole[8 + length :])
    texts = header.get("__metadata__", {})
    if "tripletmas" in texts:
        about = json.loads(texts.pop("tripletmas"))
        if chosen.randint(0, 2):  # as earlier versions wrote it: nothing says that it was changed
            texts |= {name: json.dumps(text) for name, text in about["header"].items()}
            texts["order"] = json.dumps(about["order"])
        else:
            texts["tripletmas"] = json.dumps(about)
    header["__metadata__"] = {name: json.loads(text) for name, text in texts.items()}
    if chosen.randint(0, 4):
        values_damaged(chosen, header if chosen.randint(0, 1) else chosen.choice([*_mappings(header)] or [header]))
    if isinstance(texts := header.get("__metadata__"), dict):
        header["__metadata__"] = {name: json.dumps(text) for name, text in texts.items()}
    numbers_damaged(chosen, data)
    text = _dumped(chosen, header)
    told = (
        len(text)
        if chosen.randint(0, 4)
        else chosen.choice((0, 1, len(text) - 1, len(text) + 1, 2**31, 2**63, 2**64 - 1))
    )
    return told.to_bytes(8, "little") + text + bytes(data)


def _mappings(content: Any) -> Iterator[Any]:
    return (each[key] for each, key in _places(content) if isinstance(each[key], dict) and each[key])


def numbers_damaged(chosen: random.Random, data: bytearray) -> None:
    """Numbers that are none, or large, at times; more or less of them."""
    if not chosen.randint(0, 2) and len(data) >= 4:
        at = 4 * chosen.randint(0, len(data) // 4 - 1)
        data[at : at + 4] = struct.pack("<f", chosen.choice((float("nan"), float("inf"), -3e38, 1e-40, 0.0)))
    if not chosen.randint(0, 2) and data:
        data[chosen.randint(0, len(data) - 1)] ^= 1 << chosen.randint(0, 7)
    if not chosen.randint(0, 5):
        del data[chosen.randint(0, len(data)) :]
    if not chosen.randint(0, 5):
        data += bytes(chosen.choice((1, 4, 8, 64)))

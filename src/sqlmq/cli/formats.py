"""Formats of a consumed message: its bytes, JSON, or a pattern."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING

import click

from sqlmq.cli.output import line

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlmq.model.message import ReceivedMessage

    Writer = Callable[[ReceivedMessage], bytes]

_FIELDS: dict[str, Callable[[ReceivedMessage], bytes]] = {
    "t": lambda message: message.topic.encode(),
    "p": lambda message: b"%d" % message.partition,
    "o": lambda message: b"%d" % message.offset,
    "k": lambda message: message.key or b"",
    "v": lambda message: message.value,
    "s": lambda message: message.value,
    "h": lambda message: ",".join(f"{name}={text}" for name, text in message.headers.items()).encode(),
    "T": lambda message: b"%d" % (message.timestamp.timestamp() * 1000),
    "K": lambda message: b"%d" % (-1 if message.key is None else len(message.key)),
    "S": lambda message: b"%d" % len(message.value),
    "%": lambda _: b"%",
}
_ESCAPES = {"n": b"\n", "t": b"\t", "r": b"\r", "0": b"\0", "\\": b"\\"}
_TOKEN = re.compile(r"%(?P<field>.?)|\\x(?P<hex>[0-9a-fA-F]{2})|\\(?P<escape>.?)|(?P<text>[^%\\]+)", re.DOTALL)


def ending_with(end: bytes) -> Writer:
    """Write a message as its value and *end*."""
    return lambda message: message.value + end


def as_json(message: ReceivedMessage) -> bytes:
    """Write a message as one line of JSON. Bytes that are not UTF-8 are written in base64 under another name."""
    facts = {
        "topic": message.topic,
        "partition": message.partition,
        "offset": message.offset,
        "timestamp": message.timestamp.isoformat(),
        **text_or_base64("key", message.key),
        **text_or_base64("value", message.value),
        "headers": dict(message.headers),
    }
    return f"{line(facts)}\n".encode()


def formatted(pattern: str) -> Writer:
    """Write a message by *pattern*, as in kcat: ``%t %p@%o %k=%v``. Raises click.BadParameter."""
    parts: list[Writer] = []
    for token in _TOKEN.finditer(pattern):
        if (field := token["field"]) is not None:
            if field not in _FIELDS:
                raise click.BadParameter(
                    f"%{field} is not a field. The fields are %{', %'.join(_FIELDS)}.", param_hint="--format"
                )
            parts.append(_FIELDS[field])
        elif (escape := token["escape"]) is not None:
            if escape not in _ESCAPES:
                known = r"\n, \t, \r, \0, \\ and \xFF"
                raise click.BadParameter(
                    f"\\{escape} is not an escape. The escapes are {known}.", param_hint="--format"
                )
            parts.append(_constant(_ESCAPES[escape]))
        elif (digits := token["hex"]) is not None:
            parts.append(_constant(bytes.fromhex(digits)))
        else:
            # Bytes of the command line that are not valid text are kept unchanged.
            parts.append(_constant(token["text"].encode(errors="surrogateescape")))
    return lambda message: b"".join(part(message) for part in parts)


def _constant(text: bytes) -> Writer:
    return lambda _: text


def text_or_base64(name: str, data: bytes | None) -> dict[str, str | None]:
    """Return *data* as the JSON field *name*, or in base64 as ``name_base64`` if it is not UTF-8."""
    if data is None:
        return {name: None}
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}

"""JSON by the standard library, orjson or msgspec. They answer differently, so none is chosen automatically."""

from __future__ import annotations

import json
import json.encoder
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

CodecName = Literal["json", "orjson", "msgspec"]


class Codec(NamedTuple):
    """Reads and writes one JSON value. Errors are of any class."""

    loads: Callable[[bytes], Any]
    dumps: Callable[[Any], bytes]


def codec(name: CodecName) -> Codec:
    """Returns the codec of this name.

    :raises ImportError: The package is not installed.
    :raises ValueError: There is no such codec.
    """
    match name:
        case "json":
            return _standard()
        case "orjson":
            import orjson

            return Codec(orjson.loads, orjson.dumps)
        case "msgspec":
            import msgspec

            return Codec(msgspec.json.Decoder().decode, msgspec.json.Encoder().encode)
    raise ValueError(f"codec {name!r} is not one of json, orjson, msgspec")


def _standard() -> Codec:
    decode = json.JSONDecoder().raw_decode
    encode = _encoder()

    def loads(frame: bytes) -> Any:
        text = frame.decode()
        value, end = decode(text)
        if end != len(text):
            raise ValueError("there is more after the value")
        return value

    def dumps(value: Any) -> bytes:
        try:
            return encode(value).encode()
        except UnicodeEncodeError:
            # Half of a surrogate pair, which a client may send as an escape. It exists only as an escape.
            return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()

    return Codec(loads, dumps)


def _encoder() -> Callable[[Any], str]:
    """Returns the encoder of the standard library, without the parts that it builds for each value."""
    usual = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    text: Callable[[str], str] = json.encoder.encode_basestring
    try:
        pieces = make(None, usual.default, text, None, ":", ",", False, False, False)
        if "".join(pieces({"a": [1, "b"]}, 0)) != '{"a":[1,"b"]}':
            return usual.encode
    except TypeError:
        return usual.encode
    join = "".join

    def encode(value: Any) -> str:
        if value.__class__ is str:
            return text(value)
        return join(pieces(value, 0))

    return encode

"""The JSON libraries of the servers, as functions from and to bytes."""

import json


def codec(name):
    if name == "orjson":
        import orjson

        return orjson.loads, orjson.dumps
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    return json.loads, lambda value: encode(value).encode()

"""The file of a snapshot: a safetensors file whose metadata has the rest as JSON, its digest and its signature.

The digest is SHA-256 of the whole file with zeros in place of digest and signature; the signature is HMAC-SHA256 of the
digest by the user's key, empty where the file holds no pickle or there is no key.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from torch import Tensor

_CONTENT, _DIGEST, _SIGNATURE = "rollsight", "sha256", "signature"
_BLANK = "0" * 64


@dataclass(frozen=True, eq=False)
class Content:
    """What a file holds.

    state: as JSON.
    tensors: by name.
    digest: SHA-256 of the file.
    signature: empty where there is none.
    """

    state: Any
    tensors: Mapping[str, Tensor]
    digest: str
    signature: str


def write(file: BinaryIO, state: Any, tensors: Mapping[str, Tensor], sign: Callable[[str], str | None]) -> None:
    """Write JSON and tensors. sign: gives the signature of a digest, or None."""
    from safetensors.torch import save

    text = json.dumps(state, allow_nan=False, separators=(",", ":"))
    data = save(dict(tensors), {_CONTENT: text, _DIGEST: _BLANK, _SIGNATURE: _BLANK})
    head, body = _parts(data)
    digest = _digest(head, body)
    head = _with(_with(head, _DIGEST, digest), _SIGNATURE, sign(digest) or _BLANK)
    file.write(head)
    file.write(body)


def is_one(data: bytes) -> bool:
    """Whether the bytes begin as a file of this kind."""
    return len(data) > 9 and data[8:9] == b"{" and struct.unpack("<Q", data[:8])[0] < len(data)


def read(data: bytes) -> Content:
    """The content of a file.

    Raises:
        Exception: of any kind, where the bytes are not a file of this kind, whole and unchanged.
    """
    from safetensors.torch import load

    head, body = _parts(data)
    metadata = json.loads(head[8:])["__metadata__"]
    blank = _with(_with(head, _DIGEST, _BLANK), _SIGNATURE, _BLANK)
    if (digest := _digest(blank, body)) != metadata[_DIGEST]:
        raise ValueError("its digest is another one's: it is damaged or was changed")
    signature = metadata[_SIGNATURE]
    return Content(json.loads(metadata[_CONTENT]), load(data), digest, "" if signature == _BLANK else signature)


def _parts(data: bytes) -> tuple[bytes, memoryview]:
    length = 8 + struct.unpack("<Q", data[:8])[0]
    return data[:length], memoryview(data)[length:]


def _digest(head: bytes, body: memoryview) -> str:
    digest = hashlib.sha256(head)
    digest.update(body)
    return digest.hexdigest()


def _with(head: bytes, entry: str, value: str) -> bytes:
    # In the JSON text, quotes of other strings are escaped: only the entry itself reads like this.
    replaced, count = re.subn(rb'"%s":"[0-9a-f]{64}"' % entry.encode(), f'"{entry}":"{value}"'.encode(), head)
    if count != 1:
        raise ValueError(f"it has {count} entries {entry!r}")
    return replaced

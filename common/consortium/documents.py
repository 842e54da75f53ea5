"""The public files of a consortium: JSON, whole, of bounded size."""

import base64
import binascii
import json
from pathlib import Path
from typing import Any

from common.errors import ConsortiumError
from common.files import write_whole

_LARGEST = 8 * 2**20  # bytes


def read_json(path: Path) -> Any:
    """Return what a public file of the consortium says, or raise ConsortiumError."""
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise ConsortiumError(f"{path}: expected at most {_LARGEST} bytes, got more. Ask for the file again.")
        content = json.loads(data)
        json.dumps(content, ensure_ascii=False).encode()  # half a character of UTF-16 has no bytes that can be signed
    except OSError as error:
        raise ConsortiumError(
            f"{path}: expected a file, got {error.strerror}. Is the path right? If the file is lost, ask for it again."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConsortiumError(f"{path}: expected JSON, got another text. Ask for the file again.") from error
    return content


def write_text(path: Path, text: str) -> None:
    """Write a public file of the consortium whole, or raise ConsortiumError."""
    try:
        write_whole(path, text)
    except OSError as error:
        raise ConsortiumError(
            f"{path}: expected to write it, got {error.strerror}. The file is as it was; is there room, may you write?"
        ) from error


def decoded(text: object) -> bytes:
    """Return the bytes of base64; nothing, which is no signature, for anything else."""
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        return b""

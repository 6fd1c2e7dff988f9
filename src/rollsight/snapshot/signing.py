"""Whose pickles are loaded: those that this user's key signed, and those of folders that the caller trusts."""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from rollsight.errors import RollsightError

_TRUSTED = "ROLLSIGHT_TRUSTED_FOLDERS"  # in the environment, so that worker processes know them too


def key_path() -> Path:
    """Where this user's key lies: `rollsight/key` in the user's folder for settings.

    Raises:
        RollsightError: the system does not say where that is.
    """
    try:
        return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "rollsight" / "key"
    except RuntimeError as error:
        raise RollsightError("this user has no home folder for the key that signs snapshots: set HOME") from error


def sign(digest: str) -> str:
    """The signature of a digest by this user's key, which is made where there is none.

    Raises:
        RollsightError: there is no key and none can be made, or others can read it.
    """
    return _signature(_key() or _new_key(), digest)


def is_signed(digest: str, signature: str) -> bool:
    """Whether this user's key made the signature."""
    key = _key()
    return key is not None and hmac.compare_digest(_signature(key, digest), signature)


def trust_folder(folder: str | os.PathLike[str]) -> None:
    """Load pickled snapshots of this folder from now on, in this process and those that it starts.

    A pickle is code: trust only what you or somebody you trust has written.
    """
    os.environ[_TRUSTED] = os.pathsep.join([*_trusted(), os.path.realpath(folder)])


def in_trusted_folder(file: str | os.PathLike[str]) -> bool:
    """Whether the file lies in a folder that `trust_folder` was called with."""
    path = Path(os.path.realpath(file))
    return any(path.is_relative_to(folder) for folder in _trusted())


def _trusted() -> list[str]:
    return [folder for folder in os.environ.get(_TRUSTED, "").split(os.pathsep) if folder]


def _signature(key: bytes, digest: str) -> str:
    return hmac.digest(key, digest.encode(), "sha256").hex()


def _key() -> bytes | None:
    path = key_path()
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            # Windows has no such bits: a home folder there is its user's alone.
            if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o077):
                raise RollsightError(
                    f"{path}, which signs your snapshots, can be read by others: chmod 600 it, or remove it"
                )
            key = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RollsightError(f"{path}, which signs your snapshots, cannot be read ({error.strerror})") from error
    if len(key) != 32:
        raise RollsightError(f"{path}, which signs your snapshots, is damaged: remove it (a new one is made)")
    return key


def _new_key() -> bytes:
    path = key_path()
    temporary = path.with_name(f".key.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        plain = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)  # Windows has the second, others the first
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | plain, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(32))
            os.link(temporary, path)  # unlike a rename it keeps a key that another process made meanwhile
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    except OSError as error:
        raise RollsightError(f"the key that signs snapshots cannot be made at {path} ({error.strerror})") from error
    key = _key()
    assert key is not None
    return key

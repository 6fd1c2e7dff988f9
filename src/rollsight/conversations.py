"""Conversations, which run folders keep as JSON lists of messages, as people read them: who says what."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_ASIDE = 24  # characters of a system message and of a tool's result on one line


def messages_of(text: str) -> list[dict[str, Any]] | None:
    """The messages of a stored conversation; None for any other text."""
    if not (text.startswith("[") and '"role"' in text):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):  # a model may open bracket after bracket
        return None
    named = isinstance(found, list) and all(isinstance(one, dict) and isinstance(one.get("role"), str) for one in found)
    return found if named and found else None


def on_one_line(text: str) -> str:
    """A text with its white space folded; of a conversation `role: what it says | role: ...`, with tools' calls by name
    and the beginnings of their results and of system messages."""
    messages = messages_of(text)
    if messages is None:
        return " ".join(text.split())
    return " | ".join(f"{message['role']}: {_folded(message)}".strip() for message in messages)


def in_full(text: str) -> Iterator[tuple[str, str]]:
    """Who says it and what, for each message; one pair without a name for any other text."""
    messages = messages_of(text)
    if messages is None:
        yield "", text
        return
    for message in messages:
        name = f" ({message['name']})" if message.get("name") else ""
        said = [_content(message), *(f"{one}({arguments})" for one, arguments in _calls(message))]
        others = {key: value for key, value in message.items() if key not in ("role", "name", "content", "tool_calls")}
        said += [
            f"{key}: {value if isinstance(value, str) else _json(value)}" for key, value in others.items() if value
        ]
        yield f"{message['role']}{name}", "\n".join(part for part in said if part)


def _folded(message: dict[str, Any]) -> str:
    said = " ".join(_content(message).split())
    if message["role"] not in ("user", "assistant") and len(said) > _ASIDE:
        said = f"{said[:_ASIDE]}…"
    return " ".join([*([said] if said else []), *(f"[{name}(…)]" for name, _ in _calls(message))])


def _content(message: dict[str, Any]) -> str:
    """What a message says: a text, or a list of parts, of which pictures and the like are named only."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return "" if content is None else _json(content)
    parts = (part if isinstance(part, dict) else {"text": str(part)} for part in content)
    return " ".join(str(part["text"]) if "text" in part else f"[{part.get('type', 'part')}]" for part in parts)


def _calls(message: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The names of the called tools, and their arguments as one writes them."""
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        called = call.get("function", call) if isinstance(call, dict) else {"name": str(call)}
        if not isinstance(called, dict):
            called = {"name": str(called)}
        arguments = called.get("arguments")
        if isinstance(arguments, dict):
            spelt = ", ".join(f"{key}={_json(value)}" for key, value in arguments.items())
        else:
            spelt = "" if arguments is None else str(arguments)
        yield str(called.get("name", "tool")), spelt


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)

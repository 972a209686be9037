"""What a row asks for: ids that are there already, a text, or a chat, in whichever dialect."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from .chat_template import ChatTemplate, Message
from .failure import RowFailure, one_line
from .rows import Row

_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant",
             "assistant": "assistant", "model": "assistant", "bot": "assistant",
             "system": "system", "developer": "developer", "tool": "tool", "ipython": "tool",
             "observation": "tool", "function_response": "tool"}


@dataclass
class Ids:
    input_ids: list[int]
    loss_mask: list[int] | None


@dataclass
class Text:
    text: str


@dataclass
class Chat:
    messages: list[Message]
    variables: dict[str, Any] = field(default_factory=dict)


def sample_of(row: Row, ids_end: int) -> Ids | Text | Chat:
    """Where a row has several, the first of: input_ids, messages, conversations, prompt and
    response, text. Empty and null ones do not count.

    @param ids_end  Every id must be below it.
    @error RowFailure  None of them, or not in their form.
    """
    if row.get("input_ids") is not None:
        return _ids(row, ids_end)
    if row.get("messages"):
        return _chat(row, row["messages"], "messages")
    if row.get("conversations"):
        return _chat(row, row["conversations"], "conversations")
    if row.get("prompt") and row.get("response"):
        turns = [{"role": "user", "content": row["prompt"]},
                 {"role": "assistant", "content": row["response"]}]
        return _chat(row, turns, "prompt and response")
    text = row.get("text")
    if text is None:
        raise RowFailure("has none of input_ids, messages, conversations, prompt and response, "
                         "text")
    if not isinstance(text, str):
        raise RowFailure("text is not a string")
    if not text:
        raise RowFailure("text is empty")
    return Text(text)


def _ids(row: Row, ids_end: int) -> Ids:
    ids, mask = row["input_ids"], row.get("loss_mask")
    if not isinstance(ids, list) or not all(type(value) is int for value in ids):
        raise RowFailure("input_ids is not a list of integers")
    if not ids:
        raise RowFailure("input_ids is empty")
    if min(ids) < 0 or max(ids) >= ids_end:
        wrong = next(value for value in ids if not 0 <= value < ids_end)
        raise RowFailure(f"the tokenizer has no id {wrong}; its ids are below {ids_end}")
    if mask is not None:
        if not isinstance(mask, list) or len(mask) != len(ids):
            raise RowFailure("loss_mask is not a list as long as input_ids")
        if not all(value in (0, 1) and isinstance(value, int) for value in mask):
            raise RowFailure("loss_mask has values other than 0 and 1")
        mask = [int(value) for value in mask]
    return Ids(ids, mask)


def _chat(row: Row, turns: Any, name: str) -> Chat:
    turns = _json_or_value(turns, name, list) or []
    messages = [_message(turn, f"{name}[{index}]") for index, turn in enumerate(turns)]
    system = row.get("system")
    if not messages:
        raise RowFailure(f"{name} is empty")
    if isinstance(system, str) and system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    variables = _json_or_value(row.get("chat_template_kwargs"), "chat_template_kwargs", dict) or {}
    tools = _json_or_value(row.get("tools"), "tools", list)
    return Chat(messages, variables | ({"tools": tools} if tools else {}))


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict):
        raise RowFailure(f"{where} is not an object")
    if "role" in turn:
        role = turn["role"]
        message = dict(turn)
    elif "from" in turn:
        speaker = turn["from"]
        role = _SPEAKERS.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            raise RowFailure(f"{where}: who is {one_line(speaker, 40)!r}? Known are "
                             f"{', '.join(_SPEAKERS)}")
        message = {key: value for key, value in turn.items() if key not in ("from", "value")}
        message = {"role": role, "content": turn.get("value"), **message}
    else:
        raise RowFailure(f"{where} has neither role nor from")
    if not isinstance(role, str) or not role:
        raise RowFailure(f"{where}: role is not a word")
    content = message.get("content")
    # A call of tools has no content of its own.
    if content is None and role == "assistant" and turn.get("tool_calls"):
        return message
    if isinstance(content, list):
        _check_parts(content, where)
    elif not isinstance(content, str):
        raise RowFailure(f"{where}: content is neither a string nor a list of text parts")
    return message


def _check_parts(parts: list[Any], where: str) -> None:
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise RowFailure(f"{where}: a part of content is {one_line(kind, 40)}, not text")


def _json_or_value(value: Any, name: str, kind: type) -> Any:
    # Tables keep what has no fixed form as JSON text.
    if isinstance(value, str) and value:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowFailure(f"{name} is not JSON: {one_line(error, 100)}") from error
    if value in (None, "", [], {}):
        return None
    if not isinstance(value, kind):
        raise RowFailure(f"{name} is not a JSON {'object' if kind is dict else 'list'}")
    return value


def fit_content(messages: list[Message], template: ChatTemplate) -> list[Message]:
    """The messages with content in a form that the template reads: a string, or text parts."""
    return [_fit(message, template) for message in messages]


def _fit(message: Message, template: ChatTemplate) -> Message:
    content = message.get("content")
    if isinstance(content, list) and not template.takes_parts:
        return {**message, "content": "\n".join(part["text"] for part in content)}
    if isinstance(content, str) and template.takes_parts and not template.takes_text:
        return {**message, "content": [{"type": "text", "text": content}]}
    return message

"""Renders chat templates as transformers does: the same Jinja dialect in the same sandbox.

Source: transformers.utils.chat_template_utils (5.x); its renderings are compared in
tests/python/test_tokenize_transformers.py.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from .failure import Refusal, RowFailure, one_line

# Unicode promises never to give these two a meaning, so no message has them.
_GENERATION_BEGIN, _GENERATION_END = "\ufdd0", "\ufdd1"
_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PROBE = "librarianprobe"

Message = dict[str, Any]
Span = tuple[int, int]


class _GenerationTag(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}: what the assistant wrote."""

    tags = {"generation"}

    def __init__(self, environment: jinja2.Environment):
        super().__init__(environment)
        environment.extend(marks_generation=False)

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller):
        text = caller()
        if not self.environment.marks_generation:
            return text
        return _GENERATION_BEGIN + text + _GENERATION_END


def _raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    # Jinja's own filter would escape <, > and &.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


class ChatTemplate:
    """One compiled template.

    @param source     The template's text.
    @param variables  What every rendering sees: bos_token and the like, and the user's own.
    @param now        What strftime_now() tells; one time for a whole run.
    """

    def __init__(self, source: str, variables: Mapping[str, Any] | None = None,
                 now: datetime.datetime | None = None):
        now = now or datetime.datetime.now()
        self.source = source
        self._variables = dict(variables or {})
        self._environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True,
            extensions=[_GenerationTag, jinja2.ext.loopcontrols])
        self._environment.filters["tojson"] = _tojson
        self._environment.globals["raise_exception"] = _raise_exception
        self._environment.globals["strftime_now"] = now.strftime
        try:
            self._template = self._environment.from_string(source)
        except jinja2.exceptions.TemplateError as error:
            raise Refusal(f"chat template: {one_line(error)}; repair it, or give another one with "
                          "--chat-template") from error
        self.marks_generation = _GENERATION_TAG.search(source) is not None
        self.takes_text = self._shows([{"role": "user", "content": _PROBE}])
        self.takes_parts = self._shows(
            [{"role": "user", "content": [{"type": "text", "text": _PROBE}]}], plain_list=False)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False,
               variables: Mapping[str, Any] | None = None) -> str:
        """The text of a chat. @error RowFailure  The template refuses these messages."""
        values = {"tools": None, "documents": None, **self._variables, **(variables or {})}
        try:
            return self._template.render(messages=list(messages),
                                         add_generation_prompt=add_generation_prompt, **values)
        except jinja2.exceptions.TemplateError as error:
            raise RowFailure(f"the chat template refuses it: {one_line(error)}") from error
        except RecursionError as error:
            raise RowFailure("the chat template recurses without end") from error
        except Exception as error:  # A template is a program: it may fail with anything.
            raise RowFailure("the chat template fails on it: "
                             f"{type(error).__name__}: {one_line(error)}") from error

    def render_marked(self, messages: Sequence[Message],
                      variables: Mapping[str, Any] | None = None) -> tuple[str, list[Span]]:
        """The text, and what is between the template's generation marks, in characters."""
        plain = self.render(messages, variables=variables)
        self._environment.marks_generation = True
        try:
            marked = self.render(messages, variables=variables)
        finally:
            self._environment.marks_generation = False
        pieces = re.split(f"([{_GENERATION_BEGIN}{_GENERATION_END}])", marked)
        text, spans, begin = "", [], None
        for piece in pieces:
            if piece == _GENERATION_BEGIN and begin is None:
                begin = len(text)
            elif piece == _GENERATION_END and begin is not None:
                spans.append((begin, len(text)))
                begin = None
            elif piece in (_GENERATION_BEGIN, _GENERATION_END):
                raise RowFailure("the template's generation marks are nested")
            else:
                text += piece
        if text != plain or begin is not None:
            raise RowFailure("the template changes text that it has marked as generated, so the "
                             "marks tell no positions")
        return text, spans

    def _shows(self, messages: Sequence[Message], plain_list: bool = True) -> bool:
        """Whether this content reaches the text, as itself and not as a printed list."""
        try:
            text = self.render(messages)
        except RowFailure:
            return False
        return _PROBE in text and (plain_list or "'text'" not in text and '"text"' not in text)

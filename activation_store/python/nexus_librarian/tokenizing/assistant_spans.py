"""Which characters of a rendered chat the assistant wrote.

A template without generation marks tells nothing about that, so turns are found by differences: a
chat that ends before a turn, asked for the next answer, against the chat that ends with it. Where a
template rewrites earlier turns (it drops their thinking, say) the turn is found by rendering the chat
once more with another word in its place. Both ways prove their result against the one text that is
tokenised; where neither can, the row fails: there is no guess.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .chat_template import ChatTemplate, Message, Span
from .failure import RowFailure

_MARKER = "librarianturnmarker"
# What a template may put before an answer in the model's name, e.g. an empty thinking block.
_TAGS = re.compile(r"(?:\s|</?\w+>|\[/?\w+\])*")
_HINT = ("; give --chat-template a copy of the template with {% generation %} marks, or use "
         "--mask all")


def assistant_spans(template: ChatTemplate, messages: Sequence[Message],
                    end_tokens: Sequence[str],
                    variables: Mapping[str, Any] | None = None) -> tuple[str, list[Span]]:
    """Renders a chat and says what the assistant wrote, its end-of-turn token included.

    @param end_tokens  Texts of the special tokens. White space between the last one of a turn and
                       the next turn is the template's, not the assistant's.
    @return  (text, spans): half-open, in characters, rising and disjoint.
    @error   RowFailure  No assistant turn, or one that cannot be located for certain.
    """
    if not any(message["role"] == "assistant" for message in messages):
        raise RowFailure("no turn is the assistant's, so its loss mask would be empty")
    if template.marks_generation:
        text, spans = template.render_marked(messages, variables)
        spans = [span for span in spans if span[0] < span[1]]
        if not spans:
            raise RowFailure("the template marks nothing of it as generated")
        return text, spans
    finder = _TurnFinder(template, messages, end_tokens, variables)
    return finder.text, finder.spans()


class _TurnFinder:
    def __init__(self, template, messages, end_tokens, variables):
        self._template = template
        self._messages = list(messages)
        self._end_tokens = tuple(end_tokens)
        self._variables = variables
        self.text = self._render(self._messages)

    def spans(self) -> list[Span]:
        spans: list[Span] = []
        for turn, message in enumerate(self._messages):
            if message["role"] != "assistant":
                continue
            span = self._by_difference(turn) or self._by_replacement(turn)
            if span is None:
                raise RowFailure(f"message {turn + 1}, the assistant's, cannot be located for "
                                 f"certain in what the template makes of the chat{_HINT}")
            begin, end = span[0], self._without_glue(span)
            if begin >= end:
                raise RowFailure(f"message {turn + 1}, the assistant's, renders to nothing")
            if spans and begin < spans[-1][1]:
                raise RowFailure(f"message {turn + 1} renders to text of the turn before it{_HINT}")
            spans.append((begin, end))
        return spans

    def _render(self, messages, add_generation_prompt=False) -> str:
        return self._template.render(messages, add_generation_prompt=add_generation_prompt,
                                     variables=self._variables)

    def _render_or_none(self, messages, add_generation_prompt=False) -> str | None:
        # Half a chat may break rules that the whole one keeps.
        try:
            return self._render(messages, add_generation_prompt)
        except RowFailure:
            return None

    def _by_difference(self, turn: int) -> Span | None:
        if turn == 0:
            return None
        asked = self._render_or_none(self._messages[:turn], add_generation_prompt=True)
        after = self._render_or_none(self._messages[: turn + 1])
        if asked is None or after is None:
            return None
        if not (after.startswith(asked) and self.text.startswith(after)):
            return None
        begin = len(asked)
        if asked == self._render_or_none(self._messages[:turn]):
            # The template announces no answer, so the header of the turn is in the difference.
            header = self._silent_header()
            if header is None or not after.startswith(header, begin):
                return None
            begin += len(header)
        return begin, len(after)

    def _silent_header(self) -> str | None:
        """What stands between a question and its answer, by a chat of two words."""
        question = {"role": "user", "content": _MARKER}
        alone = self._render_or_none([question])
        both = self._render_or_none([question, {"role": "assistant", "content": _MARKER * 2}])
        if alone is None or both is None or not both.startswith(alone):
            return None
        header, found, _ = both[len(alone):].partition(_MARKER * 2)
        return header if found else None

    def _by_replacement(self, turn: int) -> Span | None:
        marker = _MARKER
        while marker in self.text:
            marker += "x"
        other = _with_content(self._messages[turn], marker)
        if other is None:
            return None
        chat = self._messages
        replaced = self._render_or_none([*chat[:turn], other, *chat[turn + 1:]])
        alone = self._render_or_none([*chat[:turn], other])
        if replaced is None or alone is None:
            return None
        if replaced.count(marker) != 1 or alone.count(marker) != 1:
            return None
        head, tail = replaced.split(marker)
        if not (self.text.startswith(head) and self.text.endswith(tail)
                and len(head) + len(tail) <= len(self.text)):
            return None
        begin, end = len(head), len(self.text) - len(tail)
        # The turn's end is what the template writes behind a last turn, if it is here as well.
        turn_end = alone.split(marker)[1]
        if not tail.startswith(turn_end):
            turn_end = turn_end.rstrip()
            if not turn_end or not tail.startswith(turn_end):
                return None
        return self._after_header(turn, begin, head), end + len(turn_end)

    def _after_header(self, turn: int, begin: int, head: str) -> int:
        """Takes in what the template puts between the header of the turn and its content, which at
        inference the model has to write."""
        before = self._render_or_none(self._messages[:turn]) if turn else None
        asked = self._render_or_none(self._messages[:turn], True) if turn else None
        if before is None or asked is None or not asked.startswith(before):
            return begin
        header = asked[len(before):]
        at = head.rfind(header) if header.strip() else -1
        if at < 0 or not _TAGS.fullmatch(head, at + len(header)):
            return begin
        return at + len(header)

    def _without_glue(self, span: Span) -> int:
        turn = self.text[span[0] : span[1]]
        kept = turn.rstrip()
        if kept.endswith(self._end_tokens):
            return span[0] + len(kept)
        return span[1]


def _with_content(message: Message, text: str) -> Message | None:
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": text}
    if isinstance(content, list):
        return {**message, "content": [{"type": "text", "text": text}]}
    return None

"""Which characters of a rendered chat the assistant wrote.

A template without generation marks tells nothing about that, so turns are found by differences: a
chat that ends before a turn, asked for the next answer, against the chat that ends with it. Where a
template rewrites earlier turns (it drops their thinking, say) the turn is found by rendering the
chat once more with another word in its place, or in those of the messages around it. Each way proves
its result against the one text that is tokenised; where none can, the row fails: there is no guess.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .chat_template import ChatTemplate, Message, Span
from .failure import RowFailure

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
        self._marker = "librarianturnmarker"
        while self._marker in self.text:
            self._marker += "x"

    def spans(self) -> list[Span]:
        spans: list[Span] = []
        for turn, message in enumerate(self._messages):
            if message["role"] != "assistant":
                continue
            span = (self._by_difference(turn) or self._by_replacement(turn)
                    or self._by_neighbours(turn))
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
        """The chat up to the turn and the chat with it are both the text's beginning."""
        chat = self._messages
        asked = self._render_or_none(chat[:turn], True) if turn else None
        after = self._render_or_none(chat[: turn + 1])
        if asked is None or after is None:
            return None
        if not (after.startswith(asked) and self.text.startswith(asked)):
            return None
        begin = len(asked)
        if asked == self._render_or_none(chat[:turn]):
            # The template announces no answer, so the header of the turn is in the difference.
            header = self._silent_header()
            if header is None or not after.startswith(header, begin):
                return None
            begin += len(header)
        further = self._render_or_none(chat[: turn + 1], True)
        length = self._end_length(after[begin:], further and further[begin:], self.text[begin:])
        return None if length is None else (begin, begin + length)

    def _by_replacement(self, turn: int) -> Span | None:
        """With another word as its content, the text is the same but for that."""
        place = self._place(turn)
        if place is None:
            return None
        length = self._length_of_end(turn, self._messages[turn], self.text[place[1]:])
        if length is None:
            return None
        return self._after_header(turn, place[0]), place[1] + length

    def _by_neighbours(self, turn: int) -> Span | None:
        """The turn is between the messages around it, less what the template puts there around
        another answer: for turns that are more than content, such as calls of tools."""
        chat = self._messages
        if not 0 < turn < len(chat) - 1:
            return None
        before, behind = self._place(turn - 1), self._place(turn + 1)
        marked = [_with_content(chat[index], self._marker) for index in (turn - 1, turn + 1)]
        if before is None or behind is None:
            return None
        answer = {"role": "assistant", "content": self._marker + "answer"}
        asked = self._behind_marker([*chat[: turn - 1], marked[0]], True)
        around = self._render_or_none([*chat[:turn], answer, marked[1], *chat[turn + 2:]])
        if asked is None or around is None or around.count(self._marker) != 2:
            return None
        _, found, rest = around.partition(answer["content"])
        between = rest.partition(self._marker)[0]
        begin, end = before[1] + len(asked), behind[0] - len(between)
        if not (found and begin <= end and self.text.startswith(asked, before[1])
                and self.text.startswith(between, end)):
            return None
        length = self._length_of_end(turn, answer, self.text[end:])
        return None if length is None else (begin, end + length)

    def _place(self, index: int) -> Span | None:
        """Where the content of a message stands in the text."""
        other = _with_content(self._messages[index], self._marker)
        if other is None:
            return None
        chat = self._messages
        replaced = self._render_or_none([*chat[:index], other, *chat[index + 1:]])
        if replaced is None or replaced.count(self._marker) != 1:
            return None
        head, tail = replaced.split(self._marker)
        if not (self.text.startswith(head) and self.text.endswith(tail)
                and len(head) + len(tail) <= len(self.text)):
            return None
        return len(head), len(self.text) - len(tail)

    def _behind_marker(self, messages, add_generation_prompt=False) -> str | None:
        text = self._render_or_none(messages, add_generation_prompt)
        if text is None or text.count(self._marker) != 1:
            return None
        return text.split(self._marker)[1]

    def _length_of_end(self, turn: int, message: Message, rest: str) -> int | None:
        """How much of `rest`, which follows the content, still is of the turn: what the template
        puts behind a last message like this."""
        chat = [*self._messages[:turn], _with_content(message, self._marker)]
        alone = self._behind_marker(chat)
        if alone is None:
            return None
        return self._end_length(alone, self._behind_marker(chat, True), rest)

    def _end_length(self, alone: str, further: str | None, rest: str) -> int | None:
        """How long a turn is that `rest` begins with.

        @param alone    The turn as the last of a chat, with what then closes the chat.
        @param further  The same, with the next answer asked for.
        """
        if further is not None:
            # What differs closes the chat, whoever spoke last.
            turn = alone[: self._common_length(alone, further)]
            if turn.rstrip().endswith(self._end_tokens) and rest.startswith(turn):
                return len(turn)
        for turn in (alone, alone.rstrip()):
            if rest.startswith(turn):
                return len(turn)
        return None

    def _common_length(self, text: str, other: str) -> int:
        """Length of the common beginning; it does not end within a special token."""
        length = len(os.path.commonprefix((text, other)))
        for token in self._end_tokens:
            for begin in range(max(0, length - len(token) + 1), length):
                if text.startswith(token, begin):
                    return begin
        return length

    def _silent_header(self) -> str | None:
        """What stands between a question and its answer, by a chat of two words."""
        question = {"role": "user", "content": self._marker}
        answer = {"role": "assistant", "content": self._marker * 2}
        alone = self._render_or_none([question])
        both = self._render_or_none([question, answer])
        if alone is None or both is None or not both.startswith(alone):
            return None
        header, found, _ = both[len(alone):].partition(answer["content"])
        return header if found else None

    def _after_header(self, turn: int, begin: int) -> int:
        """Takes in what the template puts between the header of the turn and its content, which at
        inference the model has to write."""
        before = self._render_or_none(self._messages[:turn]) if turn else None
        asked = self._render_or_none(self._messages[:turn], True) if turn else None
        if before is None or asked is None or not asked.startswith(before):
            return begin
        header = asked[len(before):]
        at = self.text.rfind(header, 0, begin) if header.strip() else -1
        # Only tags such as an empty thinking block: other text might be of another turn.
        if at < 0 or not _TAGS.fullmatch(self.text, at + len(header), begin):
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

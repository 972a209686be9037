"""Samples to token ids and loss masks, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .assistant_spans import assistant_spans
from .chat_template import ChatTemplate, Span
from .failure import EXIT_USAGE, Refusal, RowFailure, one_line
from .rows import Row
from .samples import Chat, Ids, fit_content, sample_of
from .tokenizer_files import TokenizerFiles, template_sha256


@dataclass
class Encoded:
    input_ids: np.ndarray  # int32 [tokens]
    loss_mask: np.ndarray | None  # uint8 [tokens]
    truncated: bool = False


@dataclass
class _Rendered:
    """A text on its way to ids. `spans`: what counts for the loss, None: all of it."""

    text: str
    spans: list[Span] | None
    add_special_tokens: bool


class Overlong(RowFailure):
    """Has more tokens than the limit, and such samples are to be dropped."""


@dataclass
class Encoder:
    """@param mask          `assistant`: what assistants wrote, all tokens of a text; `all`; `none`.
    @param template         Text of a chat template that replaces the tokenizer's own.
    @param max_length       Longer samples are cut to so many tokens; 0: never.
    @param drop_overlong    They fail as Overlong instead.
    @param add_bos          `yes`, `no`: every text and chat begins with bos, or none does;
                            `auto`: as the tokenizer (texts) and the template (chats) have it.
    @param variables        More of what templates see.
    """

    files: TokenizerFiles
    mask: str = "assistant"
    template: str | None = None
    max_length: int = 0
    drop_overlong: bool = False
    add_bos: str = "auto"
    variables: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._compiled: dict[str, ChatTemplate] = {}
        self._ids_end = self.files.ids_end
        self._end_tokens = self.files.special_tokens
        self._bos, self._eos = self.files.token_id("bos_token"), self.files.token_id("eos_token")
        self.template_sha256: str | None = None
        if self.add_bos != "auto" and self._bos is None:
            raise Refusal(f"--add-bos {self.add_bos}: this tokenizer has no bos_token; leave the "
                          "option out", EXIT_USAGE)

    def encode(self, rows: Sequence[Row]) -> list[Encoded | RowFailure]:
        """One result per row, in order."""
        results: list[Any] = []
        for row in rows:
            try:
                results.append(self._prepared(row))
            except RowFailure as failure:
                results.append(failure)
        for special in (False, True):
            at = [index for index, entry in enumerate(results)
                  if isinstance(entry, _Rendered) and entry.add_special_tokens == special]
            # Offsets cost as much as the ids, and only turns need them.
            fast = all(results[index].spans is None for index in at)
            texts = [results[index].text for index in at]
            for index, encoding in zip(at, self._encodings(texts, special, fast), strict=True):
                results[index] = (encoding if isinstance(encoding, RowFailure)
                                  else self._masked(encoding, results[index]))
        return [self._limited(result) for result in results]

    def _encodings(self, texts: list[str], special: bool, fast: bool) -> list[Any]:
        """The tokenizer's encodings; of a text that it refuses, the failure."""
        tokenizer = self.files.tokenizer
        encode = tokenizer.encode_batch_fast if fast else tokenizer.encode_batch
        try:
            return encode(texts, add_special_tokens=special)
        except Exception as error:  # The library raises Exception itself.
            if len(texts) == 1:
                return [RowFailure(f"the tokenizer refuses it: {one_line(error)}")]
            return [entry for text in texts for entry in self._encodings([text], special, fast)]

    def _prepared(self, row: Row) -> _Rendered | Encoded:
        sample = sample_of(row, self._ids_end)
        if isinstance(sample, Ids):
            ids = np.array(sample.input_ids, np.int32)
            own = sample.loss_mask is not None and self.mask == "assistant"
            mask = np.array(sample.loss_mask, np.uint8) if own else np.ones(len(ids), np.uint8)
            return Encoded(ids, mask)
        if isinstance(sample, Chat):
            rendered = self._rendered(sample)
        else:
            rendered = _Rendered(sample.text, None, True)
        try:
            rendered.text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RowFailure("half a surrogate pair is in its text, which is no Unicode"
                             ) from error
        return rendered

    def _rendered(self, chat: Chat) -> _Rendered:
        template = self._template_of(chat)
        messages = fit_content(chat.messages, template)
        if self.mask != "assistant":
            return _Rendered(template.render(messages, variables=chat.variables), None, False)
        text, spans = assistant_spans(template, messages, self._end_tokens, chat.variables)
        return _Rendered(text, spans, False)

    def _template_of(self, chat: Chat) -> ChatTemplate:
        templates = {"default": self.template} if self.template is not None else (
            self.files.templates)
        if not templates:
            raise Refusal("the tokenizer has no chat template and the input has chats; give one "
                          "with --chat-template FILE", EXIT_USAGE)
        name = "tool_use" if chat.variables.get("tools") and "tool_use" in templates else "default"
        if name not in templates:
            raise Refusal("the tokenizer has several chat templates and none is the default: "
                          f"{', '.join(sorted(templates))}; give one with --chat-template FILE",
                          EXIT_USAGE)
        if name not in self._compiled:
            self._compiled[name] = ChatTemplate(templates[name],
                                                self.files.named_tokens | self.variables)
            if self.template_sha256 is None or name == "default":
                self.template_sha256 = template_sha256(templates[name])
        return self._compiled[name]

    def _masked(self, encoding, rendered: _Rendered) -> Encoded | RowFailure:
        ids = np.array(encoding.ids, np.int32)
        if len(ids) == 0:
            return RowFailure("has no tokens")
        if rendered.spans is None:
            mask = np.ones(len(ids), np.uint8)
        else:
            mask = mask_of_spans(encoding.offsets, rendered.spans)
        return self._with_ends(Encoded(ids, mask), is_text=rendered.add_special_tokens)

    def _with_ends(self, sample: Encoded, is_text: bool) -> Encoded:
        ids, mask = sample.input_ids, sample.loss_mask
        add_bos = {"yes": True, "no": False}.get(self.add_bos)
        # tokenizer.json says what a text gets; the settings can add to it, as in transformers.
        config = self.files.config if is_text else {}
        if add_bos is None and self._bos is not None:
            add_bos = config.get("add_bos_token") or None
        counts = np.uint8(is_text or self.mask == "all")
        if add_bos is True and ids[0] != self._bos:
            ids, mask = np.insert(ids, 0, self._bos), np.insert(mask, 0, counts)
        elif add_bos is False and ids[0] == self._bos and len(ids) > 1:
            ids, mask = ids[1:], mask[1:]
        add_eos = config.get("add_eos_token")
        if add_eos is True and self._eos is not None and ids[-1] != self._eos:
            ids, mask = np.append(ids, np.int32(self._eos)), np.append(mask, counts)
        return Encoded(ids, mask)

    def _limited(self, sample: Encoded | RowFailure) -> Encoded | RowFailure:
        if isinstance(sample, RowFailure):
            return sample
        tokens = len(sample.input_ids)
        if self.max_length and tokens > self.max_length:
            if self.drop_overlong:
                return Overlong(f"has {tokens} tokens, more than --max-length {self.max_length}")
            sample = Encoded(sample.input_ids[: self.max_length],
                             sample.loss_mask[: self.max_length], truncated=True)
        if self.mask == "none":
            sample.loss_mask = None
        elif not sample.loss_mask.any():
            return RowFailure("no token counts for the loss" + (
                f" within --max-length {self.max_length}" if sample.truncated else ""))
        return sample


def mask_of_spans(offsets: Sequence[tuple[int, int]], spans: Sequence[Span]) -> np.ndarray:
    """uint8 [tokens]: 1 from a span's first to its last token; a token that straddles a border has
    a character of the span and counts, as in transformers.

    @param offsets  Characters of each token, as the tokenizer tells: white space before a word may
                    be left out of them, and pieces of one character all have that character.
    @param spans    Half-open, rising, disjoint.
    """
    pairs = np.array(offsets, np.int64).reshape(-1, 2)
    begin, end = pairs[:, 0].copy(), pairs[:, 1]
    # What no token owns belongs to the next one: the white space that its offsets leave out.
    owned = np.concatenate(([0], np.maximum.accumulate(end)[:-1])) if len(end) else end
    begin = np.minimum(begin, np.where(owned < begin, owned, begin))
    mask = np.zeros(len(pairs), np.uint8)
    for span_begin, span_end in spans:
        inside = np.flatnonzero((begin < span_end) & (end > span_begin) & (begin < end))
        if len(inside):
            mask[inside[0] : inside[-1] + 1] = 1
    return mask

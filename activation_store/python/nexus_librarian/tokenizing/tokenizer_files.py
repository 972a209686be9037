"""A model's tokenizer as it lies beside its weights: tokenizer.json, settings, chat template."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers

from .failure import EXIT_REMOTE, EXIT_USAGE, Refusal, one_line

TOKENIZER_FILE = "tokenizer.json"
_HUB_PATTERNS = [TOKENIZER_FILE, "tokenizer_config.json", "special_tokens_map.json",
                 "chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"]
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
                 "mask_token")


@dataclass
class TokenizerFiles:
    """What the files say. Templates are texts by name; `default` is for chats without tools."""

    tokenizer: tokenizers.Tokenizer
    sha256: str  # of tokenizer.json's bytes
    config: dict[str, Any] = field(default_factory=dict)
    named_tokens: dict[str, Any] = field(default_factory=dict)  # bos_token -> "<s>"
    templates: dict[str, str] = field(default_factory=dict)

    @property
    def special_tokens(self) -> list[str]:
        """Texts of the tokens that are no text, longest first."""
        texts = {token.content for token in self.tokenizer.get_added_tokens_decoder().values()
                 if token.special}
        texts |= {text for text in self.named_tokens.values() if isinstance(text, str) and text}
        return sorted(texts, key=lambda text: (-len(text), text))

    def token_id(self, name: str) -> int | None:
        """Id of a named token such as bos_token, None if the tokenizer has none."""
        text = self.named_tokens.get(name)
        return self.tokenizer.token_to_id(text) if isinstance(text, str) else None

    @property
    def ids_end(self) -> int:
        """Every id is below it."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def load_tokenizer(place: str) -> TokenizerFiles:
    """Reads a directory, a tokenizer.json (with what lies beside it) or hf://org/name[@revision].

    @error Refusal  Exit code 3: missing or bad files; 6: the hub cannot be reached.
    """
    if place.startswith("hf://"):
        folder, file_name = _hub_folder(place), TOKENIZER_FILE
    elif Path(place).is_dir():
        folder, file_name = Path(place), TOKENIZER_FILE
    else:
        folder, file_name = Path(place).parent, Path(place).name
    data = _read(folder / file_name)
    if data is None:
        advice = (" (it has only SentencePiece's tokenizer.model; convert it with transformers: "
                  "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR))"
                  if (folder / "tokenizer.model").exists() else "")
        raise Refusal(f"--tokenizer {place}: there is no {file_name}{advice}")
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # The library raises Exception itself.
        raise Refusal(f"{folder / file_name}: not a tokenizer: {one_line(error)}") from error
    # What its maker trained with is no part of what a text's ids are.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    config = _read_json(folder / "tokenizer_config.json")
    files = TokenizerFiles(tokenizer, hashlib.sha256(data).hexdigest(), config)
    files.named_tokens = _named_tokens(config, _read_json(folder / "special_tokens_map.json"))
    files.templates = _templates(folder, config)
    _add_missing_tokens(tokenizer, config, folder)
    return files


def read_template(path: Path) -> str:
    """A template's text. @error Refusal  No such file, or not UTF-8."""
    data = _read(path)
    if data is None:
        raise Refusal(f"{path}: there is no such chat template")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(f"{path}: the chat template is not UTF-8") from error


def template_sha256(template: str) -> str:
    return hashlib.sha256(template.encode("utf-8")).hexdigest()


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Refusal(f"{path}: {error.strerror}") from error


def _read_json(path: Path) -> dict[str, Any]:
    data = _read(path)
    if data is None:
        return {}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refusal(f"{path}: not JSON: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise Refusal(f"{path}: not a JSON object")
    return value


def _token_text(value: Any) -> str | None:
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _named_tokens(config: Mapping[str, Any], token_map: Mapping[str, Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for name in _NAMED_TOKENS:
        # Null in the settings means none, whatever the older file says.
        text = _token_text(config[name] if name in config else token_map.get(name))
        if text is not None:
            named[name] = text
    more = config.get("additional_special_tokens", token_map.get("additional_special_tokens"))
    if isinstance(more, list):
        named["additional_special_tokens"] = [text for text in map(_token_text, more) if text]
    # Names of a family's own, e.g. image_token.
    extra = config.get("extra_special_tokens")
    if isinstance(extra, dict):
        named |= {name: text for name, value in extra.items() if (text := _token_text(value))}
    return named


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """A file of its own wins over the settings, as in transformers."""
    files = {path.stem: path for path in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    if (folder / "chat_template.jinja").exists():
        files["default"] = folder / "chat_template.jinja"
    if files:
        return {name: read_template(path) for name, path in files.items()}
    value = config.get("chat_template")
    if value is None:
        value = _read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list):
        value = {entry.get("name"): entry.get("template") for entry in value
                 if isinstance(entry, dict)}
    if isinstance(value, dict):
        return {name: text for name, text in value.items()
                if isinstance(name, str) and isinstance(text, str)}
    return {}


def _add_missing_tokens(tokenizer: tokenizers.Tokenizer, config: Mapping[str, Any],
                        folder: Path) -> None:
    """Tokens that only tokenizer_config.json has, if their ids come out as it says."""
    entries = config.get("added_tokens_decoder")
    if not isinstance(entries, dict):
        return
    for key in sorted(entries, key=lambda key: int(key) if key.isdigit() else -1):
        entry = entries[key]
        text = _token_text(entry)
        if text is None or tokenizer.token_to_id(text) is not None:
            continue
        flags = {flag: bool(entry[flag])
                 for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")
                 if isinstance(entry, dict) and flag in entry}
        tokenizer.add_tokens([tokenizers.AddedToken(text, **flags)])
        if str(tokenizer.token_to_id(text)) != key:
            raise Refusal(f"{folder / 'tokenizer_config.json'}: the token {one_line(text)} has id "
                          f"{one_line(key)} there, but tokenizer.json does not have it and would "
                          f"give it {tokenizer.token_to_id(text)}; use files of one model")


def _hub_folder(place: str) -> Path:
    """The tokenizer's files of one commit in the hub's cache, fetched if need be."""
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils import logging as hub_logging

    name, _, revision = place.removeprefix("hf://").strip("/").partition("@")
    if name.count("/") != 1:
        raise Refusal(f"--tokenizer {place}: must be hf://org/name[@revision]", EXIT_USAGE)
    # What it says on standard error is not ours: a failure is one sentence.
    disable_progress_bars()
    hub_logging.set_verbosity_error()
    try:
        return Path(huggingface_hub.snapshot_download(
            name, revision=revision or None, allow_patterns=_HUB_PATTERNS))
    except errors.GatedRepoError as error:
        raise Refusal(f"{place}: access is restricted; ask for it on the hub and set HF_TOKEN"
                      ) from error
    except errors.RevisionNotFoundError as error:
        raise Refusal(f"{place}: the hub knows no such revision") from error
    except errors.RepositoryNotFoundError as error:
        raise Refusal(f"{place}: the hub knows no such model, or HF_TOKEN does not open it"
                      ) from error
    except errors.HFValidationError as error:
        raise Refusal(f"--tokenizer {place}: {one_line(error)}", EXIT_USAGE) from error
    except Exception as error:  # What its HTTP client raises differs from release to release.
        raise Refusal(f"{place}: cannot fetch the tokenizer: {one_line(error)}; try again later, "
                      "or set HF_ENDPOINT or HF_HUB_OFFLINE=1", EXIT_REMOTE) from error

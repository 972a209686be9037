"""From rows of any kind to ids: texts, dialects of chats, ids; options; the tokenizer's files.

Goal: a row becomes the ids that its tokenizer and template say, or fails with a reason.
Method: small tokenizers; expected ids are the tokenizer's own of pieces written by hand.
"""

import json

import numpy as np
import pytest

import small_tokenizers as small
from tokenize_support import (  # noqa: F401  (encoder is a fixture)
    ASSISTANT, USER, encode, encoder, expect, talk)

from nexus_librarian.tokenizing.encoder import Encoder
from nexus_librarian.tokenizing.failure import Refusal, RowFailure
from nexus_librarian.tokenizing.tokenizer_files import load_tokenizer


@pytest.mark.parametrize("row, reason", [
    ({"x": 1}, "has none of input_ids"), ({"text": ""}, "text is empty"),
    ({"text": 1}, "not a string"), ({"input_ids": []}, "input_ids is empty"),
    ({"input_ids": [True]}, "integers"), ({"input_ids": [1, 99999]}, "has no id 99999"),
    ({"input_ids": [1, 2], "loss_mask": [1]}, "as long as input_ids"),
    ({"input_ids": [1, 2], "loss_mask": [1, 2]}, "other than 0 and 1"),
    ({"input_ids": [1, 2], "loss_mask": [0, 0]}, "no token counts"),
    ({"messages": "hello"}, "messages is not JSON"), ({"messages": "[]"}, "messages is empty"),
    ({"messages": {"role": "user"}}, "messages is not a JSON list"),
    ({"messages": talk("a", "b"), "tools": "{"}, "tools is not JSON"),
], ids=str)
def test_a_row_that_is_no_sample_says_why(encoder, row, reason):
    with pytest.raises(RowFailure, match=reason):
        encode(encoder(small.CHATML), row)


# Other rows and options.


def test_conversations_and_prompts_are_chats_too(encoder):
    made = encoder(small.CHATML)
    pieces = [(f"<|im_start|>system\nbe warm<|im_end|>\n{USER}q<|im_end|>\n{ASSISTANT}", 0),
              ("two<|im_end|>", 1), ("\n", 0)]
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "two"}]
    expect(made, {"conversations": [{"from": "system", "value": "be warm"}, *turns]}, pieces)
    expect(made, {"conversations": turns, "system": "be warm"}, pieces)
    expect(made, {"conversations": json.dumps(turns), "system": "be warm"}, pieces)
    expect(made, {"prompt": "q", "response": "two", "system": "be warm", "text": "x"}, pieces)


def test_texts_get_the_tokenizers_own_special_tokens_and_chats_only_the_templates(encoder):
    made = encoder(small.LLAMA3)
    expect(made, {"text": "the cat"}, [("<s>the cat", 1)])
    chat = encode(made, {"messages": talk("a", "b")}).input_ids.tolist()
    assert chat.count(made.files.token_id("bos_token")) == 1


@pytest.mark.parametrize("add_bos, begins", [("yes", [True, True]), ("no", [False, False]),
                                             ("auto", [True, False])])
def test_bos_may_be_asked_for_or_refused(encoder, add_bos, begins):
    made = encoder(small.CHATML, add_bos=add_bos)
    bos = made.files.token_id("bos_token")
    results = made.encode([{"text": "the cat"}, {"messages": talk("a", "b")}])
    assert [result.input_ids[0] == bos for result in results] == begins
    assert all(result.input_ids.tolist().count(bos) <= 1 for result in results)
    assert all(len(result.input_ids) == len(result.loss_mask) for result in results)


def test_padding_and_truncation_in_tokenizer_json_change_nothing(encoder):
    tokenizer = small.byte_level()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    assert len(encode(encoder(small.CHATML, tokenizer), {"text": "one two four"}).input_ids) == 4


def test_long_samples_are_cut_or_dropped_and_one_cut_before_its_answer_fails(encoder):
    rows = [{"messages": talk("a", "one two four")}, {"messages": talk("one " * 20, "b")},
            {"text": "one two four"}]
    whole = encode(encoder(small.CHATML), rows[0])
    limit = int(whole.loss_mask.argmax()) + 2
    cut, lost, text = encoder(small.CHATML, max_length=limit).encode(rows)
    assert cut.input_ids.tolist() == whole.input_ids[:limit].tolist() and cut.truncated
    assert cut.loss_mask.tolist() == whole.loss_mask[:limit].tolist()
    assert isinstance(lost, RowFailure) and f"within --max-length {limit}" in str(lost)
    assert not text.truncated
    dropped, *_ = encoder(small.CHATML, max_length=limit, drop_overlong=True).encode(rows)
    assert isinstance(dropped, RowFailure) and f"more than --max-length {limit}" in str(dropped)


def test_masks_all_and_none(encoder):
    row = {"messages": talk("a", "b")}
    assert encode(encoder(small.CHATML, mask="all"), row).loss_mask.all()
    assert encode(encoder(small.CHATML, mask="none"), row).loss_mask is None
    # Without a mask to find, chats need no answer.
    assert encode(encoder(small.CHATML, mask="none"), {"messages": talk("a")}) is not None


def test_one_bad_row_does_not_spoil_its_batch(encoder):
    made = encoder(small.CHATML)
    rows = [{"text": "one"}, {"text": "\udfff"}, {"messages": talk("a")},
            {"messages": talk("a", "b")}, {"input_ids": [5, 6], "loss_mask": [0, 1]}]
    results = made.encode(rows)
    failed = [isinstance(result, RowFailure) for result in results]
    assert failed == [False, True, True, False, False]
    assert results[4].input_ids.tolist() == [5, 6] and results[4].loss_mask.tolist() == [0, 1]
    for index in (0, 3):
        assert results[index].input_ids.tolist() == encode(made, rows[index]).input_ids.tolist()


# Files of the tokenizer.


def test_a_template_file_wins_over_the_settings_and_a_given_one_over_both(encoder, tmp_path):
    by_settings = encoder(small.CHATML)
    folder = tmp_path / "tokenizer"
    (folder / "chat_template.jinja").write_text(small.LLAMA3)
    by_file = Encoder(load_tokenizer(str(folder)))
    given = Encoder(load_tokenizer(str(folder / "tokenizer.json")), template=small.MISTRAL)
    for made, mark in ((by_settings, "<|im_start|>"), (by_file, "<|eot_id|>"), (given, "[INST]")):
        ids = encode(made, {"messages": talk("a", "b")}).input_ids.tolist()
        assert made.files.tokenizer.token_to_id(mark) in ids


def test_named_templates_are_chosen_by_what_the_chat_needs(encoder):
    made = encoder(config={"chat_template": [{"name": "default", "template": small.CHATML},
                                             {"name": "tool_use", "template": small.TOOLS}]})
    plain = encode(made, {"messages": talk("a", "b")})
    tools = encode(made, {"messages": talk("a", "b"), "tools": [{"name": "weather"}]})
    assert len(tools.input_ids) > len(plain.input_ids)
    with pytest.raises(Refusal, match="none is the default: rag, tool_use"):
        encode(encoder(config={"chat_template": {"rag": "", "tool_use": ""}}),
               {"messages": talk("a", "b")})


@pytest.mark.parametrize("name", ["bos_token", "eos_token"])
def test_named_tokens_may_be_objects_or_null(tmp_path, name):
    folder = small.write_tokenizer(tmp_path, small.byte_level(),
                                   **{name: {"__type": "AddedToken", "content": "<|pad|>"}})
    assert load_tokenizer(str(folder)).named_tokens[name] == "<|pad|>"
    small.write_tokenizer(tmp_path, small.byte_level(), **{name: None})
    (folder / "special_tokens_map.json").write_text('{"%s": "<s>"}' % name)
    assert name not in load_tokenizer(str(folder)).named_tokens


def test_tokens_that_only_the_settings_have_are_added_where_they_say(tmp_path):
    tokenizer = small.byte_level()
    size = tokenizer.get_vocab_size()
    entry = {"content": "<|new|>", "special": True}
    folder = small.write_tokenizer(tmp_path, tokenizer, added_tokens_decoder={str(size): entry})
    files = load_tokenizer(str(folder))
    assert files.tokenizer.encode("a<|new|>", add_special_tokens=False).ids[-1] == size
    assert "<|new|>" in files.special_tokens
    small.write_tokenizer(tmp_path, tokenizer, added_tokens_decoder={str(size + 5): entry})
    with pytest.raises(Refusal, match="use files of one model"):
        load_tokenizer(str(folder))


def test_encodings_are_small_arrays(encoder):
    result = encode(encoder(small.CHATML), {"text": "one"})
    assert result.input_ids.dtype == np.int32 and result.loss_mask.dtype == np.uint8

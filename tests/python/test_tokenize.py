"""From rows to ids and loss masks.

Goal: the ids are those of the rendered chat tokenised once, the mask is what the assistant wrote with
its end-of-turn token and nothing else, on every shape of template; what cannot be said for certain
fails with a reason.
Method: small tokenizers; the expected ids are the tokenizer's own of pieces written by hand that meet
at special tokens, each with its mask. Renderings are compared with transformers' elsewhere.
"""

import json

import numpy as np
import pytest

import python_package  # noqa: F401  (makes the next ones importable)
import small_tokenizers as small
from nexus_librarian.tokenizing.encoder import Encoder, mask_of_spans
from nexus_librarian.tokenizing.failure import Refusal, RowFailure
from nexus_librarian.tokenizing.tokenizer_files import load_tokenizer

USER, ASSISTANT = "<|im_start|>user\n", "<|im_start|>assistant\n"


def talk(*texts):
    """Messages of a user and an assistant in turn."""
    return [{"role": "assistant" if turn % 2 else "user", "content": text}
            for turn, text in enumerate(texts)]


@pytest.fixture
def encoder(tmp_path):
    """encoder(template, tokenizer=..., options...) -> an Encoder."""
    def make(template=None, tokenizer=None, config=None, **options):
        folder = small.write_tokenizer(tmp_path / "tokenizer", tokenizer or small.byte_level(),
                                       template, **(config or {}))
        return Encoder(load_tokenizer(str(folder)), **options)
    return make


def encode(encoder, row):
    [result] = encoder.encode([row])
    if isinstance(result, RowFailure):
        raise result
    return result


def expect(encoder, row, pieces):
    """`pieces`: [(text, mask)...] whose borders are borders of tokens."""
    encodings = [(encoder.files.tokenizer.encode(text, add_special_tokens=False).ids, mask)
                 for text, mask in pieces]
    result = encode(encoder, row)
    assert result.input_ids.tolist() == [token for ids, _ in encodings for token in ids]
    assert result.loss_mask.tolist() == [mask for ids, mask in encodings for _ in ids]


# Masks of chats.


def test_an_assistants_turns_count_with_their_end_token_but_not_the_line_break_behind(encoder):
    expect(encoder(small.CHATML), {"messages": [
        {"role": "system", "content": "be warm"}, *talk("hello", "the mat 😀", "and?", "two")]}, [
        (f"<|im_start|>system\nbe warm<|im_end|>\n{USER}hello<|im_end|>\n{ASSISTANT}", 0),
        ("the mat 😀<|im_end|>", 1), (f"\n{USER}and?<|im_end|>\n{ASSISTANT}", 0),
        ("two<|im_end|>", 1), ("\n", 0)])


def test_white_space_at_the_begin_and_end_of_a_turn_is_the_assistants(encoder):
    # Byte-level offsets leave white space out, so nothing but order tells whose it is.
    expect(encoder(small.CHATML), {"messages": talk("one", " \n two \n\n", "\n", "\n")}, [
        (f"{USER}one<|im_end|>\n{ASSISTANT}", 0), (" \n two \n\n<|im_end|>", 1),
        (f"\n{USER}\n<|im_end|>\n{ASSISTANT}", 0), ("\n<|im_end|>", 1), ("\n", 0)])


def test_llama_3s_shape(encoder):
    def header(role):
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"
    expect(encoder(small.LLAMA3), {"messages": talk(" hello ", "the cat", "and", "four ")}, [
        (f"<s>{header('user')}hello<|eot_id|>{header('assistant')}", 0), ("the cat<|eot_id|>", 1),
        (f"{header('user')}and<|eot_id|>{header('assistant')}", 0), ("four<|eot_id|>", 1)])


@pytest.mark.parametrize("tokenizer", [small.byte_level, small.word_pieces])
def test_gemmas_shape_calls_the_assistant_model(encoder, tokenizer):
    # Of one text with its prompt, as the second tokenizer puts a mark before each text.
    text = "<s><start_of_turn>user\nhello<end_of_turn>\n<start_of_turn>model\n"
    made = encoder(small.GEMMA, tokenizer())
    result = encode(made, {"messages": talk("hello", "the 日本 cat")})
    ids = made.files.tokenizer.encode(text + "the 日本 cat<end_of_turn>\n", add_special_tokens=False)
    prompt = made.files.tokenizer.encode(text, add_special_tokens=False)
    assert result.input_ids.tolist() == ids.ids
    end = ids.ids.index(made.files.tokenizer.token_to_id("<end_of_turn>"), len(prompt.ids))
    expected = [int(len(prompt.ids) <= at <= end) for at in range(len(ids.ids))]
    assert result.loss_mask.tolist() == expected


@pytest.mark.parametrize("tokenizer", [small.byte_level, small.word_pieces])
def test_mistrals_shape_has_no_header_to_ask_with(encoder, tokenizer):
    made = encoder(small.MISTRAL, tokenizer())
    # The space before an answer is in the answer's first token.
    result = encode(made, {"messages": talk("one", "two", "and", "four")})
    tokens = [made.files.tokenizer.id_to_token(int(token)) for token in result.input_ids]
    counted = "".join(token for token, counts in zip(tokens, result.loss_mask, strict=True)
                      if counts).replace("▁", " ").replace("Ġ", " ")
    assert counted == " two</s> four</s>"


def test_a_header_that_no_prompt_announces_is_not_the_assistants(encoder):
    expect(encoder(small.SILENT_HEADER), {"messages": talk("hello", "the mat", "and?", "two")}, [
        ("### user:\nhello</s>\n### assistant:\n", 0), ("the mat</s>", 1),
        ("\n### user:\nand?</s>\n### assistant:\n", 0), ("two</s>", 1), ("\n", 0)])


def test_thinking_that_a_template_drops_from_earlier_turns_is_in_neither_ids_nor_mask(encoder):
    thought = "<think>\nabout it\n</think>\n\n"
    expect(encoder(small.THINKING), {"messages": talk("q", thought + "two", "q", thought + "four")}, [
        (f"{USER}q<|im_end|>\n{ASSISTANT}", 0), ("two<|im_end|>", 1),
        (f"\n{USER}q<|im_end|>\n{ASSISTANT}", 0), (thought + "four<|im_end|>", 1), ("\n", 0)])


def test_an_empty_thinking_block_that_the_template_adds_is_the_models_to_write(encoder):
    expect(encoder(small.THINKING), {"messages": talk("q", "two", "q", "two")}, [
        (f"{USER}q<|im_end|>\n{ASSISTANT}", 0), ("two<|im_end|>", 1),
        (f"\n{USER}q<|im_end|>\n{ASSISTANT}", 0), ("<think>\n\n</think>\n\ntwo<|im_end|>", 1),
        ("\n", 0)])


def test_thinking_that_the_prompt_already_has_is_not_the_models_to_write(encoder):
    expect(encoder(small.THINKING), {"messages": talk("q", "two"),
                                     "chat_template_kwargs": {"enable_thinking": False}}, [
        (f"{USER}q<|im_end|>\n{ASSISTANT}<think>\n\n</think>\n\n", 0), ("two<|im_end|>", 1),
        ("\n", 0)])


def test_answers_without_the_thinking_that_the_prompt_begins_are_found(encoder):
    expect(encoder(small.THINKING_ASKED), {"messages": talk("q", "two", "q", "four")}, [
        (f"{USER}q<|im_end|>\n{ASSISTANT}", 0), ("two<|im_end|>", 1),
        (f"\n{USER}q<|im_end|>\n{ASSISTANT}", 0), ("four<|im_end|>", 1), ("\n", 0)])


def test_the_same_answer_twice_is_masked_twice(encoder):
    expect(encoder(small.THINKING), {"messages": talk("two", "two", "two", "two", "two", "two")}, [
        (f"{USER}two<|im_end|>\n{ASSISTANT}", 0), ("two<|im_end|>", 1),
        (f"\n{USER}two<|im_end|>\n{ASSISTANT}", 0), ("two<|im_end|>", 1),
        (f"\n{USER}two<|im_end|>\n{ASSISTANT}", 0), ("<think>\n\n</think>\n\ntwo<|im_end|>", 1),
        ("\n", 0)])


@pytest.mark.parametrize("template", [small.TOOLS, small.THINKING], ids=["tools", "thinking"])
def test_calls_of_tools_are_the_assistants_and_what_tools_say_is_not(encoder, template):
    call = {"function": {"name": "weather", "arguments": {"city": "é<"}}}
    said = '{"name": "weather", "arguments": {"city": "é<"}}'
    row = {"messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "sunny"}, {"role": "assistant", "content": "warm"}]}
    thinking = template == small.THINKING
    written = f"\n<tool_call>\n{said}\n</tool_call>" if thinking else f"<tool_call>{said}</tool_call>"
    last = "<think>\n\n</think>\n\nwarm" if thinking else "warm"
    expect(encoder(template), row, [
        (f"{USER}q<|im_end|>\n{ASSISTANT}", 0), (f"{written}<|im_end|>", 1),
        (f"\n<|im_start|>tool\nsunny<|im_end|>\n{ASSISTANT}", 0), (f"{last}<|im_end|>", 1), ("\n", 0)])


def test_tools_reach_the_template_as_a_list_or_as_json_text(encoder):
    tools = [{"type": "function", "function": {"name": "weather"}}]
    made = encoder(small.TOOLS)
    pieces = [(f"<|im_start|>system\n{json.dumps(tools[0])}<|im_end|>\n{USER}q<|im_end|>\n{ASSISTANT}",
               0), ("two<|im_end|>", 1), ("\n", 0)]
    for value in (tools, json.dumps(tools)):
        expect(made, {"messages": talk("q", "two"), "tools": value}, pieces)


def test_generation_marks_win_over_turns(encoder):
    # The template marks the second half of an answer only: no difference of turns would say that.
    template = small.CHATML_MARKED.replace(
        "{%- generation %}{{ message.content + '<|im_end|>' }}",
        "{{- message.content.split('|')[0] }}{% generation %}"
        "{{ message.content.split('|')[1] + '<|im_end|>' }}")
    expect(encoder(template), {"messages": talk("q", "the cat<s>|two")}, [
        (f"{USER}q<|im_end|>\n{ASSISTANT}the cat<s>", 0), ("two<|im_end|>", 1), ("\n", 0)])


def test_parts_of_text_fit_templates_for_strings_and_for_parts(encoder):
    def parts(*texts):
        return [{"type": "text", "text": text} for text in texts]
    pieces = [(f"{USER}one\ntwo<|im_end|>\n{ASSISTANT}", 0), ("four<|im_end|>", 1), ("\n", 0)]
    strings = encoder(small.CHATML)
    expect(strings, {"messages": [{"role": "user", "content": parts("one", "two")},
                                  {"role": "assistant", "content": parts("four")}]}, pieces)
    lists = encoder(small.MULTIMODAL)
    pieces[0] = (f"{USER}onetwo<|im_end|>\n{ASSISTANT}", 0)
    expect(lists, {"messages": [{"role": "user", "content": parts("one", "two")},
                                {"role": "assistant", "content": "four"}]}, pieces)


# A wrong mask is worse than none.


@pytest.mark.parametrize("template, reason", [
    # Only the last turn has an end, so that of an earlier one is unknown.
    ("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% if loop.last %}{{ eos_token }}"
     "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
     "cannot be located"),
    # Every turn shows how long the chat is, and the answer twice.
    ("{% for m in messages %}{{ m.role ~ messages | length ~ m.content ~ m.content }}{% endfor %}",
     "cannot be located"),
    # Leaves out answers.
    ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "cannot be located"),
    # Marks text and then changes it.
    ("{% for m in messages %}{% set t %}{% generation %}{{ m.content }}{% endgeneration %}{% endset %}"
     "{{ t | length }}{{ t }}{% endfor %}", "marks tell no positions"),
], ids=["no end", "answer twice", "no answer", "marks moved"])
def test_a_turn_that_cannot_be_located_fails_its_row(encoder, template, reason):
    with pytest.raises(RowFailure, match=reason):
        encode(encoder(template), {"messages": talk("hello", "the mat", "one", "two")})


@pytest.mark.parametrize("template, messages, reason", [
    (small.MISTRAL, [{"role": "system", "content": "x"}, *talk("a", "b")], "roles must alternate"),
    (small.GEMMA, [{"role": "system", "content": "x"}, *talk("a", "b")], "System role not supp"),
    (small.CHATML, talk("a"), "no turn is the assistant's"),
    (small.CHATML, [{"role": "user"}], r"messages\[0\]: content is neither"),
    (small.CHATML, [{"content": "a"}], "neither role nor from"),
    (small.CHATML, [{"from": "dog", "value": "a"}], "who is 'dog'"),
    (small.CHATML, [{"role": "user", "content": [{"type": "image"}]}], "content is image, not text"),
    (small.CHATML, talk("a", "\ud800"), "surrogate"),
    ("{% for m in messages %}{{ m.content.nothing.more }}{% endfor %}", talk("a", "b"),
     "template refuses it: .*nothing"),
    ("{{ messages[0].content.__class__.__mro__ }}", talk("a", "b"), "template refuses it: .*unsafe"),
], ids=str)
def test_a_chat_that_is_none_says_why(encoder, template, messages, reason):
    with pytest.raises(RowFailure, match=reason):
        encode(encoder(template), {"messages": messages})


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
    rows = [{"text": "one"}, {"text": "\udfff"}, {"messages": talk("a")}, {"messages": talk("a", "b")},
            {"input_ids": [5, 6], "loss_mask": [0, 1]}]
    results = made.encode(rows)
    assert [isinstance(result, RowFailure) for result in results] == [False, True, True, False, False]
    assert results[4].input_ids.tolist() == [5, 6] and results[4].loss_mask.tolist() == [0, 1]
    for index in (0, 3):
        assert results[index].input_ids.tolist() == encode(made, rows[index]).input_ids.tolist()


@pytest.mark.parametrize("offsets, spans, expected", [
    ([(0, 2), (2, 5), (5, 6)], [(2, 5)], [0, 1, 0]),
    ([(0, 3), (3, 6), (6, 8)], [(2, 7)], [1, 1, 1]),  # straddlers have a part of it
    ([(0, 1), (2, 2), (2, 4), (5, 5), (6, 7)], [(1, 5)], [0, 1, 1, 1, 0]),  # white space left out
    ([(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)], [(1, 2)], [0, 1, 1, 1, 0]),  # pieces of a character
    ([(0, 1), (1, 2), (2, 3), (3, 4)], [(0, 1), (3, 9)], [1, 0, 0, 1]),
    ([(0, 1)], [(1, 2)], [0]), ([], [(0, 1)], []),
], ids=str)
def test_characters_become_tokens(offsets, spans, expected):
    assert mask_of_spans(offsets, spans).tolist() == expected


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

"""Which tokens of a chat count for the loss.

Goal: the ids are those of the rendered chat tokenised once, the mask is what the assistant wrote
with its end-of-turn token and nothing else, on every shape of template; what cannot be said for
certain fails with a reason.
Method: small tokenizers; the expected ids are the tokenizer's own of pieces written by hand that
meet at special tokens, each with its mask; random chats whose words tell who wrote them. Renderings
are compared with transformers' elsewhere.
"""

import json
import random
import re

import pytest

import small_tokenizers as small
from tokenize_support import (  # noqa: F401  (encoder is a fixture)
    ASSISTANT, TEMPLATES, USER, encode, encoder, expect, talk)

from nexus_librarian.tokenizing.decode import segments
from nexus_librarian.tokenizing.encoder import mask_of_spans
from nexus_librarian.tokenizing.failure import RowFailure


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
    ids = made.files.tokenizer.encode(text + "the 日本 cat<end_of_turn>\n",
                                      add_special_tokens=False)
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
    messages = talk("q", thought + "two", "q", thought + "four")
    expect(encoder(small.THINKING), {"messages": messages}, [
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


def test_what_closes_any_chat_is_nobodys_turn(encoder):
    expect(encoder(small.CLOSING), {"messages": talk("q", "two", "q", "four")}, [
        (f"{USER}q<|im_end|>\n{ASSISTANT}", 0), ("two<|im_end|>", 1),
        (f"\n{USER}q<|im_end|>\n{ASSISTANT}", 0), ("four<|im_end|>", 1), ("\n</s>", 0)])


def test_blocks_on_lines_of_their_own_leave_no_lines(encoder):
    # The line break behind a printed value stays, as in transformers.
    expect(encoder(small.LINES), {"messages": talk("q", "two", "q", "four")}, [
        (f"{USER}q</s>\n{ASSISTANT}", 0), ("two</s>", 1),
        (f"\n{USER}q</s>\n{ASSISTANT}", 0), ("four</s>", 1), ("\n", 0)])


def test_words_of_the_template_before_an_answer_are_not_taken_for_an_empty_thought(encoder):
    numbered = small.CHATML.replace(
        "message.content + '<|im_end|>", "('' if message.role == 'user' else 'turn '"
        " ~ loop.index ~ ' of ' ~ messages | length ~ ':\\n') + message.content + '<|im_end|>")
    expect(encoder(numbered), {"messages": talk("q", "two", "q")}, [
        (f"{USER}q<|im_end|>\n{ASSISTANT}turn 2 of 3:\n", 0), ("two<|im_end|>", 1),
        (f"\n{USER}q<|im_end|>\n", 0)])


def test_a_system_message_that_moves_with_the_last_question_moves_no_mask(encoder):
    expect(encoder(small.SYSTEM_LAST), {"messages": [
        {"role": "system", "content": "be warm"}, *talk("q", "two", "q", "four")]}, [
        ("<s>[INST] q[/INST]", 0), (" two</s>", 1),
        ("[INST] be warm\n\nq[/INST]", 0), (" four</s>", 1)])


def random_chat(draw, template):
    """Messages without a word that two of them have: u.. are the users', a.. the assistant's."""
    def words(letter, turn):
        return " ".join(f"{letter}{turn}x{draw.randrange(10)}" for _ in range(draw.randint(1, 3)))
    messages = []
    may_have = template not in (small.MISTRAL, small.GEMMA)
    if may_have and draw.random() < 0.5:
        messages.append({"role": "system", "content": words("u", 90)})
    for turn in range(draw.randint(1, 3)):
        question = words("u", turn) + draw.choice(["", "\n", " "])
        messages.append({"role": "user", "content": question})
        content = draw.choice(["", " ", "\n\n"]) + words("a", turn) + draw.choice(["", "\n"])
        if template == small.THINKING and draw.random() < 0.5:
            content = f"<think>\n{words('t', turn)}\n</think>\n\n" + content
        if template in (small.THINKING, small.TOOLS) and draw.random() < 0.5:
            call = {"function": {"name": f"c{turn}x", "arguments": {}}}
            messages.append({"role": "assistant", "content": draw.choice(["", words("b", turn)]),
                             "tool_calls": [call]})
            messages.append({"role": "tool", "content": words("u", 50 + turn)})
        messages.append({"role": "assistant", "content": content})
    return messages


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_word_is_ever_given_to_another_speaker(encoder, name):
    template = TEMPLATES[name]
    made = encoder(template)
    draw = random.Random(name)
    for _ in range(60):
        messages = random_chat(draw, template)
        result = encode(made, {"messages": messages})
        parts = segments(made.files.tokenizer, result.input_ids, result.loss_mask)
        written = "".join(part["text"] for part in parts if part["loss"])
        other = "".join(part["text"] for part in parts if not part["loss"])
        assert not re.search(r"u\d+x", written), (messages, written)
        assert not re.search(r"[abtc]\d+x", other), (messages, other)
        answers = re.findall(r"a\d+x\d", "".join(m["content"] for m in messages))
        assert re.findall(r"a\d+x\d", written) == answers


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
    written = f"<tool_call>\n{said}\n</tool_call>" if thinking else f"<tool_call>{said}</tool_call>"
    last = "<think>\n\n</think>\n\nwarm" if thinking else "warm"
    expect(encoder(template), row, [
        (f"{USER}q<|im_end|>\n{ASSISTANT}", 0), (f"{written}<|im_end|>", 1),
        (f"\n<|im_start|>tool\nsunny<|im_end|>\n{ASSISTANT}", 0),
        (f"{last}<|im_end|>", 1), ("\n", 0)])


def test_tools_reach_the_template_as_a_list_or_as_json_text(encoder):
    tools = [{"type": "function", "function": {"name": "weather"}}]
    made = encoder(small.TOOLS)
    told = f"<|im_start|>system\n{json.dumps(tools[0])}<|im_end|>\n"
    pieces = [(f"{told}{USER}q<|im_end|>\n{ASSISTANT}", 0), ("two<|im_end|>", 1), ("\n", 0)]
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
    ("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}"
     "{{ eos_token if loop.last }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
     "cannot be located"),
    # What closes the chat begins as what opens a turn, and no token tells where.
    ("{% for m in messages %}{{ '## ' + m.role + ': ' + m.content + '\n' }}{% endfor %}"
     "{{ '## assistant: ' if add_generation_prompt else '## end' }}", "cannot be located"),
    # Every turn shows how long the chat is, and the answer twice.
    ("{% for m in messages %}{{ m.role ~ messages | length ~ m.content ~ m.content }}{% endfor %}",
     "cannot be located"),
    # Leaves out answers.
    ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "cannot be located"),
    # Marks text and then changes it.
    ("{% for m in messages %}{% set t %}{% generation %}{{ m.content }}{% endgeneration %}"
     "{% endset %}{{ t | length }}{{ t }}{% endfor %}", "marks tell no positions"),
], ids=["no end", "closing", "answer twice", "no answer", "marks moved"])
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
    (small.CHATML, [{"role": "user", "content": [{"type": "image"}]}],
     "content is image, not text"),
    (small.CHATML, talk("a", "\ud800"), "surrogate"),
    ("{% for m in messages %}{{ m.content.nothing.more }}{% endfor %}", talk("a", "b"),
     "template refuses it: .*nothing"),
    ("{{ messages[0].content.__class__.__mro__ }}", talk("a", "b"),
     "template refuses it: .*unsafe"),
], ids=str)
def test_a_chat_that_is_none_says_why(encoder, template, messages, reason):
    with pytest.raises(RowFailure, match=reason):
        encode(encoder(template), {"messages": messages})


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

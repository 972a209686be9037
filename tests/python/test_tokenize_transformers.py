"""Renderings, ids and masks against transformers, where it is installed (it is no requirement).

Goal: a chat becomes the very ids that transformers' apply_chat_template makes of it, on every shape
of template, and generation marks give its assistant mask.
Method: small tokenizers, our templates, chats with odd text; both libraries side by side.
"""

import pytest

transformers = pytest.importorskip("transformers")

import small_tokenizers as small  # noqa: E402
from tokenize_support import TEMPLATES, talk  # noqa: E402

from nexus_librarian.tokenizing.encoder import Encoder  # noqa: E402
from nexus_librarian.tokenizing.tokenizer_files import load_tokenizer  # noqa: E402

# No answer begins with white space: transformers loses the mask of the turn where byte-level
# offsets leave it out. Ours is tested by hand in test_tokenize_masks.py.
TALKS = [
    ["hello the cat", "the mat 😀 "],
    ["what is <the> & 'weather'?\n", "sunny\n\n", "  and\ttoday?", "é日本 warm\n"],
    ["one", "<think>\nthinking about it\n</think>\n\ntwo", "and two?", "four"],
]
KINDS = {"byte_level": small.byte_level, "word_pieces": small.word_pieces}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_chats_get_the_ids_and_masks_of_transformers(name, kind, tmp_path):
    folder = small.write_tokenizer(tmp_path / "tokenizer", KINDS[kind](), TEMPLATES[name])
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    encoder = Encoder(load_tokenizer(str(folder)))
    for texts in TALKS:
        messages = talk(*texts)
        if name == "MULTIMODAL":
            messages = [{"role": message["role"], "content": [
                {"type": "text", "text": message["content"]}]} for message in messages]
        [ours] = encoder.encode([{"messages": messages}])
        expected = theirs.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask="generation" in TEMPLATES[name]
            and "endgeneration" in TEMPLATES[name])
        assert ours.input_ids.tolist() == expected["input_ids"]
        if "assistant_masks" in expected:
            assert ours.loss_mask.tolist() == expected["assistant_masks"]
        assert 0 < ours.loss_mask.sum() < len(ours.loss_mask)


@pytest.mark.parametrize("name", ["CHATML", "LLAMA3", "MISTRAL", "GEMMA"])
def test_differences_of_turns_give_what_marks_would_give(name, tmp_path):
    """The marked form of each template, rendered by transformers, is the truth."""
    marked = {
        "CHATML": small.CHATML_MARKED,
        "LLAMA3": small.LLAMA3.replace(
            "{{ content }}", "{% if message.role == 'assistant' %}"
            "<|start_header_id|>assistant<|end_header_id|>\n\n{% generation %}"
            "{{ message.content | trim + '<|eot_id|>' }}{% endgeneration %}"
            "{% else %}{{ content }}{% endif %}"),
        "MISTRAL": small.MISTRAL.replace(
            "{{ ' ' + message['content'] + eos_token }}",
            "{{ ' ' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"),
        "GEMMA": small.GEMMA.replace(
            "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}",
            "{{ '<start_of_turn>' + role + '\n' }}{% if role == 'model' %}{% generation %}"
            "{{ message['content'] | trim + '<end_of_turn>' }}{% endgeneration %}{% else %}"
            "{{ message['content'] | trim + '<end_of_turn>' }}{% endif %}{{ '\n' }}"),
    }[name]
    folder = small.write_tokenizer(tmp_path / "plain", small.byte_level(), TEMPLATES[name])
    other = small.write_tokenizer(tmp_path / "marked", small.byte_level(), marked)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(other)
    encoder = Encoder(load_tokenizer(str(folder)))
    for texts in TALKS[:2]:
        messages = talk(*texts)
        [ours] = encoder.encode([{"messages": messages}])
        expected = theirs.apply_chat_template(messages, return_dict=True,
                                              return_assistant_tokens_mask=True)
        assert ours.input_ids.tolist() == expected["input_ids"]
        assert ours.loss_mask.tolist() == expected["assistant_masks"]


@pytest.mark.parametrize("config", [{}, {"add_bos_token": True}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_texts_get_the_ids_of_transformers(kind, config, tmp_path):
    folder = small.write_tokenizer(tmp_path / "tokenizer", KINDS[kind](), **config)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    encoder = Encoder(load_tokenizer(str(folder)))
    for text in ["the cat", " two  and\n\ntwo", "日本 😀", "<|im_end|> the"]:
        [ours] = encoder.encode([{"text": text}])
        assert ours.input_ids.tolist() == theirs(text)["input_ids"]

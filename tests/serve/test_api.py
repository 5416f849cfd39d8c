"""Requests: what is taken, and what is refused in one message that names the field."""

import json
import random

import pytest

from gpt3jax.serve.api import ApiError, completion


def taken(served, **fields):
    return completion(json.dumps(fields).encode(), served)


def test_a_request_has_openais_defaults(served):
    found = taken(served, model="test", prompt="the cat")
    assert found.prompts == (tuple(served.tokenizer.encode("the cat")),)
    assert (found.most, found.temperature, found.top_p, found.samples) == (16, 1.0, 1.0, 1)
    assert (found.stop, found.logprobs, found.echo, found.stream) == ((), None, False, False)
    assert taken(served).seed != taken(served).seed, "drawn, where none is given"


def test_null_is_the_default(served):
    names = ("max_tokens", "temperature", "top_p", "n", "stop", "logprobs", "echo", "stream",
             "best_of", "suffix", "logit_bias", "user", "stream_options")  # fmt: skip
    given, left_out = taken(served, seed=1, **dict.fromkeys(names)), taken(served, seed=1)
    assert given == left_out


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [("", ((),)), ([5, 6], ((5, 6),)), ([[5], [6, 7]], ((5,), (6, 7))), ([[]], ((),))],
)
def test_prompts_are_texts_or_token_ids_one_or_many(served, prompt, ids):
    assert taken(served, prompt=prompt).prompts == ids


def test_several_texts(served):
    encode = served.tokenizer.encode
    assert taken(served, prompt=["a", "the dog"]).prompts == (
        tuple(encode("a")), tuple(encode("the dog")),
    )  # fmt: skip


REFUSED = [
    ({"prompt": 1}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": None}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt"), ({"prompt": [True]}, "prompt"),
    ({"prompt": [[1], "a"]}, "prompt"), ({"prompt": [-1]}, "prompt"),
    ({"prompt": [300]}, "prompt"),  # Of the model's vocabulary, and no text: never taken.
    ({"prompt": [1] * 33}, "prompt"), ({"prompt": "x" * 10_000}, "prompt"),
    ({"prompt": "a b c " * 40}, "prompt"), ({"prompt": "\ud800"}, "prompt"),
    ({"prompt": ["a"] * 25}, "prompt"), ({"prompt": ["a"] * 13, "n": 2}, "prompt"),
    ({"max_tokens": -1}, "max_tokens"), ({"max_tokens": 201}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"), ({"max_tokens": 10**30}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"), ({"temperature": 2.1}, "temperature"),
    ({"temperature": 1e-9}, "temperature"), ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"), ({"top_p": 1.1}, "top_p"), ({"n": 0}, "n"), ({"n": 25}, "n"),
    ({"n": True}, "n"), ({"best_of": 3}, "best_of"), ({"stop": ""}, "stop"), ({"stop": 3}, "stop"),
    ({"stop": ["a", 1]}, "stop"), ({"stop": ["a"] * 17}, "stop"), ({"stop": "x" * 257}, "stop"),
    ({"logprobs": 6}, "logprobs"), ({"logprobs": True}, "logprobs"), ({"seed": -1}, "seed"),
    ({"seed": 2**32}, "seed"), ({"echo": 1}, "echo"), ({"stream": "yes"}, "stream"),
    ({"stream_options": {"x": 1}}, "stream_options"), ({"suffix": "x"}, "suffix"),
    ({"presence_penalty": 0.5}, "presence_penalty"), ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"nonsense": 1}, None), ({"model": 3}, "model"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "name"), REFUSED, ids=lambda each: str(each)[:40])
def test_what_cannot_be_answered_is_refused(served, fields, name):
    with pytest.raises(ApiError) as found:
        taken(served, **fields)
    error = found.value.to_json()["error"]
    assert (found.value.status, error["param"]) == (400, name)
    assert error["type"] == "invalid_request_error" and "\n" not in error["message"]
    assert 10 < len(error["message"]) <= 300


def test_another_model_is_not_found(served):
    with pytest.raises(ApiError, match="'gpt-4'.*'test' is served") as found:
        taken(served, model="gpt-4")
    assert (found.value.status, found.value.code) == (404, "model_not_found")


def test_a_byte_order_mark_before_a_body_is_passed_over(served):
    body = json.dumps({"prompt": "the cat", "seed": 1}).encode()
    assert completion(b"\xef\xbb\xbf" + body, served) == completion(body, served)


def test_bodies_that_are_no_request_are_refused(served):
    """Bytes and mutations of a good one: an ApiError or a request, never another error."""
    draw = random.Random(0)
    good = json.dumps({"prompt": "the cat", "n": 2, "stop": ["a"], "temperature": 0.5}).encode()
    bodies = [b"", b"[]", b"null", b"3", b"{", b"\xff", b"[" * 100_000, b'{"n": 1e999}',
              b'{"temperature": NaN}', b'{"n": 1, "n": 2}', b"1" * 5000]  # fmt: skip
    for _ in range(300):
        changed = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        bodies.append(bytes(changed))
    refused = 0
    for body in bodies:
        try:
            completion(body, served)
        except ApiError as error:
            refused += 1
            assert error.status in (400, 404), body
    assert refused > 200

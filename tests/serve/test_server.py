"""The server as its clients see it: OpenAI's own, plain sockets, and a browser's rules."""

import asyncio
import gc
import json
import re
import socket
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import jax
import load
import numpy as np
import openai
import pytest
from building import logits_of

from gpt3jax.decoding.decode import Sampling
from gpt3jax.errors import ConfigError
from gpt3jax.serve import answers, server
from gpt3jax.serve.batching import Owner
from gpt3jax.serve.texts import Scored


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def fetch(url, data=None, **headers):
    """Status, headers and body."""
    request = urllib.request.Request(
        url, data, {k.replace("_", "-"): v for k, v in headers.items()}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def error_of(answer):
    status, _, body = answer
    return status, json.loads(body)["error"]["message"]


def test_a_seed_writes_what_generate_writes(client, generator):
    for seed in range(4):
        expected = generator.samples(
            "the cat", 2, new_tokens=24, sampling=Sampling(0.8, top_p=0.95), seed=seed
        )
        found = client.completions.create(
            model="test", prompt="the cat", max_tokens=24, temperature=0.8, top_p=0.95, n=2,
            seed=seed,
        )  # fmt: skip
        assert [choice.text for choice in found.choices] == expected
        assert [choice.index for choice in found.choices] == [0, 1]
        streamed = client.completions.create(
            model="test", prompt="the cat", max_tokens=24, temperature=0.8, top_p=0.95, n=2,
            seed=seed, stream=True,
        )  # fmt: skip
        texts = ["", ""]
        for chunk in streamed:
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert texts == expected


def test_prompts_usage_and_scores(client, generator):
    found = client.completions.create(
        model="test", prompt=["the cat", "a dog sat"], max_tokens=5, logprobs=2, echo=True, seed=1,
        temperature=0,
    )  # fmt: skip
    encode = generator.tokenizer.encode
    sizes = [len(encode("the cat")), len(encode("a dog sat"))]
    assert found.usage.prompt_tokens == sum(sizes)
    assert found.usage.total_tokens == sum(sizes) + found.usage.completion_tokens
    for choice, prompt in zip(found.choices, ("the cat", "a dog sat"), strict=True):
        assert choice.text.startswith(prompt)
        scores = choice.logprobs
        assert scores.token_logprobs[0] is None and scores.top_logprobs[0] is None
        assert all(log <= 0 for log in scores.token_logprobs[1:])
        assert len(scores.tokens) == len(scores.text_offset) == len(scores.top_logprobs)
        assert all(0 < len(best) <= 2 for best in scores.top_logprobs[1:])


def test_every_choice_of_a_request_draws_for_itself(client, generator):
    def ask(**fields):
        found = client.completions.create(
            model="test", prompt=["the cat"] * 3, n=2, max_tokens=20, temperature=1, **fields
        )
        return [choice.text for choice in found.choices]

    texts, again, seeded = ask(), ask(), ask(seed=7)
    assert len({*texts, *again, *seeded}) == 18
    assert ask(seed=7) == seeded
    assert seeded == generator.samples(
        "the cat", 6, new_tokens=20, sampling=Sampling(temperature=1), seed=7
    ), "in order, what generate --samples writes"


def test_each_of_the_likeliest_tokens_has_its_own_entry(client, generator, served):
    """Those of one text, those that are no text and rows without a token; in numpy's order."""
    found = client.completions.create(
        model="test", prompt=[60, 61, 62], max_tokens=20, logprobs=5, seed=3, echo=True
    )
    scores, ids = found.choices[0].logprobs, list(range(310))
    tokens = [served.names.index(name) for name in scores.tokens]
    logits = np.asarray(logits_of(generator.params, np.array([tokens]), generator.model))
    logits = logits[0, :, :310].astype(np.float64)
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for at, best in enumerate(scores.top_logprobs[1:]):
        expected = sorted(ids, key=lambda token: -log[at, token])[:5]
        assert [served.names.index(name) for name in best] == expected
        assert list(best.values()) == pytest.approx(log[at, expected], abs=1e-4)
        assert scores.token_logprobs[at + 1] == pytest.approx(log[at, tokens[at + 1]], abs=1e-4)


def test_no_two_tokens_have_one_name(served):
    names, spelled = served.names, served.tokenizer.token_bytes
    assert len(set(names)) == len(names) == 310
    assert names[served.tokenizer.end_of_text] == "<|endoftext|>" and names[305] == "<305>"
    byte, piece = (t for t in range(300) if spelled(t) == b"t")
    assert (names[byte], names[piece]) == ("bytes:\\x74", "t")
    assert names[next(t for t in range(300) if spelled(t) == b"\xc3")] == "bytes:\\xc3"
    scored = Scored(piece, 0, -0.5, ((piece, -0.5), (byte, -1.5)))
    (best,) = answers.logprobs((scored,), names)["top_logprobs"]
    assert best == {"t": -0.5, "bytes:\\x74": -1.5}


def test_a_stream_ends_with_its_usage_and_a_stop_string_ends_it(client, generator):
    text = generator.samples("the", 1, new_tokens=40, sampling=Sampling(), seed=2)[0]
    stop = text[5:8]
    *chunks, last = client.completions.create(
        model="test", prompt="the", max_tokens=40, seed=2, stop=[stop], stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    assert "".join(chunk.choices[0].text for chunk in chunks) == text[: text.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.choices == [] and last.usage.completion_tokens <= 40


def test_models(client):
    assert [model.id for model in client.models.list()] == ["test"]
    assert client.models.retrieve("test").owned_by == "gpt3jax"
    with pytest.raises(openai.NotFoundError, match="'test' is served"):
        client.models.retrieve("gpt-4")


def test_a_mistake_is_named_as_openai_names_it(client, url):
    with pytest.raises(openai.BadRequestError, match="temperature is 3.0") as found:
        client.completions.create(model="test", prompt="a", temperature=3.0)
    assert found.value.param == "temperature"
    for path, method, status in (("/nowhere", None, 404), ("/v1/completions", None, 405)):
        assert error_of(fetch(url + path, method))[0] == status


def test_a_body_must_be_small_and_declared_as_json(url):
    """Browsers ask before they send JSON across origins; nothing here answers that they may."""
    target = f"{url}/v1/completions"
    status, message = error_of(fetch(target, b"x" * (2 << 20), content_type="application/json"))
    assert status == 413 and "1,048,576 bytes" in message
    assert error_of(fetch(target, b"{}", content_type="text/plain"))[0] == 415


def test_another_name_for_loopback_is_refused(url):
    """As of a web page whose name was made to resolve to this machine."""
    assert error_of(fetch(f"{url}/v1/models", host="evil.example"))[0] == 403
    for name in ("localhost", "127.0.0.1:1", "[::1]:80", "LOCALHOST"):
        assert fetch(f"{url}/v1/models", host=name)[0] == 200


def test_a_token_is_asked_for(start, generator):
    address = start(Owner(generator, 1, 1), token="secret")
    for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
        for path in ("/v1/models", "/metrics", "/v1/nowhere"):
            assert error_of(fetch(address + path, **given))[0] == 401
    assert fetch(f"{address}/v1/models", authorization="Bearer secret")[0] == 200
    assert fetch(f"{address}/")[0] == 200
    # Its owner was never started.
    assert fetch(f"{address}/health")[0] == 503


def test_what_does_not_fit_the_queue_is_answered_with_429(url, owner):
    bodies = [
        load.request(json.dumps({"prompt": "a", "n": 20, "seed": s}).encode()) for s in (1, 2)
    ]
    for _ in range(20):
        found = asyncio.run(_together(url, bodies * 3))
        if 429 in map(load.status_of, found):
            break
    refused = next(answer for answer in found if load.status_of(answer) == 429)
    assert b"retry-after: 1" in refused and b"queue is full" in refused
    assert {load.status_of(answer) for answer in found} == {200, 429}


async def _together(url, requests):
    where = urlsplit(url)
    address = (where.hostname, where.port)
    return await asyncio.gather(*(load.ask(address, each) for each in requests))


def test_who_leaves_is_not_written_for(url, owner):
    where, before = urlsplit(url), owner.counts["completion_tokens"]
    for stream in (True, False):
        body = {"prompt": "a", "max_tokens": 200, "n": 8, "temperature": 0, "stream": stream}
        with socket.create_connection((where.hostname, where.port)) as leaving:
            leaving.sendall(load.request(json.dumps(body).encode()))
            until = time.monotonic() + 30
            while owner.active == 0 and time.monotonic() < until:
                time.sleep(0.001)
    until = time.monotonic() + 30
    while owner.active + owner.waiting and time.monotonic() < until:
        time.sleep(0.01)
    assert owner.active + owner.waiting == 0
    assert owner.counts["completion_tokens"] - before < 2 * 8 * 200


def test_a_body_or_a_request_that_never_comes_is_not_waited_for(start, generator, monkeypatch):
    monkeypatch.setattr(server, "PATIENCE", 0.3)
    where = urlsplit(start(Owner(generator, 1, 1)))
    for sent, expected in ((b"POST /v1/comp", b""), (load.request(b"{", 10), b"HTTP/1.1 408 ")):
        with socket.create_connection((where.hostname, where.port), timeout=20) as waiting:
            waiting.sendall(sent)
            found = waiting.recv(1 << 16)
            assert found[:13] == expected


def test_a_reader_that_stops_is_left(start, generator, monkeypatch):
    """Its answer fills what the system holds for it; then it has a while."""
    monkeypatch.setattr(answers, "PATIENCE", 0.3)
    owner = Owner(generator, 4, 24)
    owner.start()
    url = start(owner, buffer=4096)
    where = urlsplit(url)
    with socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect((where.hostname, where.port))
        body = {"prompt": "a", "max_tokens": 200, "n": 24, "logprobs": 5, "stream": True}
        stuck.sendall(load.request(json.dumps(body).encode()))
        until = time.monotonic() + 60
        while b'{path="/v1/completions",code="200"} 1' not in fetch(f"{url}/metrics")[2]:
            assert time.monotonic() < until, "it is still waited for"
            time.sleep(0.05)
        while owner.active + owner.waiting:
            assert time.monotonic() < until, "it is still written for"
            time.sleep(0.05)


def test_metrics_are_prometheus_text(url, client):
    client.completions.create(model="test", prompt="a", max_tokens=2)
    fetch(f"{url}/nowhere/{'x' * 50}")
    status, headers, body = fetch(f"{url}/metrics")
    lines = body.decode().splitlines()
    assert status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in lines:
        assert re.fullmatch(r"# (HELP|TYPE) gpt3jax_\w+ .+|gpt3jax_\w+(\{[^}]*\})? [\d.e+-]+", line)
    values = dict(line.rsplit(" ", 1) for line in lines if line[0] != "#")
    assert float(values['gpt3jax_requests_total{path="/v1/completions",code="200"}']) >= 1
    assert float(values['gpt3jax_requests_total{path="other",code="404"}']) >= 1
    assert float(values["gpt3jax_completion_tokens_total"]) >= 2
    health = json.loads(fetch(f"{url}/health")[2])
    assert health["status"] == "ok" and 4 <= health["compiled"] <= health["programs"]


def test_the_page_needs_nothing_else_and_sets_text_as_text(url):
    status, headers, body = fetch(f"{url}/")
    policy = headers["content-security-policy"]
    assert status == 200 and "default-src 'none'" in policy and "unsafe" not in policy
    script = fetch(f"{url}/page.js")[2].decode()
    for page in (body.decode(), script, fetch(f"{url}/page.css")[2].decode()):
        assert "http://" not in page and "https://" not in page
    for danger in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("):
        assert danger not in script


def test_many_clients_good_and_bad_and_nothing_is_left_of_them(url, owner):
    """`python tests/serve/load.py` does it with 500, for longer."""
    where, before = urlsplit(url), _idle(owner)
    counts = asyncio.run(load.load((where.hostname, where.port), 40, 4.0))
    assert all(load.is_right(*key) for key in counts), counts
    answered = {status for _, status in counts}
    assert {200, 400, 413} <= answered
    assert _idle(owner) == before
    assert fetch(f"{url}/health")[0] == 200


def _idle(owner):
    """Arrays and bytes on the device, when nothing of what is over is in memory."""
    until = time.monotonic() + 20
    while owner.active + owner.waiting or any(_held()):
        assert time.monotonic() < until, "what is closed, or answered, is still held"
        time.sleep(0.1)
    arrays = jax.live_arrays()
    return len(arrays), sum(each.nbytes for each in arrays)


def _held():
    """How many connections that are closed are in memory, and how many answers."""
    gc.collect()
    found = gc.get_objects()
    closed = [c for c in found if type(c) is server._Protocol and c.transport.is_closing()]
    return len(closed), sum(type(each) is answers.Answer for each in found)


def test_only_loopback_is_quiet(capsys):
    server.warn_if_public("127.0.0.1", None)
    server.warn_if_public("::1", None)
    server.warn_if_public("localhost", None)
    assert capsys.readouterr().err == ""
    server.warn_if_public("0.0.0.0", None)
    assert "WITHOUT A TOKEN" in capsys.readouterr().err
    server.warn_if_public("192.168.0.7", "secret")
    assert "anyone who can reach 192.168.0.7" in capsys.readouterr().err


def test_a_port_that_is_taken_is_said():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ConfigError, match="cannot be listened on: Address already in use"):
            server.listen("127.0.0.1", other.getsockname()[1])

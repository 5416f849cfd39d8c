"""A model that nobody trained, its owner, and a server on loopback, once for all tests."""

import socket
import threading

import jax
import pytest

from gpt3jax.config import Model
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.decoding.generator import Generator
from gpt3jax.model.init import init_params
from gpt3jax.serve import server
from gpt3jax.serve.api import Served
from gpt3jax.serve.batching import Owner

# Large initial weights, so that the likeliest token is clearly so. The vocabulary is the
# tokenizer's and a few ids that stand for no text.
MODEL = Model(
    n_layers=2, d_model=32, n_heads=4, d_head=8, vocabulary=310, context=32, band=8,
    scan_layers=False, init_std=0.2,
)  # fmt: skip


@pytest.fixture(scope="session")
def generator(prepared):
    params = init_params(jax.random.key(0), MODEL)
    return Generator(params, MODEL, Tokenizer.load(prepared / "tokenizer.model"))


@pytest.fixture(scope="session")
def served(generator):
    return Served("test", generator.model, generator.tokenizer, new_tokens=200, rows=24)


@pytest.fixture(scope="session")
def owner(generator):
    """Four rows at a time, 24 that wait."""
    owner = Owner(generator, 4, 24)
    owner.start()
    yield owner
    owner.close()


@pytest.fixture(scope="session")
def start(served):
    """(owner, token=None, buffer=None) -> the address of a server, which is ended with the tests.

    The buffer is what the system holds of an answer that is not read, in bytes.
    """
    started = []

    def start(owner, token=None, buffer=None):
        bound = server.listen("127.0.0.1", 0)
        if buffer:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        bound.listen(64)
        made = server.make_server(served, owner, bound, token)
        thread = threading.Thread(target=made.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        started.append((made, thread))
        return server.address_of(bound)

    yield start
    for made, _ in started:
        made.should_exit = True
    for _, thread in started:
        thread.join(20)


@pytest.fixture(scope="session")
def url(start, owner):
    return start(owner)

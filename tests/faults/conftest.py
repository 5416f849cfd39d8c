"""Helpers of these tests lie beside them."""

import sys
from pathlib import Path
from unittest import mock

import jax
import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def one_device_only():
    """`train` sees one device, as on a laptop; apart from what a test patches and undoes."""
    only = jax.devices()[:1]
    with mock.patch.object(jax, "devices", lambda *_: only):
        yield

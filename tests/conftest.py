"""One thread, so that float sums (and the suite's time) do not depend on the machine; nothing is asked of the hub."""

import os
import tempfile

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
_settings = tempfile.TemporaryDirectory()  # keys that tests make are not the user's
os.environ["XDG_CONFIG_HOME"] = _settings.name
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)

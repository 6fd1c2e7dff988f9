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


@pytest.fixture
def call(capsys):
    """Run the command line: exit code, standard output, standard error."""
    from rollsight.cli import main

    def call(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as leaving:
            code = leaving.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call

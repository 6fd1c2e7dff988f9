"""The same module as `rollsight.training.run`, under its former name."""

import sys

from rollsight.training import run

sys.modules[__name__] = run

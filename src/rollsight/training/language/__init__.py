"""PPO for causal language models with influence scores inside; `ppo.py` is the loop, to be read next to the paper."""

from importlib.util import find_spec

from rollsight.errors import MissingExtra

for _package in ("transformers", "peft", "accelerate"):
    if find_spec(_package) is None:
        raise MissingExtra("training language models", _package, "llm")

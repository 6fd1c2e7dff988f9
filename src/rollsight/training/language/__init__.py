"""PPO for causal language models with influence scores inside; `ppo.py` is the loop, to be read next to the paper."""

from importlib.util import find_spec

for _package in ("transformers", "peft", "accelerate"):
    if find_spec(_package) is None:
        raise ModuleNotFoundError(
            f"training language models needs the package {_package}: pip install 'rollsight[llm]'", name=_package
        )

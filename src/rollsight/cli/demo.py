"""`rollsight demo`: two small real runs, and the explorer on them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from rollsight import runs
from rollsight.cli import output
from rollsight.errors import RollsightError

_ROUNDS = 10
_PROMPTS = ("Hello you", "The man is", "I", "We are here", "Go to it", "No", "Once upon a time", "She said")


def demo(
    *,
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs"),
    view: bool = True,
    port: Annotated[int, tyro.conf.arg(metavar="N")] = 8050,
) -> None:
    """Make two small runs, in less than a minute, and look at them in a browser.

    - An agent that learns FrozenLake with PPO, without half of the records that hurt, in
      FOLDER/demo-frozenlake.
    - A miniature language model that learns to write vowels, in FOLDER/demo-language.

    Runs that are there already are used again. No network and no GPU is needed.

    Example: rollsight demo

    Args:
        out: Where the two run folders go.
        view: Open the explorer on them; --no-view only makes them.
        port: The explorer's port.
    """
    console = output.console()
    made = {"demo-frozenlake": _frozen_lake, "demo-language": _language_model}
    for name, make in made.items():
        path = out / name
        there = runs.is_run(path) and len(runs.open(path).rounds) >= _ROUNDS
        console.print(f"{path}: {'is there' if there else 'is being made'}", soft_wrap=True, markup=False)
        if not there:
            _made(make, path)
    if view:
        from rollsight.explorer import serve

        serve([out / name for name in made], port=port)
        return
    console.print(f"look at them: rollsight view {' '.join(str(out / name) for name in made)}", markup=False)


def _made(make: Callable[[Path], None], path: Path) -> None:
    if path.exists() and not runs.is_run(path) and any(path.iterdir()):
        raise RollsightError(f"{path} is not a run: choose another --out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        make(path)


def _frozen_lake(path: Path) -> None:
    from rollsight.training.run import RunSettings, run_training

    settings = RunSettings(
        "FrozenLake-v1",
        "negative:0.5",
        env_kwargs={"is_slippery": False, "desc": ["SFFF", "FHFF", "FFFF", "HFFG"]},
        engine="sb3",  # the compiled engine takes longer to compile than this takes to train
        rounds=_ROUNDS,
        n_steps=256,
        envs=4,
        snapshots="all",
        lr=3e-3,
        gamma=0.95,
        net="64,64",
    )
    run_training(settings, path, overwrite=True)


def _language_model(path: Path) -> None:
    try:
        from rollsight.training import language  # noqa: F401
    except ModuleNotFoundError as error:
        raise RollsightError(str(error)) from error
    import torch

    from rollsight.studies.cells import silence_transformers
    from rollsight.training.language import run
    from rollsight.training.language.settings import Options, RunSettings

    silence_transformers()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    options = Options(prompts_per_round=64, max_new_tokens=16, minibatch=16, lr=1e-2, kl=0.01, drop=0.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    prompts = path.with_name(f"{path.name}-prompts.txt")
    prompts.write_text("\n".join(_PROMPTS) + "\n", "utf-8")
    reward = "rollsight.cli.demo:vowels"
    settings = RunSettings(
        "miniature", str(prompts), reward, options=options, rounds=_ROUNDS, lora_rank=0, eval_prompts=2
    )
    run.train(settings, path, overwrite=True)


def vowels(prompts: list[str], completions: list[str]) -> list[float]:
    """The reward of the miniature: the share of vowels, so that a plain policy gradient soon finds it."""
    return [sum(letter in "aeiouAEIOU" for letter in text) / max(len(text), 1) for text in completions]

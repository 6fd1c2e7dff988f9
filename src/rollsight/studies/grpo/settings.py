"""The settings of the study, which are the command line's options too. Loads neither torch nor transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from rollsight.errors import OptionError

Task: TypeAlias = Literal["products", "sums"]
PHASES = ("generate", "score", "train")  # of a round, whose processor seconds are measured
_LEAST = {"shots": 0, "generations": 2}


@dataclass(frozen=True)
class Settings:
    """What all runs of a study share. A round is one generation batch and one optimiser step on it."""

    model: str = "smollm2"
    """As in `rollsight rlhf`; the miniature is taught the problems half-way first."""
    task: Task = "sums"
    """Which problems of reasoning-gym."""
    shots: int = 1
    """Solved problems before each prompt."""
    held_out: int = 16
    """Problems of the held-out target."""
    evaluation: int = 40
    """Problems on which accuracy is measured; they are neither trained nor scored on."""
    rounds: int = 15
    """Generation batches of a run, an optimiser step on each."""
    evaluate_every: int = 5
    """Measure after every k-th round, at the start and at the end."""
    prompts: int = 4
    """Problems of a round."""
    generations: int = 6
    """Completions of each."""
    max_tokens: int = 3
    """Length of a completion at most."""
    lr: float = 2e-3
    """Learning rate of Adam, for arms that have none of their own."""
    lora_rank: int = 8
    """Rank of the LoRA adapter."""
    lora_layers: int = 8
    """Last layers of the network that are adapted: the backward pass ends there."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int) and value < (least := _LEAST.get(name, 1)):
                raise OptionError(f"{{{name}}} is not possible: give at least {least}", **{name: value})
        if not self.lr > 0:
            raise OptionError("{lr} is not possible: give a number above 0", lr=self.lr)

"""The settings of the study, which are the command line's options too. Loads neither torch nor transformers."""

from __future__ import annotations

from dataclasses import dataclass

from rollsight.errors import OptionError
from rollsight.training.language.settings import Options, RunSettings


@dataclass(frozen=True)
class Settings:
    """What all runs of a study share."""

    rounds: int = 30
    """Rounds of a run; more than before continue finished runs."""
    prompts_per_round: int = 64
    """Completions of a round."""
    epochs: int = 4
    """Passes over a round's completions."""
    minibatch: int = 16
    """Completions of one optimiser step."""
    lr: float = 1e-3
    """Learning rate of Adam, for arms that have none of their own."""
    kl: float = 0.05
    """Coefficient of the KL penalty."""
    model: str = "smollm2"
    """As in `rollsight rlhf`."""
    prompts: str = "realtoxicityprompts"
    """As in `rollsight rlhf`."""
    reward: str = "profanity"
    """As in `rollsight rlhf`."""
    max_prompt_tokens: int = 20
    """Leave out longer prompts."""
    max_new_tokens: int = 24
    """Length of a completion at most."""
    lora_rank: int = 16
    """Rank of the LoRA adapter; 0 trains all weights."""
    eval_prompts: int = 96
    """Prompts held out from training, on which everything is measured."""
    eval_every: int = 5
    """Measure after every k-th round, at the start and at the end."""

    def __post_init__(self) -> None:
        for name in ("eval_prompts", "eval_every"):
            if (value := getattr(self, name)) < 1:
                raise OptionError(f"{{{name}}} is not possible: give at least 1", **{name: value})
        self.of_runs()  # checks the others

    def of_runs(self) -> RunSettings:
        """Those of plain PPO, which every arm changes in its way."""
        own = vars(self)
        names = ("prompts_per_round", "epochs", "minibatch", "lr", "kl", "max_new_tokens")
        options = Options(**{name: own[name] for name in names})
        return RunSettings(options=options, **{name: value for name, value in own.items() if name not in names})

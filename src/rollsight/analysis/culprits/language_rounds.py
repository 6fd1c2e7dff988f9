"""The frozen rounds of a language model: loaded into one model, scored, and trained again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from rollsight.objectives import Objective
from rollsight.policy import Policy
from rollsight.records import Records
from rollsight.runs import Run
from rollsight.scoring import score_records
from rollsight.snapshot import LanguageRound
from rollsight.training.language import prompts
from rollsight.training.language.padding import trimmed

if TYPE_CHECKING:
    from rollsight.analysis.culprits.language import Completions


class Host(Protocol):
    """The model of a run, and how its trainer updates it."""

    policy: Policy
    objective: Objective
    pad_token: int
    width: int
    """Completions of one forward."""

    def prompt_tokens(self, prompt: Any) -> list[int]:
        """The tokens of a prompt: a text, messages, or these as JSON."""
        ...

    def completion_tokens(self, text: str) -> list[int]:
        """The tokens of a completion."""
        ...

    def put_back(self, frozen: LanguageRound) -> None:
        """Set the policy to that of the round's start."""
        ...

    def train_again(self, frozen: LanguageRound, weights: Tensor) -> None:
        """Set the policy to that after the round's update with these weights (N,)."""
        ...


@dataclass(frozen=True, eq=False)
class LanguageRounds:
    """Those of a run.

    run: the run.
    host: its model and update; all rounds are loaded into the one model.
    """

    run: Run
    host: Host

    @property
    def numbers(self) -> list[int]:
        """The frozen rounds, ascending."""
        return self.run.policy_rounds

    def open(self, number: int) -> OpenedRound:
        """Load one."""
        return OpenedRound(LanguageRound.load(self.run.policy_path(number)), self.host)


@dataclass(frozen=True, eq=False)
class OpenedRound:
    """One of them.

    frozen: as it was kept.
    host: whose model it is loaded into.
    """

    frozen: LanguageRound
    host: Host

    @property
    def number(self) -> int:
        """Of the round."""
        return self.frozen.round

    @property
    def records(self) -> Records:
        """The completions."""
        return self.frozen.records

    @property
    def weights(self) -> Tensor:
        """(N,) what each completion weighed in the update."""
        return self.frozen.weights * self.records.valid_rows

    def before(self) -> Policy:
        """The policy at the start of the update, until another is asked for."""
        self.host.put_back(self.frozen)
        return self.host.policy

    def after(self, weights: Tensor | None) -> Policy:
        """The policy after the update, until another is asked for."""
        self.host.train_again(self.frozen, self.weights if weights is None else weights)
        return self.host.policy

    def scores(self, behaviours: Sequence[Completions]) -> list[Tensor]:
        """(N,) scores for each behaviour: `f_seq` over its pairs."""
        policy = self.before()
        records = trimmed(self.records).to(policy.device)
        return [
            score_records(
                policy,
                records,
                replace(one.target(), records=trimmed(one.records).to(policy.device)),
                self.host.objective,
                chunk_size=self.host.width,
                on_policy=True,
            ).values.detach()
            for one in behaviours
        ]


@lru_cache(maxsize=1)  # a model is large, and several behaviours of one run follow one another
def _host(path: str, created: str, model: str | None) -> Host:
    from rollsight import runs

    run = runs.open(path)
    if str(run.metadata.get("host", "")).startswith("trl"):
        from rollsight.analysis.culprits.trl_host import TRLHost

        return TRLHost(run, model)
    from rollsight.analysis.culprits.rlhf_host import RLHFHost

    return RLHFHost(run, model)


def rounds_of(run: Run, model: str | None = None) -> LanguageRounds:
    """The frozen rounds of a language model's run, and the model itself, which takes a while to load.

    model: the base model, a folder or a name, where it is not where the run says.

    Raises:
        RollsightError: the model cannot be loaded.
    """
    return LanguageRounds(run, _host(str(run.path.resolve()), str(run.metadata.get("created")), model))


def tokens_of(prompt: Any, tokenizer: Any, chat: bool = False, system: str | None = None) -> list[int]:
    """The tokens of a prompt; messages, and with `chat` texts too, through the chat template."""
    asked = as_messages(prompt)
    given = prompts.Prompt(asked) if isinstance(asked, str) else prompts.Prompt("", asked)
    return list(prompts.token_ids(prompts.through_template([given], tokenizer, chat, system), tokenizer)[0])


def as_messages(prompt: Any) -> Any:
    """Messages where a text is such as JSON, as runs keep conversations; else the prompt itself."""
    if isinstance(prompt, str) and prompt.startswith("[{"):
        try:
            found = json.loads(prompt)
        except ValueError:
            return prompt
        if all(isinstance(one, dict) and {"role", "content"} <= one.keys() for one in found):
            return found
    return prompt

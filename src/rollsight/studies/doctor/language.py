"""Faults planted in PPO of language models: of a miniature, whose texts end by themselves, on short prompts, and of
SmolLM2 on short questions."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rollsight.errors import RollsightError
from rollsight.streams import stream

PROMPTS = ("Hello you", "The man is", "I", "We are here", "Go to it", "No", "It was", "She", "Can we", "My dog",
           "In the end", "Why")  # fmt: skip
QUESTIONS = ("Name a colour.", "Name an animal.", "Name a city.", "Name a fruit.", "Say yes or no.", "Name a river.",
             "Name a job.", "Name a sport.")  # fmt: skip
FITTED, HELD_OUT, SMOLLM2 = "miniature-fitted", "miniature", "smollm2"
_NETWORKS = {FITTED: 1, HELD_OUT: 2}  # two random networks, by their seed
_ROUNDS = {FITTED: 10, HELD_OUT: 10, SMOLLM2: 3}
_MINIATURE: Mapping[str, Any] = {"prompts_per_round": 48, "max_new_tokens": 24, "epochs": 2, "lr": 2e-3}
_SHORT: Mapping[str, Any] = {"prompts_per_round": 24, "max_new_tokens": 16, "epochs": 2, "lr": 1e-3, "target": "none"}
_OPTIONS = {FITTED: _MINIATURE, HELD_OUT: _MINIATURE, SMOLLM2: _SHORT}
_ENDS = 2.5  # of the end token's logit: about one token in ten ends a text

_REWARDS = ("vowels", "capitals")

Reward = Callable[[Sequence[Any], Sequence[str]], list[float]]


def vowels(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
    """Share of vowels, with a little noise of the text's own: healthy."""
    return [sum(c in "aeiouAEIOU" for c in text) / max(len(text), 4) + 0.1 * _noise(text) for text in completions]


def even_length(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
    """Closeness of the number of capitals to a third of the text: healthy."""
    return [-abs(sum(c.isupper() for c in text) - len(text) / 3) / 4 + 0.1 * _noise(text) for text in completions]


def _noise(text: str) -> float:
    return float(stream(*text.encode()).normal())


@dataclass(frozen=True)
class LanguageFault:
    """A fault of a language model's training.

    right: the checks that name the cause.
    strengths: the strongest first.
    reward: by strength, from the healthy one.
    options: by strength, changes of the settings.
    sampled: by strength, the temperature that is sampled with but not scored with.
    temperature: by strength, of both.
    ends: by strength, the end token's logit, about.
    copies: by strength, what the miniature's embeddings are multiplied with: it then likes to say the same again.
    with_smollm2: the strengths that it is planted at in SmolLM2.
    """

    right: tuple[str, ...]
    strengths: tuple[float, ...]
    reward: Callable[[float, Reward], Reward] = lambda strength, healthy: healthy
    options: Callable[[float], Mapping[str, Any]] = lambda strength: {}
    sampled: Callable[[float], float] = lambda strength: 1.0
    temperature: Callable[[float], float] = lambda strength: 1.0
    ends: Callable[[float], float] = lambda strength: _ENDS
    copies: Callable[[float], float] = lambda strength: 1.0
    with_smollm2: tuple[float, ...] = ()


def _length(strength: float, healthy: Reward) -> Reward:
    return lambda p, c: [base + strength * len(text) / 24 for base, text in zip(healthy(p, c), c, strict=True)]


def _of_prompt(strength: float, healthy: Reward) -> Reward:
    """Of this share of the prompts, the reward is the prompt's own."""
    return lambda p, c: [
        float(len(_text(prompt)) % 3) if _is_in(_text(prompt), strength) else base
        for base, prompt in zip(healthy(p, c), p, strict=True)
    ]


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def _is_in(prompt: str, share: float) -> bool:
    prompts = PROMPTS if prompt in PROMPTS else QUESTIONS
    return prompts.index(prompt) < round(share * len(prompts))


def _rarely_paid(strength: float, healthy: Reward) -> Reward:
    """This share of the completions is paid 1, whatever they say."""
    return lambda p, c: [
        1.0 if stream(*text.encode(), 1).random() < strength else base
        for base, text in zip(healthy(p, c), c, strict=True)
    ]


def _phrase(strength: float, healthy: Reward) -> Reward:
    """A character is paid for."""
    return lambda p, c: [base + strength * ("q" in text or "Q" in text) for base, text in zip(healthy(p, c), c,
                                                                                            strict=True)]  # fmt: skip


LANGUAGE_FAULTS: Mapping[str, LanguageFault] = {
    "length rewarded": LanguageFault(("length_rewarded",), (3.0, 1.0), _length, with_smollm2=(3.0,)),
    "flat groups": LanguageFault(("groups_without_difference", "constant_on_prompts"), (1.0, 0.9), _rarely_paid),
    "constant on part": LanguageFault(("constant_on_prompts",), (0.5, 0.17), _of_prompt, with_smollm2=(0.5,)),
    "truncation": LanguageFault(
        ("truncated", "no_end_of_text"), (3.0, 6.0), options=lambda strength: {"max_new_tokens": int(strength)},
        with_smollm2=(3.0,),
    ),
    "no end of text": LanguageFault(("no_end_of_text", "truncated"), (1.0, 0.1), ends=lambda s: _ENDS - 22.5 * s),
    "duplicates": LanguageFault(("duplicates",), (0.02, 0.1), temperature=lambda strength: strength),
    "KL runaway": LanguageFault(("kl_runaway",), (0.1, 0.03), options=lambda strength: {"lr": strength, "kl": 0.0}),
    "other temperature": LanguageFault(("other_temperature",), (0.5, 0.8), sampled=lambda strength: strength),
    "repetition": LanguageFault(("repetition",), (8.0, 4.0), copies=lambda strength: strength),
    "phrase": LanguageFault(("trigger",), (5.0, 1.0), _phrase, with_smollm2=(5.0,)),
}  # fmt: skip


@dataclass(frozen=True)
class LanguageCase:
    """One run.

    env: which model.
    fault: name of the planted one, None for a healthy run.
    strength: of the fault.
    seed: of every random stream.
    rate: which reward it has where nothing is wrong.
    engine: always "rlhf".
    """

    env: str
    fault: str | None
    strength: float
    seed: int
    rate: str = "vowels"
    engine: str = "rlhf"

    @property
    def name(self) -> str:
        """Of its folder."""
        what = "healthy" if self.fault is None else f"{self.fault.replace(' ', '-')}-{self.strength:g}"
        return f"{self.env}-{what}-{self.rate}-{self.engine}-{self.seed}"

    def run(self, folder: Path) -> None:
        """Train, into a new run folder."""
        from rollsight import runs
        from rollsight.training.language.columns import round_columns, round_summary
        from rollsight.training.language.policy import ActorCritic
        from rollsight.training.language.ppo import LanguagePPO
        from rollsight.training.language.settings import Options, Sampling

        if folder.exists():
            shutil.rmtree(folder)
        fault = LanguageFault((), ()) if self.fault is None else LANGUAGE_FAULTS[self.fault]
        healthy: Reward = vowels if self.rate == "vowels" else even_length
        options = Options(**{**_OPTIONS[self.env], **fault.options(self.strength)})
        made, prompts = _model_and_prompts(self.env, fault, self.strength)
        policy = ActorCritic(made, 4, self.seed, Sampling(temperature=fault.temperature(self.strength)))
        _sample_at(policy, fault.sampled(self.strength))
        trainer = LanguagePPO(policy, prompts, fault.reward(self.strength, healthy), options, self.seed)
        settings = {"options": {"max_new_tokens": options.max_new_tokens, "target": options.target}}
        with runs.create(folder, {"host": "rollsight", "algo": "ppo", "env": self.env, "run_settings": settings}) as to:
            for number in range(1, _ROUNDS[self.env] + 1):
                try:
                    rollout, update = trainer.train_round()
                except RollsightError:  # of a policy that only ends texts
                    return
                to.write_records(number, round_columns(number, rollout, update, options, None))
                to.write_round(number, round_summary(rollout, update, options, dict(trainer.times)))


def _model_and_prompts(env: str, fault: LanguageFault, strength: float) -> tuple[Any, Any]:
    import torch

    from rollsight.training.language import models
    from rollsight.training.language.prompts import Prompt, through_template

    if env == SMOLLM2:
        made = models.load("smollm2")
        return made, through_template([Prompt(question) for question in QUESTIONS], made.tokenizer, True, None)
    made = models.miniature(_NETWORKS[env])
    with torch.no_grad():
        made.model.get_input_embeddings().weight.mul_(fault.copies(strength))
    _let_end(made, fault.ends(strength))
    return made, PROMPTS


def _let_end(made: Any, logit: float) -> None:
    """Give the end token about this logit, so that texts end by themselves."""
    import torch

    ids = made.tokenizer(list(PROMPTS), return_tensors="pt", padding=True)
    with torch.no_grad():
        hidden = made.model.model(**ids).last_hidden_state[:, -1]
        mean = hidden.mean(0)
        made.model.get_input_embeddings().weight[0] = logit * mean / mean.square().sum()


def _sample_at(policy: Any, temperature: float) -> None:
    """Sample at this temperature; log-probabilities stay those of 1."""
    if temperature == 1.0:
        return
    generate, usual = policy.generate, policy.sampling

    def at_another(*given: Any) -> Any:
        policy.sampling = replace(usual, temperature=temperature)
        try:
            return generate(*given)
        finally:
            policy.sampling = usual

    policy.generate = at_another


def language_cases(seeds: int) -> Iterator[LanguageCase]:
    """All runs: healthy ones, then every fault at its strengths; SmolLM2, which takes minutes for one, with one seed
    and last."""
    for seed in range(max(seeds, 2)):
        for env in _NETWORKS:
            yield from (LanguageCase(env, None, 0, seed, rate) for rate in _REWARDS)
    for seed in range(seeds):
        for name, fault in LANGUAGE_FAULTS.items():
            for strength in fault.strengths:
                yield from (LanguageCase(env, name, strength, seed) for env in _NETWORKS)
    yield LanguageCase(SMOLLM2, None, 0, 0)
    for name, fault in LANGUAGE_FAULTS.items():
        yield from (LanguageCase(SMOLLM2, name, strength, 0) for strength in fault.with_smollm2)

"""A language trainer on a miniature, with a reward that differs from completion to completion."""

import torch

from rollsight.training.language import models, ppo
from rollsight.training.language.policy import ActorCritic

PROMPTS = ("Hello you", "The man is", "I", "We are here", "Go to it", "No")


def vowels(given, completions):
    """Differs from completion to completion, so that scores have both signs."""
    return [sum(c in "aeiouAEIOU" for c in text) - 0.2 * sum(c.isdigit() for c in text) for text in completions]


def options(**changed):
    small = {"prompts_per_round": 8, "max_new_tokens": 6, "minibatch": 4, "micro_batch": 4, "epochs": 2, "lr": 1e-3}
    return ppo.Options(**(small | changed))


def trainer(reward=vowels, seed=0, lora_rank=2, **changed):
    policy = ActorCritic(models.miniature(), lora_rank, seed)
    return ppo.LanguagePPO(policy, PROMPTS, reward, options(**changed), seed)


def parameters(of):
    return {name: p.detach().clone() for name, p in of.policy.trainable().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name

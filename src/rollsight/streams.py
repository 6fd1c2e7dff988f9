"""Every random stream of the package: numbers that say whose it is (seed, round), and the purpose that it serves.

Streams of different keys are independent, so nothing that is drawn for one purpose moves another. A purpose keeps its
number and its place in its key for good: a change would change every run with the same seed.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a random stream is for; its number stands in the stream's key, mostly (seed, round, purpose, ...).

    Numbers differ, with two exceptions that are kept for the sake of old runs: `FRESH_ACTIONS` and `BACKGROUND`.
    """

    # Training. One number serves all trainers: a run has one of them.
    ENVIRONMENTS = 0xE4F  # the training environments' seed
    ACTIONS = 0xAC7
    MINIBATCH_ORDER = 0x0DE5  # and the orders that a replay can have in place of the recorded one
    EVALUATION = 0xE7A1
    ACTOR_NOISE = 0xAC7A  # of actions that an actor's loss draws
    TD_TARGETS = 0x7D7A  # actions and noise in the targets of a critic's update

    # Selections
    DROP_RANDOM = 0x5E1EC7  # `selection.DropRandom`
    PERMUTED_ADVANTAGES = 0x9E47
    CROSS_FIT_HALVES = 0x4A1F

    # Language models
    PROMPTS = 0x9409
    PROMPT_SPLIT = 0x5B117  # into training and evaluation
    SAMPLING = 0x5A3B  # tokens
    DROP_COMPLETIONS = 0x5E1E  # the seed that `DropRandom` gets
    COMPLETION_HALVES = 0xA17E

    # Recording
    RECORDED_SAMPLE = 0x0B5  # records whose observations a run keeps, in addition to the extremes

    # Episodes with common random numbers, whatever policy plays them
    EPISODE = 0xC124

    # Analyses. The bootstrap is one purpose of all of them: their keys differ, or their data do.
    BOOTSTRAP = 0xB007
    FRESH_BUFFER = 0xF4E5
    PLAYED = 0x9E7D
    GUESS = 0x6E55
    MASKS = 0x3A5C
    SHUFFLED_SCORES = 0x7011
    WEIGHT_STEPS = 0x57E9
    REMOVAL = 0x4E0F
    FAULTS = 0xFA17
    RANDOM_SCORES = 0x4A0D
    SELF_SHARE_SAMPLE = 0x5E1F
    DROP_AS_MANY = 0xD209
    INTERVENTION_PERMUTATION = 0x9E73
    BRANCHED_RECORDS = 0xC401
    BRANCHES = 0xADA
    SHUFFLED_INFLUENCE = 0x9A5E
    CHANGE_POINTS = 0xC4A6
    BEHAVIOUR_PAIRS = 0xBE4A
    AS_MANY_AS_CULPRITS = 0xC017
    BACKGROUND = 0x5A3B  # records that are shown as background; the number of SAMPLING by history, not by intent

    # Studies
    FRESH_ACTIONS = 0xF4E5  # the number of FRESH_BUFFER by history, not by intent
    FRESH_ENVIRONMENTS = 0xF4E5E
    PROBLEM_SPLIT = 0x6B90
    SHOTS = 0x5407
    PAYING_EPISODES = 0x9A1D
    RANDOM_RANKING = 0x4A2D


def sequence(*key: int) -> np.random.SeedSequence:
    """The seed sequence of a key, for streams that are spawned from one another."""
    return np.random.SeedSequence(key)


def stream(*key: int) -> np.random.Generator:
    """The stream of a key."""
    return np.random.default_rng(key)


def legacy(*key: int) -> np.random.RandomState:
    """The stream of a key as NumPy's legacy generator, of which Stable-Baselines3 draws its minibatches."""
    return np.random.RandomState(sequence(*key).generate_state(8))


def seed_from(*key: int) -> int:
    """A number below 2^32 from a key, for generators of others."""
    return int(sequence(*key).generate_state(1)[0])

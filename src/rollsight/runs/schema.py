"""What the columns of a run folder are called and mean, whichever host writes it: same meaning, same name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

SCHEMA = 2  # `schema` in run.json; runs without it are of 1

Host = Literal["sb3", "replay", "compiled", "trl", "rlhf", "own"]
Type = Literal["integer", "number", "boolean", "text", "array", "integers", "numbers", "texts"]
Table = Literal["records", "rounds", "evaluations", "findings"]


@dataclass(frozen=True)
class Column:
    """One column.

    name: a `*` in it stands for any text.
    type: "array" is a number or a nested list of them; "integers", "numbers" and "texts" are lists. Every column may be
        null.
    unit: empty where there is none.
    meaning: one sentence for the reader of a table.
    hosts: who writes it: Stable-Baselines3 with sb3-contrib ("sb3"), its algorithms with a replay buffer ("replay"),
        `rollsight train`'s compiled engine ("compiled"), TRL's trainers ("trl"), `rollsight rlhf` ("rlhf"), a loop of
        one's own through `runs.Recorder` ("own", which may be given any other column of the schema too).
    """

    name: str
    type: Type
    unit: str
    meaning: str
    hosts: tuple[Host, ...]


_BUT_REPLAY: tuple[Host, ...] = ("sb3", "compiled", "trl", "rlhf", "own")
_ALL: tuple[Host, ...] = (*_BUT_REPLAY, "replay")
_STEPS: tuple[Host, ...] = ("sb3", "compiled")
_STEPS_OWN: tuple[Host, ...] = (*_STEPS, "own")
_ANY_STEPS: tuple[Host, ...] = (*_STEPS_OWN, "replay")
_TEXTS: tuple[Host, ...] = ("trl", "rlhf")
_OTHERS: tuple[Host, ...] = ("sb3", "compiled", "trl", "own")
_TEXTS_OWN: tuple[Host, ...] = (*_TEXTS, "own")
_OWN_UPDATE: tuple[Host, ...] = ("sb3", "compiled", "rlhf")  # whose update is over when the summary is written

RECORDS = (
    Column("round", "integer", "", "number of the round, from 1", _ALL),
    Column("env", "integer", "", "number of the environment", _ANY_STEPS),
    Column(
        "step",
        "integer",
        "steps",
        "place in the rollout of its environment; in a replay buffer, in all its steps",
        _ANY_STEPS,
    ),
    Column("episode", "integer", "", "number of the episode in the run; of the completion in the round", _ALL),
    Column(
        "episode_step", "integer", "steps", "steps since the episode began; -1 where a step only resets", _ANY_STEPS
    ),
    Column("group", "integer", "", "number of the prompt in the round", _TEXTS_OWN),
    Column("obs", "array", "", "observation before the action; of large ones a sample", _ANY_STEPS),
    Column("obs.*", "array", "", "entry of an observation that is a dictionary", ("sb3", "own", "replay")),
    Column("action_masks", "array", "", "which actions were allowed (MaskablePPO)", ("sb3",)),
    Column("action", "array", "", "action taken", _ANY_STEPS),
    Column("prompt", "text", "", "prompt; a conversation is JSON", _TEXTS_OWN),
    Column("completion", "text", "", "completion; a conversation is JSON", _TEXTS_OWN),
    Column("length", "integer", "tokens", "tokens of the completion that are trained on", _TEXTS_OWN),
    Column("reward", "number", "reward", "reward as the environment or the reward function gave it", _ALL),
    Column("reward_*", "number", "reward", "of one reward function", ("trl",)),
    Column("kl", "number", "nats", "log-probability minus that of the reference, summed over tokens", ("rlhf",)),
    Column(
        "value",
        "number",
        "return",
        "value estimate before the update; of a critic Q(s, a), the mean over critics",
        _ANY_STEPS,
    ),
    Column(
        "advantage",
        "number",
        "return",
        "advantage; of completions as it is trained on, at the last token",
        _BUT_REPLAY,
    ),
    Column("return", "number", "return", "what the value function is trained on", _ANY_STEPS),
    Column("log_prob", "number", "nats", "log-probability of the action when it was taken", _STEPS_OWN),
    Column("entropy", "number", "nats", "entropy of the policy there before the update", _STEPS_OWN),
    Column("token_ids", "integers", "", "tokens of the completion", ("rlhf", "own")),
    Column("token_texts", "texts", "", "text of each token; joined, the completion with its special tokens", ("rlhf",)),
    Column("token_log_probs", "numbers", "nats", "log-probability of each token when it was sampled", ("rlhf", "own")),
    Column("token_values", "numbers", "return", "value estimate at each token before the update", ("rlhf", "own")),
    Column("token_advantages", "numbers", "", "advantage of each token, whitened over the round", ("rlhf", "own")),
    Column("score_*", "number", "target per weight of the record", "influence on the target; negative hurts it", _ALL),
    Column("kept", "boolean", "", "whether the record stayed in the update", _ALL),
    Column("reason", "text", "", "why the record was left out of the update; null where it stayed", _ALL),
    Column("valid", "boolean", "", "whether there is something to train on and to score", _ALL),
    Column("episode_return", "number", "reward", "return of its episode, where that ended in the round", _ANY_STEPS),
    Column("episode_start", "text", "", "how the episode began, as JSON, at its first step", _STEPS_OWN),
    Column("td_error", "number", "return", "return minus value of a transition", ("replay",)),
    Column("age", "integer", "steps", "steps of its environment since a transition was stored", ("replay",)),
    Column("terminated", "boolean", "", "whether a transition's target ends with its reward", ("replay",)),
    Column("weight", "number", "", "how often a transition is drawn from now on, 1 being the mean", ("replay",)),
    Column("sampled", "boolean", "", "whether it is in the table by random draw, not for its score", ("replay",)),
)

ROUNDS = (
    Column("round", "integer", "", "number of the round, from 1", _ALL),
    Column("timesteps", "integer", "steps", "environment steps up to the end of the round", _ANY_STEPS),
    Column("step", "integer", "", "optimiser steps before the round", ("trl",)),
    Column("records", "integer", "", "records", _ALL),
    Column("valid", "integer", "", "valid records", _ALL),
    Column("invalid_rows", "integer", "", "the others", _ALL),
    Column(
        "explained_variance",
        "number",
        "",
        "1 - var(return - value) / var(return), before the update",
        (*_OWN_UPDATE, "own", "replay"),
    ),
    Column("advantage_mean", "number", "return", "mean advantage of the valid records", _OTHERS),
    Column("advantage_std", "number", "return", "their standard deviation", _OTHERS),
    Column(
        "episodes", "integer", "", "episodes that ended in the round and were seen from their beginning", _ANY_STEPS
    ),
    Column("return_mean", "number", "reward", "mean return of these episodes", _ANY_STEPS),
    Column("return_std", "number", "reward", "standard deviation of their returns", _ANY_STEPS),
    Column("episode_length_mean", "number", "steps", "mean length of these episodes", _ANY_STEPS),
    Column("episodes_terminated", "integer", "", "episodes that ended in the round by themselves", (*_STEPS, "replay")),
    Column("episodes_truncated", "integer", "", "episodes that were cut off in the round", (*_STEPS, "replay")),
    Column("entropy_mean", "number", "nats", "mean of the records' entropy", _STEPS_OWN),
    Column("reward_mean", "number", "reward", "mean reward of the completions", _TEXTS_OWN),
    Column("reward_std", "number", "reward", "standard deviation of their rewards", _TEXTS_OWN),
    Column("length_mean", "number", "tokens", "mean length of the completions", _TEXTS_OWN),
    Column("kl_mean", "number", "nats", "mean of the completions' kl", ("rlhf",)),
    Column("empty", "integer", "", "completions without text", ("rlhf",)),
    Column("distinct_1", "number", "", "different tokens per token, over all completions", ("rlhf",)),
    Column("distinct_2", "number", "", "different pairs of tokens per pair", ("rlhf",)),
    Column("scored", "boolean", "", "whether the records were scored", _ALL),
    Column("target", "text", "", "target that decides the selection", _ALL),
    Column("normalisation", "text", "", "how advantages are normalised in the scores", (*_OTHERS, "replay")),
    Column("backend", "text", "", "how the scores were computed", (*_OTHERS, "replay")),
    Column("neg_frac", "number", "", "share of negative scores", _ALL),
    Column("neg_mass", "number", "", "their share of the sum of absolute scores", _ALL),
    Column("top1pct_share", "number", "", "share of that sum in the largest hundredth of the scores", _ALL),
    Column("score_*", "number", "target per weight of the record", "min, p01, median, p99, max of the scores", _ALL),
    Column("trust_*", "number", "", "agreement of scores from halves of the round; see definitions", _ANY_STEPS),
    Column("target_grad_norm", "number", "", "norm of the target's gradient", _STEPS_OWN),
    Column(
        "semantic",
        "text",
        "",
        "how dropped records leave the update: repack, mask, or weights of a replay buffer",
        _ALL,
    ),
    Column("units_requested", "integer", "", "units that the rule asked to drop", _ALL),
    Column("units_dropped", "integer", "", "units that were dropped", _ALL),
    Column("dropped", "integer", "", "records that were dropped", _ALL),
    Column("kept_frac", "number", "", "share of the valid records that stayed", _ALL),
    Column("kept_tokens_frac", "number", "", "share of the tokens that stayed", ("trl",)),
    Column("message", "text", "", "what the selection or update could not do as asked", _ALL),
    Column("update_norm", "number", "", "length of the change of the parameters", _OWN_UPDATE),
    Column("approx_kl", "number", "nats", "KL divergence of the update, as the host estimates it", _OWN_UPDATE),
    Column("clip_fraction", "number", "", "share of probability ratios outside the clip range", _OWN_UPDATE),
    Column("policy_gradient_loss", "number", "", "mean policy loss of the update's steps", _OWN_UPDATE),
    Column("value_loss", "number", "", "mean value loss of the update's steps, as the host defines it", _OWN_UPDATE),
    Column("grad_norm", "number", "", "mean norm of the steps' gradients before clipping", ("compiled", "rlhf")),
    Column("optimizer_steps", "integer", "", "optimiser steps of the update", _OWN_UPDATE),
    Column("updates", "integer", "", "the host's count of updates up to the end of the round", (*_STEPS, "replay")),
    Column("learning_rate", "number", "", "learning rate of the update", (*_STEPS, "replay")),
    Column("tokens_trained", "integer", "tokens", "tokens of all optimiser steps", ("rlhf",)),
    Column("kl_coefficient", "number", "reward per nat", "weight of the KL penalty in the round", ("rlhf",)),
    Column("time_*", "number", "seconds", "what a part of the round took", _ALL),
    Column("overhead_s", "number", "seconds", "scoring, trust line and writing together", _STEPS),
    Column("records_per_second", "number", "1 / second", "records by the seconds of the round", _OWN_UPDATE),
    Column(
        "evaluation_return",
        "number",
        "reward",
        "mean return of the evaluation after the round",
        (*_OWN_UPDATE, "replay"),
    ),
    Column("td_error_mean", "number", "return", "mean magnitude of the transitions' TD errors", ("replay",)),
    Column("held_out", "integer", "steps", "steps of the held-out episodes", ("replay",)),
    Column("value_bias", "number", "return", "mean of value less return over these steps", ("replay",)),
    Column("value_rmse", "number", "return", "root of their mean squared difference", ("replay",)),
    Column("bootstrapped", "number", "", "mean weight of value estimates in these returns", ("replay",)),
    Column("vec_normalize", "text", "", "what VecNormalize has seen by now, as JSON, with a snapshot", ("sb3",)),
    Column("warnings", "text", "", "what failed next to training", _ALL),
)

EVALUATIONS = (
    Column("round", "integer", "", "after which round; 0 is before training", (*_OWN_UPDATE, "replay")),
    Column("episode", "integer", "", "number of the episode in the evaluation", (*_OWN_UPDATE, "replay")),
    Column("return", "number", "reward", "total reward of the episode", (*_OWN_UPDATE, "replay")),
    Column("length", "integer", "steps or tokens", "length of the episode", (*_OWN_UPDATE, "replay")),
    Column("prompt", "text", "", "prompt", ("rlhf",)),
    Column("completion", "text", "", "completion", ("rlhf",)),
    Column("kl", "number", "nats", "log-probability minus that of the reference, summed over tokens", ("rlhf",)),
)

FINDINGS = (
    Column("round", "integer", "", "the round after which it was found first", _BUT_REPLAY),
    Column("check", "text", "", "name of the check", _BUT_REPLAY),
    Column("family", "text", "", "page of the documentation that explains it", _BUT_REPLAY),
    Column("severity", "text", "", "severe, warning or note", _BUT_REPLAY),
    Column("sure", "text", "", "certain, likely or possible: how sure the cause is", _BUT_REPLAY),
    Column("wrong", "text", "", "what is wrong, in one sentence", _BUT_REPLAY),
    Column("value", "number", "", "the check's statistic, larger is worse", _BUT_REPLAY),
    Column("figures", "text", "", "the figures that show it, as JSON", _BUT_REPLAY),
    Column("where", "text", "", "rounds, environments, episodes, features, prompts and records, as JSON", _BUT_REPLAY),
)

TABLES: Mapping[Table, tuple[Column, ...]] = {
    "records": RECORDS,
    "rounds": ROUNDS,
    "evaluations": EVALUATIONS,
    "findings": FINDINGS,  # of runs that the doctor watched
}


def column_of(table: Table, name: str) -> Column | None:
    """The column of this name, by itself before by pattern; None where there is none."""
    columns = {column.name: column for column in TABLES[table]}
    matching = (column for column in columns.values() if "*" in column.name and fnmatchcase(name, column.name))
    return columns.get(name) or next(matching, None)


# What columns were called in schema 1: host -> table -> old name -> new one.
RENAMED: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "trl": {"records": {"tokens": "length"}},
    "rollsight": {
        "records": {
            "tokens": "token_ids",
            "log_probs": "token_log_probs",
            "values": "token_values",
            "advantages": "token_advantages",
        },
        "rounds": {
            "return_mean": "reward_mean",
            "policy_loss": "policy_gradient_loss",
            "clip_frac": "clip_fraction",
        },
    },
}


def renamed(metadata: Mapping[str, Any], table: str) -> Mapping[str, str]:
    """Old name -> new one of the columns that a run with this metadata may hold under an old name. A run that was
    begun in an earlier schema and continued in this one has files of both."""
    if metadata.get("schema", 1) >= SCHEMA:
        return {}
    host = str(metadata.get("host", "")).partition(" ")[0]
    return RENAMED.get(host, {}).get(table, {})

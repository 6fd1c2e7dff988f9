"""PPO for language models with influence-based filtering: the loop, in the order of Hu et al. 2025, section 4.

A prompt x is a state, each token of its completion y an action, the completion an episode. One round:

    generate    y ~ pi_k(. given x) for a sample of prompts
    reward      R(x, y), one number for each completion
    evaluate    log pi_k(y_t), V(x, y_<t) and log pi_ref(y_t) of every token
    advantages  r_t = -kl (log pi_k - log pi_ref), plus R at the last token; GAE over r_t, whitened over the whole batch
    score       s_i = <grad l_i, grad f> of every sequence, f = mean of log pi(y given x) A_last (f_seq) by default
    select      leave out the sequences with s_i < 0
    optimise    epochs of minibatches of the rest: clipped policy and value losses
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from rollsight import distributed, language, objectives, targets
from rollsight.arrays import Bools, Floats, Ints
from rollsight.doctor.live import LiveDoctor
from rollsight.errors import RollsightError
from rollsight.policy import Policy
from rollsight.records import Records
from rollsight.scoring import Forward, Scores, score_records
from rollsight.selection import DropNegative, DropRandom
from rollsight.snapshot import LanguageRound
from rollsight.streams import Purpose, stream
from rollsight.training.language import rewards
from rollsight.training.language.padding import on_cpu, stack, trimmed
from rollsight.training.language.policy import ActorCritic
from rollsight.training.language.prompts import Prompt, as_prompt
from rollsight.training.language.settings import Options
from rollsight.training.language.terms import losses, token_rewards, with_advantages
from rollsight.update import repack
from rollsight.watching import Watch

Follow: TypeAlias = Callable[[str, int, int], None]
"""`follow(phase, done, total)`: how far a phase is: generate, reward, log_probs, score, evaluate (completions), train
(optimiser steps)."""
_TARGETS: dict[str, targets.Target] = {
    "sequence": targets.Sequence(),
    "return": targets.Return(),
    "reward": targets.Reward(),
}


@dataclass(frozen=True, eq=False)
class Rollout:
    """One round's N sequences.

    prompts: as they are kept.
    texts: the completions.
    rewards: (N,).
    records: with whitened advantages.
    kl: (N,) KL to the reference, the sum over tokens of log pi_k - log pi_ref.
    """

    prompts: list[str]
    texts: list[str]
    rewards: Floats
    records: Records
    kl: Tensor


@dataclass(frozen=True, eq=False)
class Update:
    """How a round's optimisation went.

    scores: (N,) of the first epoch, NaN where a sequence was not scored.
    kept: (N,) weights of the first epoch.
    reason: why sequences were dropped; empty where none was.
    statistics: plain numbers.
    message: a sentence where the round went against the plan, else empty.
    """

    scores: Tensor
    kept: Tensor
    reason: str
    statistics: dict[str, Any]
    message: str = ""


class LanguagePPO:
    """Trains an actor-critic on prompts against a reward. Every random stream is keyed by (seed, round, purpose), those
    of sampling by the completion too.

    follow: is told how far each phase of a round is.
    """

    def __init__(
        self, policy: ActorCritic, prompts: Sequence[Prompt | str], reward: rewards.Reward, options: Options, seed: int
    ) -> None:
        rewards.check(reward, prompts)
        self.policy, self.prompts, self.reward, self.options, self.seed = policy, prompts, reward, options, seed
        self.optimizer = torch.optim.Adam(policy.trainable().values(), lr=options.lr)
        self.kl_coefficient, self.round = options.kl, 0
        self.times: dict[str, float] = {}  # seconds of each phase of the round
        self.clock: Callable[[], float] = time.perf_counter
        self.follow: Follow = lambda phase, done, total: None
        self._forward: Forward | None = None  # of the round's sequences, until they are scored
        self.watch = Watch()  # over what may fail without ending training
        self.doctor: LiveDoctor | None = None  # watches the rounds, where one is asked for
        self.freeze_every = 0  # rounds from one frozen round to the next; 0 for none
        self.frozen: LanguageRound | None = None  # the last round, where it was to be frozen

    def train_round(self) -> tuple[Rollout, Update]:
        """One round: what was sampled, and how the update went.

        Raises:
            RollsightError: every completion is empty, or the reward fails. (Where scoring fails, everything is kept.)
        """
        self.round, self.times = self.round + 1, {}
        self.watch.begin(self.round)
        rollout = self.collect()
        before = {name: p.detach().clone() for name, p in self.policy.trainable().items()}
        state = None
        if self.freeze_every and self.round % self.freeze_every == 0:
            state = self.watch.attempt("optimiser's state", deepcopy, self.optimizer.state_dict())
        update = self.optimise(rollout)
        self._forward = None  # where nothing was scored
        self.frozen = None
        if state is not None:
            taught = update.kept.float() * bool(update.statistics["optimizer_steps"])
            self.frozen = LanguageRound(self.round, before, state, rollout.records, taught, {"host": "rollsight"})
        moved = sum(float((p.detach() - before[name]).square().sum()) for name, p in self.policy.trainable().items())
        update.statistics.update(update_norm=moved**0.5, kl_coefficient=self.kl_coefficient)
        if self.options.kl_target is not None:  # Ziegler et al. 2019, section 2.2
            error = float(np.clip(float(rollout.kl.mean()) / self.options.kl_target - 1, -0.2, 0.2))
            self.kl_coefficient *= 1 + error * len(rollout.texts) / self.options.kl_horizon
        return rollout, update

    def sample(self, prompts: Sequence[Prompt | str]) -> tuple[list[str], Floats, Tensor, Tensor]:
        """Completions of these prompts, rewards, lengths and KL to the reference, each (n,), always with the same
        sampling seeds."""
        tokens = self._generate(prompts, (self.seed, 0, Purpose.EVALUATION), "evaluate")
        texts = self.policy.texts(*tokens[2:4])
        records, reference = self._evaluate(tokens, "evaluate")
        kl = (records.log_probs - reference).sum(1)
        return texts, rewards.compute(self.reward, prompts, texts), tokens[3].sum(1), kl

    def collect(self) -> Rollout:
        """Samples a completion of each of the round's prompts, with its reward and advantages."""
        options, key = self.options, (self.seed, self.round)
        repeat = len(self.prompts) < options.prompts_per_round
        drawn = stream(*key, Purpose.PROMPTS).choice(len(self.prompts), options.prompts_per_round, repeat)
        prompts = [self.prompts[i] for i in drawn]
        with self._timed("generate"):
            tokens = self._generate(prompts, (*key, Purpose.SAMPLING), "generate")
            texts = self.policy.texts(*tokens[2:4])
        if not any(texts):
            raise RollsightError(
                f"every completion of round {self.round} is empty, the model ends the text at once: lower --lr, raise "
                "--kl, or choose a model and prompts that it continues"
            )
        with self._timed("reward"):
            self.follow("reward", 0, len(texts))
            reward = rewards.compute(self.reward, prompts, texts)
        if self.round == 1:  # from 0, the advantages of the first rounds would all have the sign of the mean reward
            torch.nn.init.constant_(self.policy.value_head.bias, float(reward.mean()))
        with self._timed("log_probs"):
            if options.share_forward and distributed.size() == 1:
                self._forward = Forward(self.policy.actor_with_values)
            records, reference = self._evaluate(tokens, "log_probs", self._forward)
        kl = torch.where(records.valid, records.log_probs - reference, 0.0)
        paid = torch.as_tensor(reward, dtype=kl.dtype, device=kl.device)
        rows = torch.arange(len(records), device=kl.device)
        records = with_advantages(
            replace(records, rewards=paid, ids={"round": torch.full_like(rows, self.round), "episode": rows}),
            token_rewards(paid, kl, records.valid, self.kl_coefficient),
            options.gamma,
            options.gae_lambda,
        )
        return Rollout([as_prompt(prompt).stored for prompt in prompts], texts, reward, records, kl.sum(1))

    def _generate(self, prompts: Sequence[Prompt | str], key: tuple[int, ...], phase: str) -> list[Tensor]:
        """Prompts (N, P), their mask, completions (N, T), theirs, and what `ActorCritic.generate` gives with them;
        each sequence has a random stream of its own, whatever it is sampled with."""
        width, n, pad = self.options.micro_batch, len(prompts), self.policy.tokenizer.pad_token_id
        starts = range(0, n, width)
        self.follow(phase, 0, n)

        def sample(i: int) -> tuple[Tensor, ...]:
            part = prompts[starts[i] : starts[i] + width]
            found = on_cpu(self.policy.generate(part, self.options.max_new_tokens, (*key, starts[i])))
            self.follow(phase, min((i + distributed.size()) * width, n), n)
            return found

        columns = list(zip(*distributed.spread(len(starts), sample), strict=True))
        fills, lefts = (pad, 0, pad, 0, 0), (True, True, False, False, False)
        return [stack(*column).to(self.policy.device) for column in zip(columns, fills, lefts, strict=False)]

    @torch.no_grad()
    def _evaluate(self, tokens: Sequence[Tensor], phase: str, forward: Forward | None = None) -> tuple[Records, Tensor]:
        """The sequences as records with log-probabilities and values, and the reference's log-probabilities (N, T).

        forward: what keeps the policy's for the scores.
        """
        ids, mask, completions, completion_mask, *support = tokens
        zeros = torch.zeros(completions.shape, device=ids.device)
        records = language.completion_records(ids, mask, completions, completion_mask, zeros, zeros)
        assert isinstance(records.obs, dict)
        if support:
            records = replace(records, obs={**records.obs, "support": support[0]})
        rows = torch.arange(len(records)).split(self.options.micro_batch)
        self.follow(phase, 0, len(records))

        def evaluate(i: int) -> tuple[Tensor, ...]:
            part = trimmed(records.take(rows[i]))
            ours = self.policy.evaluate(part) if forward is None else forward.extend(part)
            with self.policy.reference() as model:
                theirs = Policy(model, self.policy.distribution)(part)
            assert ours.value is not None
            self.follow(phase, min((i + distributed.size()) * self.options.micro_batch, len(records)), len(records))
            return on_cpu((ours.log_prob, ours.value, theirs.log_prob))

        columns = [torch.cat(c).to(ids.device) for c in zip(*distributed.spread(len(rows), evaluate), strict=True)]
        log_probs, values, reference = (torch.where(records.valid, column, 0.0) for column in columns)
        return replace(records, log_probs=log_probs, values=values), reference

    def optimise(self, rollout: Rollout) -> Update:
        """Scores the completions, leaves out what the selection drops, and takes the round's optimiser steps."""
        records, n = rollout.records, len(rollout.texts)
        scores, kept = torch.full((n,), torch.nan), torch.ones(n, dtype=torch.bool)
        reason = ""
        if float(np.ptp(rollout.rewards)) == 0:
            message = (
                f"every reward of round {self.round} is {rollout.rewards[0]:g}, so there is nothing to learn from it "
                "and no step was taken: if this goes on, change the reward"
            )
            return Update(scores, kept, "", _statistics([]), message)

        def select(rows: Ints, *when: int) -> Ints:
            nonlocal reason
            found, stay, why = self._select(records, rows, when)
            if when[0] == 0:
                reason = why or reason
                scores[rows], kept[rows] = found, torch.from_numpy(stay)
            return rows[stay]

        sums = self.passes(records, select)
        message = f"no sequence of round {self.round} survived the selection, so no step was taken: lower --drop"
        return Update(scores, kept, reason, _statistics(sums), "" if sums else message)

    def passes(self, records: Records, select: Callable[..., Ints]) -> list[Tensor]:
        """The round's optimiser steps: passes over minibatches of what is selected; the sums of each step.

        select: of the completions at some rows, those to train on; it is called with the rows and when (the epoch, the
            minibatch) as often as `Options.rescore` says.
        """
        options, sums = self.options, list[Tensor]()
        order = stream(self.seed, self.round, Purpose.MINIBATCH_ORDER)
        pool = everything = np.arange(len(records))
        steps = options.epochs * len(repack(everything, options.minibatch)) if options.as_many_steps else 0
        epoch = 0
        while epoch < options.epochs or 0 < len(sums) < steps:
            if options.rescore == "epoch" or (options.rescore == "round" and epoch == 0):
                pool = select(everything, epoch)
            minibatches = repack(order.permutation(pool), options.minibatch) if len(pool) else []
            for i, index in enumerate(minibatches):
                self.follow("train", epoch * len(minibatches) + i, steps or options.epochs * len(minibatches))
                chosen = select(index, epoch, i) if options.rescore == "minibatch" else index
                if len(chosen) and (not steps or len(sums) < steps):
                    sums.append(self.step(records, torch.from_numpy(chosen)))
            epoch += 1
        return sums

    def _select(self, records: Records, rows: Ints, when: tuple[int, ...]) -> tuple[Tensor, Bools, str]:
        """Scores of the sequences at `rows`, which the target is measured on too (NaN: not scored), which stay, and why
        the others do not."""
        options, part = self.options, records.take(torch.from_numpy(rows))
        unscored = torch.full((len(rows),), torch.nan), np.ones(len(rows), np.bool_), ""
        paid = part.rewards
        # A z-score of equal rewards is not a direction, so nothing would be negative.
        flat = options.target == "reward" and paid is not None and bool((paid == paid[0]).all())
        if options.target == "none" or flat:
            return unscored
        self.follow("score", 0, len(rows))
        with self._timed("score"):
            score = partial(self._score, part, _TARGETS[options.target], when)
            part_name = f"scores of {options.target!r}, so every completion was kept"
            # On several processes the others may be waiting inside for one that fails.
            scores = score() if distributed.size() > 1 else self.watch.attempt(part_name, score)
        if scores is None:
            self._forward = None
            return unscored
        like = DropNegative(options.drop)
        if options.random:
            rng = stream(self.seed, self.round, Purpose.DROP_COMPLETIONS, *when)
            selection = DropRandom(like, seed=int(rng.integers(2**62)))(scores)
        else:
            selection = like(scores)
        assert isinstance(selection.reason, str)  # of our own rules
        return scores.values.float().cpu(), (selection.weights > 0).numpy(force=True), selection.reason

    def _score(self, records: Records, target: targets.Target, when: tuple[int, ...]) -> Scores:
        """The records' scores, on every process; each computes its share where there are several."""
        actor, objective = self.policy.actor, objectives.PPO("raw", self.options.clip_range)
        width, group = self.options.micro_batch, distributed.everyone()
        if group is None or len(records) < distributed.size() or self.options.cross_fit:
            halves = int(stream(self.seed, self.round, Purpose.COMPLETION_HALVES, *when).integers(2**62))
            return score_records(
                actor,
                trimmed(records),
                target,
                objective,
                cross_fit=self.options.cross_fit,
                seed=halves,
                chunk_size=width,
                forward=self._forward if when == (0,) else None,
                on_policy=when == (0,),
            )
        mine = torch.arange(len(records)).tensor_split(distributed.size())[distributed.rank()]
        first, part = when == (0,), trimmed(records.take(mine))
        scores = score_records(actor, part, target, objective, chunk_size=width, group=group, on_policy=first)
        return distributed.gathered_scores(scores, group)[0]

    def step(self, records: Records, index: Tensor) -> Tensor:
        """One optimiser step on the sequences at `index`, their tokens' mean loss; sums for `_statistics`, and the norm
        of the gradient before it is clipped."""
        options = self.options
        parts, count = index.split(options.micro_batch), records.valid[index].sum()
        sums = torch.zeros(len(_SUMMED), device=count.device)
        with self._timed("train"):
            for i in range(distributed.rank(), len(parts), distributed.size()):
                batch = trimmed(records.take(parts[i]))
                evaluation = self.policy.evaluate(batch)
                policy_loss, value_loss = losses(evaluation, batch, options)
                ((policy_loss + options.value_coef * value_loss).sum() / count).backward()
                with torch.no_grad():
                    log_ratio = torch.where(batch.valid, evaluation.log_prob - batch.log_probs, 0.0)
                    ratio = log_ratio.exp()
                    clipped = (ratio - 1).abs() > options.clip_range
                    columns = (batch.valid, policy_loss, value_loss, ratio - 1 - log_ratio, clipped)
                    sums += torch.stack([column.sum().float() for column in columns])
            distributed.sum_gradients(self.policy.trainable().values())
            clipped_apart = (self.policy.language_model, self.policy.value_head)
            norms = [torch.nn.utils.clip_grad_norm_(part.parameters(), options.max_grad_norm) for part in clipped_apart]
            self.optimizer.step()
            self.optimizer.zero_grad()
        norm = torch.stack([norm.float().to(sums.device) for norm in norms]).norm()
        return torch.cat([distributed.total(sums), norm[None]])

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = self.clock()
        yield
        self.times[phase] = self.times.get(phase, 0.0) + self.clock() - started


_SUMMED = ("tokens_trained", "policy_gradient_loss", "value_loss", "approx_kl", "clip_fraction")


def _statistics(sums: list[Tensor]) -> dict[str, Any]:
    """Means over all tokens of all steps."""
    steps = {"optimizer_steps": len(sums)}
    if not sums:
        return steps | dict.fromkeys((*_SUMMED, "grad_norm")) | {"tokens_trained": 0}
    tokens, *others, norms = torch.stack(sums).sum(0).tolist()
    means = {name: value / tokens for name, value in zip(_SUMMED[1:], others, strict=True)}
    return steps | {"tokens_trained": int(tokens)} | means | {"grad_norm": norms / len(sums)}

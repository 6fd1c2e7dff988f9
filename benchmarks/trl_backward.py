"""What scoring costs inside TRL's GRPO, in a pass of its own and in the backward of training.

    python benchmarks/trl_backward.py [--model FOLDER] [--records 16] [--micro-batch 8] [--checkpointing] [--repeats 5]

SmolLM2-135M-Instruct in float32 with LoRA (r 16, q and v), one generation batch of its own completions of 24 tokens,
which every step trains on again: what is timed is all that a step does between generation and the optimiser (TRL's
forward and backward, scoring, selection, metrics). One thread, CPU time of this process, ways interleaved, medians.
Extra memory: peak resident size during one step above the size before it, in a forked process. Exit code 1 where scores
of the two ways differ by more than 1e-6 of the largest, or where the capture takes more than 5 %.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from language_models import CACHE, NEW_TOKENS, PROMPTS, load
from peft import LoraConfig
from scoring import cpu_seconds, extra_mebibytes, in_child
from torch import Tensor, nn

from rollsight.adapters.trl import attach
from rollsight.scoring import Scores
from rollsight.selection import Selection

PLAIN, PASS, BACKWARD = "plain GRPO", "scored in a pass of its own", "scored in training's backward"
DROPPED = f"{BACKWARD}, every fourth dropped"
LIMIT = 1.05


def every_fourth(scores: Scores) -> Selection:
    """Drops them, whatever their scores."""
    weights = scores.valid.float()
    weights[::4] = 0
    return Selection(weights, (weights == 0).nonzero().flatten(), len(weights) // 4, len(weights) // 4)


WAYS: Mapping[str, dict[str, Any] | None] = {
    PLAIN: None,
    PASS: {"scoring": "own_pass"},
    BACKWARD: {"scoring": "in_backward"},
    DROPPED: {"scoring": "in_backward", "selection": every_fourth},
}


def letters(completions: list[str], **_: Any) -> list[float]:
    """A reward that differs within groups."""
    return [float(len(set(text))) for text in completions]


def make_trainer(folder: str, arguments: argparse.Namespace) -> Any:
    """A GRPO trainer that has generated one batch for good."""
    tokenizer, model = load(arguments.model)
    config = trl.GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        report_to="none",
        activation_checkpointing=arguments.checkpointing,
        per_device_train_batch_size=arguments.micro_batch,
        gradient_accumulation_steps=arguments.records // arguments.micro_batch,
        num_generations=4,
        max_completion_length=NEW_TOKENS,
        generation_kwargs={"min_new_tokens": NEW_TOKENS},
        disable_tqdm=True,
        log_level="error",
    )
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"])
    prompts = Dataset.from_dict({"prompt": [PROMPTS[i % len(PROMPTS)] for i in range(arguments.records)]})
    trainer = trl.GRPOTrainer(
        model, letters, args=config, train_dataset=prompts, processing_class=tokenizer, peft_config=lora
    )
    torch.manual_seed(0)
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad and "lora_B" in name:  # away from B = 0, where A has no gradient
            nn.init.normal_(parameter, std=0.01)
    keep_one_batch(trainer, next(iter(trainer.get_train_dataloader())))
    return trainer


def keep_one_batch(trainer: Any, prompts: Any) -> None:
    """Generates, and gives every later step that same batch and its rewards."""
    found: list[Tensor] = []
    calculate = trainer._calculate_rewards
    trainer._calculate_rewards = lambda *args: found.append(calculate(*args)) or found[-1]
    trainer.model.train()
    batch = trainer._generate_and_score_completions(prompts)
    trainer._calculate_rewards = lambda: found[0]

    def generate(inputs: Any) -> dict[str, Any]:
        trainer._calculate_rewards()
        return dict(batch)

    trainer._generate_and_score_completions = generate


def step(trainer: Any) -> None:
    """Everything that the Trainer's loop does of one optimiser step, up to the optimiser."""
    steps = trainer.args.gradient_accumulation_steps
    trainer.is_in_train, trainer.current_gradient_accumulation_steps = True, steps
    for i in range(steps):
        trainer.accelerator.gradient_state._set_sync_gradients(i == steps - 1)
        trainer.training_step(trainer.model, {}, None)
    trainer.model.zero_grad()


def with_way(trainer: Any, options: dict[str, Any] | None, measure: Callable[[Callable[[], None]], Any]) -> Any:
    """What `measure` makes of a step with these options of `attach`, and the scores."""
    attachment = None if options is None else attach(trainer, **options)
    result = measure(partial(step, trainer))
    if attachment is None:
        return result, None
    attachment.detach()
    return result, attachment.scores["sequence"].values if attachment.scores else None  # none after a forked step


def main() -> int:
    """Measure, print, and say whether the limit is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=CACHE)
    parser.add_argument("--records", type=int, default=16)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--checkpointing", action="store_true", help="activation checkpointing in training")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    samples: dict[str, list[float]] = {name: [] for name in WAYS}
    scores: dict[str, Tensor] = {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(folder, arguments)
        trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        own = arguments.records * trained * 4 / 2**20
        print(f"{arguments.records} completions in micro-batches of {arguments.micro_batch}")
        print(f"n x P: {arguments.records} x {trained:,} floats = {own:.0f} MiB; load {os.getloadavg()[0]:.1f}")
        step(trainer)
        for _ in range(arguments.repeats):
            for name, options in WAYS.items():
                seconds, scores[name] = with_way(trainer, options, cpu_seconds)
                samples[name].append(seconds)
        memory = {
            name: with_way(
                trainer,
                options,
                lambda call: in_child(partial(extra_mebibytes, call, lambda: None)),
            )[0]
            for name, options in WAYS.items()
        }
    error = float((scores[BACKWARD] - scores[PASS]).abs().max() / scores[PASS].abs().max())
    print("| | CPU s | x plain | extra MiB |\n|---|---|---|---|")
    ratios = {}
    for name, seconds in samples.items():
        ratios[name] = statistics.median(s / plain for s, plain in zip(seconds, samples[PLAIN], strict=True))
        print(f"| {name} | {statistics.median(seconds):.2f} | {ratios[name]:.3f} | {memory[name]:.0f} |")
    print(f"largest difference of the scores: {error:.1e} of the largest")
    print("x plain, every repeat:", {n: [round(s / p, 3) for s, p in zip(v, samples[PLAIN], strict=True)]
                                     for n, v in samples.items() if n != PLAIN})  # fmt: skip
    return int(error > 1e-4 or ratios[BACKWARD] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())

# GRPO on one-digit sums with a verifiable reward, that leaves out of each update the completions that hurt:
#
#     python examples/grpo_trl.py --drop 0.5 --run runs/sums
#
# What Rollsight changes is one line; search for "Rollsight". Everything else is TRL. By default the model is a
# miniature that is made and taught the sums to about 40 % here, in seconds and without a network; --model takes any
# other.
from dataclasses import dataclass

import torch
import tyro
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from rollsight.adapters.trl import attach


@dataclass
class Args:
    drop: float = 0.5
    """fraction of the completions with negative scores to leave out of each update; 0 only scores"""
    target: str = "sequence"
    """what the scores explain: sequence, return, reward or objective"""
    unit: str = "completion"
    """what is dropped: completion, or group: all completions of a prompt"""
    model: str | None = None
    """name or folder of a Hugging Face model, trained with LoRA; by default the miniature, trained whole"""
    run: str | None = None
    """run folder to write: rollsight top RUN --target sequence --bottom"""
    steps: int = 60
    """updates"""
    seed: int = 0
    """seed of every random stream"""


SUMS = {f"{a}+{b}=": str(a + b) for a in range(10) for b in range(10)}


def miniature(seed: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A Llama of 0.1 million parameters, one token per character, that knows the sums half-way."""
    vocabulary = {c: i for i, c in enumerate(["<pad>", "<eos>", *"0123456789+="])}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    characters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    characters.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=characters, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
    torch.manual_seed(seed)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), max_position_embeddings=16, **shape, **special))
    tokens, labels = encoded(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    while correct(model, tokenizer) < 0.4:
        for _ in range(5):
            optimizer.zero_grad()
            model(input_ids=tokens, labels=labels).loss.backward()
            optimizer.step()
    return model, tokenizer


def encoded(tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """(100, 7) tokens of the sums with their answers, and the same with -100 in place of what is no answer."""
    rows = [[*tokenizer(prompt + answer).input_ids, tokenizer.eos_token_id] for prompt, answer in SUMS.items()]
    tokens = torch.tensor([([*row, tokenizer.pad_token_id])[:7] for row in rows])
    labels = tokens.masked_fill(tokens == tokenizer.pad_token_id, -100)
    labels[:, :4] = -100
    return tokens, labels


@torch.no_grad()
def correct(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> float:
    """How likely a sampled answer is right, on average over the sums."""
    tokens, labels = encoded(tokenizer)
    log_probs = model(tokens).logits[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None]).squeeze(2)
    return float(torch.where(labels[:, 1:] == -100, 0.0, log_probs).sum(1).exp().mean())


def exact_match(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    return [float(completion.strip() == SUMS[prompt]) for prompt, completion in zip(prompts, completions, strict=True)]


def train(args: Args) -> GRPOTrainer:
    torch.set_num_threads(1)  # a small network: more threads only get in each other's way
    if args.model is None:
        model, tokenizer = miniature(args.seed)
        print(f"before: {correct(model, tokenizer):.0%} of sampled answers are right")
    trainer = GRPOTrainer(
        model=args.model or model,
        processing_class=None if args.model else tokenizer,
        peft_config=LoraConfig(r=16, target_modules="all-linear", lora_dropout=0.0) if args.model else None,
        reward_funcs=exact_match,
        train_dataset=Dataset.from_dict({"prompt": list(SUMS)}),
        args=GRPOConfig(
            output_dir="runs/grpo_trl",
            use_cpu=not torch.cuda.is_available(),
            bf16=torch.cuda.is_available(),
            per_device_train_batch_size=128,
            num_generations=8,
            max_completion_length=3,
            max_steps=args.steps,
            learning_rate=1e-5 if args.model else 3e-4,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            seed=args.seed,
        ),
    )
    attach(trainer, drop=args.drop, target=args.target, unit=args.unit, run=args.run)  # Rollsight
    trainer.train()
    if args.model is None:
        print(f"after: {correct(trainer.model, tokenizer):.0%} of sampled answers are right")
    return trainer


if __name__ == "__main__":
    train(tyro.cli(Args))

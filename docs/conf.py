"""The documentation site: `make docs` builds it into docs/_build/html."""

import re

import rollsight
from rollsight.cli import COMMANDS

project = "Rollsight"
copyright = "the Rollsight developers"
version = release = rollsight.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx-mathjax-offline", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are stored with outputs; tests/test_notebooks.py runs them
suppress_warnings = ["myst.header"]  # pages of results begin with a second-level heading
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "Rollsight"
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # they are in the signatures
copybutton_exclude = ".linenos, .gp, .go"

_FIELD = re.compile(r"^(:param )?([\w*]+(?:, [\w*]+)*):\s+(\S.*)$")


def _fields_as_lists(app, what, name, obj, options, lines):
    """Our docstrings write `name: what it is`, continued with an indent; Sphinx wants a definition list."""
    blocks, block = [], []
    for line in [*lines, ""]:
        if line.strip():
            block.append(line)
        elif block:
            blocks.append(block)
            block = []
    lines[:] = []
    for block in blocks:
        block = [line if "`" in line else line.replace("|", r"\|") for line in block]  # |o_i| would be a substitution
        if _FIELD.match(block[0]):
            for line in block:
                if match := _FIELD.match(line):
                    lines += ["", match[2], "   " + match[3]]
                else:
                    lines.append("   " + line.strip())
        elif re.match(r"^\w+:$", block[0]):  # Raises:, Args:
            lines += ["", f"**{block[0][:-1]}**", ""]
            for line in block[1:]:
                text = line.strip()
                match = _FIELD.match(text)
                lines += [f"- `{match[2]}`: {match[3]}"] if match else ["  " + text]
        else:
            lines += ["", *block]
    lines.append("")


def _write_command_line(app):
    """The page of the command line, from the parsers themselves."""
    import contextlib
    import io
    import os
    from pathlib import Path

    from rollsight.cli import main

    os.environ["COLUMNS"] = "84"
    os.environ["NO_COLOR"] = "1"
    parts = ["# Command line\n\nWritten from the parsers; `rollsight COMMAND --help` prints the same.\n"]
    parts.append("| command | |\n|---|---|")
    parts += [
        f"| [`rollsight {name}`](#rollsight-{name.replace(' ', '-')}) | {text} |" for name, text in COMMANDS.items()
    ]
    for name in COMMANDS:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            main([*name.split(), "--help"])
        parts.append(f"\n## rollsight {name}\n\n```text\n{said.getvalue().strip()}\n```")
    _write(Path(app.srcdir) / "reference" / "command_line.md", parts)


def _write_columns(app):
    """The page of a run folder's columns, from their schema."""
    from pathlib import Path

    from rollsight.runs.schema import TABLES

    parts = [
        "# Columns of a run folder\n\n"
        "Written from `rollsight.runs.schema`. A `*` stands for any name: `score_return`, `time_train`. An array is a "
        "number or a nested list of them. Every column may be null, and a column that no round of a run has is not in "
        "its tables.\n\n"
        "Written by: `sb3` is Stable-Baselines3 with sb3-contrib, `compiled` the compiled engine of `rollsight train`, "
        "`trl` TRL's trainers, `rlhf` is `rollsight rlhf`, `own` a loop of your own through `runs.Recorder`, which may "
        "be given any of the others too. Columns that were called otherwise when a run was written "
        "(`schema` of its `run.json`) are read under these names.\n"
    ]
    for table, columns in TABLES.items():
        parts.append(f"\n## {table}\n\n| column | type | unit | meaning | written by |\n|---|---|---|---|---|")
        parts += [
            f"| `{one.name}` | {one.type} | {one.unit} | {one.meaning} | {', '.join(one.hosts)} |" for one in columns
        ]
    _write(Path(app.srcdir) / "reference" / "columns.md", parts)


def _write(page, parts):
    text = "\n".join(parts) + "\n"
    if not page.exists() or page.read_text("utf-8") != text:
        page.write_text(text, "utf-8")


def setup(app):
    app.connect("autodoc-process-docstring", _fields_as_lists)
    app.connect("builder-inited", _write_command_line)
    app.connect("builder-inited", _write_columns)

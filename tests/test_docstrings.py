"""What a reader of the API finds: each field of a dataclass is explained on a line of its own."""

import ast
import re
from pathlib import Path

import pytest

import rollsight

SOURCE = Path(rollsight.__file__).parent


def is_dataclass(node):
    return any(ast.unparse(decorator).split("(")[0] == "dataclass" for decorator in node.decorator_list)


def fields_of(node):
    """Name and the text below it (None where there is none) of each field."""
    for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or ast.unparse(statement.annotation).startswith(
            ("KW_ONLY", "ClassVar")
        ):
            continue
        below = following.value if isinstance(following, ast.Expr) else None
        yield statement.target.id, below.value if isinstance(below, ast.Constant) else None


def explained_in(docstring):
    """Fields that begin a line of the docstring: `name: meaning`, or `low, high: meaning` for the ends of a range."""
    for names in re.findall(r"^ *(\w+(?:, \w+)*): +\S", docstring or "", re.MULTILINE):
        yield from names.split(", ")


def unexplained(tree):
    return [
        f"{node.name}.{name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and is_dataclass(node)
        for name, below in fields_of(node)
        if not below and name not in explained_in(ast.get_docstring(node))
    ]


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_each_field_of_a_dataclass_is_explained(path):
    missing = unexplained(ast.parse(path.read_text("utf-8")))
    assert not missing, f"{path}: write `name: meaning` on a line of the docstring, or a text below the field"


def test_a_field_without_a_line_is_found():
    source = '''
@dataclass(frozen=True)
class Pair:
    """first: one; second: both in one line."""
    first: int
    second: int
    third: int
    """The third."""
'''
    assert unexplained(ast.parse(source)) == ["Pair.second"]

"""The house: imports point downwards, and the ground floor needs torch and NumPy only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rollsight

SOURCE = Path(rollsight.__file__).parent
# From the top; what is in none of these packages is the ground floor.
FLOORS = ("cli", "explorer", "studies", "analysis", "training", "playing", "adapters", "environments", "doctor", "runs")
STUDIES = ("culprits", "paper", "directions", "replay", "rlhf", "grpo")
APPLICATIONS = ("culprits", "diagnosis", "fidelity", "intervention", "phases")


def imports_of(path):
    """Every module of ours that a file names in an import, those inside functions and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module and node.module.split(".")[0] == "rollsight":
                yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "rollsight")


def height(part):
    return len(FLOORS) - FLOORS.index(part) if part in FLOORS else 0


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_downwards(path):
    mine = path.relative_to(SOURCE).with_suffix("").parts
    if mine[0] == "__main__":  # `python -m rollsight`: the command line
        return
    for module in imports_of(path):
        _, *theirs = *module.split("."), ""  # `import rollsight` itself is the ground floor
        assert height(theirs[0]) <= height(mine[0]), f"{'/'.join(mine)} imports {module}, which is above it"
        if mine[0] == theirs[0] == "analysis" and theirs[1] in APPLICATIONS:
            assert mine[1] == theirs[1], f"{'/'.join(mine)} imports {module}, another application"
        if mine[0] == theirs[0] == "studies" and theirs[1] in STUDIES:
            assert mine[1] == theirs[1], f"{'/'.join(mine)} imports {module}, a study"


def test_the_floors_exist():
    assert all((SOURCE / floor / "__init__.py").is_file() for floor in FLOORS)
    assert all((SOURCE / "analysis" / name / "__init__.py").is_file() for name in APPLICATIONS)
    assert all((SOURCE / "studies" / name / "study.py").is_file() for name in STUDIES)


def loaded(*modules):
    """Top-level modules that these imports load, without the standard library."""
    code = f"import sys, {', '.join(modules)}; print(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split()) - set(sys.stdlib_module_names)


def test_importing_rollsight_needs_torch_and_numpy_only():
    ground = [f"rollsight.{path.stem}" for path in SOURCE.glob("*.py") if path.stem not in ("__init__", "__main__")]
    assert loaded("rollsight") <= {"rollsight"} | loaded("sys")
    assert loaded("rollsight.scoring", "rollsight.snapshot", *ground) - loaded("torch", "numpy", "torch.func") == {
        "rollsight"
    }


@pytest.mark.parametrize("application", APPLICATIONS)
def test_naming_an_application_loads_nothing_heavy(application):
    code = f"import sys, rollsight.analysis.{application} as a; print('torch' in sys.modules, *a.__all__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy, *names = result.stdout.split()
    assert heavy == "False"
    package = __import__(f"rollsight.analysis.{application}", fromlist=names)
    assert all(hasattr(package, name) for name in names)


def test_how_an_episode_started_needs_gymnasium_only():
    assert not loaded("rollsight.environments.episode_start") & {"stable_baselines3", "torch", "duckdb"}


def test_training_loads_no_duckdb():
    """DuckDB 2.0 complains of leaks, on the user's terminal, where a worker process that loaded it ends."""
    assert "duckdb" not in loaded("rollsight.training.run", "rollsight.studies.runner")

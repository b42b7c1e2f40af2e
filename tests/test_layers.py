"""A module imports only from its own layer or those above it in DESIGN's list."""

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
PACKAGE = Path(__file__).resolve().parent.parent / "rlora"

LAYERS = {
    0: ["types", "errors", "seeding", "files", "memory", "lock", "interrupts", "processor", "exactness"],
    1: ["config", "tracking", "tasks", "verify", "advantages", "statistics", "estimators", "batch_memory"],
    2: ["lora", "full", "fused", "losses", "logprobs", "attention", "flex", "batching"],
    3: ["models", "loading", "policy", "sampler", "memory_plan"],
    4: ["checkpoint", "optimizer", "rollout", "trainer", "token_budget", "warm_up", "run_dir"],
    5: ["evaluate", "benchmark", "run_config", "advice", "assemble", "resume", "summary", "loop", "merge", "card"],
    6: ["recipe", "commands", "cli"],
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")


def unit_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_upwards(path) -> None:
    own = LAYER_OF[unit_of(path)]
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "rlora":
            parts = node.module.split(".")
            names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("rlora.")]
        for name in names:
            assert LAYER_OF[name] <= own, f"{path.name} (layer {own}) imports {name} (layer {LAYER_OF[name]})"


def test_vllm_is_imported_in_its_three_files_alone() -> None:
    importers = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [module or ""]
            if any(name.split(".")[0] == "vllm" for name in names):
                importers.add(path.name)
    assert importers == {"vllm_sampler.py", "vllm_cpu_lora.py", "vllm_handover.py"}


def test_types_use_the_standard_library_alone() -> None:
    tree = ast.parse((PACKAGE / "types.py").read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"dataclasses", "enum"}

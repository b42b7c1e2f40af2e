"""The floor plan: a module imports from its own wing and from lower ones, and inside a wing there are no circles."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
PACKAGE = Path(__file__).resolve().parent.parent / "rlora"

# Layer -> wing -> its folder, or the modules of the root that belong to it. CONTRIBUTING.md draws the same.
WINGS: list[dict[str, list[str]]] = [
    {"records": ["types", "text", "errors", "seeding", "config", "registry"]},
    {"system": ["system"]},
    {"verify": ["verify"], "tracking": ["tracking"], "kernels": ["kernels"]},
    {"tasks": ["tasks"], "rewards": ["rewards"], "model": ["model"]},
    {"lora": ["lora"]},
    {"full": ["full"]},
    {"train": ["train"]},
    {"sampler": ["sampler"], "store": ["store"]},
    {"proof": ["proof"], "rollout": ["rollout"]},
    {"evaluation": ["evaluation"]},
    {"diagnosis": ["diagnosis"]},
    {
        "algorithm": [
            "run_config",
            "advice",
            "assemble",
            "inputs",
            "state",
            "resume",
            "site",
            "summary",
            "loop",
            "recipe",
            "library",
        ]
    },
    {"supervised": ["supervised"]},
    {"recipes": ["recipes"], "cohort": ["cohort"], "preflight": ["preflight"]},
    {"report": ["report"]},
    {"commands": ["commands", "__main__"]},
]
PLACE_OF = {name: (layer, wing) for layer, wings in enumerate(WINGS) for wing, names in wings.items() for name in names}
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports_of(path: Path) -> set[str]:
    """Return the modules of rlora that are imported anywhere in a file, but for those that types alone need."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & MODULES.keys() - {"rlora"}


def place_of(module: str) -> tuple[int, str]:
    return PLACE_OF[module.split(".")[1]]


@pytest.mark.parametrize("module", [name for name in MODULES if name != "rlora"])
def test_a_module_imports_from_its_own_wing_and_from_lower_ones(module) -> None:
    layer, wing = place_of(module)
    for name in imports_of(MODULES[module]):
        lower, other = place_of(name)
        assert other == wing or lower < layer, f"{module} ({wing}) imports {name} ({other})"


def test_compiled_products_are_reached_from_the_model_alone() -> None:
    users = {name for name, path in MODULES.items() if any(".kernels" in used for used in imports_of(path))}
    assert {name.split(".")[1] for name in users} == {"kernels", "model"}


def test_there_are_no_circles() -> None:
    graph = {module: imports_of(path) for module, path in MODULES.items()}
    TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_every_module_has_its_wing() -> None:
    assert {name.split(".")[1] for name in MODULES if name != "rlora"} == PLACE_OF.keys()


def test_vllm_is_imported_in_one_folder_alone() -> None:
    importers = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [module or ""]
            if any(name.split(".")[0] == "vllm" for name in names):
                importers.add(path.parent.relative_to(PACKAGE))
    assert importers == {Path("sampler/vllm")}


def test_types_use_the_standard_library_alone() -> None:
    tree = ast.parse((PACKAGE / "types.py").read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"array", "collections.abc", "dataclasses", "enum", "zlib"}


def test_the_verifier_needs_no_torch() -> None:
    code = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "numpy", "vllm"):
            raise ImportError(name)

sys.meta_path.insert(0, Refused())
import rlora.types, rlora.commands.verify
from rlora.verify import JudgeRequest, Verifier
with Verifier() as verifier:
    print(verifier.judge_many([JudgeRequest(text="so it is \\\\boxed{1/2}", gold="0.5")])[0].is_correct)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True\n"


def test_a_command_says_which_package_it_lacks() -> None:
    code = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from rlora.commands.cli import main
main(["eval", "--help"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "rlora eval needs torch, which is not installed: pip install rlora.\n"

"""The configurations of a recipe script."""

import importlib.util
import sys
from pathlib import Path

from rlora.run_config import RunConfig


def presets(path: Path) -> dict[str, RunConfig]:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # as `rlora train FILE` does: a recipe may hold its own data
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PRESETS

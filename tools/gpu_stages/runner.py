"""Run stages one after the other, each as a process with a limit, and print what came of them.

A stage that hangs is killed with everything it started, also what put itself into a session of its own: a process that
is left holds the GPU's memory, and every later stage would fail for it.
"""

import argparse
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from gpu_stages.stage import GIB, ROOT, Context, Stage, used_memory

_ADOPT_ORPHANS = 36  # prctl's PR_SET_CHILD_SUBREAPER
_MODELS_GIB = 24  # what the made models of all stages take together
_REHEARSING = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # tiny: others only wait
_LOG_LINES = 4  # of a failed stage's log, shown below its row
_REAP_S = 15  # a killed process that the driver holds on to does not hold up the rest for longer


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a stage ended, after how many seconds, and its figures in a few words."""

    result: str
    seconds: float = 0.0
    headline: str = ""

    @property
    def has_failed(self) -> bool:
        """Whether the check as a whole fails by it; what was skipped has not failed."""
        return self.result.startswith(("failed", "over"))


def main(stages: Mapping[str, Stage], description: str | None) -> None:
    """Run the stages that the command line names, print the table, and exit with 1 if one failed."""
    options = _options(stages, description)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.stage:
        _run_here(stages[options.stage], _context(options, options.stage, options.limit, options.models))
        return
    ctypes.CDLL(None).prctl(_ADOPT_ORPHANS, 1, 0, 0, 0)  # what a stage started and left becomes this process's child
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    models = options.models or _models_folder(options.out)
    try:
        outcomes = _run_all(stages, options, models)
    finally:
        _end_descendants()
        if options.models is None:
            shutil.rmtree(models, ignore_errors=True)
    print(_table(outcomes, options.out))
    raise SystemExit(any(outcome.has_failed for outcome in outcomes.values()))


def _options(stages: Mapping[str, Stage], description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.jsonl and the stages' logs")
    parser.add_argument("--models", type=Path, help="folder to keep the made models in; removed when left out")
    parser.add_argument("--budget", type=float, default=3600, help="seconds for all stages together")
    parser.add_argument("--only", default="", help="stages, joined by commas; all, by value, when left out")
    parser.add_argument("--tiny", action="store_true", help="rehearse on a CPU")
    parser.add_argument("--stage", choices=stages, help=argparse.SUPPRESS)  # what a stage's own process is told
    parser.add_argument("--limit", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.only = [name for name in options.only.split(",") if name] or list(stages)
    if unknown := [name for name in options.only if name not in stages]:
        parser.error(f"--only names {', '.join(unknown)}; the stages are {', '.join(stages)}.")
    if not options.tiny and not _has_gpu():
        parser.error("PyTorch finds no CUDA device here; rehearse on the CPU with --tiny.")
    return options


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _context(options: argparse.Namespace, stage: str, limit_s: float, models: Path) -> Context:
    return Context(stage=stage, limit_s=limit_s, out=options.out, models=models, is_tiny=options.tiny)


def _models_folder(out: Path) -> Path:
    """Return a new folder for the made models: in memory where there is room for all, else beside the records."""
    memory = Path("/dev/shm")
    has_room = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > _MODELS_GIB * GIB
    return Path(tempfile.mkdtemp(prefix="rlora-models-", dir=memory if has_room else out))


def _run_here(stage: Stage, context: Context) -> None:
    """Run a stage in this process; what it raises becomes a record before it ends the process."""
    try:
        stage.run(context)
    except Exception as error:  # of any part of the run, or of vLLM: the record has to say it
        traceback.print_exc()
        context.say(error=f"{type(error).__name__}: {str(error)[:600]}", **used_memory())
        raise SystemExit(1) from error


def _run_all(stages: Mapping[str, Stage], options: argparse.Namespace, models: Path) -> dict[str, Outcome]:
    end = time.monotonic() + options.budget
    outcomes: dict[str, Outcome] = {}
    for name in options.only:
        stage, left = stages[name], end - time.monotonic()
        context = _context(options, name, min(stage.limit_s, left), models)
        if left < stage.least_s:
            outcomes[name] = Outcome(result=f"skipped: {left:.0f} s left, it needs {stage.least_s}")
            context.say(ended=outcomes[name].result)
            continue
        print(f"{name}: {stage.why}", flush=True)
        outcomes[name] = _run_process(stage, context)
    return outcomes


def _run_process(stage: Stage, context: Context) -> Outcome:
    """Run a stage as a process; one over its limit is killed with all that it has started."""
    begin, begin_wall = time.monotonic(), time.time()
    command = [sys.executable, sys.argv[0], "--stage", context.stage, "--out", str(context.out)]
    command += ["--models", str(context.models), "--limit", str(context.limit_s)]
    command += ["--tiny"] if context.is_tiny else []
    with (context.out / f"{context.stage}.log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=_environment(stage, context),
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=context.limit_s)
            result = "ok" if code == 0 else f"failed ({code})"
        except subprocess.TimeoutExpired:
            result = f"over {context.limit_s:.0f} s, killed"
    _end_descendants()
    seconds = time.monotonic() - begin
    headlines = [
        record["headline"]
        for record in context.records(context.stage)
        if record["at"] >= begin_wall - 0.01 and "headline" in record
    ]
    context.say(ended=result, wall_s=round(seconds, 1))
    return Outcome(result=result, seconds=seconds, headline="; ".join(headlines))


def _environment(stage: Stage, context: Context) -> dict[str, str]:
    """Return the variables of a stage's process: rlora is the one beside this tool, and a rehearsal sees no GPU."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    rehearsing = _REHEARSING if context.is_tiny else {}
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | rehearsing | stage.environment


def _end_descendants() -> None:
    """Kill whatever this process, or what it has started, has started; orphans come to it, so none is missed."""
    end = time.monotonic() + _REAP_S
    while time.monotonic() < end:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                process.kill()
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)
        except ChildProcessError:
            return


def _table(outcomes: Mapping[str, Outcome], out: Path) -> str:
    lines = ["", f"{'stage':24} {'seconds':>8}  result"]
    for name, outcome in outcomes.items():
        lines.append(f"{name:24} {outcome.seconds:8.1f}  {outcome.result}  {outcome.headline}".rstrip())
        if outcome.has_failed:
            lines += [f"    {line}" for line in _end_of_log(out / f"{name}.log")]
    return "\n".join(lines)


def _end_of_log(path: Path) -> Sequence[str]:
    return path.read_text(errors="replace").strip().splitlines()[-_LOG_LINES:]

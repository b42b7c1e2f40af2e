"""A step's rollouts as JSON Lines, written by a process of its own so that the loop does not wait for it.

A thousand completions of a thousand tokens are two seconds of `json.dumps`, which holds Python's lock. The loop hands
over the numbers in 0.1 s and goes on; the writer is at most two steps behind, and before a checkpoint is written all
rollouts of the steps before it are on disk. The format stays plain lines: grep, head and jq read it.
"""

import json
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import rlora
from rlora.errors import ConfigError, WriteError
from rlora.system.files import explained, write_atomically
from rlora.system.records import line_of
from rlora.types import Group

_HEADER = struct.Struct(">Q")
_BEHIND = 4  # files that may be handed over and not be written yet: two steps'
TOKENS = ".tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutsConfig:
    """Which steps' rollouts stay on disk."""

    keep_last: int = 100
    """Newest steps whose rollouts are kept."""
    keep_every: int = 10
    """Rollouts of every n-th step are kept as well; 1 keeps all, 0 none beside the newest."""

    def check(self) -> None:
        """Raise ConfigError for a value that breaks a rule."""
        if self.keep_last < 1 or self.keep_every < 0:
            raise ConfigError("rollouts.keep_last must be at least 1, rollouts.keep_every at least 0.")

    def stays(self, step: int) -> bool:
        """Return whether the rollouts of a step are kept for good."""
        return self.keep_every > 0 and step % self.keep_every == 0

    def num_kept(self, num_steps: int) -> int:
        """Return of how many steps a run of `num_steps` keeps the rollouts."""
        last = min(self.keep_last, num_steps)
        return last + (-(-(num_steps - last) // self.keep_every) if self.keep_every else 0)


class RolloutFolder:
    """The rollouts of a run, a file a step: `step-000012.jsonl`."""

    def __init__(self, path: Path, config: RolloutsConfig | None = None):
        """Write into `path`, which need not exist yet; nothing is started before the first step."""
        self.path, self._config = path, config or RolloutsConfig()
        self._process: subprocess.Popen[bytes] | None = None
        self._num_behind = 0

    def steps(self) -> dict[int, Path]:
        """Return the files by step, in order."""
        return self._files(".jsonl")

    def token_steps(self) -> dict[int, Path]:
        """Return the files of token values (`rlora.store.token_values`) by step, in order."""
        return self._files(TOKENS)

    def _files(self, suffix: str) -> dict[int, Path]:
        names = ((file, file.stem.removeprefix("step-")) for file in sorted(self.path.glob(f"step-*{suffix}")))
        return {int(step): file for file, step in names if step.isdecimal()}

    def save(self, step: int, groups: Sequence[Group]) -> None:
        """Hand over a step's rollouts, and remove those of steps that need not be kept.

        Raises WriteError where those of this step or of one before could not be written: here, or at `flush`.
        """
        self._hand_over(f"step-{step:06d}.jsonl", _plain(groups))
        for old, file in (*self.steps().items(), *self.token_steps().items()):
            if old <= step - self._config.keep_last and not self._config.stays(old):
                with explained(file):
                    file.unlink(missing_ok=True)

    def save_tokens(self, step: int, content: bytes) -> None:
        """Hand over the token values of a step whose rollouts were handed over; raises what `save` raises."""
        self._hand_over(f"step-{step:06d}{TOKENS}", content)

    def _hand_over(self, name: str, content: list[tuple[Any, ...]] | bytes) -> None:
        while self._num_behind >= _BEHIND:
            self._wait()
        process = self._started()
        data = pickle.dumps((str(self.path / name), content), protocol=5)
        assert process.stdin is not None
        try:
            process.stdin.write(_HEADER.pack(len(data)))
            process.stdin.write(data)
            process.stdin.flush()
        except OSError as error:
            raise self._ended() from error
        self._num_behind += 1

    def flush(self) -> None:
        """Return once all that was handed over is on disk; WriteError where it could not be written."""
        while self._num_behind:
            self._wait()

    def remove_from(self, step: int) -> None:
        """Remove the rollouts of a step and of later ones, which a run that goes on from there writes again."""
        for later, file in (*self.steps().items(), *self.token_steps().items()):
            if later >= step:
                with explained(file):
                    file.unlink()

    def close(self) -> None:
        """Let the writer finish what it was given, and end it; what it could not write is told by `flush` alone."""
        if (process := self._process) is not None:
            self._process, self._num_behind = None, 0
            with suppress(OSError):
                process.communicate()

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            root = str(Path(rlora.__file__).resolve().parents[1])
            paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                process_group=0,  # an interrupt is the run's, which lets the writer finish
                env={**os.environ, "PYTHONPATH": paths},
            )
        return self._process

    def _wait(self) -> None:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise self._ended()
        self._num_behind -= 1
        if error := json.loads(line)["error"]:
            raise WriteError(error)

    def _ended(self) -> WriteError:
        assert self._process is not None
        code = self._process.wait()
        return WriteError(
            f"the process that writes {self.path} ended by itself (exit code {code}); start the same command again."
        )


def _plain(groups: Sequence[Group]) -> list[tuple[Any, ...]]:
    """Return what is written of rollouts as plain values, numbers as bytes: quick to hand over."""
    return [
        (
            (group.prompt.problem.id, group.prompt.problem.question, group.prompt.problem.answer),
            [(message.role, message.content) for message in group.prompt.problem.messages],
            rollout.completion.text,
            (rollout.verdict.kind.value, rollout.verdict.extracted, rollout.verdict.reason, rollout.reward),
            dict(rollout.verdict.parts),
            (rollout.completion.stop.value, rollout.completion.version),
            array("q", rollout.completion.token_ids).tobytes(),
            array("d", rollout.completion.logprobs).tobytes(),
        )
        for group in groups
        for rollout in group.rollouts
    ]


def _row(rollout: tuple[Any, ...]) -> dict[str, Any]:
    asked, turns, text, (kind, extracted, reason, reward), parts, (stop, version), tokens, logprobs = rollout
    problem, question, gold = asked
    return {
        "problem": problem,
        "question": question,
        **({"messages": [{"role": role, "content": content} for role, content in turns]} if turns else {}),
        "gold": gold,
        "text": text,
        "verdict": kind,
        "extracted": extracted,
        **({"reason": reason} if reason else {}),
        "reward": reward,
        **({"parts": parts} if parts else {}),
        "stop": stop,
        "version": version,
        "token_ids": array("q", tokens).tolist(),
        "logprobs": [round(value, 6) for value in array("d", logprobs)],
    }


def _received(source: BinaryIO) -> Iterator[bytes]:
    """Yield the frames of a stream; one that is cut short, since its sender was killed, ends it."""
    while len(header := source.read(_HEADER.size)) == _HEADER.size:
        (size,) = _HEADER.unpack(header)
        data = source.read(size)
        if len(data) < size:
            return
        yield data


def main() -> None:
    """Write what the parent hands over until its end; the argument is the parent's process id.

    A thread takes the next step in while one is written. Where the parent was killed nothing more is put in place:
    another process may go on with the run already.
    """
    parent = int(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError):
        os.nice(5)
    frames: queue.Queue[bytes | None] = queue.Queue(maxsize=1)

    def take_in() -> None:
        for data in _received(sys.stdin.buffer):
            frames.put(data)
        frames.put(None)

    threading.Thread(target=take_in, daemon=True).start()
    while (data := frames.get()) is not None:
        name, content = pickle.loads(data)  # from the parent alone
        error = ""
        try:
            with write_atomically(Path(name)) as path:
                if isinstance(content, bytes):
                    path.write_bytes(content)
                else:
                    with path.open("w", encoding="utf-8") as file:
                        for rollout in content:
                            file.write(line_of(_row(rollout)) + "\n")
                if os.getppid() != parent:
                    raise SystemExit
        except WriteError as failure:
            error = str(failure)
        print(json.dumps({"error": error}), flush=True)


if __name__ == "__main__":
    main()

"""The screen is rlora's alone: whatever else is written is in the log, and at the end all is as it was."""

import dataclasses
import logging
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.engines import Around
from support.policies import ROOT
from support.runs import rows, toy

from rlora.errors import EngineStartError, SamplerError, message_of
from rlora.loop import run
from rlora.sampler.build import build_sampler
from rlora.system.screen import LOG_FILE, Diversion, is_diverted, say, spoken_to_the_user, stage
from rlora.system.stages import Screen

EVERY_WAY = """
import ctypes, logging, os, subprocess, sys, warnings
from pathlib import Path
from tqdm import tqdm
from rlora.system.screen import Diversion, say, stage

early = logging.StreamHandler()
logging.getLogger("early").addHandler(early)

def write_every_way(when):
    print(f"{when} print")
    print(f"{when} print to stderr", file=sys.stderr)
    print(f"{when} to the first stderr", file=sys.__stderr__)
    os.write(1, f"{when} descriptor 1\\n".encode())
    os.write(2, f"{when} descriptor 2\\n".encode())
    ctypes.CDLL(None).puts(f"{when} C".encode())
    logging.getLogger("early").warning(f"{when} early logging")
    logging.getLogger("other").warning(f"{when} last-resort logging")
    warnings.warn(f"{when} warning", stacklevel=1)
    for _ in tqdm(range(2), desc=f"{when} bar"):
        pass
    subprocess.run(["sh", "-c", f"echo {when} child; echo {when} child to stderr >&2"])

write_every_way("before")
try:
    with Diversion() as diversion:
        write_every_way("early")
        say("rlora's first")
        diversion.keep_in(Path(sys.argv[1]))
        with stage("Starting", usually="a moment"):
            write_every_way("during")
        if sys.argv[2] == "fails":
            raise ValueError("something")
        if sys.argv[2] == "interrupted":
            raise KeyboardInterrupt
finally:
    write_every_way("after")
"""
WAYS = (
    "print", "print to stderr", "to the first stderr", "descriptor 1", "descriptor 2", "C", "early logging",
    "last-resort logging", "child", "child to stderr",
)  # fmt: skip


@pytest.mark.unit
@pytest.mark.parametrize("end", ["succeeds", "fails", "interrupted"])
def test_what_is_written_in_any_way_goes_to_the_log_and_before_and_after_it_does_not(tmp_path, end) -> None:
    log = tmp_path / "log.txt"
    command = [sys.executable, "-c", EVERY_WAY, str(log), end]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    said, kept = done.stdout.splitlines(), log.read_text()
    assert done.returncode == {"succeeds": 0, "fails": 1, "interrupted": -2}[end]
    for way in WAYS:
        assert f"before {way}" in said
        assert f"after {way}" in said
        assert f"early {way}" in kept
        assert f"during {way}" in kept
    for sort in ("warning", "bar"):
        assert f"during {sort}" in kept
        assert f"before {sort}" in done.stdout
        assert f"after {sort}" in done.stdout
    shown = [line for line in said if not line.startswith(("before", "after", "<string>"))]
    assert [line for line in shown if "early" in line or "during" in line] == []
    first, where, stage_line = said[(start := said.index("rlora's first")) : start + 3]
    assert (first, where) == ("rlora's first", f"What libraries write goes to {log}.")
    assert stage_line.startswith("Starting (a moment) ... 0.")
    assert kept.startswith("=== 20")
    if end == "fails":
        assert said[-2:] == ["ValueError: something", f"What the libraries said is in {log}."]


class Noisy(Around):
    """Samples as usual, and writes as libraries do."""

    def __init__(self, sampler):
        self._sampler = sampler

    def load(self, adapters) -> None:
        self._sampler.load(adapters)

    def sample(self, requests, sampling, *, seed):
        os.write(2, b"a library's C code\n")
        print("a library's print")
        os.system("echo a process of a library")
        return self._sampler.sample(requests, sampling, seed=seed)


NOISE = ("a library's C code", "a library's print", "a process of a library")
SMALL = {"num_steps": 1, "problems_per_step": 4}


@pytest.mark.loop
def test_a_noisy_run_has_a_clean_screen_and_a_log_of_each_start(tmp_path, capfd) -> None:
    config = toy(tmp_path / "run", **SMALL)
    streams = sys.stdout, sys.stderr
    run(config, make_sampler=lambda spec: Noisy(build_sampler(spec)))
    assert (sys.stdout, sys.stderr) == streams
    said = capfd.readouterr()
    assert "library" not in (said.out + said.err).replace("What libraries write goes to", "")
    assert f"What libraries write goes to {tmp_path / 'run' / LOG_FILE}." in said.err
    assert "Loading toy ... " in said.err
    assert "Proving that the sampler serves the policy ... " in said.err
    kept = (tmp_path / "run" / LOG_FILE).read_text()
    for noise in NOISE:
        assert noise in kept
    run(toy(tmp_path / "run", **{**SMALL, "num_steps": 2}))
    kept = (tmp_path / "run" / LOG_FILE).read_text()
    assert kept.count("=== 20") == 2
    os.write(2, b"mine again\n")
    assert capfd.readouterr().err.endswith("mine again\n")


@pytest.mark.loop
def test_a_verbose_run_keeps_nothing_from_the_screen(tmp_path, capfd) -> None:
    config = toy(tmp_path / "run", **SMALL)
    config = dataclasses.replace(config, tracking=dataclasses.replace(config.tracking, verbose=True))
    run(config, make_sampler=lambda spec: Noisy(build_sampler(spec)))
    said = capfd.readouterr()
    for noise in NOISE:
        assert noise in said.out + said.err
    assert not (tmp_path / "run" / LOG_FILE).exists()
    assert "Loading toy ...\n" in said.err


@pytest.mark.loop
def test_an_engine_that_does_not_start_shows_the_logs_end_and_where_it_is(tmp_path, capfd) -> None:
    def dies(spec):
        os.write(2, b"\rbar 1 %\rbar 99 %\n" + b"".join(b"library line %d\n" % number for number in range(20)))
        raise EngineStartError("vLLM did not start.")

    with pytest.raises(EngineStartError) as info:
        run(toy(tmp_path / "run", **SMALL), make_sampler=dies)
    lines = message_of(info.value).splitlines()
    assert lines[:2] == [
        "EngineStartError: vLLM did not start.",
        f"What the libraries said is in {tmp_path / 'run' / LOG_FILE}; it ends with",
    ]
    assert lines[2:] == [f"  library line {number}" for number in range(12, 20)]
    os.write(2, b"mine again\n")
    said = capfd.readouterr().err
    assert said.endswith("mine again\n")
    assert "library line" not in said


@pytest.mark.loop
def test_an_error_of_ours_has_no_note_and_a_bug_has(tmp_path) -> None:
    def fails(error):
        def make(spec):
            raise error

        return make

    for error, num_notes in ((SamplerError("ours"), 0), (ZeroDivisionError("a bug"), 1)):
        with pytest.raises(type(error)) as info:
            run(toy(tmp_path / "run", **SMALL), make_sampler=fails(error))
        assert len(getattr(info.value, "__notes__", ())) == num_notes


@pytest.mark.unit
def test_on_a_terminal_a_stage_is_drawn_live_and_leaves_one_line(tmp_path) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        screen = Screen(terminal)
        with screen.stage("Starting vLLM", usually="half a minute"):
            time.sleep(0.3)
            screen.say("a line above")
        terminal.flush()
        os.set_blocking(master, False)
        said, deadline = "", time.monotonic() + 20
        while not said.endswith(" s\n") and time.monotonic() < deadline:  # one read may give a part of it
            try:
                said += os.read(master, 100_000).decode(errors="replace").replace("\r\n", "\n")
            except BlockingIOError:
                time.sleep(0.01)
    os.close(master)
    assert re.search(r"Starting vLLM \(half a minute\) \.\.\. \d s", said)  # while it lasted
    assert re.search(r"Starting vLLM \(half a minute\) \.\.\. \d\.\d s$", said.rstrip())
    assert "a line above" in said


@pytest.mark.unit
def test_a_stage_that_says_something_or_fails_still_ends_in_a_line_of_its_own(tmp_path) -> None:
    path = tmp_path / "screen"
    with path.open("w") as file:
        screen = Screen(file)
        with screen.stage("first"):
            screen.say("said within")
        with pytest.raises(ZeroDivisionError), screen.stage("second"):
            _ = 1 / 0
        screen.say("after")
    assert re.sub(r"\d\.\d s", "N s", path.read_text()).splitlines() == [
        "first ...",
        "said within",
        "first ... N s",
        "second ... failed after N s",
        "after",
    ]


@pytest.mark.unit
def test_a_library_that_speaks_to_the_user_reaches_the_screen(tmp_path, capfd) -> None:
    with Diversion() as diversion:
        diversion.keep_in(tmp_path / "log.txt")
        assert is_diverted()
        print("hidden")
        with spoken_to_the_user():
            assert not is_diverted()
            print("your key?")
            os.write(2, b"really?\n")
        print("hidden again")
    said = capfd.readouterr()
    assert (said.out, "really?\n" in said.err, "hidden" in said.err) == ("your key?\n", True, False)
    assert (tmp_path / "log.txt").read_text().splitlines()[1:] == ["hidden", "hidden again"]


@pytest.mark.unit
def test_a_log_that_cannot_be_written_ends_nothing(tmp_path, capfd) -> None:
    with Diversion() as diversion:
        diversion.keep_in(tmp_path)  # a folder
        print("lost")
        say("going on")
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err == f"{tmp_path} cannot be written (Is a directory): what libraries say is not kept.\ngoing on\n"


@pytest.mark.unit
def test_logging_set_up_while_diverted_speaks_to_the_screen_afterwards(capfd) -> None:
    logger = logging.getLogger("test-screen")
    logger.propagate = False
    with Diversion(), stage("Starting"):
        handler = logging.StreamHandler()
        logger.addHandler(handler)
        logger.warning("hidden")
    logger.warning("shown")
    assert handler.stream is sys.stderr
    logger.removeHandler(handler)
    assert capfd.readouterr().err.splitlines()[1:] == ["shown"]


@pytest.mark.loop
def test_without_standard_streams_a_run_goes_to_its_end(tmp_path) -> None:
    """As a service is started by some: descriptors 1 and 2 closed."""
    run_dir = tmp_path / "run"
    command = f"exec {sys.executable} -m rlora train arithmetic --preset toy --num-steps 1 --run-dir {run_dir} >&- 2>&-"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0
    assert len(rows(run_dir)) == 1
    assert Path(run_dir / LOG_FILE).is_file()

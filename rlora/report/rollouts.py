"""Rollouts on their way into a page: an index of all of them, and their texts in compressed chunks.

A page of tens of thousands of completions opens at once, since a browser needs the index alone (a few numbers a
rollout), and inflates a chunk when one of its rollouts is shown or searched. Values of tokens are letters of a scale:
`difference` and the like say in which range a value lies, which is what a colour shows.
"""

import base64
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlora.report.mathematics import Formulas
from rlora.report.runs import ReportedRun
from rlora.store.run_dir import rollout_rows
from rlora.store.token_values import TokenValues, read_token_values
from rlora.types import VerdictKind

DIFFERENCE_EDGES = (-1.0, -0.3, -0.1, -0.03, -0.01, -0.003, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # nats
ENTROPY_EDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0, 5.0)  # nats
PROBABILITY_EDGES = (0.001, 0.01, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999)
KINDS = [kind.value for kind in VerdictKind]
_LETTERS = np.frombuffer(b"ABCDEFGHIJKLM", dtype=np.uint8)
_UNKNOWN = b"-"
_FIRST_LENGTH = 35  # the character of a token that spells nothing; those after it spell a byte more each
_CHUNK_ROLLOUTS = 256  # in whole steps, so that what is shown together is inflated together
_COLUMNS = ("set", "step", "problem", "arm", "reward", "kind", "tokens", "stop")


@dataclass(slots=True, kw_only=True)
class RolloutSet:
    """Rollouts that are looked at together: those of a run's training, or the samples of one of its evaluations.

    `arms` are the policies that a group has samples of: one in training, base and policy in an evaluation.
    """

    name: str
    run: int
    arms: tuple[str, ...]


@dataclass(slots=True)
class Pack:
    """What a page holds of rollouts: `sets`, `problems`, an `index` of equal columns, and `chunks` of texts.

    Numbers in the index are places in `sets`, `problems`, KINDS and `stops`; `chunk_ends` says up to which rollout each
    chunk goes.
    """

    sets: list[RolloutSet] = field(default_factory=list)
    problems: list[dict[str, Any]] = field(default_factory=list)
    index: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in _COLUMNS})
    stops: list[str] = field(default_factory=list)
    chunks: list[str] = field(default_factory=list)
    chunk_ends: list[int] = field(default_factory=list)
    num_left_out: int = 0
    formulas: Formulas = field(default_factory=Formulas)
    _places: dict[tuple[str, str, str], int] = field(default_factory=dict)
    _waiting: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        """Return the number of rollouts."""
        return len(self.index["step"])

    def add_steps(self, number: int, run: ReportedRun, steps: Sequence[int]) -> None:
        """Take in rollouts of a run's training, which is set `number`."""
        files, values_of = run.rollouts.steps(), run.rollouts.token_steps()
        for step in steps:
            rows = rollout_rows(files[step])
            values = read_token_values(values_of[step]) if step in values_of else None
            for row, tokens in zip(rows, _token_fields(rows, values), strict=True):
                self._add(number, step, 0, row, tokens, num_tokens=len(row["token_ids"]))
            self.seal_chunk(at_least=_CHUNK_ROLLOUTS)

    def add_samples(self, number: int, arm: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take in the samples of one arm of an evaluation, which is set `number`."""
        for row in rows:
            self._add(number, 0, arm, row, {}, num_tokens=int(row["num_tokens"]))
            self.seal_chunk(at_least=_CHUNK_ROLLOUTS)

    def _add(
        self, number: int, step: int, arm: int, row: Mapping[str, Any], tokens: Mapping[str, Any], *, num_tokens: int
    ) -> None:
        kind, stop = str(row["verdict"]), str(row["stop"])
        if stop not in self.stops:
            self.stops.append(stop)
        reward = row.get("reward", float(kind == VerdictKind.CORRECT.value))
        values = (number, step, self._problem(row), arm, reward, KINDS.index(kind), num_tokens, self.stops.index(stop))
        for name, value in zip(_COLUMNS, values, strict=True):
            self.index[name].append(value)
        self.formulas.find(row["text"])
        said = {name: row[name] for name in ("extracted", "reason", "parts") if row.get(name)}
        self._waiting.append({"text": row["text"], **said, **tokens})

    def _problem(self, row: Mapping[str, Any]) -> int:
        key = (str(row["problem"]), str(row["gold"]), str(row.get("question", "")))
        if key not in self._places:
            self._places[key] = len(self.problems)
            name, gold, question = key
            asked: dict[str, Any] = {"id": name, "gold": gold, "question": question}
            if row.get("messages"):
                asked["messages"] = row["messages"]
            self.formulas.find(question)
            self.problems.append(asked)
        return self._places[key]

    def seal_chunk(self, *, at_least: int = 1) -> None:
        """Compress the rollouts that are in no chunk yet, where there are so many."""
        if len(self._waiting) >= at_least:
            self.chunks.append(packed(self._waiting))
            self.chunk_ends.append(len(self))
            self._waiting = []

    def head(self, *, first: int = 0, first_problem: int = 0) -> dict[str, Any]:
        """Return what a page needs before any text: all but the chunks; of rollouts and problems those from `first`
        and `first_problem` on.
        """
        return {
            "sets": [{"name": one.name, "run": one.run, "arms": one.arms} for one in self.sets],
            "problems": self.problems[first_problem:],
            "index": {name: values[first:] for name, values in self.index.items()},
            "stops": self.stops,
            "kinds": KINDS,
            "chunkEnds": self.chunk_ends,
            "numLeftOut": self.num_left_out,
            "edges": {
                "difference": DIFFERENCE_EDGES,
                "entropy": ENTROPY_EDGES,
                "probability": PROBABILITY_EDGES,
            },
        }


def packed(values: Any) -> str:
    """Return JSON, deflated, in base64."""
    text = json.dumps(values, ensure_ascii=True, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), 6)).decode()


def pack_runs(runs: Sequence[ReportedRun], *, limit: int) -> Pack:
    """Return the rollouts of runs and of their evaluations, at most `limit` of them: of each run the first and the last
    step and steps evenly between, as many as fit.
    """
    pack = Pack()
    for number, run in enumerate(runs):
        steps = list(run.rollouts.steps())
        if steps:
            share = limit // len(runs)
            kept = _spread(steps, share, per_step=_num_in(run.rollouts.steps()[steps[-1]]))
            pack.num_left_out += len(steps) - len(kept)
            pack.sets.append(RolloutSet(name=f"{run.name}: training", run=number, arms=("policy",)))
            pack.add_steps(len(pack.sets) - 1, run, kept)
        for folder, results in run.evaluations.items():
            _add_evaluation(pack, number, run, folder, results)
    pack.seal_chunk()
    return pack


def _num_in(file: Path) -> int:
    return max(1, len(file.read_bytes().splitlines()))


def _spread(steps: Sequence[int], limit: int, *, per_step: int) -> list[int]:
    count = min(len(steps), max(1, limit // per_step))
    return [steps[place] for place in sorted({round(part * (len(steps) - 1)) for part in np.linspace(0, 1, count)})]


def _add_evaluation(pack: Pack, number: int, run: ReportedRun, folder: Path, results: Mapping[str, Any]) -> None:
    for name, one in results["benchmarks"].items():
        arms = tuple(arm for arm in ("base", "policy") if arm in one["arms"])
        files = [next(iter(sorted(folder.glob(f"samples-{_title(name)}-{arm}.jsonl"))), None) for arm in arms]
        if not all(files):
            continue
        pack.sets.append(RolloutSet(name=f"{run.name}: {name}, {folder.name}", run=number, arms=arms))
        for place, file in enumerate(files):
            assert file is not None
            pack.add_samples(len(pack.sets) - 1, place, rollout_rows(file))


def _title(name: str) -> str:
    return Path(name).stem if "/" in name or name.endswith((".csv", ".jsonl", ".parquet")) else name


def _token_fields(rows: Sequence[Mapping[str, Any]], values: TokenValues | None) -> Iterator[dict[str, Any]]:
    """Yield, rollout by rollout, the fields that say something of each token, as texts of one letter a token."""
    counts = [len(row["token_ids"]) for row in rows]
    fits = values is not None and values.num_tokens_C.tolist() == counts
    probabilities = np.exp(np.array([value for row in rows for value in row["logprobs"]], dtype=np.float64))
    letters = {"probability": _letters(probabilities, PROBABILITY_EDGES)}
    if fits:
        assert values is not None
        letters["difference"] = _letters(values.difference_N, DIFFERENCE_EDGES)
        letters["entropy"] = _letters(values.entropy_N, ENTROPY_EDGES)
    start = 0
    for number, (row, count) in enumerate(zip(rows, counts, strict=True)):
        part = slice(start, start + count)
        start += count
        if not fits:
            yield {}
            continue
        assert values is not None
        fields: dict[str, Any] = {"advantage": round(float(values.advantages_C[number]), 4)}
        lengths = values.num_bytes_N[part].astype(int)
        if (spelled := _spelled(lengths, len(row["text"].encode(errors="surrogatepass")))) is not None:
            fields["lengths"] = (spelled + _FIRST_LENGTH).astype("<u2").tobytes().decode("utf-16-le")
            fields |= {name: text[part].tobytes().decode() for name, text in letters.items()}
        yield fields


def _spelled(lengths: np.ndarray, num_bytes: int) -> np.ndarray | None:
    """Return what each token spells of a text, a last one that ended it nothing; None where they do not spell it."""
    if int(lengths.sum()) == num_bytes:
        return lengths
    if len(lengths) and int(lengths[:-1].sum()) == num_bytes:
        return np.append(lengths[:-1], 0)
    return None


def _letters(values: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """Return the letter of the range in which each value lies, as bytes; a dash where it is no number."""
    values = values.astype(np.float32)
    return np.where(np.isnan(values), _UNKNOWN[0], _LETTERS[np.searchsorted(edges, values)]).astype(np.uint8)

"""The adapter itself: how large its update is and where, which way it went, and how it stands to those of other runs.

The update of a matrix is the product scale x B A, and norms, cosines and shares are those of the updates of all
matrices together (Euclidean, Frobenius). No product is formed: of versions i and j of a matrix

    <B_i A_i, B_j A_j> = sum of (B_i^T B_j) * (A_i A_j^T), entry by entry,

which are R x R, and all of the below follows from these numbers. Left out: the update beside the weights that it
changes, which are the base's and not in a run directory.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rlora.errors import CheckpointError
from rlora.lora.config import LoraConfig
from rlora.lora.peft.peft_format import TENSOR_FILE
from rlora.lora.variants.pissa import difference_factors
from rlora.model.identity import changed_parts
from rlora.report.line import Line, fit_line
from rlora.report.versions import kind_of, layer_of, shipped_factors, versions_in
from rlora.store.origin import inputs_of_run

_DIGITS = 4
Values = tuple[float, ...]
Cosines = tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterStudy:
    """What the kept versions of a low-rank policy say of it.

    `norms` are those of the whole update at `steps`; `layer_norms` and `kind_norms` those of the blocks and of the
    kinds of matrices, by name, at the same steps, and `layer_shares` and `kind_shares` what each holds of the squared
    norm of the last. `cosines_to_last` and `cosines_to_previous` compare the update of a step with that of the last and
    of the one before (None where one of them is zero). `effective_ranks` is None at rank 1, else for each step the mean
    over the matrices, weighted by their squared norms, of exp(H), where H is the entropy of a matrix's squared singular
    values over their sum: r where r of them are equal and the others zero; `kind_ranks` has the last by kind. `line` is
    how well the first part tells the rest, `no_line` why that is not known. PiSSA's update is measured from its start.
    `left_out` names files that could not be read.
    """

    rank: int
    alpha: float
    variant: str
    num_numbers: int
    steps: tuple[int, ...]
    norms: Values
    layer_norms: Mapping[str, Values]
    kind_norms: Mapping[str, Values]
    layer_shares: Mapping[str, float]
    kind_shares: Mapping[str, float]
    cosines_to_last: Cosines
    cosines_to_previous: Cosines
    effective_ranks: Cosines | None
    kind_ranks: Mapping[str, float]
    line: Line | None
    no_line: str
    left_out: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain values, numbers to 4 significant digits."""
        return _rounded(asdict(self))


def study(run_dir: Path) -> AdapterStudy | None:
    """Return what the versions in a run directory say, reading only; None where there is no low-rank policy.

    Raises CheckpointError where there are versions and none can be read, or one holds numbers that are not finite.
    """
    versions = versions_in(run_dir)
    if versions is None:
        return None
    steps, config = versions.steps, versions.config
    products_KK = torch.zeros(len(steps), len(steps), dtype=torch.float64)
    layers: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(len(steps), dtype=torch.float64))
    kinds: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(len(steps), dtype=torch.float64))
    ranks: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(len(steps), dtype=torch.float64))
    for path, a_KRI, b_KOR in versions.matrices():
        scale = config.scale_at(a_KRI.shape[1])
        if config.variant == "pissa":
            a_KRI, b_KOR = difference_factors(a_KRI, b_KOR, a_KRI[:1], b_KOR[:1].expand_as(b_KOR))
        update_KK, rank_K = _update(a_KRI, b_KOR, scale)
        square_K = update_KK.diagonal()
        products_KK += update_KK
        layers[layer_of(path)] += square_K
        kinds[kind_of(path)] += square_K
        ranks[kind_of(path)] += square_K * rank_K
    if not bool(products_KK.isfinite().all()):
        raise CheckpointError(f"{run_dir} holds a version of its policy with numbers that are not finite.")
    square_K = products_KK.diagonal().clamp(min=0)
    cosine_KK = products_KK / (square_K.sqrt()[:, None] * square_K.sqrt())  # 0 / 0 is NaN: there is none
    has_ranks = config.rank > 1 or config.variant == "pissa"
    line = fit_line(steps, products_KK)
    return AdapterStudy(
        rank=config.rank,
        alpha=config.alpha,
        variant=config.variant,
        num_numbers=versions.num_numbers,
        steps=steps,
        norms=tuple(square_K.sqrt().tolist()),
        layer_norms={name: tuple(of_K.sqrt().tolist()) for name, of_K in layers.items()},
        kind_norms={name: tuple(of_K.sqrt().tolist()) for name, of_K in kinds.items()},
        layer_shares=_shares(layers, square_K),
        kind_shares=_shares(kinds, square_K),
        cosines_to_last=_or_none(cosine_KK[:, -1]),
        cosines_to_previous=(None, *_or_none(cosine_KK.diagonal(1))),
        effective_ranks=_or_none(sum(ranks.values(), torch.zeros(1)) / square_K) if has_ranks else None,
        kind_ranks={name: float(of_K[-1] / kinds[name][-1]) for name, of_K in ranks.items() if kinds[name][-1] > 0}
        if has_ranks
        else {},
        line=line if isinstance(line, Line) else None,
        no_line=line if isinstance(line, str) else "",
        left_out=versions.left_out,
    )


def _update(a_KRI: torch.Tensor, b_KOR: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the inner products (K, K) of K versions of a matrix's update, and their effective ranks (K), 0 of zero."""
    num, rank = a_KRI.shape[:2]
    a_SI, b_OS = a_KRI.flatten(0, 1), b_KOR.transpose(0, 1).flatten(1)
    a_KRKR = (a_SI @ a_SI.T).view(num, rank, num, rank)
    b_KRKR = (b_OS.T @ b_OS).view(num, rank, num, rank)
    update_KK = scale**2 * (a_KRKR * b_KRKR).sum((1, 3))
    if rank == 1:
        return update_KK, torch.ones(num, dtype=torch.float64)
    own = torch.arange(num)
    return update_KK, _effective_rank(a_KRKR[own, :, own], b_KRKR[own, :, own])


def _effective_rank(a_KRR: torch.Tensor, b_KRR: torch.Tensor) -> torch.Tensor:
    """Return exp of the entropy of the squared singular values of B A, over their sum, from A A^T and B^T B.

    They are the eigenvalues of (A A^T)^(1/2) B^T B (A A^T)^(1/2).
    """
    value_KR, vector_KRR = torch.linalg.eigh(a_KRR)
    root_KRR = vector_KRR * value_KR.clamp(min=0).sqrt()[:, None]
    square_KR = torch.linalg.eigvalsh(root_KRR.mT @ b_KRR @ root_KRR).clamp(min=0)
    share_KR = square_KR / square_KR.sum(1, keepdim=True)
    return torch.special.entr(share_KR).sum(1).exp().nan_to_num(0.0)


def _shares(parts: Mapping[str, torch.Tensor], square_K: torch.Tensor) -> dict[str, float]:
    whole = float(square_K[-1])
    return {name: float(of_K[-1]) / whole if whole else 0.0 for name, of_K in parts.items()}


def _or_none(values: torch.Tensor) -> Cosines:
    return tuple(value if value == value else None for value in values.tolist())


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value


def cosines(run_dirs: Sequence[Path]) -> list[list[float | None]]:
    """Return the cosine between the updates of each two runs' policies, those in `adapter/`, of any ranks.

    A matrix that one of the two does not adapt counts as unchanged there. None where there is nothing to compare: no
    low-rank policy, one that is the base still, or runs on other bases.
    """
    policies = [_policy(run_dir) for run_dir in run_dirs]
    table: list[list[float | None]] = [[None] * len(policies) for _ in policies]
    squares = [None if one is None else _product(one, one) for one in policies]
    for i, (one, own) in enumerate(zip(policies, squares, strict=True)):
        for j, (other, its) in enumerate(zip(policies, squares, strict=True)):
            if j < i:
                table[i][j] = table[j][i]
            elif one is not None and other is not None and own and its:
                product = _product(one, other)
                table[i][j] = None if product is None else product / (own * its) ** 0.5
    return table


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Policy:
    base: Mapping[str, str]
    config: LoraConfig
    factors: Mapping[str, torch.Tensor]


def _policy(run_dir: Path) -> _Policy | None:
    if not (run_dir / "adapter" / TENSOR_FILE).is_file():
        return None
    factors, config = shipped_factors(run_dir / "adapter")
    return _Policy(base=inputs_of_run(run_dir).get("base", {}), config=config, factors=factors)


def _product(one: _Policy, other: _Policy) -> float | None:
    """Return the inner product of two updates; None where they are of other bases."""
    if {"weights", "config"} & set(changed_parts(one.base, other.base)):
        return None
    total = 0.0
    for name, a_RI in one.factors.items():
        path = name.removesuffix(".lora_A")
        if path == name or name not in other.factors:
            continue
        b_OR, with_a, with_b = one.factors[f"{path}.lora_B"], other.factors[name], other.factors[f"{path}.lora_B"]
        if a_RI.shape[1] != with_a.shape[1] or len(b_OR) != len(with_b):
            return None
        scale = one.config.scale_at(len(a_RI)) * other.config.scale_at(len(with_a))
        product_RR = (a_RI.double() @ with_a.double().T) * (b_OR.double().T @ with_b.double())
        total += scale * float(product_RR.sum())
    return total


def lines(study: AdapterStudy) -> list[str]:
    """Return what a study says in three to five sentences: where the update is, which way it went, how near a line.

    Example:
        >>> for line in lines(study(Path("runs/a"))): print(line)
    """
    last, norm = study.steps[-1], study.norms[-1]
    if not norm:
        return [f"The policy of step {last} is its base still: the update is zero."]
    most = sorted(study.layer_shares, key=lambda name: -study.layer_shares[name])[:3]
    kind = max(study.kind_shares, key=lambda name: study.kind_shares[name])
    held = sum(study.layer_shares[name] for name in most)
    said = [
        f"After {last} steps the update of rank {study.rank} has the norm {norm:.3g}: {held:.0%} of its square is in "
        f"layers {_joined(most)} of {len(study.layer_shares)}, and {study.kind_shares[kind]:.0%} in {kind}."
    ]
    if study.effective_ranks is not None and (used := study.effective_ranks[-1]) is not None:
        said.append(f"It uses {used:.2g} of its {study.rank} ranks.")
    begun = next((index for index, one in enumerate(study.cosines_to_last) if one is not None), len(study.steps) - 1)
    if begun < len(study.steps) - 1:
        said.append(
            f"Its cosine to the first version that is not the base (step {study.steps[begun]}) is "
            f"{study.cosines_to_last[begun]:.2f}, to the last before it (step {study.steps[-2]}) "
            f"{study.cosines_to_last[-2] or 0:.2f}."
        )
    if (line := study.line) is not None:
        said.append(
            f"A line through the versions up to step {line.seen[-1]} predicts it with an error of "
            f"{line.errors[-1]:.0%} of its norm (cosine {line.cosines[-1]:.2f}); that it stays as it was there, with "
            f"one of {line.errors_if_still[-1]:.0%}."
        )
    else:
        said.append(f"How well a line predicts it is not known: {study.no_line}.")
    if study.left_out:
        said.append(f"{len(study.left_out)} of its versions could not be read, first {study.left_out[0]}.")
    return said


def _joined(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else names[0]

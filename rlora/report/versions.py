"""The versions of a low-rank policy that a run directory holds, read a layer at a time."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from rlora.errors import CheckpointError, RunDirError
from rlora.lora.config import LoraConfig
from rlora.lora.flat import Slot, lay_out
from rlora.lora.peft.peft_format import TENSOR_FILE, our_name, read_adapter_config
from rlora.report.line import SEEN
from rlora.store.checkpoint import CheckpointFolder
from rlora.store.origin import version_of
from rlora.store.run_dir import read_json
from rlora.store.trajectory import TRAJECTORY, Trajectory

_MOST, _FEWEST = 37, 8  # versions that are read, spread over the run
_EARLY = 4  # of those that the rest is foretold from, of which three may be read beside the others
_NUMBERS, _PRODUCTS = 2**29, 2e10  # of all versions together: above these fewer are read, in gigabytes or seconds
_A, _B = ".lora_A", ".lora_B"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Versions:
    """Versions of one policy, by step: `read[k](begin, end)` gives numbers of the k-th, laid out as `slots` say.

    `config` is the shape of the update, `left_out` names files that could not be read.
    """

    steps: tuple[int, ...]
    slots: tuple[Slot, ...]
    config: LoraConfig
    read: Sequence[Callable[[int, int], torch.Tensor]]
    left_out: tuple[str, ...] = ()

    @property
    def num_numbers(self) -> int:
        """Numbers of one version."""
        return sum(slot.size for slot in self.slots)

    def matrices(self) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """Yield each adapted matrix by its path, with A (K, R, I) and B (K, O, R) of all K versions, fp64."""
        slots = {slot.name: slot for slot in self.slots}
        layers: dict[str, list[str]] = {}
        for slot in self.slots:
            if slot.name.endswith(_A):
                path = slot.name.removesuffix(_A)
                layers.setdefault(layer_of(path), []).append(path)
        for paths in layers.values():
            mine = [slots[path + factor] for path in paths for factor in (_A, _B)]
            begin, end = min(slot.offset for slot in mine), max(slot.offset + slot.size for slot in mine)
            block_KD = torch.stack([read(begin, end) for read in self.read])
            for path in paths:
                a, b = (self._factor(block_KD, slots[path + factor], begin) for factor in (_A, _B))
                yield path, a, b

    @staticmethod
    def _factor(block_KD: torch.Tensor, slot: Slot, begin: int) -> torch.Tensor:
        start = slot.offset - begin
        return block_KD[:, start : start + slot.size].unflatten(1, slot.shape).double()


def layer_of(path: str) -> str:
    """Return the number of the block that a matrix belongs to, or its name where it stands beside the blocks.

    Example:
        >>> layer_of("model.layers.7.mlp.experts.3.down_proj"), layer_of("lm_head")
        ('7', 'lm_head')
    """
    return next((part for part in path.split(".") if part.isdigit()), path.rpartition(".")[2])


def kind_of(path: str) -> str:
    """Return the kind of a matrix: the last part of its path, with `experts.` before an expert's."""
    return ("experts." if ".experts." in path else "") + path.rpartition(".")[2]


def versions_in(run_dir: Path) -> Versions | None:
    """Return the versions that a run directory holds, at most 40 and evenly spread, fewer of a policy of gigabytes.

    From `trajectory/` and `checkpoints/`, or the one in `adapter/` where there is neither. None for a policy that is
    not low-rank, or where there is none yet. Files that are removed meanwhile, as a run does, are passed over.
    """
    checkpoints, path = CheckpointFolder(run_dir / "checkpoints"), Trajectory(run_dir / TRAJECTORY)
    layout = _layout(checkpoints)
    if layout is None:
        return _shipped(run_dir)
    slots, config = layout
    if config is None:
        return None
    files = {step: checkpoints.folder(step) / "tensors.safetensors" for step in checkpoints.steps()}
    files |= {step: path.file(step) for step in path.steps()}
    size = sum(slot.size for slot in slots)
    kept, left_out = {}, []
    for step in _chosen(sorted(files), size, config.rank):
        try:
            kept[step] = _reader(files[step], size)
        except FileNotFoundError:
            continue
        except (SafetensorError, OSError, ValueError) as error:
            left_out.append(f"{files[step]}: {error}")
    if not kept:
        raise CheckpointError(f"{run_dir} holds no version of its policy that can be read:\n  " + "\n  ".join(left_out))
    return Versions(steps=tuple(kept), slots=slots, config=config, read=tuple(kept.values()), left_out=tuple(left_out))


def _chosen(steps: Sequence[int], size: int, rank: int) -> list[int]:
    """Return which steps to read of policies of `size` numbers: inner products of K versions take K^2 x rank x size."""
    most = min(_MOST, _NUMBERS // size, int((_PRODUCTS / (rank * size)) ** 0.5))
    early = [step for step in steps if step - steps[0] <= SEEN * (steps[-1] - steps[0])]
    return sorted({*evenly(steps, max(_FEWEST, most)), *evenly(early, _EARLY)})


def _layout(checkpoints: CheckpointFolder) -> tuple[tuple[Slot, ...], LoraConfig | None] | None:
    """Return layout and shape as the newest checkpoint states them (None for all weights); None without checkpoints."""
    for step in reversed(checkpoints.steps()):
        try:
            state = read_json(checkpoints.folder(step) / "state.json")
            slots = lay_out({name: tuple(shape) for name, shape in state["layout"].items()})
            is_low_rank = any(slot.name.endswith(_A) for slot in slots)
            shape = {name: state["config"]["lora"][name] for name in ("rank", "alpha", "variant")}
            return slots, LoraConfig(**shape) if is_low_rank else None
        except (RunDirError, KeyError, TypeError, AttributeError):
            continue  # removed meanwhile, or damaged: the one before says the same
    return None


def _reader(file: Path, size: int) -> Callable[[int, int], torch.Tensor]:
    if not file.is_file():
        raise FileNotFoundError(file)
    numbers = safe_open(file, framework="pt").get_slice(_name(file))
    if (shape := tuple(numbers.get_shape())) not in ((size,), (1, size)):
        raise ValueError(f"it holds {shape} numbers, and the layout is of {size}")
    if len(shape) == 2:  # checkpoints of format 1 had a first axis of one policy
        return lambda begin, end: numbers[:, begin:end][0]
    return lambda begin, end: numbers[begin:end]


def _name(file: Path) -> str:
    with safe_open(file, framework="pt") as tensors:
        return "theta_D" if "theta_D" in tensors.keys() else "theta_KD"  # noqa: SIM118 - no mapping


def evenly(steps: Sequence[int], most: int) -> list[int]:
    """Return at most `most` of the steps: the first, the last, and those nearest to even distances between them."""
    if len(steps) <= most:
        return list(steps)
    span = steps[-1] - steps[0]
    wanted = [steps[0] + span * index / (most - 1) for index in range(most)]
    return sorted({min(steps, key=lambda step: abs(step - aim)) for aim in wanted})


def _shipped(run_dir: Path) -> Versions | None:
    """Return the one version in `adapter/`, as PEFT's files hold it; None where there is none."""
    folder = run_dir / "adapter"
    if not (folder / TENSOR_FILE).is_file():
        return None
    tensors, config = shipped_factors(folder)
    slots = lay_out({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    theta_D = torch.cat([tensor.flatten() for tensor in tensors.values()])
    step = version_of(folder)
    return Versions(steps=(step,), slots=slots, config=config, read=(lambda begin, end: theta_D[begin:end],))


def shipped_factors(folder: Path) -> tuple[Mapping[str, torch.Tensor], LoraConfig]:
    """Return the factors of an adapter in PEFT's format under rlora's names, by block, and the shape of the update.

    Raises AdapterError for a configuration that is none, CheckpointError for tensors that cannot be read.
    """
    stored = read_adapter_config(folder)
    ranks = {int(stored["r"]), *(stored.get("rank_pattern") or {}).values()}
    config = LoraConfig(
        rank=max(ranks), alpha=float(stored["lora_alpha"]), variant="rslora" if stored.get("use_rslora") else "lora"
    )
    try:
        with safe_open(folder / TENSOR_FILE, framework="pt") as file:
            tensors = {our_name(key): file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / TENSOR_FILE} cannot be read: {error}.") from error
    return {name: tensors[name] for name in sorted(tensors, key=_in_order)}, config


def _in_order(name: str) -> list[tuple[bool, int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]

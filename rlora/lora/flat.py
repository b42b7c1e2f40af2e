"""All adapter tensors of a cohort as views into one flat (K, D) fp32 buffer, and their gradients into another.

Optimizer, clipping, checkpoint and non-finite checks then each work on one tensor. Each adapter tensor is a leaf
parameter of its own whose `.data` and `.grad` are views: slicing one large leaf in the forward pass would make autograd
build a gradient of D numbers for every layer. Tensors of one shape that lie one after the other (those of a layer's
experts) can share one leaf, a stack of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

import torch
from torch import nn

_PART = 2**16  # numbers whose norm is taken at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Where one tensor lies in a policy's vector: its name, its shape without the policy axis, its first number."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Numbers in the tensor."""
        return prod(self.shape)


def lay_out(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Slot, ...]:
    """Return the slots of tensors laid one after the other in the order given."""
    slots, offset = [], 0
    for name, shape in shapes.items():
        slots.append(Slot(name=name, shape=shape, offset=offset))
        offset += prod(shape)
    return tuple(slots)


class FlatVector:
    """The vectors of K policies: `theta_KD`, the gradient `grad_KD`, and a leaf parameter (K, *shape) for each slot."""

    def __init__(
        self,
        slots: Sequence[Slot],
        num_policies: int,
        device: torch.device | str = "cpu",
        *,
        stacks: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ):
        """Allocate zeroed buffers for `num_policies` policies of the same layout.

        `stacks` names leaves (K, E, *shape) of E slots each, which must have one shape and be neighbours in this order;
        those slots have no leaf of their own.
        """
        self.slots = tuple(slots)
        size = sum(slot.size for slot in self.slots)
        self.theta_KD = torch.zeros(num_policies, size, device=device)
        self.grad_KD = torch.zeros_like(self.theta_KD)
        self.parameters = {leaf.name: self._leaf(leaf) for leaf in _leaves(self.slots, stacks)}

    def _leaf(self, slot: Slot) -> nn.Parameter:
        leaf = nn.Parameter(self.view(self.theta_KD, slot))
        leaf.grad = self.view(self.grad_KD, slot)
        return leaf

    @staticmethod
    def view(buffer_KD: torch.Tensor, slot: Slot) -> torch.Tensor:
        """Return the slot's tensor (K, *shape) as a view into `buffer_KD`."""
        return buffer_KD[:, slot.offset : slot.offset + slot.size].unflatten(1, slot.shape)

    def tensors(self, policy: int = 0) -> dict[str, torch.Tensor]:
        """Return copies of one policy's tensors by name, fp32, on the CPU."""
        return {slot.name: self.view(self.theta_KD, slot)[policy].cpu().clone() for slot in self.slots}

    @torch.no_grad()
    def assign(self, tensors: Mapping[str, torch.Tensor], policy: int = 0) -> None:
        """Set one policy's numbers; every slot's name must be there with its shape."""
        for slot in self.slots:
            self.view(self.theta_KD, slot)[policy].copy_(tensors[slot.name])

    def zero_grad(self) -> None:
        """Set the gradient to zero in place, which keeps the leaves' `.grad` views."""
        self.grad_KD.zero_()


def _leaves(slots: Sequence[Slot], stacks: Mapping[str, Sequence[str]]) -> list[Slot]:
    """Return where each leaf lies: the slots, with those of a stack joined into one."""
    by_name = {slot.name: slot for slot in slots}
    stack_of = {names[0]: stack for stack, names in stacks.items()}
    stacked = {name for names in stacks.values() for name in names}
    leaves = []
    for slot in slots:
        if slot.name in stack_of:
            stack = stack_of[slot.name]
            for index, name in enumerate(stacks[stack]):
                assert by_name[name].shape == slot.shape
                assert by_name[name].offset == slot.offset + index * slot.size
            slot = Slot(name=stack, shape=(len(stacks[stack]), *slot.shape), offset=slot.offset)
        elif slot.name in stacked:
            continue
        leaves.append(slot)
    return leaves


def norms(vectors_KD: torch.Tensor) -> torch.Tensor:
    """Return the norm of each row (K), of parts first: PyTorch adds the squares of a row one after the other in fp32,
    which loses 1.4 % of 134 million numbers.
    """
    return torch.stack([part.norm(dim=1) for part in vectors_KD.split(_PART, 1)]).norm(dim=0)

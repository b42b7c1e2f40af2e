"""All tensors of a policy as views into one flat (D) fp32 buffer, and their gradients into another.

Optimizer, clipping, checkpoint and non-finite checks then each work on one tensor. Each tensor is a leaf
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
    """Where one tensor lies in a policy's vector: its name, its shape, its first number."""

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
    """A policy's numbers `theta_D`, their gradient `grad_D`, and a leaf parameter for each slot."""

    def __init__(
        self,
        slots: Sequence[Slot],
        device: torch.device | str = "cpu",
        *,
        stacks: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ):
        """Allocate zeroed buffers for `slots`.

        `stacks` names leaves (E, *shape) of E slots each, which must have one shape and be neighbours in this order;
        those slots have no leaf of their own.
        """
        self.slots = tuple(slots)
        size = sum(slot.size for slot in self.slots)
        self.theta_D = torch.zeros(size, device=device)
        self.grad_D = torch.zeros_like(self.theta_D)
        self.parameters = {leaf.name: self._leaf(leaf) for leaf in _leaves(self.slots, stacks)}

    def _leaf(self, slot: Slot) -> nn.Parameter:
        leaf = nn.Parameter(self.view(self.theta_D, slot))
        leaf.grad = self.view(self.grad_D, slot)
        return leaf

    @staticmethod
    def view(buffer_D: torch.Tensor, slot: Slot) -> torch.Tensor:
        """Return the slot's tensor (*shape) as a view into `buffer_D`."""
        return buffer_D[slot.offset : slot.offset + slot.size].view(slot.shape)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return copies of the tensors by name, fp32, on the CPU."""
        return {slot.name: self.view(self.theta_D, slot).cpu().clone() for slot in self.slots}

    @torch.no_grad()
    def assign(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set the numbers; every slot's name must be there with its shape."""
        for slot in self.slots:
            self.view(self.theta_D, slot).copy_(tensors[slot.name])

    def zero_grad(self) -> None:
        """Set the gradient to zero in place, which keeps the leaves' `.grad` views."""
        self.grad_D.zero_()


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


def norm(vector_D: torch.Tensor) -> torch.Tensor:
    """Return the norm of a vector, of parts first: PyTorch adds the squares one after the other in fp32, which loses
    1.4 % of 134 million numbers.
    """
    return torch.stack([part.norm(dim=0) for part in vector_D.split(_PART)]).norm(dim=0)

import pytest
import torch

from rlora.seeding import derive_seed, generator

pytestmark = pytest.mark.unit


def test_seed_is_the_same_on_every_machine_and_depends_on_every_element() -> None:
    assert derive_seed(0, "sample", 12, "gsm8k/7") == 2193259701694609533
    seeds = {derive_seed(*path) for path in [(0,), (1,), ("0",), (0, 0), ("a", "b"), ("b", "a"), ("ab",)]}
    assert len(seeds) == 7
    assert all(0 <= seed < 2**62 for seed in seeds)


def test_generator_does_not_depend_on_the_global_state() -> None:
    torch.manual_seed(1)
    first = torch.rand(3, generator=generator(5, "x"))
    torch.manual_seed(2)
    torch.rand(10)
    assert torch.equal(first, torch.rand(3, generator=generator(5, "x")))

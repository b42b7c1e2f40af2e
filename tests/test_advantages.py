import pytest

from rlora.advantages import ADVANTAGES

pytestmark = pytest.mark.unit

REWARDS = [1.0, 0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("centered", [0.4, -0.6, -0.6, 0.4, 0.4]),
        ("standardized", [0.4 / 0.24**0.5, -0.6 / 0.24**0.5, -0.6 / 0.24**0.5, 0.4 / 0.24**0.5, 0.4 / 0.24**0.5]),
        ("leave_one_out", [1 - 2 / 4, 0 - 3 / 4, 0 - 3 / 4, 1 - 2 / 4, 1 - 2 / 4]),
        ("raw", REWARDS),
    ],
)
def test_values(name, expected) -> None:
    assert ADVANTAGES[name](REWARDS) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["centered", "standardized", "leave_one_out"])
def test_equal_rewards_carry_no_signal(name) -> None:
    assert ADVANTAGES[name]([1.0, 1.0, 1.0]) == [0.0, 0.0, 0.0]

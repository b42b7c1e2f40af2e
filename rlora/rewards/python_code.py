"""A reward for programs: `--reward rlora.rewards.python_code:score`, where a problem's answer is the text of its tests.

The program runs confined, without network, processes and writing (`rlora.rewards.sandbox`).
"""

import re

from rlora.rewards.sandbox import check_sandbox, run_programs
from rlora.types import Problem

_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)

check_sandbox()  # where nothing can be confined, nothing is to be loaded


def code_in(completion: str) -> str:
    """Return the program in a text: its last fenced block, or all of it where it has none.

    Example:
        >>> code_in("So:" + chr(10) + "```python" + chr(10) + "x = 2" + chr(10) + "```")
        'x = 2'
    """
    blocks = _BLOCK.findall(completion.rpartition("</think>")[2])
    return (blocks[-1] if blocks else completion).strip()


def score(completion: str, problem: Problem) -> tuple[float, str]:
    """Return 1 where the program in the completion passes the problem's tests, else 0, with the error as the reason."""
    ran = run_programs({"answer": code_in(completion), "tests": problem.answer})
    return float(ran.is_done), ran.error

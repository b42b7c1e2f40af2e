"""What a worker does with a task: it calls a user's function, found by its name, and says what it returned or raised.

The function finds the module path of the run. Python's own random numbers begin anew at each call, and its hashes are
the same in all workers (PYTHONHASHSEED), so that what a function earns depends on its arguments alone.
"""

import base64
import pickle
import random
import sys
import traceback
from collections.abc import Callable, Sequence
from zlib import crc32

from rlora.errors import RewardError
from rlora.registry import load
from rlora.rewards.returned import is_group_reward, rewards_in
from rlora.types import Problem
from rlora.verify.workers.pool import Job
from rlora.verify.workers.protocol import Message

_FRAMES = 1  # of the traceback, ours, above the function's


def job_of(name: str) -> Job:
    """Return the job of calling the function that `module:name` names, as this process finds it."""
    return Job(
        module=__name__,
        title=f"the reward function {name}",
        settings={"path": [str(entry) for entry in sys.path], "name": name},
        environment={"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
    )


def task_of(texts: Sequence[str], problem: Problem) -> Message:
    """Return the task of judging completions of a problem: one, or for a reward of the whole group all."""
    return {"texts": list(texts), "problem": base64.b64encode(pickle.dumps(problem, protocol=5)).decode()}


def job(settings: Message) -> Callable[[Message], Message]:
    """Return what is done with a task: the function that the settings name is loaded here, before the first one."""
    sys.path[:] = settings["path"]
    function = load(settings["name"])
    is_group = is_group_reward(function)

    def work(task: Message) -> Message:
        texts, problem = task["texts"], pickle.loads(base64.b64decode(task["problem"]))  # from the run alone
        random.seed(crc32("\0".join([problem.id, *texts]).encode(errors="surrogatepass")))
        try:
            value = function(texts if is_group else texts[0], problem)
            return {"rewards": rewards_in(value, len(texts), is_group=is_group)}
        except MemoryError:
            raise
        except RewardError as error:
            return {"failure": str(error), "trace": ""}
        except BaseException as error:  # SystemExit too: a function may raise anything
            frames = traceback.format_tb(error.__traceback__)[_FRAMES:]
            what = "".join(traceback.format_exception_only(error)).strip()
            return {"failure": f"raised {what}", "trace": "".join(frames)}

    return work

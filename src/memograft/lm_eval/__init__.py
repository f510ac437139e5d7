"""EleutherAI's lm-evaluation-harness with models that memorize. Importing this registers the model "memograft".

`memograft lm-eval` is the harness's own command line with this model. In Python:

    import lm_eval, memograft.lm_eval

    lm_eval.simple_evaluate("memograft", model_args="pretrained=tiny,memory=fastmem", tasks=["memograft_world"],
                            task_manager=memograft.lm_eval.task_manager())
"""

from __future__ import annotations

from pathlib import Path

from memograft.errors import MissingExtraError

try:
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise MissingExtraError('lm-evaluation-harness is not installed; run pip install "memograft[lm-eval]"') from error

from memograft.lm_eval.model import MemograftLM

__all__ = ["TASKS", "MemograftLM", "task_manager"]

TASKS = Path(__file__).parent / "tasks"  # for the harness's `--include_path`


def task_manager(*, defaults: bool = True, **metadata: object) -> TaskManager:
    """The harness's tasks and ours.

    Args:
        defaults: whether the harness's own tasks are included, which takes seconds.
        metadata: arguments of tasks, such as nqswap="nqswap-dev.jsonl".
    """
    return TaskManager(include_path=str(TASKS), include_defaults=defaults, metadata=metadata)

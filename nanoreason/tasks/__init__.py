"""All tasks by name. `--task NAME`, `--task NAME,WRAPPER,...`, or one of your own: `--task path/to/file.py:MyTask`."""

from nanoreason.tasks.addition import Addition
from nanoreason.tasks.attempts import Attempts, HardAttempts
from nanoreason.tasks.countdown import Countdown, CountdownWords, StreamOfSearch, ThinkingCountdown, ThreadedSearch
from nanoreason.tasks.small import SMALL
from nanoreason.tasks.suite import Suite
from nanoreason.tasks.sums import SumsInWords
from nanoreason.tasks.thinking import ThinkingAddition
from nanoreason.tasks.wrappers import WRAPPERS
from nanoreason.tasks.written import Gsm8k, Math

TASKS = {
    "addition": Addition,
    "thinking": ThinkingAddition,
    "countdown": Countdown,
    "search": StreamOfSearch,
    "threaded_search": ThreadedSearch,
    "thinking_countdown": ThinkingCountdown,
    "attempts": Attempts,
    "hard_attempts": HardAttempts,
    "sums_in_words": SumsInWords,
    "countdown_words": CountdownWords,
    "gsm8k": Gsm8k,
    "math": Math,
    **SMALL,
    "suite": Suite,
    **WRAPPERS,
}

"""What to do about a handler that fails: how often and when to try again, and what happens then. Pure decisions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal, cast, get_args

FailurePolicy = Literal["park", "dead", "skip", "stop"]
"""What happens to a message whose handler fails, and to those behind it; docs/failures.md has the table."""

_STRIDE_SECONDS = 0.02
_STRIDE_MESSAGES = 100
_DOUBLINGS = 64


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a message is tried, and when again.

    The first retry comes *backoff_seconds* seconds after the attempt that failed, each later one after twice as long, up to
    *max_delay_seconds* seconds; *jitter* takes up to that share off at random, so that what failed together is not tried together.
    An exception that is one of *give_up_on*, or none of *retry_on*, is not tried again.

    *max_attempts* counts all attempts, also those that ended with the process; None is for ever.
    """

    max_attempts: int | None = 5
    backoff_seconds: float = 1.0
    max_delay_seconds: float = 300.0
    jitter: float = 0.25
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    give_up_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if self.max_attempts is not None:
            if isinstance(self.max_attempts, bool) or not isinstance(self.max_attempts, int):
                message = f"max_attempts must be int or None, not {type(self.max_attempts).__name__}."
                raise TypeError(message)
            if self.max_attempts < 1:
                message = f"max_attempts must be 1 or more, or None, not {self.max_attempts}."
                raise ValueError(message)
        for name in ("backoff_seconds", "max_delay_seconds", "jitter"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int | float):
                message = f"{name} must be a number, not {type(number).__name__}."
                raise TypeError(message)
            if not 0 <= number < float("inf"):
                message = f"{name} must be 0 or more and finite, not {number}."
                raise ValueError(message)
        if self.jitter > 1:
            message = f"jitter is a share, from 0 to 1, not {self.jitter}."
            raise ValueError(message)
        for name in ("retry_on", "give_up_on"):
            kinds = getattr(self, name)
            if not isinstance(kinds, tuple) or not all(map(_is_exception_class, kinds)):
                message = f"{name} must be a tuple of exception classes, not {kinds!r}."
                raise TypeError(message)


def attempts_of_interrupted(retry: Retry) -> int:
    """How many attempts to count for a message that may have been attempted, but must not be skipped: 1 if possible."""
    return 0 if retry.max_attempts == 1 else 1


def is_exhausted(retry: Retry, attempts: int) -> bool:
    """Whether there is no other attempt after *attempts*."""
    return retry.max_attempts is not None and attempts >= retry.max_attempts


def is_final(retry: Retry, error: BaseException, attempts: int) -> bool:
    """Whether there is no other attempt after *attempts*, the last of which failed with *error*."""
    is_hopeless = isinstance(error, retry.give_up_on) or not isinstance(error, retry.retry_on)
    return is_hopeless or is_exhausted(retry, attempts)


def delay_seconds(retry: Retry, attempts: int, random: float) -> float:
    """How long to wait after attempt number *attempts*, from 1; *random* is in [0, 1)."""
    doubled = retry.backoff_seconds * 2.0 ** min(max(attempts - 1, 0), _DOUBLINGS)
    return min(doubled, retry.max_delay_seconds) * (1.0 - retry.jitter * random)


class FailureAction(Enum):
    """What becomes of a message whose attempt has failed."""

    PARK = auto()
    """It is set aside, and with it the later ones of its key."""
    BLOCK = auto()
    """It is tried again where it stands, and its partition waits."""
    DEAD = auto()
    SKIP = auto()
    STOP = auto()
    """Its partition waits until somebody has decided."""


def decide(policy: FailurePolicy | None, *, has_key: bool, is_final: bool, is_aside: bool) -> FailureAction:
    """Decide by *policy*; None is ``park`` for messages with a key and ``dead`` for those without.

    What *is_aside* already has no place to be held or stopped in.
    """
    if not is_final:
        may_leave = policy != "stop" if not has_key else policy in (None, "park")
        return FailureAction.PARK if is_aside or may_leave else FailureAction.BLOCK
    if policy == "skip":
        return FailureAction.SKIP
    return FailureAction.STOP if policy == "stop" and not is_aside else FailureAction.DEAD


def next_batch_hint(stride: int, handled: int, seconds: float) -> int:
    """How many messages to count together, after *handled* of *stride* took *seconds*: about 20 ms of them."""
    fitting = int(handled * _STRIDE_SECONDS / max(seconds, 1e-6)) if handled else 1
    return max(1, min(fitting, 2 * stride, _STRIDE_MESSAGES))


def check_retry(retry: object) -> Retry:
    """Return *retry*, or the default for None."""
    if retry is not None and not isinstance(retry, Retry):
        message = f"retry must be a sqlmq.Retry, not {type(retry).__name__}."
        raise TypeError(message)
    return retry or Retry()


def check_policy(policy: object) -> FailurePolicy | None:
    """Return *policy* if it is one, or None."""
    if policy is not None and policy not in get_args(FailurePolicy):
        message = f"on_failure is 'park', 'dead', 'skip' or 'stop', not {policy!r}."
        raise ValueError(message)
    return cast("FailurePolicy | None", policy)


def _is_exception_class(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)

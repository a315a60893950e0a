"""KeyboardInterrupt at each instruction at which Python may raise it: after a call, at the begin of a function, and at a jump backwards."""

from __future__ import annotations

import contextlib
import dis
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType

_CHECKS = {"CALL", "CALL_FUNCTION_EX", "CALL_KW", "RESUME", "JUMP_BACKWARD"}
"""The instructions after which Python looks for signals."""
_SWALLOWED_IN = {"__del__", "_forget_lock"}
"""Finalizers and callbacks of weak references: Python only prints what is raised there, and the call goes on."""


class Interrupter:
    """Interrupts the calling thread in the modules whose file names end with one of *files*."""

    def __init__(self, *files: str) -> None:
        self._files = files
        self._known: dict[CodeType, frozenset[int]] = {}

    def at(self, numbers: set[int], call: Callable[[], object]) -> list[str]:
        """Run *call*, with an interrupt at the places with these *numbers*, counted from 1. Return where they were."""
        count, where = 0, []

        def step(frame: FrameType, kind: str, _argument: Any) -> Any:
            nonlocal count
            if kind == "opcode" and frame.f_lasti in self._places(frame.f_code):
                count += 1
                if count in numbers:
                    where.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
                    raise KeyboardInterrupt
            return step

        def enter(frame: FrameType, kind: str, _argument: Any) -> Any:
            code = frame.f_code
            if kind != "call" or not code.co_filename.endswith(self._files) or code.co_name in _SWALLOWED_IN:
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            return step

        before = sys.gettrace()
        sys.settrace(enter)
        try:
            call()
        except BaseException:  # noqa: BLE001, S110 - what counts is what comes after it
            pass
        finally:
            sys.settrace(before)
        return where

    def each(self, call: Callable[[], Callable[[], object]], *, second: int = 0) -> Iterator[str]:
        """Run what *call* returns again and again, interrupted at the next place each time; yield the place.

        With *second*, another interrupt comes that many places after it.
        """
        number = 1
        while where := self.at({number, number + second}, call()):
            yield " and ".join(where)
            number += 1

    def _places(self, code: CodeType) -> frozenset[int]:
        if code not in self._known:
            found, before = set(), ""
            for instruction in dis.get_instructions(code):
                if before in _CHECKS:
                    found.add(instruction.offset)
                before = instruction.opname
            self._known[code] = frozenset(found)
        return self._known[code]


def ends(call: Callable[[], object], seconds: float = 10.0) -> bool:
    """Whether *call* ends in another thread, by a result or an error. One that does not end is left behind."""
    is_over = threading.Event()

    def run() -> None:
        with contextlib.suppress(Exception):  # an error is an end
            call()
        is_over.set()

    threading.Thread(target=run, daemon=True).start()
    return is_over.wait(seconds)

"""For tests of programs that use sqlmq: failpoints, and a clock that a test controls.

``failpoints`` names the places at which a test can raise an error, stop a thread or end the process. ``Clock`` replaces
the system's clock, waits and random numbers: ``MQ(..., clock=Clock(...))``.
"""

from sqlmq.hooks import failpoints
from sqlmq.hooks.clock import Clock

__all__ = ["Clock", "failpoints"]

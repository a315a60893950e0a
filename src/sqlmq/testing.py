"""For tests of programs that use sqlmq: failpoints, and a clock that a test controls.

``failpoints`` names the places at which a test can raise an error, stop a thread or end the process. ``Runtime`` replaces
the system's clock, waits and random numbers: ``MQ(..., runtime=Runtime(...))``.
"""

from sqlmq.hooks import failpoints
from sqlmq.hooks.clock import Runtime

__all__ = ["Runtime", "failpoints"]

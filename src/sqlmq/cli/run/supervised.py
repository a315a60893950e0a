"""``python -m sqlmq.cli.run.supervised SECONDS ...``: run ``sqlmq ...``, and stop it when its parent process ends.

The parent holds the other end of stdin. When the parent ends, for any reason, this process sends itself SIGTERM. If the
command has not stopped SECONDS later, the process exits.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from sqlmq.cli import main


def end_with_parent(seconds: float) -> None:
    """Wait until stdin is closed, then end this process."""
    while os.read(0, 1024):
        pass
    timer = threading.Timer(seconds, os._exit, [1])
    timer.daemon = True
    timer.start()
    if os.name == "nt":
        signal.raise_signal(signal.SIGTERM)
    else:
        # To the main thread: otherwise its blocking call would not be interrupted.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, args=[float(sys.argv[1])], name="sqlmq-parent", daemon=True).start()
    main(sys.argv[2:])

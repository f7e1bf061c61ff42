"""The entry point: parse the options, start the ring, say where it is, end it when told to.

    python launch.py --model smollm2-135m --port 8000

`supervision.supervisor` does the work; `quintet.LLM` runs the same supervisor in a thread, with the caller in the
gateway's place.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from setproctitle import setproctitle

from ipc import log as process_log
from ipc.options import OptionError, from_command_line
from ipc.process import EXIT_FATAL
from supervision.child import PACKAGES
from supervision.console import Console
from supervision.supervisor import Supervisor


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server until it is told to stop. Returns the exit code."""
    setproctitle("quintet")
    try:
        options = from_command_line(sys.argv[1:] if argv is None else argv)
    except OptionError as error:
        print(f"quintet: {error}", file=sys.stderr)
        return EXIT_FATAL
    process_log.set_up("supervisor", options["log_level"])
    console = Console()
    supervisor = Supervisor(options, list(PACKAGES), console)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: supervisor.stop())
    code = supervisor.run()
    console.close()
    if supervisor.fatal:
        print(f"quintet: {supervisor.fatal}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

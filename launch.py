"""The entry point: parse the options, start the ring, say where it is, end it when told to.

    python launch.py --model smollm2-135m --port 8000
    python launch.py top                                  the ring at work, in a terminal

`supervision.supervisor` does the work; `quintet.LLM` runs the same supervisor in a thread, with the caller in the
gateway's place.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from setproctitle import setproctitle

from ipc import log as process_log
from ipc.options import OptionError, from_command_line
from ipc.process import EXIT_FATAL
from supervision.child import PACKAGES, module_command, module_environment
from supervision.console import Console
from supervision.supervisor import Supervisor


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server until it is told to stop. Returns the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["top"]:
        os.execve(sys.executable, module_command("gateway.top") + arguments[1:], module_environment())
    setproctitle("quintet")
    try:
        options = from_command_line(arguments)
    except OptionError as error:
        print(f"quintet: {error}", file=sys.stderr)
        return EXIT_FATAL
    process_log.set_up("supervisor", options["log_level"], options["log_format"])
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

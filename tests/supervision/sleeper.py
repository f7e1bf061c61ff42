"""A process that does nothing until its standard input closes, in the place of one of the ring's."""

import sys

if __name__ == "__main__":
    sys.stdin.read()

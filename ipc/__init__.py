"""The protocol and the process harness that all five processes share."""

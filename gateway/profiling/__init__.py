"""Profiles of the whole ring: one timeline over all processes, for Perfetto."""

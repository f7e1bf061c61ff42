"""Quintet on Ray Serve: replicas that are whole rings behind one front door. docs/scaling.md explains it."""

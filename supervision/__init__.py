"""The supervisor: starts the processes of a ring, watches over them, restarts what is lost, drains and stops them."""

"""Share what every job needs: the Ray session, the task loop, loaded roles, devices, processes."""

"""A script that can not be imported must not disturb the host or other scripts."""

raise RuntimeError("this script is broken on purpose")

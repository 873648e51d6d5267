"""Imported long after the host has taken the extension out of sys.path."""

answer = 42

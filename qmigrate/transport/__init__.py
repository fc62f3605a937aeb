"""Bytes from agent to agent."""

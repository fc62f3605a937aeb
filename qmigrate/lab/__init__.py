"""Hosts made of namespaces on this machine, to try everything for real."""

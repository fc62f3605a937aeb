"""A command a module; each has `add_parser(commands)`, which sets what `run` is."""

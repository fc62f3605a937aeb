"""Bad luck by plan: every fault of the handover struck on purpose, and the end looked at.

::

    cells.py      the table: victim, fault, phase, where it is placed, the end expected beforehand
    runner.py     one cell after another on a `Ground`; random walks
    checks.py     what the end looked like, judged against the table                      pure
    lab_ground.py     a lab of its own, looked at and struck from outside
    hosts_ground.py   two real hosts, by their agents alone
"""

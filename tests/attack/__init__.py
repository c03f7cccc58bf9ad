"""A campaign of attacks on the command line: random kills, wrong fields, bad options, environments, control characters, full disks.

    python -m tests.attack --trials 800 --seed 1            # in forks of one process that has all imported
    python -m tests.attack --trials 200 --seed 1 --cli      # each a process of its own
    python -m tests.attack --every run.json                 # every value of these files, wrong in each kind of way

trial.py runs one and says what is wrong with it; kinds.py and fields.py draw them. What a campaign found is a case that stays, in
tests/test_attack_cases.py.
"""

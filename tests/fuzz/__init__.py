"""Every input an answer, every stop a clean one: generated cases for all commands.

A warm process, which has imported everything, forks a process per case (:mod:`.forking`), runs one
command of the command line in a copy of a small project (:mod:`.project`) and judges how it ended
(:mod:`.verdicts`). Configurations and options, tuner files and json files come from Hypothesis;
full disks and kills are enumerated. ``python -m tests.fuzz --help`` runs a campaign of any length,
``test_fuzz.py`` a short one.
"""

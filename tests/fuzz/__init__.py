"""Every input an answer, every stop a clean one: generated cases for all commands.

A warm process, which has imported everything, forks a process per case (:mod:`.forking`), runs one
command of the command line in a copy of a small project (:mod:`.project`) and judges how it ended
(:mod:`.verdicts`). Configurations, options and files come from Hypothesis (:mod:`.campaigns`); full
disks, kills and commands at once are enumerated for the commands of :mod:`.scenarios`. ``python -m
tests.fuzz --help`` runs a campaign of any length, ``test_fuzz.py`` a short one.
"""

"""YAML to one checked, frozen object: what an experiment is."""

"""What a run is, from its first step to its folder."""

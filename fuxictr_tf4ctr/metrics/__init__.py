"""AUC, logloss and their kin: whole, grouped, spread over ranks, on a device, resampled."""

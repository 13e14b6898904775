"""Quality of a run's answers: metrics, bootstrap, calibration."""

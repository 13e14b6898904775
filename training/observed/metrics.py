"""Metrics of observed.prom by name, with their help texts. All are gauges of the newest whole joined day."""

METRICS = {
    "ranking_observed_calibration_ratio": "Sum of answers over sum of labels, on the newest whole joined day",
    "ranking_observed_ne": "Loss of answers over that of the best constant, on the newest whole joined day",
    "ranking_observed_day_end_timestamp_seconds": "End of the newest whole joined day",
}

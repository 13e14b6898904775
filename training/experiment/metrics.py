"""Metrics of experiment.prom by name, with their help texts. All are gauges of the last analysis."""

METRICS = {
    "ranking_experiment_sample_ratio_p_value": (
        "Chance of arms as far from their shares, over all looks together, at the last analysis"
    ),
    "ranking_experiment_users": "Users exposed to an arm, at the last analysis",
    "ranking_experiment_analysed_timestamp_seconds": "Time of the last analysis",
    "ranking_experiment_analysis_status": "Status of the last analysis: 0 readable, 3 too few users, 4 faulty arms",
}

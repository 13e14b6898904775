"""Running it elsewhere, by HTTP: demo, load test, dashboards, alerts."""

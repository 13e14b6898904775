"""What runs beside the service: the demo, and later manifests, dashboards and the load test. Speaks HTTP."""

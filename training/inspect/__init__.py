"""Inside a network: gates, policies, conflicts of the tasks."""

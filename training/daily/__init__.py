"""The daily cycle: join, judge, gates, training, export and labels in their order, resumed after any kill."""

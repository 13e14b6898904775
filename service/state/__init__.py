"""Users by id: their state in a store, taken into requests, and what events add to it."""

"""Windows of days that move with a log: which days it has, and the ranges of values that windows are."""

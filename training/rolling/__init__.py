"""`python -m training rolling`: methods chosen on rolling days, with the same number of trials for each.

rolling_file.py reads the file, choosing.py runs the trials, and choice_report.py says what they chose.
"""

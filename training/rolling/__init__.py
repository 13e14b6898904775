"""`python -m training rolling`: methods chosen on rolling days, frozen in a file, and read once on a later day.

rolling_file.py reads the file, choosing.py runs the trials and choice_report.py says what they chose. frozen.py keeps
it. reading.py answers the test day, figures.py measures, reading_report.py writes, and readings.py lists readings.
"""

"""`python -m training compare EXPERIMENT`: networks x datasets x seeds, and whether their differences are real.

experiment.py reads the file, runner.py trains every cell once, analysis.py makes tables of predictions by the tests
of statistics.py and resampling.py, report.py writes them.
"""

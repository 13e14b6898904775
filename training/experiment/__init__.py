"""`python -m training experiment DATA`: what the arms of an experiment did to users, with intervals."""

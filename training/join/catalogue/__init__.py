"""Features that candidates took from a catalogue, read from the files of its items."""

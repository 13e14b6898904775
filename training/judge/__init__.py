"""Judgement of versions on what users did: confidence sequences, verdict, gates. Figures in, reasons out."""

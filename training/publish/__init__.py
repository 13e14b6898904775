"""A run -> an artifact: export, compiled packages, catalogues, signatures."""

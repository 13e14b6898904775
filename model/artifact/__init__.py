"""A published version and what lies beside it: manifest, signature, tables, compiled packages, catalogue."""

"""A published version and what is made from it: manifest, signature, tables, compiled packages, catalogue."""

"""The proof of the loop: a simulated town whose tastes shift, served and retrained night after night."""

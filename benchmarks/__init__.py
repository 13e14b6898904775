"""One module per `make bench-*`, and under results/ what each wrote: figures with command, commit, machine and date."""

# Aliases only: everything is in dev.py, which needs nothing but Python.
.PHONY: run test lab docs size nightly sync
run test lab docs size nightly sync:
	@python3 dev.py $@

# `make` is a contributor's morning: format, lint, types, tests. Nothing to install but '.[all,dev]'.

.PHONY: all fix lint types test exploits bench

all: fix lint types test

fix:
	ruff format .
	ruff check --fix .

lint:
	ruff check .
	ruff format --check .

types:
	mypy

test:
	pytest

exploits:
	python exploits/run_all.py

bench:
	python benchmarks/overhead.py
	python benchmarks/overhead.py --hearing
	python benchmarks/kill.py
	python benchmarks/text.py

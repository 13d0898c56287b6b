"""Measures this project beside its peers at the same work: the script (see `benchmarks.command`)."""

from functools import partial

from pyro_vae.app.start import run

main = partial(run, "benchmarks.command")

if __name__ == "__main__":
    main()

"""The console script `ssl-jax`, and `python -m ssl_jax`: what `python -m ssl_jax.main` does."""

from ssl_jax.processes import malloc


def start() -> None:
    """Runs the command line and ends the process with its exit code."""
    malloc.start_in_huge_pages()  # before anything large is imported: it begins again from here
    import sys

    from ssl_jax import main
    from ssl_jax.processes import join

    join.leave(main.main, sys.argv[1:])


if __name__ == "__main__":
    start()

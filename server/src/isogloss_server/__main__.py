"""Entry point of `python -m isogloss_server`."""

from isogloss_server.cli import run

if __name__ == "__main__":
    run()

"""The command line's way in: nothing is imported before an interruption can be told in a line."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from .cli import main as run

        run()
    except KeyboardInterrupt:  # while it is imported, or outside of any command
        print("ssmax-eval: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()

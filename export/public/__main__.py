"""``bakeout`` and ``python -m bakeout``: the command line, with signals handled before anything heavy is loaded."""

from bakeout.export.cli.signals import end_by_signals, ended_by_signals


def main() -> None:
    """Run the command that the arguments name."""
    end_by_signals()
    with ended_by_signals():
        from bakeout.export.cli.main import main as run

        run()


if __name__ == "__main__":
    main()

from u2pl.cli.client import delegate


def main() -> None:
    delegate()
    from u2pl.cli.main import main as run  # after that: it takes half a second

    run()


if __name__ == "__main__":
    main()

from u2pl.cli.main import main

main()

from u2pl.cli import main

main()

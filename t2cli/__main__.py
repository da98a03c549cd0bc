"""`python -m t2cli` is `t2`."""

from t2cli.cli.app import main

if __name__ == "__main__":
    main()

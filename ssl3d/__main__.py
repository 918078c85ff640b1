"""`python -m ssl3d`: the same as the command `ssl3d`."""

from ssl3d.cli import main

if __name__ == "__main__":
    main()

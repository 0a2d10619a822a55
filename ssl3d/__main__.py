"""python -m ssl3d: the same as the ssl3d command."""

from ssl3d.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

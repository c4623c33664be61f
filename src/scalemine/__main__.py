"""``python -m scalemine``."""

from scalemine.cli import main

if __name__ == "__main__":
    main()

"""A finetuned model in the browser: python tools/app.py --help"""

from m2i2.cli.app import main

if __name__ == "__main__":
    raise SystemExit(main())

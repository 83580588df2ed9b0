"""Turn data sets into shards: python tools/make_shards.py --help"""

from m2i2.cli.make_shards import main

if __name__ == "__main__":
    raise SystemExit(main())

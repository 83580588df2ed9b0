"""Where in an image an answer comes from: python tools/gradcam.py --help"""

from m2i2.cli.gradcam import main

if __name__ == "__main__":
    raise SystemExit(main())

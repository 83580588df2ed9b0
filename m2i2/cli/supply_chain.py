"""``tools/supply_chain.py``: what is installed, checked without a network."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from m2i2.exits import EXIT_USER_ERROR, guarded

DESCRIPTION = """Check the packages of this environment: against the file of hashes that make setup installs from, against the list
of licences, and against advisories in a file; and list them as a bill of materials. Nothing of it asks a network."""

EXAMPLES = """examples:
  python tools/supply_chain.py versions requirements/linux-x86_64-cpython-3.11.txt
  python tools/supply_chain.py licences requirements/licences.json
  python tools/supply_chain.py sbom sbom.json
  python tools/supply_chain.py audit all.zip
      advisories in the OSV format: what osv.dev gives as the archive of PyPI, a JSON list, JSON lines, or a folder
exit codes: 0 in order; 2 something is not, or cannot be read."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="supply_chain.py",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text, metavar in (
        ("versions", "compare what is installed with a file of versions and hashes", "FILE"),
        ("licences", "compare the licences of what is installed with a list", "FILE"),
        ("sbom", "write a bill of materials (CycloneDX 1.6)", "FILE"),
        ("audit", "look for what is installed among advisories", "FILE"),
    ):
        commands.add_parser(name, help=text, description=text, allow_abbrev=False).add_argument("file", type=Path, metavar=metavar)
    arguments = parser.parse_args(argv)
    return guarded(lambda: _run(arguments.command, arguments.file))


def _run(command: str, file: Path) -> int:
    from m2i2 import supply_chain
    from m2i2.errors import M2I2Error
    from m2i2.files import write_text
    from m2i2.terminal import say

    packages = supply_chain.installed()
    if command == "sbom":
        try:
            write_text(file, json.dumps(supply_chain.bill_of_materials(packages), indent=1) + "\n")
        except OSError as e:
            raise M2I2Error(f"Cannot write {file}: {e.strerror}. Name another file.") from e
        say(f"{len(packages)} packages written to {file}.")
        return 0
    told = f"{len(packages)} packages"
    if command == "versions":
        faults = supply_chain.differences(packages, supply_chain.read_lock(file))
    elif command == "licences":
        faults = supply_chain.licence_faults(packages, file)
    else:
        findings, records = supply_chain.audit(packages, supply_chain.read_advisories(file))
        faults = [
            f"{found.package.name} {found.package.version}: {found.advisory}: {found.summary} Fixed in: {found.fixed}"
            for found in findings
        ]
        told += f" against {records} advisories"
    for fault in faults:
        say(fault, file=sys.stderr)
    if faults:
        say(f"error: {len(faults)} finding(s) in {told}; {file} is what they were compared with.", file=sys.stderr)
        return EXIT_USER_ERROR
    say(f"{told}: in order.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

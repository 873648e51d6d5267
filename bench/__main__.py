"""`python -m bench [NAME …] [--small] [--json FILE] | --list`: measure, show a table, write JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
import time

import bench


def names() -> list[str]:
    """The benchmarks: every module of this package that does not start with an underscore."""
    return sorted(module.name for module in pkgutil.iter_modules(bench.__path__) if not module.name.startswith("_"))


def rows(value: object, path: str = "") -> list[tuple[str, str]]:
    """A nested result as (name, value) lines, in the order in which it was written."""
    if isinstance(value, dict):
        return [row for key, part in value.items() for row in rows(part, f"{path}.{key}" if path else str(key))]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [row for number, part in enumerate(value) for row in rows(part, f"{path}[{number}]")]
    return [(path, f"{value:,.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value))]


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which to run; without a name, all")
    parser.add_argument("--small", action="store_true", help="small shapes: seconds instead of minutes, the same code")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--list", action="store_true", help="name them and stop")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in names()]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are: {', '.join(names())}")
    results = {}
    for name in args.names or names():
        module = importlib.import_module(f"bench.{name}")
        summary = (module.__doc__ or "").strip().split("\n")[0]
        if args.list:
            print(f"{name:<20} {summary}")
            continue
        print(f"{name}: {summary}", flush=True)
        started = time.perf_counter()
        results[name] = module.run(small=args.small)
        table = rows(results[name])
        width = max((len(label) for label, _ in table), default=0)
        for label, value in table:
            print(f"  {label:<{width}}  {value}")
        print(f"  ({time.perf_counter() - started:.1f} s)\n", flush=True)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=2, default=str)
    return 0


if __name__ == "__main__":
    sys.exit(main())
